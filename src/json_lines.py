"""JSON Lines that people write or other programs did: read line by line, what is wrong named by its number."""

import tables
from common import UserError, counted, existing_file, parse_json, read_lines

MOST_PROBLEMS_SHOWN = 1_000
MOST_LEVELS = 100  # of brackets in brackets; steps that walk a record recurse once a level
TOO_DEEP = f"nested too deeply, at most {MOST_LEVELS} levels"


class Problems(list):
    """Messages about wrong lines; past a thousand the file is another kind of file and the reading stops."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def note(self, place, *messages):
        self.places.add(place)
        self.extend(f"{place}: {message}" for message in messages)
        if len(self) >= MOST_PROBLEMS_SHOWN:
            self.stop(f"the first {MOST_PROBLEMS_SHOWN:,} problems; the rest was not read")

    def stop_if_any(self, source):
        if self:
            self.stop(f"{counted(len(self), 'problem')} in {counted(len(self.places), 'line')} of {source}")

    def stop(self, headline):
        raise UserError(
            "\n".join([*self, f"{headline}; nothing was written. Fix these lines or take them out, then run again"])
        )


def checked(source, make, problems, place=None):
    """(line number, what `make` returns for its value) of every good line; what is wrong with the others goes to
    `problems`.

    `make` raises ValueError with every reason; `place(number)` is where the user finds a line.
    """
    refuse_other_kinds(existing_file(source), source)
    for number, line in read_lines(source):
        try:
            if isinstance(line, str) and not line.strip():
                continue
            made = make(value_of(line))
        except ValueError as error:
            problems.note(place(number) if place else f"{source}:{number}", *error.args)
        else:
            yield number, made


def all_checked(source, make):
    """What `make` returns for every line, or one message with all wrong lines."""
    problems = Problems()
    found = [made for _, made in checked(source, make, problems)]
    problems.stop_if_any(source)
    return found


def value_of(line):
    """The JSON value of a line; ValueError with what is wrong."""
    if isinstance(line, UnicodeDecodeError):
        raise ValueError(
            f"not UTF-8 (byte {line.object[line.start]:#04x} at column {line.start + 1}); save the file as UTF-8"
        )
    return parse_line(line)


def parse_line(line):
    try:
        row = parse_json(line)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}; one JSON object a line") from error
    if line.count("{") + line.count("[") > MOST_LEVELS and n_levels(row) > MOST_LEVELS:
        raise ValueError(TOO_DEEP)
    return row


def n_levels(value):
    """How deep objects and lists are nested in one another."""
    level = [value]
    n = 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder)]
        n += 1
    return n


def refuse_other_kinds(path, name):
    """A table or another file in the place of JSON Lines is one mistake, not one a line."""
    kind = tables.kind_of(path)
    if kind in tables.REFUSED:
        tables.refuse(path, name, kind)
    if kind in tables.KINDS:
        raise UserError(
            f"{name} is {tables.KINDS[kind]}, and this step reads JSON Lines; make prep IN={name} (python "
            f"src/prepare_splits.py --in {name}) reads labelled rows of a table"
        )
    if encoding := utf16_or_32(path):
        raise UserError(
            f"{name} is {encoding.upper()}, and JSON Lines are UTF-8; save it so, or: iconv -f {encoding} -t utf-8 "
            f"{name} > rows.jsonl"
        )


def utf16_or_32(path):
    """The encoding of a text of two or four bytes a letter; None of any other."""
    with open(path, "rb") as file:
        encoding = tables.encoding_of(file.read(tables.HEAD_BYTES))
    return encoding if encoding != "utf-8-sig" else None
