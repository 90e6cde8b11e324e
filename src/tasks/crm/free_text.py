"""Reasonings in free prose, for one ablation only: the same facts in ever other words, without a fixed order."""

import random

from tasks.crm.fields import evidence

STARTS = {
    "DUPLICATE": ("These look like the same party", "I would merge them", "Both entries seem to describe one customer"),
    "POSSIBLE": ("Hard to tell", "It might be the same party", "A colleague should have a look"),
    "NO_MATCH": ("These are two different parties", "I would keep them apart", "They do not belong together"),
}
SAYINGS = {
    "same": ("the {} is identical", "they share the {}", "the {} agrees"),
    "similar": ("the {} is nearly the same", "the {} only differs slightly"),
    "different": ("the {} is another one", "they disagree on the {}"),
    "missing": ("only one of them gives the {}",),
}
LINKS = (" because ", ", since ", ": ", ", as ")


def prose(label, case, index):
    rng = random.Random(index)
    facts = evidence(case)
    rng.shuffle(facts)
    clauses = [
        rng.choice(SAYINGS["missing" if fact.relation.endswith("_only") else fact.relation]).format(fact.words)
        for fact in facts[: rng.randint(2, 4)]
    ]
    return f"{rng.choice(STARTS[label])}{rng.choice(LINKS)}{' and '.join(clauses) or 'there is little to compare'}."
