"""Labelled rows: what a row must be, and every line that is not one, by number."""

import sys

import json_lines
import tables
from common import UserError, counted, existing_file, parse_json, read_lines
from tasks import plain_tables

ROW_KEYS = {"id", "group", "input", "output", "meta"}
MOST_LETTERS_SHOWN = 200
MOST_FAULTS_SHOWN = 20  # of a file that is asked about


def checked_rows(source, task, problems, complete=None, place=None):
    """(line number, row) of every good line; what is wrong with the others goes to `problems`.

    `complete(case, answer)` gives an answer what it lacks; `place(number)` is where the user finds a line.
    """
    return json_lines.checked(source, row_checker(task, complete), problems, place)


def load_rows(source, task):
    """All rows of a file, or one message with all its wrong lines; a part that the task can make may be missing."""
    problems = json_lines.Problems()
    rows = [row for _, row in checked_rows(source, task, problems, keeping(task))]
    problems.stop_if_any(source)
    if not rows:
        raise UserError(f"{source}: the file is empty; it needs one labelled row a line")
    return rows


def keeping(task):
    """What completes an answer where something is missing, and leaves every other as it is."""
    return lambda case, answer: task.completed(case, answer, "keep")


def row_checker(task, complete=None):
    """A function from the value of a line to its row, ValueError with every reason where it is none."""

    def check(row):
        if problems := row_problems(row):
            raise ValueError(*problems)
        problems = task.check_case(row["input"])
        if complete and not problems:
            row["output"] = complete(row["input"], row["output"])
        problems = [*problems, *map(answer_problem, task.answer_problems(row["output"]))]
        if problems:
            raise ValueError(*problems)
        return row

    return check


def row_problems(row):
    """What is wrong with a row's own keys, before its input and output are looked at."""
    if not isinstance(row, dict):
        return [f"a JSON object was expected, found {type(row).__name__}"]
    problems = [
        f'no key {key!r}; a row is {{"input": ..., "output": ...}}' for key in ("input", "output") if key not in row
    ]
    problems += [
        f"unknown key {key!r}; a row may hold {', '.join(sorted(ROW_KEYS))}" for key in sorted(row.keys() - ROW_KEYS)
    ]
    problems += [
        f"{key!r} must be text or a whole number, found {row[key]!r}"
        for key in ("id", "group")
        if key in row and (not isinstance(row[key], str | int) or isinstance(row[key], bool) or row[key] == "")
    ]
    return problems


def answer_problem(error):
    """A schema error in the words of a row; a problem that is words already stays as it is."""
    if isinstance(error, str):
        return error
    place = ".".join(["output", *map(str, error.path)])
    if error.validator == "maxLength":
        return f"{place} is {len(error.instance)} characters long, at most {error.validator_value} are allowed"
    if error.validator == "enum":
        return f"{place}: {clipped(repr(error.instance))} is none of {', '.join(map(str, error.validator_value))}"
    return f"{place}: {clipped(error.message)}"


def clipped(text):
    return (
        text
        if len(text) <= MOST_LETTERS_SHOWN
        else f"{text[: MOST_LETTERS_SHOWN // 2]} ... {text[-MOST_LETTERS_SHOWN // 2 :]}"
    )


def cases_from_file(source, task):
    """(id or nothing, case) of each line of a file or of standard input; every wrong line is named."""
    found = []
    problems = []
    kind = "jsonl" if source == "-" else tables.kind_of(existing_file(source))
    if kind in tables.KINDS:
        return cases_from_table(source, task)
    # Each line may be a list: some task's input is one.
    if source != "-" and kind != "list":
        json_lines.refuse_other_kinds(source, source)
    lines = enumerate(sys.stdin, 1) if source == "-" else read_lines(source)
    for number, line in lines:
        where = f"{source}:{number}"
        if isinstance(line, Exception):
            problems.append(f"{where}: not UTF-8 text")
        elif line.strip():
            try:
                named, case = named_case(parsed_value(where, line), task)
            except UserError as error:
                problems.append(str(error))
                continue
            found.append((named, case))
            problems += [f"{where}: {problem}" for problem in task.check_case(case)]
    refuse_faults(problems, source)
    if not found:
        raise UserError(f"{source}: no {task.case} in it; one {task.example or 'JSON value'} a line")
    return found


def cases_from_table(source, task):
    """The same of a table, whose columns the task knows."""
    found = (task.module("from_tables") or plain_tables).cases(source, source)
    refuse_faults(
        [f"{source}:{line}: {problem}" for line, _, case in found for problem in task.check_case(case)], source
    )
    return [(named, case) for _, named, case in found]


def refuse_faults(faults, source):
    """Stop at the faults of a file that is asked about, the first of them by line."""
    if faults:
        n_more = len(faults) - MOST_FAULTS_SHOWN
        more = [f"and {n_more:,} more"] if n_more > 0 else []
        raise UserError(
            "\n  ".join([f"{counted(len(faults), 'problem')} in {source}:", *faults[:MOST_FAULTS_SHOWN], *more])
        )


def named_case(row, task):
    """({"id": ...} or nothing, the case) of a line: a labelled row, or the case, maybe with an id beside its keys."""
    if not isinstance(row, dict):
        return {}, row
    named = {"id": row["id"]} if "id" in row else {}
    if "input" in row and row.keys() <= ROW_KEYS:
        return named, row["input"]
    # An id of the case's own stays in it.
    if named and task.check_case(row):
        return named, {key: value for key, value in row.items() if key != "id"}
    return named, row


def parsed_value(where, text):
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
