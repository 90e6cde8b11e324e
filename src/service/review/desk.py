"""What the steward's page asks: the next pair, a decision, undo, statistics. The pairs come from a file or from
answered requests.

The model answers them in the background while nobody else waits; those of whose verdict it is least certain come first.
"""

import asyncio
import contextlib
import json
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse

from common import WorkFailed
from rows import pairs_from_file
from service import contract
from service.bodies import Refused, check_type, is_text, parsed, read_body
from service.metrics import place_of
from service.review.decisions import Decisions, pair_hash, problems, standing

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
# The page loads nothing from elsewhere and runs nothing but its own script.
GUARD = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src "
    "data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
SCORED_AT_ONCE = 8  # pairs that the background has in line
IDLE_S = 0.2  # how often it looks whether the line is empty
NAME = re.compile(contract.NAME["pattern"])
MOST_PASSING = 2_000  # answered requests that are kept for review
LEASE_S = 600.0  # how long a pair that one reviewer looks at is shown to no other
AFTER_FAILURE_S = 5.0  # before pairs are tried again that got no answer


@dataclass
class Item:
    """One pair to review, with the model's answer once there is one."""

    pair: str  # its hash
    case: dict
    id: str | None = None
    told: dict = field(default_factory=dict)  # result, reasoning, probabilities

    @property
    def certainty(self):
        return max((self.told.get("probabilities") or {"": 1.0}).values())


