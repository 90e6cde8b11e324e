"""Record sets as others publish them: which file holds what, which columns give the answer away, and how to read them
all as records.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

import tables
from common import UserError, existing_file, sha256_file, shown_path

# Spelled as programs write "no value"; other spellings stay, for Nan, Null and None are names too.
MISSING = frozenset(["", "nan", "NaN", "NaT", "NULL", "null", "None", "N/A", "#N/A", "<NA>", "\\N"])
TRUE_FROM = 0.95  # a clerk's score between the two is no verdict
FALSE_TO = 0.05
MOST_NAMED = 5
# Names that others give to the columns of a file of pairs.
PAIR_COLUMNS = (
    ("ltable_id", "rtable_id"),
    ("unique_id_l", "unique_id_r"),
    ("id_l", "id_r"),
    ("left_id", "right_id"),
    ("id1", "id2"),
    ("id_1", "id_2"),
    ("rec_id_1", "rec_id_2"),
)
LABEL_COLUMNS = ("label", "gold", "clerical_match_score", "match_score", "score", "match", "is_match", "is_duplicate")
LABEL_WORDS = {
    "true": 1,
    "yes": 1,
    "match": 1,
    "duplicate": 1,
    "false": 0,
    "no": 0,
    "no_match": 0,
    "non-match": 0,
    "nomatch": 0,
}

ID = "names the row or the entity: the answer itself"
NATIONAL_ID = "a number that agrees in nearly every true pair and in no other: the answer itself"
DERIVED = "repeats other columns"
CONSTANT = "the same for every record"
NOT_CRM = "not what a customer record holds"
NOT_KEPT = "not among the columns that tell who it is"
SHIFTED = "its values stand in other columns, where they were found by what they look like"
BY_CALL = "named with --drop"
NOISE_INPUT = "an input of the set's noise generator"


@dataclass(frozen=True)
class Source:
    """Where the records of a set are, what says which of them are one entity, and what the model must not see."""

    format: str
    tables: tuple  # one or two files; of two tables every pair takes one record each
    id_column: str = ""  # "" counts the rows
    cluster_column: str = ""
    cluster_pattern: str = ""  # the part of the cluster column that names the entity
    links: tuple = ()  # file and two columns: every true pair
    labels: tuple = ()  # file, two columns and the label column: pairs that somebody judged
    side_pattern: str = ""  # one table that holds two: ids that match stand on the other side
    keep: tuple = ()  # () keeps all that `drop` does not name
    drop: dict = field(default_factory=dict)  # column -> reason
    rename: dict = field(default_factory=dict)
    by_value: dict = field(default_factory=dict)  # column -> what its value looks like, whichever column it stands in
    blank: dict = field(default_factory=dict)  # column -> share of the records that lose it
    pairs: int = 0  # how many by default; 0 follows from the true pairs
    reading: tables.Reading = tables.Reading()


FEBRL = {
    "format": "clusters",
    "id_column": "rec_id",
    "cluster_column": "rec_id",
    "cluster_pattern": r"rec-(\d+)-",
    "drop": {"soc_sec_id": NATIONAL_ID},
    # It agrees in 86-89 % of the true pairs: a model that reads nothing else would be right.
    "blank": {"date_of_birth": 0.5},
}
PRESETS = {
    "splink_fake_1000": Source(
        "clusters",
        ("fake_1000.csv",),
        "unique_id",
        "cluster",
        pairs=3_300,
        labels=("fake_1000_labels.csv", "unique_id_l", "unique_id_r", "clerical_match_score"),
    ),
    "splink_historical_50k": Source(
        "clusters",
        ("historical_figures_with_errors_50k.parquet",),
        "unique_id",
        "cluster",
        pairs=6_000,
        drop={"first_and_surname": DERIVED},
        rename={"postcode_fake": "postcode"},
    ),
    "febrl4": Source(tables=("dataset4a.csv", "dataset4b.csv"), pairs=15_000, **FEBRL),
    "febrl3": Source(tables=("dataset3.csv",), pairs=6_000, **FEBRL),
    # Every true link joins an original and its damaged copy; so must every other pair, or damage alone would show it.
    "opencr_uganda": Source(
        "links",
        ("uganda_data_v21_20201501.csv",),
        "rec_id",
        side_pattern=r"-dup-",
        pairs=3_000,
        links=("uganda_data_v21_20201501_true_links.csv", "rec_id_1", "rec_id_2"),
        drop={"uganda_nin": NATIONAL_ID, "art_number": NATIONAL_ID},
    ),
    "dedupe_chicago_sites": Source(
        "clusters",
        ("csv_example_input_with_true_ids.csv",),
        "Id",
        "True Id",
        pairs=6_000,
        keep=("Site name", "Address", "Zip", "Phone", "Agency"),
        # Two of its nine sources have their values two columns right of the header.
        by_value={"Website": r"(https?://|www\.)\S+", "Email Address": r"[^\s@]+@[^\s@]+\.\w+"},
    ),
    "fodors_zagats": Source(
        "links",
        ("fodors.csv", "zagats.csv"),
        "id",
        links=("matches_fodors_zagats.csv", "fodors_id", "zagats_id"),
        labels=("lbl_restnt_wf1.csv", "ltable_id", "rtable_id", "gold"),
        pairs=3_000,
        drop={"class": "equals the label where a copy of this set has it"},
    ),
    "pseudopeople": Source(
        "clusters",
        ("decennial_census.parquet",),
        "",
        "simulant_id",
        pairs=6_000,
        blank={"date_of_birth": 0.5},
        drop={
            "household_id": ID,
            "guardian_1": ID,
            "guardian_2": ID,
            "year": "differs in every true pair",
            "age": "follows from the birth date and the year",
            "copy_age": NOISE_INPUT,
            "copy_date_of_birth": NOISE_INPUT,
            "zipcode": CONSTANT,
            "city": CONSTANT,
            "state": CONSTANT,
            "race_ethnicity": NOT_CRM,
            "housing_type": NOT_CRM,
            "relationship_to_reference_person": NOT_CRM,
        },
    ),
}


@dataclass
class Record:
    key: str  # as the set names it
    side: int  # which of two tables
    entity: str
    fields: dict


@dataclass
class RecordSet:
    records: list
    judged: list  # (record, record, whether true) of the labels file
    facts: dict  # for the manifest


def named_set(name):
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.0)
        raise UserError(
            f"--set {name}: no such set; there is {', '.join(PRESETS)} (nearest: {near[0]}); for your own files use "
            "--format"
        )
    return PRESETS[name]


def own_set(args):
    """A user's own files as a set, with the well-known column names where the call gives none."""
    if not args.tables or len(args.tables) > 2:
        raise UserError(f"--format {args.format}: name one or two tables with --in")
    if args.format == "magellan" and len(args.tables) == 1:
        raise UserError("--format magellan: name two tables with --in; judged pairs of one table are --format labels")
    drop = dict.fromkeys(args.drop, BY_CALL)
    reading = tables.reading(args)
    if args.format == "clusters":
        if not args.cluster_column:
            raise UserError("--format clusters: name the column of the entity with --cluster_column")
        return Source("clusters", tuple(args.tables), args.id_column, args.cluster_column, drop=drop, reading=reading)
    if not args.truth or not args.id_column:
        raise UserError(
            f"--format {args.format}: name the file of pairs with --truth and the tables' id column with --id_column"
        )
    columns, _ = read_table(Path(args.truth), reading)
    pair = args.pair_columns or next((pair for pair in PAIR_COLUMNS if columns and set(pair) <= set(columns)), None)
    label = args.label_column or next((column for column in LABEL_COLUMNS if column in columns), None)
    if not pair or not (label or args.format == "links"):
        raise UserError(
            f"{args.truth}: no well-known columns among {', '.join(map(repr, columns))}; name them with "
            f"{'--label_column' if pair else '--pair_columns'}"
        )
    truth = {"links": (args.truth, *pair)} if args.format == "links" else {"labels": (args.truth, *pair, label)}
    own = {"drop": drop, "reading": reading, **truth}
    return Source(args.format, tuple(args.tables), args.id_column, args.cluster_column, **own)


