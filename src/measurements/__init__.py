"""What the project publishes about itself; `python src/measure.py <name>` runs one."""

from common import ROOT, UserError
from tasks import load_task


def verdict_task(name):
    """The task of that name, which must be one that decides between labels."""
    task = load_task(name)
    if not task.verdict:
        raise UserError(f"--task {name}: its answers hold no verdict, and this measures verdicts; take another task")
    return task


def task_part(task, module, name):
    """What a task's module says under a name; a measurement has nothing to measure on a task without it."""
    found = task.hook(module, name)
    if found is None:
        raise UserError(
            f"task {task.name}: src/tasks/{task.name}/{module}.py has no {name}, which this measurement needs"
        )
    return found


def shipped_model(task):
    """Folder of the model that ships with the project for the task."""
    if not task.shipped:
        raise UserError(f"task {task.name}: no model ships with the project for it; name one with --model_path")
    return str(ROOT / task.shipped)
