"""A task's raw sources -> labelled rows: python src/import_rows.py --set febrl4 --from folder --out pairs.jsonl

What can be read is the task's own matter (src/tasks/<task>/importing.py); --help lists it.
"""

from common import run
from tasks import task_named_in


def main():
    task_named_in("import_rows.py").module("importing").main()


if __name__ == "__main__":
    run(main)
