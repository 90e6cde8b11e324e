"""A table as text: CSV, TSV, Excel or Parquet -> column names and rows, every cell as somebody wrote it.

What a file holds is seen from its first bytes, whatever it is called.
"""

import contextlib
import csv
import io
import re
from dataclasses import dataclass

from common import UserError, existing_file, parse_json

HEAD_BYTES = 65_536
MAGIC = (
    (b"PAR1", "parquet"),
    (b"PK\x03\x04", "xlsx"),
    (b"\xd0\xcf\x11\xe0", "xls"),
    (b"\x1f\x8b", "gzip"),
)
MARKS = (  # the byte order mark that a file may begin with; UTF-32 first, its mark begins with UTF-16's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
ZEROS_OF_UTF16 = 0.4  # of every second byte; Latin letters have a zero there
SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet", ".pq")
SEPARATORS = ",;\t|"
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # how Excel writes its separator before the header
WHOLE_NUMBER = re.compile(r"(\d{3,})\.0")
PADDED = re.compile(r"0{2,}")  # a number format that shows leading zeros, as postal codes have
KINDS = {"csv": "a table of text", "xlsx": "an Excel workbook", "parquet": "a Parquet table"}
REFUSED = {
    "gzip": "is compressed; unpack it first, or hand it over unpacked: --in <(zcat {path})",
    "xls": "is an old or a locked Excel file; save it as .xlsx without a password, or as CSV",
    "list": "is one JSON list; rows are wanted as JSON Lines: jq -c '.[]' {path} > rows.jsonl",
}
MOST_SHOWN = 60  # characters of a line in a message


@dataclass(frozen=True)
class Reading:
    """What a call says about a table where its bytes leave it open."""

    encoding: str | None = None
    separator: str | None = None
    sheet: str | None = None
    has_options: bool = True  # whether the call can say these at all


@dataclass
class Table:
    name: str  # as the user calls the file
    columns: list
    rows: list  # {column: text} of each; "" is an empty cell
    lines: list  # the line, or the sheet's row, in which each begins
    form: str  # what it was read as, in words


def add_options(parser):
    parser.add_argument("--encoding", help="of a table that is not UTF-8 or UTF-16, for example cp1252")
    parser.add_argument("--separator", help="between the values of a CSV table (default: the one its header shows)")
    parser.add_argument("--sheet", help="of a workbook that has several")


def reading(args):
    """The three options above as one value."""
    separator = {"tab": "\t", "\\t": "\t"}.get(args.separator, args.separator)
    if separator is not None and len(separator) != 1:
        raise UserError(f"--separator {args.separator}: one character, or tab")
    return Reading(args.encoding, separator, args.sheet)


def kind_of(path):
    """What a file holds: csv, xlsx, parquet, jsonl, or one of REFUSED."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if found := next((kind for start, kind in MAGIC if head.startswith(start)), None):
        return found
    text = head.decode(encoding_of(head) or "utf-8", "replace")
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if first.startswith("{"):
        return "jsonl"
    if first.startswith("["):
        return "list"
    if is_json(first):
        # An input may be a text or a number; no header of a table is JSON.
        return "jsonl"
    is_table = str(path).lower().endswith(SUFFIXES) or any(separator in first for separator in SEPARATORS)
    return "csv" if is_table else "jsonl"


def is_json(text):
    with contextlib.suppress(ValueError, RecursionError):
        parse_json(text)
        return True
    return False


def encoding_of(head):
    """The encoding that the first bytes of a text give away; None where they fit UTF-8 and others alike."""
    if found := next((name for mark, name in MARKS if head.startswith(mark)), None):
        return found
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = head[first::2]
        if len(half) > 1 and half.count(0) > ZEROS_OF_UTF16 * len(half):
            return name
    return None


def refuse(path, name, kind):
    """Stop at a file that no reader here takes."""
    raise UserError(f"{name} {REFUSED[kind].format(path=path)}")


def read(path, how=None, name=None):
    """The table in a file; `name` is what the user calls it."""
    name = name or str(path)
    how = how or Reading()
    existing_file(path)
    kind = kind_of(path)
    if kind in REFUSED:
        refuse(path, name, kind)
    readers = {"xlsx": read_excel, "parquet": read_parquet}
    numbered, form = readers.get(kind, read_text)(path, how, name)
    return table_of(numbered, form, name)


def table_of(numbered, form, name):
    """The table of (line, cells) pairs whose first one is the header."""
    numbered = [(line, cells) for line, cells in numbered if any(map(str.strip, cells))]
    if len(numbered) < 2:
        raise UserError(f"{name}: the table has no rows")
    header = [cell.strip() for cell in numbered.pop(0)[1]]
    n = len(header)
    for line, cells in numbered:
        if len(cells) > n and any(map(str.strip, cells[n:])):
            raise UserError(
                f"{name}:{line}: {len(cells)} values for {n} columns; put quotes around values that hold the separator"
            )
    # Spreadsheets write separators for empty columns at the right.
    kept = [at for at in range(n) if header[at] or any("".join(cells[at : at + 1]).strip() for _, cells in numbered)]
    columns = [header[at] for at in kept]
    if len(set(columns)) != len(columns):
        raise UserError(
            f"{name}: a column name stands twice in the first line: {', '.join(columns)}; give each its own"
        )
    rows = [{header[at]: cells[at] if at < len(cells) else "" for at in kept} for _, cells in numbered]
    return Table(name, columns, rows, [line for line, _ in numbered], form)


def read_text(path, how, name):
    """([(line, cells)], what it was read as) of a CSV table."""
    text, encoding = decoded(path, how, name)
    said = SEPARATOR_LINE.match(text)
    stream = io.StringIO(text, newline="")
    n_before = 0
    if said and said.end() == len(stream.readline()):
        n_before = 1
    else:
        stream.seek(0)
        said = None
    separator = how.separator or (said[1] if said else separator_of(text))
    # strict, or an unclosed quote would swallow the rest of the file as one value
    lines = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
    numbered = []
    last = 0
    try:
        for cells in lines:
            numbered.append((n_before + last + 1, cells))
            last = lines.line_num
    except csv.Error as error:
        raise UserError(f"{name}:{n_before + last + 1}: not a CSV table ({error}); fix the quotes there") from error
    return numbered, f"separated by {SEPARATOR_NAMES.get(separator, repr(separator))}, {encoding}"


def decoded(path, how, name):
    """(the text of a file, the name of its encoding), which is refused where it would have to be guessed."""
    with open(path, "rb") as file:
        data = file.read()
    encoding = how.encoding or encoding_of(data[:HEAD_BYTES]) or "utf-8"
    try:
        # A mark is no part of the first column's name, whoever named the encoding.
        return data.decode(encoding).removeprefix("\ufeff"), encoding.upper().removesuffix("-SIG")
    except LookupError as error:
        raise UserError(f"--encoding {how.encoding}: no such encoding; try utf-8, utf-16 or cp1252") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        shown = data[start : start + MOST_SHOWN].split(b"\n")[0].decode("cp1252", "replace").strip()
        guess = f"in cp1252 the line begins {shown!r}: if that reads well, say --encoding cp1252, otherwise "
        raise UserError(
            f"{name}:{line}: not {encoding.upper()} (byte {data[error.start]:#04x}); {guess if how.has_options else ''}"
            "save the file as UTF-8"
        ) from error


def separator_of(text):
    """The separator that splits the first line into the most columns; quoted ones do not count."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))


def read_excel(path, how, name):
    """([(row, cells)], what it was read as) of one sheet; postal codes keep the zeros that Excel shows."""
    import pandas

    try:
        file = pandas.ExcelFile(path, engine="openpyxl")
    except Exception as error:  # whatever a zip or an XML reader says of a broken file
        raise UserError(f"{name}: not a readable Excel file ({error}); save it again, or as CSV") from error
    with file:
        # The cells themselves: pandas' frame has lost their number formats.
        sheets = {sheet.title: sheet for sheet in file.book.worksheets}
        if how.sheet and how.sheet not in sheets:
            raise UserError(f"{name}: --sheet {how.sheet}: no such sheet; it has {', '.join(map(repr, sheets))}")
        found = {title: sheet_rows(sheet) for title, sheet in sheets.items() if how.sheet in (None, title)}
    filled = {title: rows for title, rows in found.items() if rows}
    if len(filled) > 1:
        raise UserError(
            f"{name}: {len(filled)} sheets have rows: {', '.join(map(repr, filled))}; name one with --sheet"
        )
    return next(iter(filled.values()), []), "Excel" + (f", sheet {how.sheet!r}" if how.sheet else "")


def sheet_rows(sheet):
    # The size that the file states may be wrong, and what lies beyond it would not be read.
    sheet.reset_dimensions()
    rows = enumerate(sheet.iter_rows(), 1)
    found = [(number, [cell_text(cell.value, cell.number_format) for cell in cells]) for number, cells in rows]
    return [(number, cells) for number, cells in found if any(cells)]


def cell_text(value, number_format):
    """What Excel shows of a cell: no point in a whole number, fifteen digits, the zeros of a padded format."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else f"{value:.15g}"
    if type(value) is int and PADDED.fullmatch(number_format or ""):
        return str(value).zfill(len(number_format))
    return as_text(value)


def read_parquet(path, how, name):
    """([(row, cells)], what it was read as) of a Parquet table."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{name}: not a readable Parquet file ({str(error).splitlines()[0]}); copy it again, or save it as CSV"
        ) from error
    columns = [name for name in table.column_names if not name.startswith("__index_level_")]  # pandas' row numbers
    rows = [[as_text(value) for value in row.values()] for row in table.select(columns).to_pylist()]
    return [(0, columns), *enumerate(rows, 1)], "Parquet"


def as_text(value):
    """A typed cell as text: nothing for an empty one, a date without midnight."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    midnight = hasattr(value, "date") and value.time() == value.time().min
    return value.date().isoformat() if midnight else str(value)


def tidy(text):
    """One blank between words, and a whole number without the '.0' that a float gave it."""
    text = " ".join(text.split())
    whole = WHOLE_NUMBER.fullmatch(text)
    return whole[1] if whole else text