def load(source, folder, labelled):
    """Every record of a set with its entity, free of the columns that give the answer away."""
    records, facts = read_records(source, folder)
    by_key = {(record.side, record.key): record for record in records}
    files = [*source.tables]
    judged = []
    if source.links:
        files.append(source.links[0])
        join_entities(records, [pair[:2] for pair in read_pairs(source.links, source, folder, by_key)])
    if labelled:
        files.append(source.labels[0])
        judged = read_pairs(source.labels, source, folder, by_key)
        if not source.links and not source.cluster_column:
            join_entities(records, [(left, right) for left, right, score in judged if score >= TRUE_FROM])
    if source.side_pattern:
        for record in records:
            record.side = int(bool(re.search(source.side_pattern, record.key)))
    return RecordSet(
        records,
        judged,
        {"format": source.format, "files": {shown_path(name): sha256_file(folder / name) for name in files}, **facts},
    )


def read_records(source, folder):
    records = []
    kept = {}
    dropped = {}
    for side, name in enumerate(source.tables):
        path = folder / name
        columns, rows = read_table(path, source.reading)
        for column in (source.id_column, source.cluster_column, *source.keep):
            require(column, columns, path)
        reasons = why_dropped(source, columns)
        dropped |= reasons
        names = {column: source.rename.get(column, column) for column in columns if column not in reasons}
        kept |= dict.fromkeys([*names.values(), *source.by_value])
        for number, row in enumerate(rows, 1):
            key = row[source.id_column] if source.id_column else str(number)
            records.append(Record(key, side, entity_of(row, key, side, source), fields_of(row, names, source.by_value)))
        check_keys(records, side, source.id_column, path)
    for column, why in source.drop.items():
        if why == BY_CALL and column not in dropped:
            raise UserError(f"--drop {column}: no column of that name in {' or '.join(source.tables)}")
    return records, {
        "columns_kept": list(kept),
        "columns_dropped": dropped,
        "columns_blanked": {column: f"in {share:.0%} of the records" for column, share in source.blank.items()},
    }


