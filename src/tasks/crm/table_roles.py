"""What the columns beside two records are: the label and what its values mean, ids, groups and sentences."""

import re
from collections import Counter

from common import UserError, counted
from tasks.crm.table_layouts import MOST_NAMED, ROW_NUMBERS, letters, listed

LABEL_NAMES = frozenset(
    "label labels labelled gold verdict result decision class target isduplicate duplicate duplicates dup isdup "
    "ismatch match matched issame same sameentity samecustomer duplikat dublette doublon istduplikat".split()
)
ID_NAMES = frozenset("id pair pairid rowid nr no".split())
GROUP_NAMES = frozenset("group groupid".split())
REASON_NAMES = frozenset("reasoning reason explanation rationale begründung".split())
LABEL_WORDS = {
    "DUPLICATE": "duplicate duplicates dup match matched same identical positive true t yes y 1 ja oui si sí "
    "duplikat dublette doublon gleich",
    "POSSIBLE": "possible possiblematch possibleduplicate maybe perhaps review unsure uncertain unclear vielleicht "
    "peutêtre möglich",
    "NO_MATCH": "nomatch nonmatch notmatch notamatch unmatched different distinct notduplicate notaduplicate "
    "nonduplicate noduplicate unique negative false f no n non 0 nein keinduplikat verschieden différent",
}
MEANING = {word: label for label, words in LABEL_WORDS.items() for word in words.split()}
SKIP = "SKIP"


def roles_of(pairs, args):
    """{label, id, group, reason: column or None}; a column that is none of them must be dropped by name."""
    named = {"label": args.label_column, "group": args.group_column, "reason": args.reason_column}
    named["id"] = None if args.pairs else args.id_column
    for role, column in named.items():
        if column and column not in pairs.rest_columns:
            raise UserError(
                f"{pairs.name}: --{role}_column {column}: no such column beside the records; there is "
                f"{', '.join(map(repr, pairs.rest_columns)) or 'none'}"
            )
    free = [column for column in pairs.rest_columns if column not in named.values()]
    if not named["label"]:
        named["label"] = label_column(pairs, free)
        free.remove(named["label"])
    for role, names in (("id", ID_NAMES), ("group", GROUP_NAMES), ("reason", REASON_NAMES)):
        if not named[role]:
            named[role] = next((column for column in free if letters(column) in names), None)
    for column in [column for column in free if column not in named.values() and ROW_NUMBERS.fullmatch(column)]:
        pairs.dropped[column] = "numbers the rows"
    odd = [column for column in free if column not in named.values() and column not in pairs.dropped]
    if odd:
        raise UserError(
            f"{pairs.name}: {', '.join(map(repr, odd))}: neither of a record nor known beside the label "
            f"{named['label']!r}; leave out with --drop {' '.join(map(shell_word, odd))}"
        )
    return named


def shell_word(column):
    return column if re.fullmatch(r"[\w.:-]+", column) else f'"{column}"'


def label_column(pairs, free):
    likely = [column for column in free if letters(column) in LABEL_NAMES]
    if len(likely) == 1:
        return likely[0]
    which = "several columns may be the label" if likely else "no column is named as a label is"
    shown = [f"  {column!r} holds {values_of(pairs, column, 4)}" for column in likely or free]
    advice = "; make ask PAIRS= answers pairs without labels" if not likely else ""
    raise UserError(
        "\n".join(
            [
                f"{pairs.name}: {which}; name it with --label_column{advice}:",
                *(shown or ["  every column is a record's"]),
            ]
        )
    )


def values_of(pairs, column, most):
    counts = Counter(row[column] for row in pairs.rest)
    shown = [f"{value!r} ({n:,})" for value, n in counts.most_common(most)]
    n_more = len(counts) - most
    return ", ".join(shown) + (f" and {counted(n_more, 'other value')}" if n_more > 0 else "")


# ---- what the label's values mean


def labels_of(pairs, column, args):
    """{value: label, or SKIP} of everything that the label column holds."""
    given = given_labels(args)
    counts = Counter(row[column] for row in pairs.rest)
    given_as = {value: given_value(value, given) for value in counts}
    if unused := [word for value, (word, _) in given.items() if value not in given_as.values()]:
        raise UserError(
            f"{pairs.name}: --labels {' '.join(unused)}: no such value in the column {column!r}, which holds "
            f"{values_of(pairs, column, MOST_NAMED)}; correct it or take it out"
        )
    meant = {
        value: MEANING.get(as_word(value)) if given_as[value] is None else given[given_as[value]][1] for value in counts
    }
    if unknown := [value for value, label in meant.items() if label is None]:
        refuse_unknown(unknown, counts, pairs, column)
    return meant


def given_labels(args):
    """{value: (what --labels says of it, its label)}; capitals make no other value."""
    found = {}
    for word in args.labels:
        value, equals, label = word.rpartition("=")
        if not equals or label.upper() not in (*LABEL_WORDS, SKIP):
            raise UserError(f"--labels {word}: VALUE=LABEL is wanted, with {', '.join([*LABEL_WORDS, SKIP])} as label")
        found[value.strip().casefold()] = (word, label.upper())
    return found


def given_value(value, given):
    """The value in --labels that speaks of this one: itself, or the same word, as 1 and 1.0 are; None without any."""
    if value.casefold() in given:
        return value.casefold()
    # What has no letters, as + and -, is no word.
    word = as_word(value)
    return next((one for one in given if word and as_word(one) == word), None)


def refuse_unknown(unknown, counts, pairs, column):
    first = {}
    for line, row in zip(pairs.lines, pairs.rest, strict=True):
        first.setdefault(row[column], line)
    faults = [
        f"{pairs.name}:{first[value]}: {column} {value!r}, in {counted(counts[value], 'row')}" for value in unknown
    ]
    # A value that looks like an option goes behind a sign of equality.
    dashed = [shell_word(f"--labels={value}={SKIP}") for value in unknown if value.startswith("-")]
    plain = [shell_word(f"{value}={SKIP}") for value in unknown if not value.startswith("-")]
    example = " ".join([*(["--labels", *plain] if plain else []), *dashed])
    raise UserError(
        listed(
            faults,
            "label",
            f"say what each means with --labels VALUE=LABEL ({', '.join(LABEL_WORDS)}), or leave such rows out: "
            f"{example}",
        )
    )


def as_word(value):
    """A label's value as LABEL_WORDS spells it; a number keeps its sign."""
    return value.removesuffix(".0") if re.fullmatch(r"[-+]?[\d.]+", value) else letters(value)
