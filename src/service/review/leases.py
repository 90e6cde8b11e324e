"""Which case is shown to whom: for a while nobody else is shown it.

The leases lie in a file beside the decisions, so that all workers of a service know them; whoever calls is alone with
the decisions (Decisions.reading). Where the file cannot be written each worker knows its own.
"""

import contextlib
import json
import os
import time

LEASE_S = 600.0


class Leases:
    """{case's hash: (reviewer, until when, by the clock of the day)}"""

    def __init__(self, path, most):
        self.path = path
        self.most = most
        self.unwritten = {}  # what could not be written

    def of_others(self, reviewer):
        """The cases that others are looking at."""
        return {pair for pair, (holder, _) in self._all().items() if holder != reviewer}

    def give(self, pair, reviewer):
        """Keep a case for a reviewer, who gives up the earliest of too many."""
        leases = {one: lease for one, lease in self._all().items() if one != pair}
        own = sorted((until, one) for one, (holder, until) in leases.items() if holder == reviewer)
        for _, one in own[: max(0, len(own) + 1 - self.most)]:
            del leases[one]
        leases[pair] = (reviewer, time.time() + LEASE_S)
        self._write(leases)

    def _all(self):
        now = time.time()
        # Of a clock that was set back, no lease lasts longer than it would have.
        return {
            pair: (holder, until)
            for pair, (holder, until) in (self._written() | self.unwritten).items()
            if now < until <= now + LEASE_S
        }

    def _written(self):
        # A file that somebody damaged holds no lease.
        with contextlib.suppress(OSError, ValueError, TypeError, ArithmeticError, RecursionError):
            found = json.loads(self.path.read_bytes())
            return {pair: (str(holder), float(until)) for pair, (holder, until) in dict(found).items()}
        return {}

    def _write(self, leases):
        text = json.dumps(leases).encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                # Over the old ones first: on a full disk there is no space but theirs.
                n_written = os.pwrite(file, text, 0)
                os.ftruncate(file, n_written)
            finally:
                os.close(file)
            self.unwritten = {} if n_written == len(text) else leases
        except OSError:
            self.unwritten = leases
