"""Labelled rows in a table, for a task that says nothing of its own: columns named as the keys of its rows are."""

from dataclasses import dataclass

import tables
from common import UserError, counted, parse_json

KEYS = ("id", "group")


@dataclass
class Read:
    """What came out of one table or several."""

    name: str  # of the file that the lines are counted in
    rows: list
    lines: list
    columns: dict  # what was understood, for a manifest


def add_options(parser):
    """None of its own."""


def files(args):
    """{name: path} of tables that the call names beside --in: none."""
    return {}


def rows(args, task, files):
    """A row's input and output from the columns of these names, or from columns that are named as their keys."""
    [(name, path)] = files.items()
    table = tables.read(path, tables.reading(args), name)
    answer_keys = tuple((task.answer_schema or {}).get("properties", ()))
    outputs = [column for column in table.columns if column == "output"] or [
        column for column in table.columns if column in answer_keys
    ]
    inputs = [column for column in table.columns if column == "input"] or [
        column for column in table.columns if column not in (*KEYS, *outputs)
    ]
    if not outputs or not inputs:
        raise UserError(
            f"{name}: a table of the task {task.name} needs the columns input and output, or the keys of both as "
            f"columns ({', '.join(answer_keys) or 'output'}, ...); it has {', '.join(map(repr, table.columns))}"
        )
    found = [{key: row[key] for key in KEYS if row.get(key)} for row in table.rows]
    for made, row in zip(found, table.rows, strict=True):
        made["input"] = part_of(row, inputs, "input", {})
        made["output"] = part_of(row, outputs, "output", (task.answer_schema or {}).get("properties", {}))
    n_rows = counted(len(found), "row")
    print(f"{name} ({table.form}): {n_rows}; input: {', '.join(inputs)}; output: {', '.join(outputs)}", flush=True)
    return Read(name, found, table.lines, {"input": inputs, "output": outputs})


def cases(name, path):
    """(line, id or nothing, input) of each row of a table that is asked about."""
    table = tables.read(path, tables.Reading(has_options=False), name)
    inputs = [column for column in table.columns if column == "input"] or [
        column for column in table.columns if column not in (*KEYS, "output")
    ]
    return [
        (line, {"id": row["id"]} if row.get("id") else {}, part_of(row, inputs, "input", {}))
        for line, row in zip(table.lines, table.rows, strict=True)
    ]


def part_of(row, columns, whole, properties):
    """A row's input or output: the one cell that holds it, or an object of the filled cells."""
    if columns == [whole]:
        return value_of(row[whole], None)
    return {column: value_of(row[column], properties.get(column)) for column in columns if row[column].strip()}


def value_of(text, schema):
    """A cell as JSON where the schema wants no string there, or where it holds an object or a list; else its text."""
    wants_json = schema.get("type") not in (None, "string") if schema else text.lstrip()[:1] in ("{", "[")
    if wants_json:
        try:
            return parse_json(text)
        except (ValueError, RecursionError):
            # The row's check names the line and what is wanted there.
            return text
    return text
