"""What the number and the mix of labelled rows will not allow: a refusal, or warnings before an hour is lost."""

import math

from common import counted

FEWEST_TO_TRAIN = 60
FEWEST_TESTED = 30  # a tenth of 300 rows; a share of 30 is known to within 18 points


def one_class_problem(counts, task):
    """Why rows with this {label: how many} teach no verdict; None where they can, and of a task without one."""
    found = [label for label, n in counts.items() if n]
    if not task.verdict or len(found) != 1:
        return None
    others = " or ".join(label for label in task.verdict.labels if label != found[0])
    return (
        f"every row is {found[0]}: a model would learn to say nothing else, and nothing could be measured; add rows "
        f"that are {others}"
    )


def mix_warnings(classes, task):
    """What the number and the mix of the rows will not allow; `classes` is {split: {class: how many}}, as the splits'
    manifest has it.
    """
    n_rows = sum(sum(counts.values()) for counts in classes.values())
    tested = {label: n for label, n in classes["test"].items() if n}
    n_tested = sum(tested.values())
    found = []
    if n_tested < FEWEST_TESTED:
        mix = f" ({', '.join(f'{n:,} {label}' for label, n in tested.items())})" if task.stratifies_by_verdict else ""
        use = "too few to train on or to score" if n_rows < FEWEST_TO_TRAIN else "few to score"
        known = f", so a KPI there is known to within {100 / math.sqrt(n_tested):.0f} points at best" if tested else ""
        found.append(f"{counted(n_rows, 'row')} are {use}: the test split has {counted(n_tested, 'row')}{mix}{known}")
    for label in task.verdict.labels if task.stratifies_by_verdict else ():
        if not any(counts.get(label) for counts in classes.values()):
            found.append(f"no row is {label}: the model will hardly ever say it")
    return found
