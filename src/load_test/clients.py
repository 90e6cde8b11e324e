"""Requests to one engine as users send them: a fixed number at a time (closed loop) or at a given rate whoever is still
waiting (open loop).

A caller answers one conversation: `ask(messages) -> Answer`, from many threads. An in-process engine answers what waits
in one batch; for a server, several client processes share the load, so that no interpreter's lock stands between an
answer and its clock.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

import interruption
from common import WorkFailed

CLIENTS_A_PROCESS = 16
GATHER_S = 0.001  # an in-process engine begins when nobody has joined its batch for so long
DIED = "a client process of the benchmark died; its message stands above"
MOST_WAITING = 512  # requests that an open loop keeps in progress; a later one waits here, and its wait counts


@dataclass(frozen=True)
class Level:
    """One load: so many at a time, or so many a second."""

    form: str  # closed or open
    n: int  # requests that are measured
    concurrency: int | None = None
    rate: float | None = None

    @property
    def title(self):
        return f"{self.concurrency} at a time" if self.form == "closed" else f"{self.rate:g} a second"


class MicroBatches:
    """An in-process engine as a caller: whatever waits when it becomes free is its next batch, as far as it fits."""

    def __init__(self, engine):
        self.engine = engine
        self.waiting = SimpleQueue()
        self.most = engine.batch_size
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, messages):
        mine = SimpleQueue()
        asked = time.monotonic()
        self.waiting.put((messages, mine))
        began, answer = mine.get()
        if isinstance(answer, Exception):
            raise answer
        # The engine's clock began with the batch.
        return answer if answer.first_s is None else replace(answer, first_s=answer.first_s + began - asked)

    def _work(self):
        while True:
            batch = [self.waiting.get()]
            with contextlib.suppress(Empty):
                while len(batch) < self.most:
                    batch.append(self.waiting.get(timeout=GATHER_S))
            began = time.monotonic()
            try:
                for position, answer in self.engine.answers([messages for messages, _ in batch]):
                    batch[position][1].put((began, answer))
            except Exception as error:
                for _, mine in batch:
                    mine.put((began, error))


class Streaming:
    """A server's engine as a caller: each answer is streamed, so that the time of its first token is known."""

    def __init__(self, connect, *arguments):
        self.engine = connect(*arguments)

    def ask(self, messages):
        return self.engine.ask(messages, streams=True)


def timed(caller, messages, intended=None):
    """One request's record; an open loop's clock starts when the request was meant to be sent."""
    start = time.monotonic()
    answer = caller.ask(messages)
    end = time.monotonic()
    since = start if intended is None else intended
    first = None if answer.first_s is None else start - since + answer.first_s
    return {
        "intended_s": since,
        "sent_s": start,
        "done_s": end,
        "latency_s": end - since,
        "first_token_s": first,
        "answer": answer,
    }


def closed_loop(caller, conversations, concurrency):
    """Every client sends its next request when it has its answer."""
    places = deque(range(len(conversations)))
    lock = threading.Lock()
    records = [None] * len(conversations)

    def client():
        while True:
            with lock:
                if not places:
                    return
                at = places.popleft()
            try:
                records[at] = timed(caller, conversations[at])
            except BaseException:
                places.clear()
                raise

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for done in [pool.submit(client) for _ in range(concurrency)]:
                done.result()
        finally:
            # Stopped by the keyboard, the clients end with the answers that they are waiting for.
            places.clear()
    return records


def open_loop(caller, conversations, rate, seed):
    """Requests come at random moments, `rate` of them a second, and wait for nobody."""
    drawn = random.Random(seed)
    moments = list(itertools.accumulate(drawn.expovariate(rate) for _ in conversations))
    start = time.monotonic()

    stopped = threading.Event()

    def send(messages, moment):
        return (
            None
            if stopped.wait(max(0.0, start + moment - time.monotonic()))
            else timed(caller, messages, start + moment)
        )

    with ThreadPoolExecutor(min(MOST_WAITING, len(conversations))) as pool:
        try:
            return list(pool.map(send, conversations, moments))
        finally:
            # Stopped by the keyboard, nobody sends what was meant for later.
            stopped.set()


def run_level(caller, conversations, level, seed=0):
    if level.form == "closed":
        return closed_loop(caller, conversations, level.concurrency)
    return open_loop(caller, conversations, level.rate, seed)


class Here:
    """The load comes from threads of this process."""

    def __init__(self, batches):
        self.batches = batches

    def run(self, conversations, level):
        self.batches.most = level.concurrency or self.batches.engine.batch_size
        return run_level(self.batches, conversations, level)


class Processes:
    """The load comes from processes of its own, each with a share of the clients."""

    def __init__(self, make_caller, arguments, most_clients):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.workers = []
        for _ in range(-(-most_clients // CLIENTS_A_PROCESS)):
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(make_caller, arguments, theirs), daemon=True)
            worker.start()
            theirs.close()  # or a worker's death would never be seen
            self.pipes.append(ours)
            self.workers.append(worker)
        for pipe in self.pipes:
            self._received(pipe)

    def run(self, conversations, level):
        """A level shared out: rows and clients by turns."""
        clients = min(level.concurrency or len(self.pipes), len(conversations))
        shares = [
            (at, clients // len(self.pipes) + (at < clients % len(self.pipes)))
            for at in range(min(clients, len(self.pipes)))
        ]
        n = len(shares)
        for at, of_clients in shares:
            part = Level(
                level.form, level.n, of_clients if level.concurrency else None, level.rate / n if level.rate else None
            )
            self._send(self.pipes[at], (conversations[at::n], part, at))
        found = [None] * len(conversations)
        for at, _ in shares:
            found[at::n] = self._received(self.pipes[at])
        return found

    def _send(self, pipe, value):
        try:
            pipe.send(value)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkFailed(DIED) from None

    def _received(self, pipe):
        try:
            result = pipe.recv()
        except (EOFError, ConnectionResetError):
            raise WorkFailed(DIED) from None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self):
        for worker in self.workers:
            worker.terminate()


def work(make_caller, arguments, pipe):
    """A client process: makes its caller, says that it is there, then runs its share of every level."""
    interruption.leave_to_parent()
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        caller = make_caller(*arguments)
        pipe.send("ready")
        while True:
            pipe.send(run_level(caller, *pipe.recv()))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(error)


def end_with_parent():
    """A client outlives nobody: a benchmark that is ended from outside must not leave its load behind."""
    multiprocessing.parent_process().join()
    os._exit(1)
