"""One folder = one task. The folder is the registry; a Task holds what every step may ask of it.

A folder has task.yaml, prompt.md, data.py (what a row is) and sample.jsonl, and of these modules those that it needs:
kpis.py (what an answer is worth), inference.py, service.py, synthetic.py, importing.py, from_tables.py, completing.py,
violations.py, baseline.py. docs/tasks.md describes each.
"""

import argparse
import dataclasses
import difflib
import importlib
import itertools
import typing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jsonschema

from common import ROOT, UserError, existing_file, parse_json, read_json, read_jsonl, to_json
from config import Train, build, read_yaml
from entity_resolution.plain_text import plain_text
from tasks import answers

FOLDER = Path(__file__).parent
DEFAULT = "crm"
# What may pick the checkpoint, by whether the task has a verdict.
SELECTIONS = {True: ("macro_f1", "accuracy", "exact_pct", "loss"), False: ("exact_pct", "loss")}
# The sections of a model's YAML that a task may lay its own values over.
OVERLAID = ("gen", "train", "peft", "dpo")
OPTIONAL_MODULES = (
    "kpis",
    "inference",
    "service",
    "synthetic",
    "importing",
    "from_tables",
    "completing",
    "violations",
    "baseline",
    "measuring",
    "injection",
)


@dataclass(frozen=True)
class VerdictFile:
    """The section `verdict` of a task.yaml."""

    key: str  # the answer's key that holds the verdict; always written first
    review: str  # the verdict that hands the case to a person: never an automatic decision
    reason: str | None = None  # the answer's key that holds the sentence beside the verdict


