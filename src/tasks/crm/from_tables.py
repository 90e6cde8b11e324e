"""Labelled pairs in a table -> rows: which columns are the two records, which is the label, what its values mean.

Either one table holds both records of a pair side by side, or a file of id pairs points into one or two tables of
records.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass, field

import tables
from common import UserError, counted, existing_file
from tasks.crm.public_formats import MISSING, PAIR_COLUMNS
from tasks.plain_tables import Read

# How others name the two records in a column's name, before or behind the field's own name.
SIDES = (
    ("record1", "record2"),
    ("ltable", "rtable"),
    ("left", "right"),
    ("l", "r"),
    ("a", "b"),
    ("x", "y"),
    ("1", "2"),
)
BETWEEN = r"[._ :\-]+"
LABEL_NAMES = frozenset(
    "label labels labelled gold verdict result decision class target isduplicate duplicate duplicates dup isdup "
    "ismatch match matched issame same sameentity samecustomer duplikat dublette doublon istduplikat".split()
)
ID_NAMES = frozenset("id pair pairid rowid nr no".split())
GROUP_NAMES = frozenset("group groupid".split())
REASON_NAMES = frozenset("reasoning reason explanation rationale begründung".split())
RECORD_ID_NAMES = frozenset("id recordid recid rowid uniqueid uuid guid key".split())
ROW_NUMBERS = re.compile(r"|unnamed: 0|index", re.I)
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
MOST_NAMED = 20


def add_options(parser):
    group = parser.add_argument_group("pairs in a table (CSV, TSV, Excel, Parquet); what is not named is recognised")
    group.add_argument("--label_column", metavar="COLUMN", help="holds the verdict")
    group.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="VALUE=LABEL",
        help=f"what its values mean: ja=DUPLICATE nein=NO_MATCH; {SKIP} leaves such rows out",
    )
    group.add_argument("--id_column", metavar="COLUMN", help="names a pair; with --pairs a record in its own table")
    group.add_argument("--group_column", metavar="COLUMN", help="names what must stay in one split")
    group.add_argument("--reason_column", metavar="COLUMN", help="holds a sentence beside the verdict")
    group.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns that are not read")
    group.add_argument(
        "--one_sided", nargs="+", default=[], metavar="COLUMN", help="columns of one record that the other lacks"
    )
    group.add_argument("--pairs", metavar="FILE", help="id pairs and their labels; the records are in --left, --right")
    group.add_argument("--left", metavar="FILE", help="table of the first records of --pairs")
    group.add_argument("--right", metavar="FILE", help="table of the second ones, if it is another")
    group.add_argument("--pair_columns", nargs=2, metavar=("LEFT", "RIGHT"), help="the ids in --pairs")


def files(args):
    """{name: path} of the tables that a call names beside --in: records and a file of id pairs."""
    named = [args.left, args.right, args.pairs]
    if not any(named):
        return {}
    if not (args.pairs and args.left):
        raise UserError("--pairs, --left: a file of id pairs and the table of its records are wanted (--right: of two)")
    return {name: existing_file(name) for name in named if name}


@dataclass
class Pairs:
    """What a table says of each pair, before its label is understood."""

    name: str
    form: str
    lines: list
    left: list  # fields of the first record of each pair
    right: list
    rest: list  # the other columns of each
    ids: list  # of the two records, where the table names them
    said: list = field(default_factory=list)
    dropped: dict = field(default_factory=dict)  # column -> why
    rest_columns: list = field(default_factory=list)


def rows(args, task, files):
    """The rows of the tables, with what was understood; what is missing or doubtful is asked for by its option."""
    how = tables.reading(args)
    if args.pairs:
        pairs = pointed_at(args, how)
    else:
        [(name, path)] = files.items()
        pairs = side_by_side(tables.read(path, how, name), args)
    # Printed before anything is asked for, so that the question has its context.
    print("\n".join([f"{pairs.name} ({pairs.form}): {counted(len(pairs.lines), 'pair')}", *pairs.said]), flush=True)
    roles = roles_of(pairs, args)
    label_of = labels_of(pairs, roles["label"], args)
    found = []
    lines = []
    n_skipped = 0
    for at, line in enumerate(pairs.lines):
        label = label_of[pairs.rest[at][roles["label"]]]
        if label == SKIP:
            n_skipped += 1
            continue
        found.append(row_of(pairs, at, label, roles))
        lines.append(line)
    said = name_rows(found, lines, pairs, roles, args)
    refuse_empty(found, lines, pairs.name)
    said = [*words(pairs, roles, label_of, n_skipped), *said]
    return Read(pairs.name, found, lines, said, columns(pairs, roles, label_of))


def tidy(text):
    """A cell as a record holds it; None where it says nothing."""
    text = tables.tidy(text)
    return None if text in MISSING else text


def letters(name):
    return re.sub(r"[\W_]+", "", name).lower()


# ---- both records in one table


def side_by_side(table, args):
    unknown = [column for column in [*args.drop, *args.one_sided] if column not in table.columns]
    if unknown:
        raise UserError(
            f"{table.name}: no column {', '.join(map(repr, unknown))} (--drop, --one_sided); it has "
            f"{', '.join(map(repr, table.columns))}"
        )
    named = {args.label_column, args.id_column, args.group_column, args.reason_column}
    read = [column for column in table.columns if column not in {*args.drop, *named}]
    left, right, is_sure = sides_of(read, table)
    dropped = dict.fromkeys(args.drop, "named with --drop")
    ids = [{name: side.pop(name) for name in list(side) if letters(name) in RECORD_ID_NAMES} for side in (left, right)]
    dropped |= {column: "names a record" for side in ids for column in side.values()}
    if not left.keys() & right.keys():
        raise UserError(
            f"{table.name}: it names the two records of a pair and holds nothing of them; give the tables that do: "
            f"--pairs {table.name} --left records.csv (--right other.csv)"
        )
    if found := doubtful(left, right, is_sure, args.one_sided):
        raise UserError(
            f"{table.name}: {', '.join(map(repr, found))}: only one of the two records has "
            f"{'it' if len(found) == 1 else 'them'}; leave out with --drop, or read as a field with --one_sided"
        )
    used = {*left.values(), *right.values(), *dropped}
    rest = [column for column in table.columns if column not in used]
    return Pairs(
        table.name,
        table.form,
        table.lines,
        [fields_of(row, left) for row in table.rows],
        [fields_of(row, right) for row in table.rows],
        [{column: row[column].strip() for column in rest} for row in table.rows],
        [tuple("-".join(row[column] for column in side.values()).strip() for side in ids) for row in table.rows],
        [f"  {words}" for words in side_words(left, right)],
        dropped,
        rest,
    )


def sides_of(names, table):
    """({field: column} of the first record, of the second, whether a column of one side alone can only be a field).

    Of all ways to name two records that counts which pairs most columns.
    """
    best = ({}, {}, False)
    for patterns, is_sure in layouts():
        sides = [
            {match[1]: column for column in names if (match := re.fullmatch(pattern, column, re.I))}
            for pattern in patterns
        ]
        if len(sides[0].keys() & sides[1].keys()) > len(best[0].keys() & best[1].keys()):
            best = (*sides, is_sure)
    if not best[0]:
        raise UserError(
            f"{table.name}: no two columns belong together, as name_1 and name_2, left_name and right_name or "
            f"name_a and name_b do; {table.form}, it has {', '.join(map(repr, table.columns))}; rename them, or "
            "name another --separator; records in tables of their own are read with --left, --right and --pairs"
        )
    return best


def layouts():
    """(patterns of a left and of a right column, whether such a name can mean nothing else)"""
    for names in SIDES:
        is_sure = len(names[0]) > 1
        yield [f"{name}{BETWEEN}(.+)" for name in names], is_sure
        yield [f"(.+?){BETWEEN}{name}" for name in names], is_sure
    yield [r"(.*[^\W\d_])1", r"(.*[^\W\d_])2"], False


def doubtful(left, right, is_sure, one_sided):
    """Columns that only one record has: fields, or something else that ends in a digit."""
    alone = [side[name] for side in (left, right) for name in side if (name in left) != (name in right)]
    return [column for column in alone if column not in one_sided and not is_sure]


def fields_of(row, side):
    return {name: text for name, column in side.items() if (text := tidy(row[column])) is not None}


def side_words(left, right):
    both = [name for name in left if name in right]
    found = [f"fields of both records: {', '.join(both)} ({left[both[0]]} beside {right[both[0]]})"]
    for which, side, other in (("first", left, right), ("second", right, left)):
        if alone := [name for name in side if name not in other]:
            found.append(f"fields of the {which} record alone: {', '.join(alone)}")
    return found


def cases(name, path):
    """(line, id or nothing, pair) of each row of a table that is asked about; what is doubtful there is not read."""
    table = tables.read(path, tables.Reading(has_options=False), name)
    left, right, is_sure = sides_of(table.columns, table)
    nothing = dict.fromkeys(("label_column", "id_column", "group_column", "reason_column"))
    call = argparse.Namespace(drop=doubtful(left, right, is_sure, ()), one_sided=[], **nothing)
    pairs = side_by_side(table, call)
    id = next((column for column in pairs.rest_columns if letters(column) in ID_NAMES), None)
    left_out = [column for column in (*pairs.rest_columns, *pairs.dropped) if column != id]
    said = [f"{name} ({pairs.form}): {counted(len(pairs.lines), 'pair')}", *pairs.said]
    said += [f"  not read: {', '.join(map(repr, left_out))}"] if left_out else []
    print("\n".join(said), file=sys.stderr, flush=True)
    names = [rest[id] if id else ":".join(filter(None, ids)) for rest, ids in zip(pairs.rest, pairs.ids, strict=True)]
    return [
        (line, {"id": named} if named else {}, {"record1": one, "record2": two})
        for line, named, one, two in zip(pairs.lines, names, pairs.left, pairs.right, strict=True)
    ]


# ---- records in tables of their own, and a file of id pairs


def pointed_at(args, how):
    sides = (args.left, args.right or args.left)
    record_tables = {name: tables.read(name, how) for name in dict.fromkeys(sides)}
    records = {name: records_of(table, args) for name, table in record_tables.items()}
    pairs = tables.read(args.pairs, how)
    require_dropped(args, [*record_tables.values(), pairs])
    pair = pair_columns(pairs, args)
    refuse_lost(pairs, pair, sides, records)
    rest = [column for column in pairs.columns if column not in (*pair, *args.drop)]
    ids = [tuple(row[column].strip() for column in pair) for row in pairs.rows]
    said = [
        f"  records: {name} ({table.form}), {len(table.rows):,}: {', '.join(field_columns(table, args))}"
        for name, table in record_tables.items()
    ]
    return Pairs(
        pairs.name,
        pairs.form,
        pairs.lines,
        [records[sides[0]][one] for one, _ in ids],
        [records[sides[1]][two] for _, two in ids],
        [{column: row[column].strip() for column in rest} for row in pairs.rows],
        ids,
        said,
        dict.fromkeys(args.drop, "named with --drop"),
        rest,
    )


def require_dropped(args, read):
    known = {column for table in read for column in table.columns}
    if unknown := [column for column in args.drop if column not in known]:
        raise UserError(f"--drop {' '.join(unknown)}: no such column in {', '.join(table.name for table in read)}")


def pair_columns(pairs, args):
    found = args.pair_columns or next((two for two in PAIR_COLUMNS if set(two) <= set(pairs.columns)), ())
    if not found or not set(found) <= set(pairs.columns):
        raise UserError(
            f"{pairs.name}: name the two columns of ids with --pair_columns; it has "
            f"{', '.join(map(repr, pairs.columns))}"
        )
    return found


def refuse_lost(pairs, pair, sides, records):
    lost = [
        f"{pairs.name}:{line}: {column} {row[column]!r} is not in {name}"
        for line, row in zip(pairs.lines, pairs.rows, strict=True)
        for column, name in zip(pair, sides, strict=True)
        if row[column].strip() not in records[name]
    ]
    if lost:
        raise UserError(listed(lost, "ids", "check --pair_columns and --id_column, or take these lines out"))


def records_of(table, args):
    """{id: fields} of a table of records."""
    column = record_id_column(table, args)
    names = {name: name for name in field_columns(table, args)}
    found = {}
    faults = []
    for line, row in zip(table.lines, table.rows, strict=True):
        key = row[column].strip()
        if not key or key in found:
            faults.append(f"{table.name}:{line}: {column} {key!r} {'stands twice' if key else 'is empty'}")
        found[key] = fields_of(row, names)
    if faults:
        raise UserError(listed(faults, "ids", "an id names one record; name another column with --id_column"))
    return found


def record_id_column(table, args):
    if args.id_column in table.columns:
        return args.id_column
    found = [column for column in table.columns if letters(column) in RECORD_ID_NAMES]
    if args.id_column or len(found) != 1:
        raise UserError(
            f"{table.name}: name the column of the ids with --id_column; it has {', '.join(map(repr, table.columns))}"
        )
    return found[0]


def field_columns(table, args):
    left_out = {record_id_column(table, args), *args.drop}
    return [column for column in table.columns if column not in left_out and not ROW_NUMBERS.fullmatch(column)]


# ---- what the other columns are


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
    raise UserError(
        "\n".join(
            [f"{pairs.name}: {which}; name it with --label_column:", *(shown or ["  every column is a record's"])]
        )
    )


def values_of(pairs, column, most):
    counts = Counter(row[column] for row in pairs.rest)
    shown = [f"{value!r} ({n:,})" for value, n in counts.most_common(most)]
    n_more = len(counts) - most
    return ", ".join(shown) + (f" and {counted(n_more, 'other value')}" if n_more > 0 else "")


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
    example = " ".join(shell_word(f"{value}={SKIP}") for value in unknown[:3])
    raise UserError(
        listed(
            faults,
            "labels",
            f"say what each means with --labels VALUE=LABEL ({', '.join(LABEL_WORDS)}), or leave such rows out: "
            f"--labels {example}",
        )
    )


def as_word(value):
    """A label's value as LABEL_WORDS spells it; a number keeps its sign."""
    return value.removesuffix(".0") if re.fullmatch(r"[-+]?[\d.]+", value) else letters(value)


