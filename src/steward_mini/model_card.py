"""The model card of a model trained from scratch, written from its manifest and nothing else.

The words are the task's: model_card.md in its folder, with {placeholders} for the manifest's facts.
"""

from common import existing_file
from steward_mini.vocabulary import CONTEXT

FACTS = ("plan", "training", "held_out", "parameters", "weights_sha256")


def template_path(task):
    return task.folder / "model_card.md"


def card(facts, task):
    template = existing_file(template_path(task)).read_text(encoding="utf-8")
    return template.format(context=CONTEXT, hardware_name=hardware_name(facts), **{name: facts[name] for name in FACTS})


def hardware_name(facts):
    hardware = facts.get("hardware", {})
    return str(hardware.get("gpu") or hardware.get("cpu") or "an unnamed machine")
