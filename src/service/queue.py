"""The queue in which requests wait for the model. It has a length: a request that finds it full is turned away at once,
with a time to come again.

Worker threads take from it. An engine in this process has one, which answers whatever waits as one batch; a server
elsewhere has many, each asking for one answer, and does its own batching.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from common import UserError
from service.metrics import QUEUE_DEPTH, place_of

LINGER_SHARE = 0.05  # of the last batch's time, which the next one waits for those that were just answered to ask again
LONGEST_LINGER_S = 0.05
RECENT = 50  # answers whose time shows how fast the queue moves
FIRST_GUESS_S = 0.1  # an answer, before there was one


class Busy(Exception):
    """The queue is full, or the service is going down; `after_s` says when to come again."""

    def __init__(self, after_s):
        super().__init__("too many requests are waiting")
        self.after_s = after_s


class TooLong(Exception):
    """The model cannot read so much."""


class Unanswered(Exception):
    """The engine failed; the words are for an operator and hold no text of a case."""


@dataclass(eq=False)
class Waiting:
    messages: list
    with_shares: bool  # of the labels; an engine in this process gives them always
    loop: object
    future: object

    def resolve(self, result):
        """Hand the result over, from a worker's thread; a request that has stopped waiting gets nothing."""
        self.loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result):
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Queue:
    def __init__(self, engine, most_waiting, n_workers=1, most_at_once=1):
        self.engine = engine
        self.most_waiting = most_waiting
        self.most_at_once = most_at_once
        self.waiting = deque()
        self.is_open = True
        self.is_broken = False  # an engine in this process failed on the last batch
        self.n_inside = 0  # waiting or being answered: now, and at most since the last batch was taken
        self.most_inside = 0
        self.linger_s = 0.0
        self.changed = threading.Condition()
        self.recent = deque(maxlen=RECENT)
        self.n_workers = n_workers
        for _ in range(n_workers):
            threading.Thread(target=self._work, daemon=True).start()

    def __len__(self):
        return len(self.waiting)

    async def answer(self, messages, timeout_s, with_shares=False):
        """The model's Answer, or Busy, TooLong, Unanswered, TimeoutError."""
        loop = asyncio.get_running_loop()
        mine = Waiting(messages, with_shares, loop, loop.create_future())
        with self.changed:
            if not self.is_open or len(self.waiting) >= self.most_waiting:
                raise Busy(self.wait_s())
            self.waiting.append(mine)
            QUEUE_DEPTH.inc()
            self.n_inside += 1
            self.most_inside = max(self.most_inside, self.n_inside)
            self.changed.notify()
        try:
            return await asyncio.wait_for(mine.future, timeout_s)
        finally:
            self._leave(mine)

    def wait_s(self):
        """Whole seconds after which the queue, as long as it is now, will have moved on."""
        each = sum(self.recent) / len(self.recent) if self.recent else FIRST_GUESS_S
        return max(1, math.ceil(each * len(self.waiting)))

    def close(self):
        """Take in no request any more; those that wait are still answered."""
        self.is_open = False

    def _leave(self, mine):
        with self.changed:
            self.n_inside -= 1
            if not mine.future.done() or mine.future.cancelled():
                with contextlib.suppress(ValueError):
                    self.waiting.remove(mine)
                    QUEUE_DEPTH.dec()

    def _take(self):
        """The next batch: what waits, after a moment for those to come back who were there before. Else two halves of
        them would take turns for ever.
        """
        with self.changed:
            while not self.waiting:
                self.changed.wait()
            wanted = min(self.most_inside, self.most_at_once)
            until = time.monotonic() + self.linger_s
            while len(self.waiting) < wanted and (left := until - time.monotonic()) > 0:
                self.changed.wait(left)
            self.most_inside = self.n_inside
            batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.most_at_once))]
            QUEUE_DEPTH.dec(len(batch))
            return batch

    def _work(self):
        while True:
            batch = self._take()
            start = time.monotonic()
            try:
                self._answer(batch)
            except Exception as error:
                self.is_broken = True
                resolve_all(batch, Unanswered(place_of(error)))
            seconds = time.monotonic() - start
            self.linger_s = min(LONGEST_LINGER_S, LINGER_SHARE * seconds)
            if batch:
                self.recent.append(seconds / len(batch) / self.n_workers)

    def _answer(self, batch):
        if self.engine.is_elsewhere:
            for one in batch:
                one.resolve(self._asked(one))
            return
        fitting = self._fitting(batch)
        if not fitting:
            return
        for at, answer in self.engine.answers([one.messages for one in fitting]):
            # Before anyone gets an answer, the engine counts as whole again.
            self.is_broken = False
            fitting[at].resolve(answer)

    def _fitting(self, batch):
        """Those whose prompts the model can read; the others are refused: one odd prompt must not fail its batch."""
        fitting = []
        for one in batch:
            try:
                self.engine.check_prompt(one.messages)
                fitting.append(one)
            except Exception as error:
                one.resolve(refusal(error))
        return fitting

    def _asked(self, one):
        try:
            return self.engine.ask(one.messages, with_shares=one.with_shares)
        except Exception as error:
            return refusal(error)


def refusal(error):
    """What an engine raised, as the request gets it; an engine's UserError is about the prompt's length."""
    return TooLong(str(error)) if isinstance(error, UserError) else Unanswered(place_of(error))


def resolve_all(batch, result):
    for one in batch:
        one.resolve(result)
