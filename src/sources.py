"""Labelled rows in whatever file somebody has them -> the JSON Lines that every later step reads.

Tables, pipes and other encodings become imported.jsonl beside the splits; rows that are JSON Lines stay where they are.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import interruption
import tables
from common import UserError, existing_file, sha256_file, shown_path, written_whole
from tasks import plain_tables

USUAL = "all.jsonl"
IMPORTED = "imported.jsonl"
SYNTHETIC = "synthetic.jsonl"


@dataclass
class Source:
    """Rows to split: where they lie as JSON Lines, and what the user calls them."""

    path: Path
    name: str
    lines: list | None = None  # of the user's file, where each row begins; the same numbers where it is None
    kept_as: Path | None = None
    facts: dict = field(default_factory=dict)  # for the manifest
    synthetic: bool = False  # to be drawn; the path may hold nothing yet

    def line(self, number):
        return self.lines[number - 1] if self.lines else int(number)

    def place(self, number):
        return f"{self.name}:{self.line(number)}"

    def keep(self):
        """Give rows that were read from another form their name."""
        if self.kept_as:
            os.replace(self.path, self.kept_as)


@contextlib.contextmanager
def labelled(args, task):
    """The rows that a call names; what is made for them here goes at the end, unless it was kept."""
    part = Path(args.out) / f"{IMPORTED}.part"
    piped = Path(args.out) / f"{IMPORTED}.piped.part"
    try:
        yield found(args, task, part, piped)
    finally:
        for path in (part, piped):
            # On a disk that can only be read there is nothing to remove.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def found(args, task, part, piped):
    reader = task.module("from_tables") or plain_tables
    if files := reader.files(args):
        return from_tables(reader, args, task, files, part)
    source = Path(args.source)
    if not source.exists():
        source = stand_in(args, task)
        if source is None:
            return Source(Path(args.out) / SYNTHETIC, str(args.source), synthetic=True)
    name = str(source)
    if not source.is_file() and not source.is_dir():
        # What comes through a pipe (/dev/fd/63, /dev/stdin) can be read once.
        source = poured(source, piped)
    kind = tables.kind_of(existing_file(source))
    if kind in tables.REFUSED:
        tables.refuse(source, name, kind)
    if kind in tables.KINDS:
        return from_tables(reader, args, task, {name: source}, part)
    return from_lines(source, name, args, part)


def stand_in(args, task):
    """What takes the place of a missing file: a table of its name, or rows read before; None where nothing does."""
    source = Path(args.source)
    if source.name != USUAL:
        raise UserError(f"{source}: no such file; check the path")
    there = [path for path in map(source.with_suffix, tables.SUFFIXES) if path.is_file()]
    if len(there) > 1:
        raise UserError(f"{source} is not there, but {' and '.join(map(str, there))}; name one with --in")
    imported = Path(args.out) / IMPORTED
    there = there or [path for path in [imported] if path.is_file()]
    if there:
        print(f"{source} is not there, {there[0]} is: its rows are taken", flush=True)
        return there[0]
    if not task.module("synthetic"):
        raise UserError(
            f"{source}: no such file, and the task {task.name} has no generator; put labelled rows there, "
            'one {"input": ..., "output": ...} a line, or name a table with --in'
        )
    return None


def poured(source, piped):
    piped.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as stream, open(piped, "wb") as file:
        shutil.copyfileobj(stream, file)
    return piped


def from_lines(source, name, args, part):
    """JSON Lines where they are, unless they came through a pipe or in another encoding than UTF-8."""
    with open(source, "rb") as file:
        encoding = args.encoding or tables.encoding_of(file.read(tables.HEAD_BYTES))
    kept_as = part.with_suffix("")
    if encoding not in (None, "utf-8-sig"):
        text, _ = tables.decoded(source, tables.reading(args), name)
        with written_whole(part) as file:
            file.write(text)
        return Source(part, name, kept_as=kept_as)
    if source.parent == part.parent and source.name.endswith(".part"):
        return Source(source, name, kept_as=kept_as)
    return Source(source, name)


def from_tables(reader, args, task, files, part):
    """Rows of one table or several; the reader says what it understood."""
    try:
        read = reader.rows(args, task, files)
    except UserError as error:
        if interruption.TYPED not in os.environ or "--" not in str(error):
            raise
        raise UserError(
            f"{error}\nWith make, options of a table go into READ=, as in READ='--drop \"my notes\"'"
        ) from error
    with written_whole(part) as file:
        for row in read.rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    hashes = {shown_path(name): sha256_file(path) for name, path in files.items()}
    return Source(part, read.name, read.lines, part.with_suffix(""), {"files": hashes, "columns": read.columns})