def why_dropped(source, columns):
    """The columns of a table that the model must not see, each with the reason."""
    reasons = {column: NOT_KEPT for column in columns if source.keep and column not in source.keep}
    reasons |= {column: SHIFTED for column in columns if column in source.by_value}
    reasons |= {column: why for column, why in source.drop.items() if column in columns}
    return reasons | {column: ID for column in (source.id_column, source.cluster_column) if column}


def fields_of(row, names, by_value):
    fields = {name: row[column] for column, name in names.items() if row[column] not in MISSING}
    for name, pattern in by_value.items():
        found = next((value for value in row.values() if re.fullmatch(pattern, value)), None)
        if found:
            fields[name] = found
    return fields


def require(column, columns, path):
    if column and column not in columns:
        raise UserError(f"{path}: no column {column!r}; it has {', '.join(map(repr, columns))}")


def entity_of(row, key, side, source):
    """The entity that the row's cluster names; without one the row is an entity of its own until links join it to
    others.
    """
    name = row[source.cluster_column] if source.cluster_column else ""
    if name in MISSING:
        return f"row:{side}:{key}"
    found = re.search(source.cluster_pattern, name) if source.cluster_pattern else None
    return found[1] if found else name


def check_keys(records, side, column, path):
    seen = set()
    twice = []
    for record in records:
        if record.side == side:
            if record.key in seen or record.key in MISSING:
                twice.append(record.key)
            seen.add(record.key)
    if twice:
        raise UserError(
            f"{path}: column {column!r} must name every record once; {len(twice):,} repeat or are empty: "
            f"{', '.join(map(repr, twice[:MOST_NAMED]))}; name another with --id_column, or leave it out to count the "
            "rows"
        )


def join_entities(records, pairs):
    """Records that true pairs join, also through others, get one entity: the smallest name among them."""
    parent = {record.entity: record.entity for record in records}

    def root(name):
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for left, right in pairs:
        first, second = sorted((root(left.entity), root(right.entity)))
        parent[second] = first
    for record in records:
        record.entity = root(record.entity)


def read_pairs(where, source, folder, by_key):
    """(record, record, score) of every line of a pairs file; a file without a label column holds true pairs only."""
    name, left_column, right_column, *label = where
    path = folder / name
    right_side = len(source.tables) - 1
    columns, rows = read_table(path, source.reading)
    for column in where[1:]:
        require(column, columns, path)
    pairs = []
    unknown = []
    for row in rows:
        left = row[left_column]
        right = row[right_column]
        found = by_key.get((0, left)), by_key.get((right_side, right))
        if None in found:
            unknown.append(left if found[0] is None else right)
        else:
            pairs.append((*found, score_of(row[label[0]], path, label[0]) if label else 1.0))
    if unknown:
        raise UserError(
            f"{path}: {len(unknown):,} pair(s) name a record that is not in its table: "
            f"{', '.join(map(repr, unknown[:MOST_NAMED]))}; "
            f"check the columns {left_column!r} (first table) and {right_column!r} (last table), and the id column"
        )
    return pairs


def score_of(text, path, column):
    """A label as a number from 0 to 1."""
    try:
        score = float(LABEL_WORDS.get(text.lower(), text))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise UserError(
            f"{path}: column {column!r} holds {text!r}; a label is a number from 0 to 1, or yes/no, true/false, "
            "match/no_match"
        )
    return score


def read_table(path, how=None):
    """Column names, and every row as column -> text, of a CSV, Excel or Parquet file."""
    existing_file(path, "--from names the folder of a set's files, --in and --truth your own")
    table = tables.read(path, how)
    return table.columns, [{name: tables.tidy(text) for name, text in row.items()} for row in table.rows]
