"""What of the service depends on the task: its route, its words, what it takes and what it answers.

A task without a service.py is served so: POST /answer takes a case as the body and answers {"answer": ...}: the text of
a task that answers in text, the object of one that answers in JSON or with a verdict, {"name": ..., "arguments": ...}
of a tool call. POST /answer/batch takes many. A service.py may name any of these, and what it leaves out is as here:

    ROUTE                       where a case is posted; many are at ROUTE/batch
    ANSWER_KEY                  the body's key that holds the answer; None: the answer's own keys are the body
    DESCRIPTION                 the service in a sentence or two, for /openapi.json
    WORDS                       what a case is called in messages, see Words; "refused" where its inference.py refuses
    EXAMPLE, EXAMPLE_ANSWER     a case and its answer for /openapi.json; else the first row of sample.jsonl
    EXAMPLE_CHAT                the user's message of that case, on the chat route
    case_schema(limits, value)  the JSON Schema of a case, where `value` is that of a value inside it
    check_body(value, limits)   what is wrong with a body, in one sentence; None where it is a case
    evidence(case)              rows for the reader beside an answer: [{"field": ..., "relation": ..., column: text}]
                                What of the answer they do not show says unsupported(case, answer) of its kpis.py
    REVIEW_PAGE                 the words of the review page, see page(); EXAMPLE_REASON: one of a correction
    reason_for(label, case)     the sentence beside a verdict that a person corrected
"""

import json
import re
from dataclasses import dataclass

from common import parse_json, read_lines
from tasks import answers
from tasks.case_limits import size_problem


@dataclass(frozen=True)
class Words:
    """What a case and its answer are called."""

    case: str
    cases: str
    a_case: str  # with its article
    full_case: str  # with its article, and what it is made of
    answer: str
    too_large: str
    too_long: str
    refused: str  # behind what gets 422, where the task refuses requests itself


def words_of(task):
    case = task.case
    a_case = f"{'an' if case[0].lower() in 'aeiou' else 'a'} {case}"
    usual = {
        "case": case,
        "cases": f"{case}s",
        "a_case": a_case,
        "full_case": a_case,
        "answer": "verdict" if task.verdict else "answer",
        "too_large": f"Too large: the body, or the {case} for the model",
        "too_long": f"the {case} is longer than the model can read",
        "refused": "",
    }
    return Words(**usual | task.hook("service", "WORDS", {}))


UNSUPPORTED = {
    "type": "object",
    "description": "A statement of the answer that the evidence does not show",
    "properties": {
        "field": {"type": "string"},
        "words": {"type": "string", "description": "How the answer names the field"},
        "stated": {"type": "string"},
        "evidence": {"type": "string"},
    },
    "required": ["field", "words", "stated", "evidence"],
    "additionalProperties": False,
}