@dataclass(frozen=True)
class TaskFile:
    """What a task.yaml may say."""

    title: str
    answer: typing.Literal["verdict", "json", "text", "tool_call"]
    schema: str | None = None  # path of the answer's JSON Schema, relative to the task's folder or to the project
    verdict: VerdictFile | None = None
    stratify_by: str | None = None  # a row's value that every split gets its share of, as output.result or meta.kind
    select_by: str | None = None  # the KPI that picks the checkpoint; `loss` is the loss on the validation rows
    case: str = "case"  # what one input is called, in messages
    example: str | None = None  # an input on one line, in messages
    shipped: str | None = None  # folder of the model that ships with the project for this task
    columns: dict[str, str] = field(default_factory=dict)  # of the comparison table, in order: title -> KPI
    gen: dict = field(default_factory=dict)  # these four lie over the sections of the same name in a model's YAML
    train: dict = field(default_factory=dict)
    peft: dict = field(default_factory=dict)
    dpo: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a task that decides between a few labels has beside an answer."""

    key: str
    review: str
    reason: str | None
    labels: tuple[str, ...]

    def of(self, answer):
        """The label of an answer; None where there is no answer."""
        return answer[self.key] if answer is not None else None

    def likeliest(self, shares):
        """The likeliest label; of equally likely ones that which asks a person."""
        return max(shares, key=lambda label: (shares[label], label == self.review))


@dataclass(frozen=True)
class Task:
    name: str
    file: TaskFile

    def __getstate__(self):
        """For another process, which derives again what is derived here; a checker of jsonschema cannot be pickled."""
        return {"name": self.name, "file": self.file}

    @property
    def folder(self):
        return FOLDER / self.name

    @property
    def title(self):
        return self.file.title

    @property
    def answer(self):
        """verdict, json, text or tool_call."""
        return self.file.answer

    @property
    def case(self):
        """What one input is called: pair, request."""
        return self.file.case

    @property
    def example(self):
        """An input on one line, for messages; None where the task shows none."""
        return self.file.example

    @property
    def shipped(self):
        return self.file.shipped

    @property
    def columns(self):
        return self.file.columns

    @cached_property
    def schema_path(self):
        """The file of the answer's JSON Schema; None where any text is an answer."""
        if not self.file.schema:
            return None
        own = self.folder / self.file.schema
        return own if own.is_file() else ROOT / self.file.schema

    @cached_property
    def answer_schema(self):
        """The JSON Schema of an answer as a value; None where any text is one."""
        if self.schema_path:
            return read_json(self.schema_path)
        return answers.ANY_TOOL_CALL if self.answer == "tool_call" else None

    @cached_property
    def schema_checker(self):
        return jsonschema.Draft202012Validator(self.answer_schema) if self.answer_schema is not None else None

    @cached_property
    def verdict(self):
        """Key, labels and review label of a task with a verdict; None of any other."""
        if not self.file.verdict:
            return None
        said = self.file.verdict
        return Verdict(said.key, said.review, said.reason, tuple(self.answer_schema["properties"][said.key]["enum"]))

    @property
    def stratify_by(self):
        return self.file.stratify_by or (f"output.{self.verdict.key}" if self.verdict else None)

    @property
    def stratifies_by_verdict(self):
        return self.verdict is not None and self.stratify_by == f"output.{self.verdict.key}"

    @property
    def select_by(self):
        return self.file.select_by or ("macro_f1" if self.verdict else "loss")

    @property
    def overlay(self):
        """{section: {key: value}} that lies over a model's YAML."""
        own = {name: dict(values) for name in OVERLAID if (values := getattr(self.file, name))}
        if self.select_by in SELECTIONS[False]:
            # What a model's YAML says of verdicts is not about this task.
            own["train"] = {"verdict_weight": Train.verdict_weight} | own.get("train", {})
        return own

    @cached_property
    def system_text(self):
        return existing_file(self.folder / "prompt.md").read_text(encoding="utf-8").strip()

    def module(self, name):
        """One of the task's own modules; None where it has none of an optional name."""
        if name in OPTIONAL_MODULES and not (self.folder / f"{name}.py").is_file():
            return None
        return importlib.import_module(f"tasks.{self.name}.{name}")

    def hook(self, module, name, default=None):
        """A function or constant of one of the task's modules, or the default where the task does not say."""
        return getattr(self.module(module), name, default)

    def check_case(self, case):
        """What is wrong with an input, in words; empty when it is one."""
        return self.module("data").check_case(case)

    def case_of_words(self, words):
        """An input from the words of a command line; by default one word, the input as JSON."""
        return self.hook("data", "case_of_words", one_json_word)(words)

    def parts(self, case):
        """The things of an input that must not be seen in two splits; by default the whole of it."""
        return self.hook("data", "parts", lambda case: [case])(case)

    def plain_text(self, part):
        """A part's values without case, accents, punctuation or their order, for the search of near duplicates."""
        return self.hook("data", "plain_text", plain_text)(part)

    def messages(self, case):
        """The prompt of one case, the same for training, evaluation, benchmark and service."""
        user_text = self.hook("data", "user_text")
        text = answers.harmless(user_text(case)) if user_text else to_json(self.canonical(case))
        return [{"role": "system", "content": self.system_text}, {"role": "user", "content": text}]

    def case_holding(self, text):
        """A case of this task that holds a text, made from the task's first sample: for probing what a text can do."""
        [row] = itertools.islice(read_jsonl(self.folder / "sample.jsonl"), 1)
        return with_first_text(row["input"], text)

    def canonical(self, case):
        """The case in the one form that a prompt shows, whatever the order it came in."""
        return self.hook("data", "canonical", lambda case: case)(case)

    def completion(self, answer):
        """The gold answer in the one spelling that training, grammar and prefill share."""
        return answers.completion(self, answer)

    def parsed(self, text):
        """The answer that a text is, or None. Nothing is guessed from a text that is no answer."""
        return answers.parsed(self, text)

    def outcome(self, text):
        """What of a text goes to whoever asked, in use; scoring reads `parsed` alone."""
        return answers.outcome(self, text)

    def completed(self, case, answer, how):
        """The answer with what it lacks, a new object where the task made something; `how` is keep, make or drop."""
        own = self.hook("completing", "completed")
        return own(case, answer, how) if own else answer

    def answer_problems(self, answer):
        """What is wrong with an answer as a row holds it, as errors of jsonschema or as words."""
        return answers.problems(self, answer)

    @property
    def for_make(self):
        """What a make command needs behind its target to be about this task."""
        return "" if self.name == DEFAULT else f" TASK={self.name}"

    def under(self, folder):
        """Where the task's files live: the default task keeps the flat paths, every other has a folder of its own."""
        return Path(folder) if self.name == DEFAULT else Path(folder) / self.name


