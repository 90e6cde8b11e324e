"""Labelled pairs in a table -> rows: which columns are the two records, which is the label, what its values mean.

Either one table holds both records of a pair side by side, or a file of id pairs points into one or two tables of
records. All that was understood is said here.
"""

import argparse
import sys
from collections import Counter

import tables
from common import UserError, counted, existing_file
from tasks.crm.table_layouts import doubtful, letters, listed, pointed_at, side_by_side, sides_of
from tasks.crm.table_roles import ID_NAMES, SKIP, labels_of, roles_of
from tasks.plain_tables import Read


def add_options(parser):
    group = parser.add_argument_group("pairs in a table (CSV, TSV, Excel, Parquet); what is not named is recognised")
    group.add_argument("--label_column", metavar="COLUMN", help="holds the verdict")
    group.add_argument(
        "--labels",
        nargs="+",
        action="extend",
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


def rows(args, task, files):
    """The rows of the tables; what was understood is printed, what is missing or doubtful asked for by its option."""
    how = tables.reading(args)
    if args.pairs:
        pairs = pointed_at(args, how)
    else:
        [(name, path)] = files.items()
        pairs = side_by_side(tables.read(path, how, name), args)
    # Said before anything is asked for, so that the question has its context.
    say(found_words(pairs), sys.stdout)
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
    unnamed = name_rows(found, lines, pairs, roles, args)
    refuse_empty(found, lines, pairs.name)
    say([*role_words(pairs, roles, label_of, n_skipped), *unnamed], sys.stdout)
    return Read(pairs.name, found, lines, role_facts(pairs, roles, label_of))


def cases(name, path):
    """(line, id or nothing, pair) of each row of a table that is asked about; what is doubtful there is not read."""
    table = tables.read(path, tables.Reading(has_options=False), name)
    left, right, is_sure = sides_of(table.columns, table)
    nothing = dict.fromkeys(("label_column", "id_column", "group_column", "reason_column"))
    call = argparse.Namespace(drop=doubtful(left, right, is_sure, ()), one_sided=[], **nothing)
    pairs = side_by_side(table, call)
    id = next((column for column in pairs.rest_columns if letters(column) in ID_NAMES), None)
    left_out = [column for column in (*pairs.rest_columns, *pairs.dropped) if column != id]
    not_read = [f"  not read: {', '.join(map(repr, left_out))}"] if left_out else []
    say([*found_words(pairs), *not_read], sys.stderr)
    names = [rest[id] if id else ":".join(filter(None, ids)) for rest, ids in zip(pairs.rest, pairs.ids, strict=True)]
    return [
        (line, {"id": named} if named else {}, {"record1": one, "record2": two})
        for line, named, one, two in zip(pairs.lines, names, pairs.left, pairs.right, strict=True)
    ]


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
            listed(faults, "id", "an id names one row; name another column with --id_column, or correct these lines")
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
        raise UserError(listed(empty, "pair", "fill them or take these lines out"))


def is_empty(row):
    return not any(row["input"].values())


# ---- what is said of them


def say(lines, stream):
    print("\n".join(lines), file=stream, flush=True)


def found_words(pairs):
    """Which tables and records were found, a line each."""
    return [f"{pairs.name} ({pairs.form}): {counted(len(pairs.lines), 'pair')}", *pairs.said]


def role_words(pairs, roles, label_of, n_skipped):
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


def role_facts(pairs, roles, label_of):
    """The same for the manifest."""
    names = [list(dict.fromkeys(name for fields in side for name in fields)) for side in (pairs.left, pairs.right)]
    return {"record1": names[0], "record2": names[1], **roles, "labels": label_of, "not_read": pairs.dropped}
