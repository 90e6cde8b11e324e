"""The cases that wait for a person, with the model's answers, and what was decided about them.

The model answers them in the background while no request waits; those of whose verdict it is least certain come first.
"""

import asyncio
import contextlib
import functools
import json
import random
import statistics
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import WorkFailed
from rows import cases_from_file
from service.bodies import Refused
from service.metrics import place_of
from service.review.chain import Changed
from service.review.decisions import Decisions, Held, case_hash, entry_key, model_key, other_tasks, standing
from service.review.kept_answers import KeptAnswers
from service.review.leases import Leases

SCORED_AT_ONCE = 8  # cases that the background has in the queue
IDLE_S = 0.2  # how often it looks whether the queue is empty
MOST_PASSING = 2_000  # answered requests that are kept for review
N_THREADS = 4  # of the review's own: a lock that is held must not stop what else the service does in threads
AFTER_FAILURE_S = 5.0  # before cases are tried again that got no answer


@dataclass
class Item:
    """One case to review, with the model's answer once there is one."""

    pair: str  # its hash
    case: object
    id: str | None = None
    answer: dict | None = None
    probabilities: dict | None = None
    error: str | None = None  # why the model can never answer it

    @property
    def is_done(self):
        return self.answer is not None or self.error is not None

    @property
    def certainty(self):
        return max((self.probabilities or {"": 1.0}).values())


