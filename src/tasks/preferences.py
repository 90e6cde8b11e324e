"""Preference pairs of a task: what is wrong with an answer, wrong ones that the task makes, and those of a model."""

import itertools
import json
import random
from collections import Counter, deque

from common import WorkFailed, parse_json, row_id
from tasks.answers import in_order

ON_POLICY = "on_policy"  # the violation of what a model wrote itself
# Of the rejected texts that are no JSON: more of them, and the pairs would teach form alone.
MOST_BROKEN_SHARE = 0.3


def key_of(case, task):
    """The one name of an input, whatever the order that it came in."""
    return json.dumps(task.canonical(case), sort_keys=True)


def failed_checks(task, text, gold):
    """The names of the checks that a text fails; of a task without checks of its own: no answer, or another one."""
    if own := task.hook("violations", "fails"):
        return own(text, gold)
    answer = task.parsed(text)
    if answer is None:
        return ["unparsed"]
    right = task.parsed(task.completion(gold))
    if task.verdict:
        return ["verdict"] if task.verdict.of(answer) != task.verdict.of(right) else []
    return ["other"] if answer != right else []


def is_broken(text, task):
    """Whether a text should be JSON and is none."""
    if task.answer not in ("json", "verdict"):
        return False
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        return True
    return False


def with_few_broken(pairs, task):
    """The pairs, where one with a broken text waits until it is not one too many among those so far."""
    waiting = deque()
    n_broken = 0
    n = 0
    for pair in pairs:
        if is_broken(pair["rejected"], task):
            waiting.append(pair)
        else:
            n += 1
            yield pair
        while waiting and n_broken + 1 <= MOST_BROKEN_SHARE * (n + 1):
            n_broken += 1
            n += 1
            yield waiting.popleft()


# ---- pairs


def pair_of(row, name, violation, rejected, failed, task):
    return {
        "id": name,
        "input": row["input"],
        "chosen": task.completion(row["output"]),
        "rejected": rejected,
        "violation": violation,
        "reason": ", ".join(failed),
    }


def on_policy(sampled, task, seed):
    """A pair for every answer that fails a check, each text once, in random order: the first of every input before any
    second one.
    """
    found = []
    n_of_input = Counter()
    seen = set()
    for row in random.Random(f"{seed} {ON_POLICY}").sample(sampled, len(sampled)):
        key = key_of(row["input"], task)
        failed = failed_checks(task, row["raw"], row["output"])
        if failed and (key, row["raw"]) not in seen:
            seen.add((key, row["raw"]))
            n_of_input[key] += 1
            name = f"{row_id(row)}-{ON_POLICY}-{n_of_input[key]}"
            found.append((n_of_input[key], pair_of(row, name, ON_POLICY, row["raw"], failed, task)))
    # Else an input that the model never gets right would be in more pairs than others, by the number of samples.
    return [pair for _, pair in sorted(found, key=lambda one: one[0])]


class Constructed:
    """Pairs with rejected texts that the task makes: as many of each violation, each input as seldom, as can be."""

    def __init__(self, rows, task, seed):
        self.rows = rows
        self.task = task
        self.seed = seed
        self.makers = task.hook("violations", "VIOLATIONS", {})
        # Of each violation the rows that it was not tried on, in an order of its own.
        self.waiting = {
            name: dict.fromkeys(random.Random(f"{seed} {name}").sample(range(len(rows)), len(rows)))
            for name in self.makers
        }

    def __iter__(self):
        n_used = Counter()
        n_made = Counter()
        for most in itertools.count(1):
            turns = {name: iter(list(waiting)) for name, waiting in self.waiting.items() if waiting}
            if not turns:
                return
            while turns:
                # The first of those that are equally rare.
                name = min(turns, key=lambda one: n_made[one])
                found = self.next_pair(name, (at for at in turns[name] if n_used[at] < most))
                if found is None:
                    del turns[name]
                    continue
                at, pair = found
                n_used[at] += 1
                n_made[name] += 1
                yield pair

    def next_pair(self, name, places):
        """(place of the row, pair) of the first of these rows that the violation applies to; None where none is."""
        make, checks = self.makers[name]
        for at in places:
            del self.waiting[name][at]
            row = self.rows[at]
            # The text of a row depends on nothing but its row, its violation and the seed.
            rng = random.Random(f"{self.seed} {name} {row_id(row)}")
            gold = in_order(row["output"], self.task.answer_schema) if self.task.answer_schema else row["output"]
            rejected = make(row["input"], gold, rng)
            if rejected is not None:
                failed = failed_checks(self.task, rejected, gold)
                self.refuse_other(name, checks, failed, row)
                return at, pair_of(row, f"{row_id(row)}-{name}", name, rejected, failed, self.task)
        return None

    def refuse_other(self, name, checks, failed, row):
        """A rejected text that is right, or wrong otherwise than its name says, would teach something else."""
        if set(failed) != set(checks):
            raise WorkFailed(
                f"src/tasks/{self.task.name}/violations.py: {name} of the row {row_id(row)} fails "
                f"{', '.join(failed) or 'nothing'} and should fail {', '.join(checks)}; correct the one or the other"
            )
