"""A task's raw sources -> labelled rows: python src/import_rows.py --set febrl4 --from folder --out pairs.jsonl

What can be read is the task's own matter (src/tasks/<task>/importing.py); --help lists it.
"""

from common import UserError, run
from tasks import task_named_in


def main():
    task = task_named_in("import_rows.py")
    importing = task.module("importing")
    if importing is None:
        raise UserError(
            f"--task {task.name} imports nothing (it has no src/tasks/{task.name}/importing.py): "
            "write its rows yourself, as docs/tasks.md says"
        )
    importing.main()


if __name__ == "__main__":
    run(main)