class Reviews:
    """The review of one task: `answer(messages, with_shares)` is the service's way to the model, `is_free()` whether no
    request waits for it, `model` its name for decisions.
    """

    def __init__(self, contract, folder, cases_file, model, answer, is_free):
        self.contract = contract
        self.task = contract.task
        self.verdict = contract.task.verdict
        self.folder = Path(folder)
        self.model = model
        self.answer = answer
        self.is_free = is_free
        self.decisions = opened(self.folder / "decisions.jsonl", self.task, contract.limits.lock_s)
        self.leases = Leases(self.folder / "leases.json", contract.limits.most_leases)
        self.kept_answers = KeptAnswers(self.folder / "answers.jsonl", self.task, model)
        self.threads = ThreadPoolExecutor(N_THREADS, "review")
        self.items = {}
        self.passing = set()
        cases = cases_from_file(cases_file, self.task) if cases_file else ()
        for named, case in cases:
            self.offer(case, named.get("id"))
        self.n_repeated = len(cases) - len(self.items)  # lines of the file whose case stood there before
        self.refresh()

    @property
    def entries(self):
        return self.decisions.entries

    async def in_turn(self, work, *args):
        """The result of work on the decisions, in a thread of the review's own; Refused where the file's lock is not
        free in time, counted from now.
        """
        call = functools.partial(work, *args, until=self.decisions.deadline())
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, call)
        except Held:
            raise Refused(
                503, "another process holds the file of decisions; nothing was written, try again", {"Retry-After": "1"}
            ) from None

    # ---- the cases

    def offer(self, case, id=None, answer=None, probabilities=None):
        """Put a case on the list, unless it is there; answered ones that came by push out surer ones where there are
        too many.
        """
        pair = case_hash(self.task, case)
        if pair in self.items:
            return
        item = Item(pair, case, id, answer, probabilities)
        if answer is not None and not self._has_room(item):
            return
        self.items[pair] = item

    def _has_room(self, item):
        """Whether an answered request is kept for review; the surest of those that are leaves for it."""
        passing = [pair for pair in self.passing if pair in self.items]
        if len(passing) >= MOST_PASSING:
            surest = max(passing, key=lambda pair: self.items[pair].certainty)
            if self.items[surest].certainty <= item.certainty:
                return False
            passing.remove(surest)
            del self.items[surest]
        self.passing = {*passing, item.pair}
        return True

    # ---- the model's answers

    def _read_answers(self):
        """What this very model answered before it was started anew, or in another process."""
        n_skipped = self.kept_answers.n_skipped
        for kept in self.kept_answers.new():
            item = self.items.get(kept["pair"])
            # What a reviewer may be looking at stays.
            if item is not None and not item.is_done:
                item.probabilities = kept.get("probabilities")
                item.answer = kept["answer"]
        if self.kept_answers.n_skipped > n_skipped:
            log(review="lines of answers.jsonl hold no answer and were skipped", n=self.kept_answers.n_skipped)

    async def answer_all(self):
        """Answer the cases, a few at a time, while no request is waiting."""
        while True:
            todo = [item for item in list(self.items.values()) if not item.is_done]
            todo = random.sample(todo, min(SCORED_AT_ONCE, len(todo)))  # another process may be answering too
            if not todo or not await self.is_free():
                await asyncio.sleep(IDLE_S)
                continue
            try:
                await asyncio.gather(*map(self._answer, todo))
                await self.in_turn(self.refresh)
            except Exception as error:
                # Whatever went wrong this time, the next round is tried.
                log(review=f"{self.contract.words.cases} could not be answered", error=place_of(error))
            if not any(item.is_done for item in todo):
                await asyncio.sleep(AFTER_FAILURE_S)

    async def _answer(self, item):
        try:
            answer, reply = await self.answer(self.task.messages(item.case), with_shares=True)
        except Refused as error:
            item.error = error.words if error.status in (413, 422) else None
            return
        item.probabilities = reply.probabilities
        item.answer = answer
        await asyncio.to_thread(self.kept_answers.keep, item.pair, answer, reply.probabilities)

    def refresh(self, until=None):
        """What other processes have decided and answered since; what was known before where that cannot be read."""
        with contextlib.suppress(Held), self.decisions.reading(until):
            self._read_answers()

    # ---- what a reviewer is shown

    def waiting(self):
        """Undecided cases with an answer, least certain first; what was skipped comes last."""
        decided = standing(self.entries)
        skipped = self.skips()
        left = [item for item in list(self.items.values()) if item.answer is not None and item.pair not in decided]
        return sorted(left, key=lambda item: (skipped[item.pair], item.certainty, item.pair))

    def skips(self):
        """{case's hash: how often it was skipped}"""
        undone = undone_numbers(self.entries)
        return Counter(
            entry["pair"] for entry in self.entries if entry["action"] == "skip" and entry["n"] not in undone
        )

    def next_for(self, reviewer, until=None):
        """The first case that no other reviewer is looking at; theirs for a while, unless they have no name yet."""
        with self.decisions.reading(until):
            self._read_answers()
            taken = self.leases.of_others(reviewer)
            found = next((item for item in self.waiting() if item.pair not in taken), None)
            if found and reviewer:
                self.leases.give(found.pair, reviewer)
        return found

    def progress(self):
        decided = standing(self.entries)
        skipped = self.skips()
        items = list(self.items.values())
        return {
            "decided": sum(item.pair in decided for item in items),
            "pairs": len(items),
            "repeated_lines": self.n_repeated,
            "skipped": sum(item.pair in skipped and item.pair not in decided for item in items),
            "answered": sum(item.is_done for item in items),
            "unreadable": sum(item.error is not None for item in items),
        }

    def page(self):
        """The words of the page, and under which keys a card holds verdict and reason."""
        reason = self.verdict.reason
        return self.contract.page() | {
            "verdict_key": entry_key(self.verdict.key),
            "reason_key": entry_key(reason) if reason else None,
        }

    def card(self, item):
        """One case as the page shows it."""
        answer = {entry_key(name): value for name, value in item.answer.items()}
        return answer | {
            "pair": item.pair,
            "id": item.id,
            "rows": self.contract.review_rows(item.case),
            "unsupported": self.contract.unsupported(item.case, item.answer) or [],
            "records": item.case,
            "probabilities": item.probabilities,
        }

    # ---- what a reviewer decides

    def decide(self, asked, until=None):
        """Write a decision; whether it accepts or corrects follows from the verdicts."""
        self.refresh(until)
        item = self.items.get(asked["pair"])
        if item is None or item.answer is None:
            raise Refused(404, f"no such {self.contract.words.case} in the queue")
        predicted = self.verdict.of(item.answer)
        if asked.get("shown") not in (None, predicted):
            raise Refused(409, f"the model's verdict is {predicted} now; look at the {self.contract.words.case} again")
        decided = asked["verdict"] if asked["action"] != "skip" else None
        action = "skip" if decided is None else "accept" if decided == predicted else "correct"
        return self._add(self._entry(item, action, decided, asked), until)

    def _entry(self, item, action, decided, asked):
        """What the decisions file holds of a decision, but for its place in the chain."""
        predicted = self.verdict.of(item.answer)
        own = {entry_key(self.verdict.key): decided}
        if self.verdict.reason:
            own[entry_key(self.verdict.reason)] = asked.get(entry_key(self.verdict.reason)) or None
        return {
            "action": action,
            "pair": item.pair,
            "id": item.id,
            "input": item.case,
            "model": self.model,
            **{model_key(name): value for name, value in item.answer.items()},
            "model_probability": (item.probabilities or {}).get(predicted),
            **own,
            "reason": asked.get("reason") or None,
            "reviewer": asked["reviewer"],
            "seconds": asked.get("seconds"),
            "blind": bool(asked.get("blind")),
        }

    def undo(self, reviewer, until=None):
        """Take back the reviewer's last decision that stands; its case is theirs again."""
        self.refresh(until)
        undone = undone_numbers(self.entries)
        own = [
            entry
            for entry in self.entries
            if entry["action"] != "undo" and entry["reviewer"] == reviewer and entry["n"] not in undone
        ]
        if not own:
            raise Refused(409, "nothing to undo")
        last = own[-1]
        self._add({"action": "undo", "of": last["n"], "pair": last["pair"], "reviewer": reviewer}, until)
        with contextlib.suppress(Held), self.decisions.reading(until):
            self.leases.give(last["pair"], reviewer)
        return self.items.get(last["pair"])

    def _add(self, decision, until):
        try:
            entry = self.decisions.add(decision, until)
        except Changed as error:
            raise Refused(
                507,
                f"the decision could not be kept: {error}. Nothing is added to a file that is not what was written; "
                "make review-verify lists what is wrong, docs/serving.md says how to go on",
            ) from None
        except OSError as error:
            raise Refused(507, f"the decision could not be kept: {error.strerror}") from None
        self.passing.discard(entry["pair"])  # room for other answered requests
        return entry

    def statistics(self):
        labels = self.verdict.labels
        decided = list(standing(self.entries).values())
        agreed = sum(entry["action"] == "accept" for entry in decided)
        seconds = [entry["seconds"] for entry in decided if isinstance(entry.get("seconds"), int | float)]
        matrix = Counter((entry[model_key(self.verdict.key)], entry[entry_key(self.verdict.key)]) for entry in decided)
        return {
            "decided": len(decided),
            "agreement": agreed / len(decided) if decided else None,
            "labels": list(labels),
            "matrix": [[matrix[model, person] for person in labels] for model in labels],
            "seconds_median": statistics.median(seconds) if seconds else None,
            "reviewers": Counter(entry["reviewer"] for entry in decided),
            "reasons": Counter(entry["reason"] for entry in decided if entry["reason"]),
            "skipped_answers": self.kept_answers.n_skipped,
        }


def opened(path, task, lock_s):
    """The decisions of a file that is as it was written, or WorkFailed."""
    elsewhere = "begin another folder with --reviews (make: REVIEWS=)"
    try:
        found = Decisions(path, lock_s)
    except Changed as error:
        raise WorkFailed(
            f"{path.parent}/{error}; make review-verify lists what is wrong. Nothing is added to a file that is not "
            f"what was written: put a copy back, or {elsewhere}"
        ) from None
    except Held:
        raise WorkFailed(f"{path}: another process holds it; wait for that, or {elsewhere}") from None
    except OSError as error:
        raise WorkFailed(f"{path}: {error.strerror}; no decision can be kept there, {elsewhere}") from None
    if wrong := other_tasks(found.entries, task):
        raise WorkFailed(f"{path}:{wrong['n']}: a decision of another task than {task.name}; {elsewhere}")
    if found.n_cut_off:
        log(review=f"cut off half a line of {found.n_cut_off} bytes that was never acknowledged")
    return found


def undone_numbers(entries):
    return {entry["of"] for entry in entries if entry["action"] == "undo"}


def log(**facts):
    print(json.dumps(facts), file=sys.stderr, flush=True)
