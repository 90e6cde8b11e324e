"""A task with a verdict of its own, as a user would add it: no service.py, and keys that the review uses otherwise."""

import json

from support import small_tasks

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["glad", "angry", "unclear"]},
        "reason": {"type": "string", "minLength": 1, "maxLength": 80},
        "shown": {"type": "integer"},
    },
    "required": ["mood", "reason", "shown"],
    "additionalProperties": False,
}
YAML = """\
title: The mood of a letter
answer: verdict
schema: answer.schema.json
case: letter
verdict:
  key: mood
  review: unclear
  reason: reason
"""
DATA = """\
def check_case(case):
    return [] if isinstance(case, dict) and isinstance(case.get("text"), str) else ["'input' must hold a text"]
"""
ANGRY = {"mood": "angry", "reason": "It shouts.", "shown": 7}
SHARES = {"glad": 0.1, "angry": 0.6, "unclear": 0.3}


def loaded(monkeypatch, folder):
    """The task, from a folder of its own that is made here."""
    own = folder / "moods"
    own.mkdir(parents=True)
    (own / "task.yaml").write_text(YAML)
    (own / "data.py").write_text(DATA)
    (own / "prompt.md").write_text("Say the letter's mood.")
    (own / "answer.schema.json").write_text(json.dumps(SCHEMA))
    monkeypatch.setattr(small_tasks, "FOLDERS", folder)
    return small_tasks.loaded(monkeypatch, "moods")