class Reviews:
    def __init__(self, service, folder, pairs_file=None):
        self.service = service
        self.task = service.task
        self.folder = Path(folder)
        self.decisions = Decisions(self.folder / "decisions.jsonl")
        if self.decisions.n_cut_off:
            print(
                json.dumps(
                    {"review": f"cut off half a line of {self.decisions.n_cut_off} bytes that was never acknowledged"}
                ),
                file=sys.stderr,
                flush=True,
            )
        if problems(self.decisions.path):
            raise WorkFailed(
                f"{self.decisions.path} is not what was written; make review-verify lists what is wrong. Nothing is "
                "added to it; "
                "put a copy back, or begin another folder with --reviews (make: REVIEWS=)"
            )
        self.leases = {}  # {pair: (reviewer, until when nobody else is shown it)}
        self.items = {}
        self.passing = set()
        self.entries = []
        self.n_decision_bytes = 0
        self.n_answer_bytes = 0
        self.lock = threading.Lock()
        for named, case in pairs_from_file(pairs_file, self.task) if pairs_file else ():
            self.offer(case, named.get("id"))
        self.refresh()

    def offer(self, case, id=None, told=None):
        """Put a pair into the queue, unless it is there; answered ones that came by push out surer ones where there are
        too many.
        """
        pair = pair_hash(self.task, case)
        if pair in self.items:
            return
        item = Item(pair, case, id, told or {})
        if told:
            passing = [one for one in self.passing if one in self.items]
            if len(passing) >= MOST_PASSING:
                surest = max(passing, key=lambda one: self.items[one].certainty)
                if self.items[surest].certainty <= item.certainty:
                    return
                passing.remove(surest)
                del self.items[surest]
            self.passing = {*passing, pair}
        self.items[pair] = item

    @property
    def answers_path(self):
        return self.folder / "answers.jsonl"

    def _read_answers(self):
        """What this very model answered before it was started anew, or in another process."""
        with contextlib.suppress(FileNotFoundError), open(self.answers_path, "rb") as lines:
            lines.seek(self.n_answer_bytes)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self.n_answer_bytes += len(line)
                with contextlib.suppress(ValueError, KeyError):
                    entry = json.loads(line)
                    # What somebody may be looking at stays.
                    if (
                        entry["model"] == self.service.identity
                        and entry["pair"] in self.items
                        and not self.items[entry["pair"]].told
                    ):
                        self.items[entry["pair"]].told = entry["told"]

    async def answer_all(self):
        """Answer the queue's pairs, a few at a time, while nobody else is waiting."""
        while True:
            todo = [item for item in list(self.items.values()) if not item.told]
            todo = random.sample(todo, min(SCORED_AT_ONCE, len(todo)))  # another process may be answering too
            if not todo or len(self.service.line) or not await self.service.is_ready():
                await asyncio.sleep(IDLE_S)
                continue
            try:
                await asyncio.gather(*map(self._answer, todo))
                await asyncio.to_thread(self.refresh)
            except Exception as error:
                # Whatever went wrong this time, the next round is tried.
                print(
                    json.dumps({"review": "pairs could not be answered", "error": place_of(error)}),
                    file=sys.stderr,
                    flush=True,
                )
            if not any(item.told for item in todo):
                await asyncio.sleep(AFTER_FAILURE_S)

    async def _answer(self, item):
        try:
            told, answer = await self.service.match(item.case, with_shares=True)
        except Refused as error:
            item.told = {"error": error.words} if error.status in (413, 422) else {}
            return
        item.told = told | {"probabilities": answer.probabilities}
        line = json.dumps({"pair": item.pair, "model": self.service.identity, "told": item.told}) + "\n"
        # Only time is lost if this cannot be kept.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(append, self.answers_path, line)

    def refresh(self):
        """What other processes, and this one, have decided and answered since."""
        with self.lock:
            new, self.n_decision_bytes = self.decisions.since(self.n_decision_bytes)
            self.entries += new
            self._read_answers()

    def waiting(self):
        """Undecided pairs with an answer, least certain first; what was skipped comes last."""
        decided = standing(self.entries)
        undone = {entry["of"] for entry in self.entries if entry["action"] == "undo"}
        skipped = Counter(
            entry["pair"] for entry in self.entries if entry["action"] == "skip" and entry["n"] not in undone
        )
        left = [item for item in self.items.values() if "result" in item.told and item.pair not in decided]
        return sorted(left, key=lambda item: (skipped[item.pair], item.certainty, item.pair))

    def next_for(self, reviewer):
        """The first pair that no other reviewer is looking at; theirs for a while."""
        now = time.monotonic()
        for item in self.waiting():
            holder, until = self.leases.get(item.pair, (None, 0.0))
            if holder in (None, reviewer) or until < now:
                if reviewer:
                    self.leases = {
                        pair: lease for pair, lease in self.leases.items() if lease[0] != reviewer and lease[1] > now
                    }
                    self.leases[item.pair] = reviewer, now + LEASE_S
                return item
        return None

    def progress(self):
        decided = standing(self.entries)
        return {
            "decided": sum(pair in decided for pair in self.items),
            "pairs": len(self.items),
            "answered": sum(bool(item.told) for item in self.items.values()),
            "unreadable": sum("error" in item.told for item in self.items.values()),
        }

    def card(self, item):
        """One pair as the page shows it."""
        rows = self.task.module("data").field_evidence(item.case)
        return {
            "pair": item.pair,
            "id": item.id,
            "rows": rows,
            "records": item.case,
            "result": item.told["result"],
            "reasoning": item.told["reasoning"],
            "probabilities": item.told.get("probabilities"),
        }

    def decide(self, said):
        """Write a decision; whether it accepts or corrects follows from the verdicts."""
        self.refresh()
        item = self.items.get(said["pair"])
        if item is None or "result" not in item.told:
            raise Refused(404, "no such pair in the queue")
        told = item.told
        if said.get("shown") not in (None, told["result"]):
            raise Refused(409, f"the model's verdict is {told['result']} now; look at the pair again")
        verdict = said["verdict"] if said["action"] != "skip" else None
        action = "skip" if verdict is None else "accept" if verdict == told["result"] else "correct"
        share = (told.get("probabilities") or {}).get(told["result"])
        return self._add(
            {
                "action": action,
                "pair": item.pair,
                "id": item.id,
                "input": item.case,
                "model": self.service.identity,
                "model_result": told["result"],
                "model_reasoning": told["reasoning"],
                "model_probability": share,
                "result": verdict,
                "reasoning": said.get("reasoning") or None,
                "reason": said.get("reason") or None,
                "reviewer": said["reviewer"],
                "seconds": said.get("seconds"),
                "blind": bool(said.get("blind")),
            }
        )

    def undo(self, reviewer):
        """Take back the reviewer's last decision that stands."""
        self.refresh()
        undone = {entry["of"] for entry in self.entries if entry["action"] == "undo"}
        own = [
            entry
            for entry in self.entries
            if entry["action"] != "undo" and entry["reviewer"] == reviewer and entry["n"] not in undone
        ]
        last = own[-1] if own else None
        if last is None:
            raise Refused(409, "nothing to undo")
        self._add({"action": "undo", "of": last["n"], "pair": last["pair"], "reviewer": reviewer})
        return self.items.get(last["pair"])

    def _add(self, decision):
        try:
            entry = self.decisions.add(decision)
        except OSError as error:
            raise Refused(507, f"the decision could not be kept: {error.strerror}") from None
        self.refresh()
        self.passing.discard(entry["pair"])  # room for other answered requests
        return entry

    def statistics(self):
        decided = list(standing(self.entries).values())
        agreed = sum(entry["action"] == "accept" for entry in decided)
        seconds = [entry["seconds"] for entry in decided if isinstance(entry.get("seconds"), int | float)]
        matrix = Counter((entry["model_result"], entry["result"]) for entry in decided)
        return {
            "decided": len(decided),
            "agreement": agreed / len(decided) if decided else None,
            "labels": list(self.task.verdict.labels),
            "matrix": [
                [matrix[model, person] for person in self.task.verdict.labels] for model in self.task.verdict.labels
            ],
            "seconds_median": statistics.median(seconds) if seconds else None,
            "reviewers": Counter(entry["reviewer"] for entry in decided),
            "reasons": Counter(entry["reason"] for entry in decided if entry["reason"]),
        }


