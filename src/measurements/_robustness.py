"""How steady any verdict on pairs is: the records swapped, their keys shuffled, a field removed."""

import random

from measurements import task_part
from measurements._record_sets import match_label, no_match_label


def robustness(probabilities_of, cases, verdicts, task, n_rows, seed):
    """How many verdicts change with what should not matter, over a seeded sample of the cases.

    Swapped records and shuffled keys: share of verdicts that change, and that flip between match and no match without
    passing review. A field removed from one record: share of the matches that become no match.
    """
    import numpy as np

    chosen = sorted(random.Random(seed).sample(range(len(cases)), min(n_rows, len(cases))))
    before = np.array([verdicts[at] for at in chosen])
    swap = task_part(task, "data", "swap")
    changed = {
        "swapped": [swap(cases[at]) for at in chosen],
        "shuffled": [keys_shuffled(cases[at], random.Random(f"{seed} keys {at}")) for at in chosen],
    }
    found = {name: changes(before, verdict_numbers(probabilities_of, others), task) for name, others in changed.items()}
    return found | {"field_removed": removal(probabilities_of, [cases[at] for at in chosen], before, task, seed)}


def verdict_numbers(probabilities_of, cases):
    import numpy as np

    return np.asarray(probabilities_of(cases)).argmax(1) if cases else np.zeros(0, int)


def changes(before, after, task):
    """n, and the shares of verdicts that changed and that flipped without passing review."""
    review = task.verdict.labels.index(task.verdict.review)
    changed = before != after
    flipped = changed & (before != review) & (after != review)
    return {"n": len(before), "changed_pct": percent(changed), "flipped_pct": percent(flipped)}


def removal(probabilities_of, cases, before, task, seed):
    """Of the matches that can spare a field: the share that is no match once one of their fields is gone."""
    match = task.verdict.labels.index(match_label(task))
    against = task.verdict.labels.index(no_match_label(task))
    matches = [case for case, verdict in zip(cases, before, strict=True) if verdict == match]
    field_removed = task_part(task, "measuring", "field_removed")
    poorer = [
        less for at, case in enumerate(matches) if (less := field_removed(case, random.Random(f"{seed} field {at}")))
    ]
    return {"n": len(poorer), "lost_pct": percent(verdict_numbers(probabilities_of, poorer) == against)}


def percent(flags):
    return round(100 * float(flags.mean()), 4) if len(flags) else None


def keys_shuffled(value, rng):
    """The same case with the keys of its records, and of what they hold, in another order; the records keep theirs."""
    return {name: shuffled(part, rng) for name, part in value.items()}


def shuffled(value, rng):
    if isinstance(value, list):
        return [shuffled(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