def listed(faults, what, advice):
    more = [f"and {len(faults) - MOST_NAMED:,} more"] if len(faults) > MOST_NAMED else []
    return "\n".join([*faults[:MOST_NAMED], *more, f"{len(faults):,} {what} cannot be read; {advice}"])


# ---- rows, and what is said of them


def row_of(pairs, at, label, roles):
    rest = pairs.rest[at]
    output = {"result": label}
    if roles["reason"] and rest[roles["reason"]]:
        output["reasoning"] = rest[roles["reason"]]
    row = {"id": rest[roles["id"]] if roles["id"] else ":".join(filter(None, pairs.ids[at]))}
    if roles["group"] and rest[roles["group"]]:
        row["group"] = rest[roles["group"]]
    return row | {"input": {"record1": pairs.left[at], "record2": pairs.right[at]}, "output": output}


def name_rows(found, lines, pairs, roles, args):
    """Ids only where they name every row: those that were recognised may repeat, and then say less than none.

    Returns what is to be said of that.
    """
    first = {}
    faults = []
    for row, line in zip(found, lines, strict=True):
        if first.setdefault(row["id"], line) != line or not row["id"]:
            stands = f"stands in line {first[row['id']]} too" if row["id"] else "is empty"
            faults.append(f"{pairs.name}:{line}: {roles['id']} {row['id']!r} {stands}")
    if not faults:
        return []
    # With --pairs, --id_column names a record in its own table.
    if roles["id"] and roles["id"] == args.id_column and not args.pairs:
        raise UserError(
            listed(faults, "ids", "an id names one row; name another column with --id_column, or correct these lines")
        )
    why = "some repeat" if all(first) else "some are empty"
    for row in found:
        del row["id"]
    if roles["id"]:
        pairs.dropped[roles["id"]] = f"as ids, {why}"
        roles["id"] = None
        return []
    return [f"  ids of the records name no row: {why}"] if any(first) else []