class TaskContract:
    """One task's part of the service."""

    def __init__(self, task, limits):
        self.task = task
        self.limits = limits
        self.words = words_of(task)
        self.route = self._own("ROUTE", "/answer")
        self.answer_key = self._own("ANSWER_KEY", "answer")
        self.description = self._own("DESCRIPTION", f"{task.title}: {self.words.a_case} in, its answer out.")
        sample = first_sample(task)
        self.example = self._own("EXAMPLE", sample.get("input"))
        self.example_answer = self._own("EXAMPLE_ANSWER", sample.get("output"))

    def _own(self, name, default=None):
        return self.task.hook("service", name, default)

    def check(self, value):
        """What is wrong with a body, in one sentence; None where it is a case within the limits."""
        if own := self._own("check_body"):
            return own(value, self.limits)
        if problem := size_problem(f"the {self.words.case}", value, self.limits):
            return problem
        return "; ".join(self.task.check_case(value)) or None

    def body(self, answer):
        """An answer as clients get it."""
        return answer if self.answer_key is None else {self.answer_key: answer}

    def evidence(self, case):
        """Rows of evidence; None where the task has none to show."""
        own = self._own("evidence")
        return own(case) if own else None

    def unsupported(self, case, answer):
        """What an answer states and the evidence does not show; None where the task compares neither."""
        own = self.task.hook("kpis", "unsupported")
        return own(case, answer) if own else None

    def beside(self, case, answer):
        """What stands beside an answer for its reader: the evidence, and what of the answer it does not show."""
        found = {"evidence": self.evidence(case), "unsupported": self.unsupported(case, answer)}
        return {name: rows for name, rows in found.items() if rows is not None}

    def review_rows(self, case):
        """What the review page shows of a case: the evidence, else its fields."""
        own = self.evidence(case)
        if own is not None:
            return own
        fields = case if isinstance(case, dict) else {self.words.case: case}
        return [{"field": key, "relation": None, "value": text_of(value)} for key, value in fields.items()]

    def reason_for(self, label, case):
        """The sentence beside a corrected verdict; None where the task writes none."""
        own = self._own("reason_for")
        return own(label, case) if own else None

    def chat_example(self):
        """A user's message for the chat route."""
        own = self._own("EXAMPLE_CHAT")
        if own or self.example is None:
            return own or "..."
        return self.task.messages(self.example)[-1]["content"]

    @property
    def example_reason(self):
        return self._own("EXAMPLE_REASON", "the model misread it")

    def page(self):
        """The review page's words: columns are {key of a row: title}, relations {name: (words, colour)}."""
        usual = {
            "question": self.task.title,
            "caption": f"The {self.words.case}, field by field",
            "columns": {"value": "Value"},
            "relations": {},
            "reasons": ["too little to go by", f"the model misread the {self.words.case}"],
            "likely_reasons": {},
        }
        return usual | self._own("REVIEW_PAGE", {}) | {"case": self.words.case, "cases": self.words.cases}

    # ---- for /openapi.json

    def schema_names(self):
        """(name of the case's schema, name of the answer's)"""
        return component_name(self.words.case), component_name(self.words.answer)

    def case_schema(self, value):
        """The JSON Schema of a case; what a schema cannot say its check does."""
        if own := self._own("case_schema"):
            return own(self.limits, value)
        return {
            "description": f"{self.words.a_case.capitalize()}, up to {self.limits.most_levels} levels deep",
            "anyOf": [
                {"type": "object", "additionalProperties": value, "maxProperties": self.limits.most_fields},
                {"type": "array", "items": value, "maxItems": self.limits.most_fields},
                *({"type": kind} for kind in ("string", "number", "boolean", "null")),
            ],
        }

    def answer_schema(self):
        """The JSON Schema of an answer's body, with what ?detail=true adds."""
        own = self.task.answer_schema or {"type": "string", "minLength": 1}
        more = self.detail_schemas()
        place = f"#/components/schemas/{self.schema_names()[1]}"
        if self.answer_key is None:
            return with_references_to(place, with_more_properties(own, more))
        inside = with_references_to(f"{place}/properties/{self.answer_key}", own)
        return {
            "type": "object",
            "required": [self.answer_key],
            "additionalProperties": False,
            "properties": {self.answer_key: inside} | more,
        }

    def detail_schemas(self):
        shares = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}
        found = {"probabilities": {"anyOf": [shares, {"type": "null"}]}} if self.task.verdict else {}
        found["closed_at_budget"] = {"type": "boolean"}
        if self.task.answer == "text":
            found["cut_at_budget"] = {"type": "boolean"}
        if self._own("evidence"):
            found["evidence"] = {"type": "array", "items": {"type": "object"}}
        if self.task.hook("kpis", "unsupported"):
            found["unsupported"] = {"type": "array", "items": UNSUPPORTED}
        return found


def first_sample(task):
    """The first row of the task's sample.jsonl; empty where it has none."""
    path = task.folder / "sample.jsonl"
    if not path.is_file():
        return {}
    return next((parse_json(line) for _, line in read_lines(path) if line.strip()), {})


def with_more_properties(schema, more):
    """A schema of objects that may hold more; of alternatives each of them."""
    if "anyOf" in schema:
        inline = (answers.referred(one["$ref"], schema) if "$ref" in one else one for one in schema["anyOf"])
        return schema | {"anyOf": [with_more_properties(one, more) for one in inline]}
    return schema | {"properties": schema.get("properties", {}) | more}


def with_references_to(place, schema):
    """A schema that stands at a place of a larger document: its references to itself begin there."""
    if isinstance(schema, list):
        return [with_references_to(place, one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: with_references_to(place, value) for key, value in schema.items()}
    reference = found.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found["$ref"] = place + reference.removeprefix("#")
    return found


def component_name(words):
    """Words as the name of a schema in /openapi.json."""
    return "".join(word.capitalize() for word in re.findall(r"\w+", words))


def text_of(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
