"""One folder = one task. The folder is the registry; Task holds what every step may ask of it."""

import difflib
import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from common import ROOT, UserError, existing_file, read_json, to_json

FOLDER = Path(__file__).parent
DEFAULT = "crm"


@dataclass(frozen=True)
class Task:
    name: str
    title: str
    schema: str  # path of the answer's JSON Schema, relative to the project
    label_key: str  # the answer's key that holds the verdict; always written first
    review_label: str  # the verdict that hands the case to a person: never an automatic decision
    columns: dict  # the comparison table's KPI columns in order: title -> KPI name

    @property
    def folder(self):
        return FOLDER / self.name

    @cached_property
    def answer_schema(self):
        return read_json(ROOT / self.schema)

    @cached_property
    def labels(self):
        return tuple(self.answer_schema["properties"][self.label_key]["enum"])

    @cached_property
    def system_text(self):
        return existing_file(self.folder / "prompt.md").read_text(encoding="utf-8").strip()

    def module(self, name):
        """One of the task's own modules: data, kpis, synthetic, baseline."""
        return importlib.import_module(f"tasks.{self.name}.{name}")

    def messages(self, case):
        """The prompt of one case, the same for training, evaluation, benchmark and service."""
        canonical = getattr(self.module("data"), "canonical", lambda case: case)
        return [{"role": "system", "content": self.system_text}, {"role": "user", "content": to_json(canonical(case))}]

    def completion(self, answer):
        """The gold answer in the one serialisation that training, grammar and prefill share; the verdict comes first."""
        rest = {key: value for key, value in answer.items() if key != self.label_key}
        return to_json({self.label_key: answer[self.label_key], **rest})

    def under(self, folder):
        """Where the task's files live: the default task keeps the flat paths, every other has a folder of its own."""
        return Path(folder) if self.name == DEFAULT else Path(folder) / self.name


def task_names():
    return sorted(path.parent.name for path in FOLDER.glob("*/task.yaml"))


def task_named_in(step):
    """The task that a step's command line names with --task, read before the step's own parser, which is the task's."""
    import argparse

    parser = argparse.ArgumentParser(prog=step, add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default=DEFAULT)
    return load_task(parser.parse_known_args()[0].task)


def load_task(name=DEFAULT):
    if name not in task_names():
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.0)
        raise UserError(f"no task '{name}'; there is: {', '.join(task_names())} (nearest: {near[0]})")
    facts = yaml.safe_load((FOLDER / name / "task.yaml").read_text(encoding="utf-8"))
    try:
        return Task(name=name, **facts)
    except TypeError as error:
        raise UserError(f"src/tasks/{name}/task.yaml: {error}") from error