def with_first_text(value, text):
    """The value with the first text in it, however deep it stands, replaced."""
    if isinstance(value, str):
        return text
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if (changed := with_first_text(item, text)) != item:
            copy = value.copy()
            copy[key] = changed
            return copy
    return value


def one_json_word(words):
    if len(words) != 1:
        raise ValueError(f"one input as JSON is wanted, found {len(words)} words")
    return parse_json(words[0])


def task_names():
    return sorted(path.parent.name for path in FOLDER.glob("*/task.yaml"))


def load_task(name=DEFAULT):
    if name not in task_names():
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.0)
        raise UserError(f"no task '{name}'; there is: {', '.join(task_names())} (nearest: {near[0]})")
    path = FOLDER / name / "task.yaml"
    where = f"src/tasks/{name}/task.yaml"
    task = Task(name, build(TaskFile, read_yaml(path), where))
    if problem := file_problem(task):
        raise UserError(f"{where}: {problem}")
    return task


def file_problem(task):
    """What the parts of a task.yaml say against one another; None where they agree."""
    if task.answer in ("verdict", "json") and not task.file.schema:
        return f"answer: {task.answer} needs schema: <file>, the JSON Schema of an answer"
    if task.answer == "text" and task.file.schema:
        return "answer: text has no schema; take answer: json, or take the line out"
    if task.select_by not in SELECTIONS[task.file.verdict is not None]:
        return f"select_by: {task.select_by!r} is none of {', '.join(SELECTIONS[task.file.verdict is not None])}"
    if task.schema_path and not task.schema_path.is_file():
        return f"schema: {task.file.schema} is neither in the task's folder nor in the project"
    if (task.answer == "verdict") != (task.file.verdict is not None):
        return "answer: verdict and the section verdict (key, review) belong together; one is here without the other"
    if task.answer == "json" and not describes_objects(task.answer_schema):
        return f"schema: {task.file.schema} must describe an object (type: object), as the answer of a json task is one"
    return verdict_problem(task) if task.file.verdict else None


def describes_objects(schema):
    """Whether whatever fits is an object: the schema says so, or each of its alternatives does."""
    parts = schema.get("anyOf", [schema]) if isinstance(schema, dict) else [schema]
    return all(isinstance(one, dict) and one.get("type") == "object" for one in parts)


def verdict_problem(task):
    said = task.file.verdict
    keys = list(task.answer_schema.get("properties", ()))
    if keys[:1] != [said.key]:
        return (
            f"verdict.key: {said.key!r} must be the first property of {task.file.schema} ({', '.join(keys) or 'none'})"
        )
    labels = task.answer_schema["properties"][said.key].get("enum") or []
    if said.review not in labels:
        return f"verdict.review: {said.review!r} is none of the labels {', '.join(map(str, labels)) or 'none'}"
    if said.reason is not None and said.reason not in keys:
        return f"verdict.reason: {said.reason!r} is no property of {task.file.schema}"
    return None


def task_named_in(step):
    """The task that a command line names with --task, read before the step's own parser, which is the task's."""
    parser = argparse.ArgumentParser(prog=step, add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default=DEFAULT)
    return load_task(parser.parse_known_args()[0].task)


def facts(task):
    """Of a task what shapes an answer, for fingerprints: the columns of a table are not among it."""
    said = dataclasses.asdict(task.file)
    return {key: said[key] for key in ("answer", "verdict")} | {
        "schema": task.answer_schema,
        "system": task.system_text,
    }
