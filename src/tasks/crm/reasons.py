"""A verdict's one short sentence, written from the same field evidence that the faithfulness KPI checks."""

from tasks.crm.fields import evidence

OPENINGS = {"DUPLICATE": "Clear duplicate", "POSSIBLE": "Needs review", "NO_MATCH": "No match"}
# What a sentence says first: what speaks for the verdict, then what speaks against it.
TOLD = {
    "DUPLICATE": ("same", "similar"),
    "POSSIBLE": ("same", "similar", "different", "missing"),
    "NO_MATCH": ("different", "same"),
}
VERBS = {
    "same": ("match", "matches"),
    "similar": ("are similar", "is similar"),
    "different": ("differ", "differs"),
    "missing": ("are on one side only", "is on one side only"),
}
# Where no field of a known meaning stands on both sides.
UNSAID = {
    "DUPLICATE": "the same values stand under other keys",
    "POSSIBLE": "too little to compare",
    "NO_MATCH": "nothing in common",
}
MOST_FIELDS = 3  # of one relation
MOST_CLAUSES = 3
LONGEST_KEY = 24  # characters; a longer key of no known kind would fill the sentence
# The fields that decide most come first in a sentence.
TELLING = {
    kind: at
    for at, kind in enumerate(
        "tax_id email phone birth_date name company first_name last_name street postal_code website city middle_name "
        "house_number job_title agency birth_place industry unit gender state country".split()
    )
}


def reasoning(label, case):
    """What agrees, what is close, what differs: at most three fields each, the telling ones first."""
    found = {}
    for item in sorted(evidence(case), key=lambda item: TELLING.get(item.kind, len(TELLING))):
        if len(item.words) <= LONGEST_KEY:
            found.setdefault("missing" if item.relation.endswith("_only") else item.relation, []).append(item.words)
    wanted = TOLD[label] if label != "NO_MATCH" or "different" in found else ("missing", *TOLD[label])
    clauses = [clause(found[relation][:MOST_FIELDS], relation) for relation in wanted if relation in found][
        :MOST_CLAUSES
    ]
    return f"{OPENINGS[label]}: {'; '.join(clauses) or UNSAID[label]}."


def clause(words, relation):
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"{listed} {VERBS[relation][len(words) == 1]}"
