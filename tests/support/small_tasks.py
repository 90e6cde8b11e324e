"""Three small tasks without a verdict, as a user would add them: a folder each, nothing else in the project changed."""

import shutil
from pathlib import Path

import tasks

FOLDERS = Path(__file__).parent / "tasks"
NAMES = ("notes", "booking", "switches")  # text, JSON, a tool call


def installed_in(project):
    """Add the three folders to a copy of the project."""
    for name in NAMES:
        shutil.copytree(FOLDERS / name, Path(project) / "src" / "tasks" / name)


def loaded(monkeypatch, name):
    """One of the three as a Task of this process."""
    monkeypatch.setattr(tasks, "FOLDER", FOLDERS)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(FOLDERS)])
    return tasks.load_task(name)
