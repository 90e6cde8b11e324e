"""The queue in which requests wait for the model. It has a length: a request that finds it full is turned away at once,
with a time to come again.

Worker threads take from it. An engine in this process has one, which answers what waits in batches of rows that are
about as long: all rows of a batch are padded to the longest, and one odd record would cost everyone its length. A
server elsewhere has many threads, each asking for one answer, and does its own batching.
"""

import asyncio
import contextlib
import heapq
import math
import statistics
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
MOST_PADDED = 2.0  # a batch's rows, all as long as its longest, over what they hold
ROW_TOKENS = 256  # a batch holds at most so many times its rows: sixteen long ones at once would take half a minute
LONG = 3.0  # over the usual length of what waits: whoever is longer gives way to the others
PATIENT_SHARE = 0.5  # of the time that a request has, after which one that gives way to others does so no longer


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
    due_s: float  # the earlier, the sooner it is answered
    patience_s: float  # for which it gives way to others where it is far longer
    loop: object
    future: object
    n_tokens: int | None = None  # of its prompt, once it was read; a fourth of its letters where an engine says none

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
    def __init__(self, engine, most_waiting, n_workers=1, n_batches_seen=1):
        self.engine = engine
        self.most_waiting = most_waiting
        self.most_at_once = 1 if engine.is_elsewhere else engine.batch_size
        self.most_seen = n_batches_seen * self.most_at_once
        self.waiting = []
        self.is_open = True
        self.is_broken = False  # an engine in this process failed on the last batch
        self.n_inside = 0  # waiting or being answered and not patient: now, and at most since the last batch was taken
        self.most_inside = 0
        self.linger_s = 0.0
        self.changed = threading.Condition()
        self.recent = deque(maxlen=RECENT)
        self.n_workers = n_workers
        for _ in range(n_workers):
            threading.Thread(target=self._work, daemon=True).start()

    def __len__(self):
        return len(self.waiting)

    async def answer(self, messages, timeout_s, with_shares=False, is_patient=False):
        """The model's Answer, or Busy, TooLong, Unanswered, TimeoutError. A patient request lets others go first, for a
        share of its time.
        """
        loop = asyncio.get_running_loop()
        patience_s = PATIENT_SHARE * timeout_s
        due_s = time.monotonic() + (patience_s if is_patient else 0)
        mine = Waiting(messages, with_shares, due_s, patience_s, loop, loop.create_future())
        with self.changed:
            if not self.is_open or len(self.waiting) >= self.most_waiting:
                raise Busy(self.wait_s())
            self.waiting.append(mine)
            QUEUE_DEPTH.inc()
            self.n_inside += not is_patient
            self.most_inside = max(self.most_inside, self.n_inside)
            self.changed.notify()
        try:
            return await asyncio.wait_for(mine.future, timeout_s)
        finally:
            self._leave(mine, is_patient)

    def wait_s(self):
        """Whole seconds after which the queue, as long as it is now, will have moved on."""
        each = sum(self.recent) / len(self.recent) if self.recent else FIRST_GUESS_S
        return max(1, math.ceil(each * len(self.waiting)))

    def close(self):
        """Take in no request any more; those that wait are still answered."""
        self.is_open = False

    def _leave(self, mine, is_patient):
        with self.changed:
            self.n_inside -= not is_patient
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
            wanted = 0 if self.engine.is_elsewhere else min(self.most_inside, self.most_at_once)
            until = time.monotonic() + self.linger_s
            while self._n_urgent() < wanted and (left := until - time.monotonic()) > 0:
                self.changed.wait(left)
            self.most_inside = self.n_inside
            seen = heapq.nsmallest(self.most_seen, self.waiting, key=lambda one: one.due_s)
            if self.engine.is_elsewhere:
                return self._taken(seen)
        fitting = self._fitting(seen)
        batch = together(fitting, self.most_at_once)
        with self.changed:
            refused = [one for one in seen if one not in fitting]
            return [one for one in self._taken([*refused, *batch]) if one in batch]

    def _n_urgent(self):
        """Who waits and gives way to nobody."""
        now = time.monotonic()
        return sum(one.due_s <= now for one in self.waiting)

    def _taken(self, these):
        """Those of them that still wait, and no longer do."""
        found = [one for one in these if one in self.waiting]
        for one in found:
            self.waiting.remove(one)
        QUEUE_DEPTH.dec(len(found))
        return found

    def _work(self):
        while True:
            batch = self._take()
            start = time.monotonic()
            try:
                if batch:
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
        for at, answer in self.engine.answers([one.messages for one in batch]):
            # Before anyone gets an answer, the engine counts as whole again.
            self.is_broken = False
            batch[at].resolve(answer)

    def _fitting(self, seen):
        """Those whose prompts the model can read; the others are refused: one odd prompt must not fail its batch."""
        fitting = []
        for one in seen:
            try:
                if one.n_tokens is None:
                    n_tokens = self.engine.check_prompt(one.messages)
                    one.n_tokens = n_letters(one.messages) // 4 if n_tokens is None else n_tokens
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


def n_letters(messages):
    return sum(len(message["content"]) for message in messages)


def together(waiting, most):
    """The next batch: who is due first, then those nearest to it in length whom it does not cost much padding."""
    if not waiting:
        return []
    usual = statistics.median_low(one.n_tokens for one in waiting)

    def due_s(one):
        return one.due_s + (one.patience_s if one.n_tokens > LONG * usual else 0)

    first = min(waiting, key=due_s)
    batch = [first]
    longest = n_tokens = first.n_tokens
    now = time.monotonic()
    # Who gives way to others only fills up what they leave free.
    for one in sorted(waiting, key=lambda one: (due_s(one) > now, abs(one.n_tokens - first.n_tokens))):
        longest_then = max(longest, one.n_tokens)
        padded = longest_then * (len(batch) + 1)
        fits = padded <= min(MOST_PADDED * (n_tokens + one.n_tokens), ROW_TOKENS * most)
        fits = fits and longest_then <= LONG * min(first.n_tokens, one.n_tokens)
        if one is not first and len(batch) < most and fits:
            batch.append(one)
            longest = longest_then
            n_tokens += one.n_tokens
    return batch


def resolve_all(batch, result):
    for one in batch:
        one.resolve(result)
