"""How pairs lie in tables: both records of each side by side, or a file of id pairs and the records in tables of their
own -> the fields of both records, and the columns beside them.
"""

import re
from dataclasses import dataclass, field

import tables
from common import UserError, counted
from tasks.crm.public_formats import MISSING, PAIR_COLUMNS

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
RECORD_ID_NAMES = frozenset("id recordid recid rowid uniqueid uuid guid key".split())
ROW_NUMBERS = re.compile(r"|unnamed: 0|index", re.I)
MOST_NAMED = 20


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
    said: list = field(default_factory=list)  # how the records were found, a line each
    dropped: dict = field(default_factory=dict)  # column -> why
    rest_columns: list = field(default_factory=list)


def field_text(text):
    """A cell as a record holds it; None where it says nothing."""
    text = tables.tidy(text)
    return None if text in MISSING else text


def letters(name):
    return re.sub(r"[\W_]+", "", name).lower()


def listed(faults, what, advice):
    more = [f"and {len(faults) - MOST_NAMED:,} more"] if len(faults) > MOST_NAMED else []
    return "\n".join([*faults[:MOST_NAMED], *more, f"{counted(len(faults), what)} cannot be read; {advice}"])


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
    return {name: text for name, column in side.items() if (text := field_text(row[column])) is not None}


def side_words(left, right):
    both = [name for name in left if name in right]
    found = [f"fields of both records: {', '.join(both)} ({left[both[0]]} beside {right[both[0]]})"]
    for which, side, other in (("first", left, right), ("second", right, left)):
        if alone := [name for name in side if name not in other]:
            found.append(f"fields of the {which} record alone: {', '.join(alone)}")
    return found


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
        raise UserError(listed(lost, "id", "check --pair_columns and --id_column, or take these lines out"))


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
        raise UserError(listed(faults, "id", "an id names one record; name another column with --id_column"))
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