def refuse_empty(found, lines, name):
    empty = [f"{name}:{line}: both records are empty" for row, line in zip(found, lines, strict=True) if is_empty(row)]
    if empty:
        raise UserError(listed(empty, "pairs", "fill them or take these lines out"))


def is_empty(row):
    return not any(row["input"].values())


def words(pairs, roles, label_of, n_skipped):
    """What was understood of the columns beside the records, a line each."""
    counts = Counter(row[roles["label"]] for row in pairs.rest)
    meanings = [f"{value!r} is {label_of[value]} ({n:,})" for value, n in counts.most_common()]
    found = [f"  label: column {roles['label']!r}; {', '.join(meanings)}"]
    beside = {"id": "id", "group": "group", "reason": "sentence"}
    if given := [f"{word} {roles[role]!r}" for role, word in beside.items() if roles[role]]:
        found.append(f"  also read: {', '.join(given)}")
    if pairs.dropped:
        left_out = [f"{column!r} ({why})" for column, why in pairs.dropped.items()]
        found.append(f"  not read: {', '.join(left_out)}")
    if n_skipped:
        found.append(f"  left out: {counted(n_skipped, 'row')} by --labels ...={SKIP}")
    return found


def columns(pairs, roles, label_of):
    """The same for the manifest."""
    names = [list(dict.fromkeys(name for fields in side for name in fields)) for side in (pairs.left, pairs.right)]
    return {"record1": names[0], "record2": names[1], **roles, "labels": label_of, "not_read": pairs.dropped}