def append(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)


def add_routes(app, service):
    for path, (name, kind) in FILES.items():
        app.get(path, include_in_schema=False)(page_file(name, kind))

    def reviews():
        if service.settings.review_folder and service.reviews is None:
            raise Refused(503, "the model is still being loaded", {"Retry-After": "1"})
        if service.reviews is None:
            raise Refused(
                404, "no review is set up here; start the service with --review <pairs.jsonl> or --keep_traffic"
            )
        return service.reviews

    @app.get("/review/next", **contract.REVIEW_NEXT)
    async def next_pair(reviewer: str = ""):
        desk = reviews()
        await asyncio.to_thread(desk.refresh)
        item = desk.next_for(reviewer)
        return {
            "card": desk.card(item) if item else None,
            "progress": desk.progress(),
            "labels": list(desk.task.verdict.labels),
        }

    @app.post("/review/decide", **contract.REVIEW_DECIDE)
    async def decide(request: Request):
        check_type(request)
        desk = reviews()
        said = checked(
            parsed(await read_body(request, service.limits.most_body_bytes, service.limits.timeout_s)),
            service.task.verdict.labels,
        )
        entry = await asyncio.to_thread(desk.decide, said)
        return {"n": entry["n"], "action": entry["action"], "hash": entry["hash"]}

    @app.post("/review/undo", **contract.REVIEW_UNDO)
    async def undo(request: Request):
        check_type(request)
        desk = reviews()
        said = parsed(await read_body(request, service.limits.most_body_bytes, service.limits.timeout_s))
        item = await asyncio.to_thread(desk.undo, name_of(said if isinstance(said, dict) else {}))
        return {"card": desk.card(item) if item else None, "progress": desk.progress()}

    @app.get("/review/statistics", **contract.REVIEW_STATISTICS)
    async def told_statistics():
        desk = reviews()
        await asyncio.to_thread(desk.refresh)
        return desk.statistics() | {"progress": desk.progress()}


def page_file(name, kind):
    async def send():
        return FileResponse(PAGE / name, media_type=kind, headers=GUARD)

    return send


def checked(said, labels):
    if not isinstance(said, dict):
        raise Refused(422, "an object with pair, action, verdict and reviewer is wanted")
    name_of(said)
    if said.get("action") not in ("decide", "skip"):
        raise Refused(422, "action must be decide or skip")
    if said["action"] == "decide" and said.get("verdict") not in labels:
        raise Refused(422, f"verdict must be one of {', '.join(labels)}")
    if not isinstance(said.get("pair"), str):
        raise Refused(422, "pair must be the hash that /review/next gave")
    if not isinstance(said.get("blind"), bool | None) or not isinstance(said.get("shown"), str | None):
        raise Refused(422, "blind must be true or false, shown the verdict that was seen")
    for name, properties in contract.SAID.items():
        value = said.get(name)
        if (
            "maxLength" in properties
            and value is not None
            and not (is_text(value) and properties.get("minLength", 0) <= len(value) <= properties["maxLength"])
        ):
            raise Refused(
                422,
                f"{name} must be text of {properties.get('minLength', 0)} to {properties['maxLength']:,} characters",
            )
    seconds = said.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 <= seconds <= contract.SAID["seconds"]["maximum"]
    ):
        raise Refused(422, "seconds must be a number from 0 to a day's")
    return said


def name_of(said):
    name = said.get("reviewer")
    if not is_text(name) or not NAME.fullmatch(name):
        raise Refused(422, "reviewer must be a name of 1 to 99 characters on one line, the first no space")
    return name
