"""The task's rows in two files that other projects read: sft.jsonl and preferences.jsonl, JSON answers as text."""

import json

import json_lines
from common import UserError, counted, parse_json
from tasks.qod import checks
from tasks.qod.data import check_case

SFT_KEYS = ("instruction", "input", "response")
PREFERENCE_KEYS = ("prompt", "chosen", "rejected")
PAIR_KEYS = ("input", "chosen", "rejected")
FEWEST = {"sft": 50, "preferences": 30}  # fewer train nothing
ANY_VIOLATION = "imported"  # a file does not say what is wrong with its rejected answers


# In


def from_sft(path, task):
    """Labelled rows of an sft.jsonl."""
    return named("sft", read(path, lambda row: labelled_row(texts(row, SFT_KEYS), task)))


def from_preferences(path, task):
    """Preference pairs of a preferences.jsonl, as the training on preferences takes them."""
    return named("preference", read(path, lambda row: preference_pair(texts(row, PREFERENCE_KEYS), task)))


def labelled_rows(path, task):
    """Labelled rows, checked like those of an sft.jsonl."""
    return read(path, lambda row: checked_row(row, task))


def pairs(path, task):
    """Preference pairs as the training on preferences takes them, checked like those of a preferences.jsonl."""
    return read(path, lambda row: checked_pair(row, task))


def named(kind, found):
    """Each with a name, for these files give none."""
    return [{"id": f"{kind}-{number:06d}"} | one for number, one in enumerate(found, 1)]


def read(path, make):
    """What `make` returns for every line's object, or one message with all lines that are wrong."""
    found = json_lines.all_checked(path, lambda value: make(json_object(value)))
    if not found:
        raise UserError(f"{path}: the file is empty; it needs one JSON object a line")
    return found


def json_object(value):
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def texts(row, keys):
    """An object that has these keys, each a text."""
    if set(row) != set(keys):
        raise ValueError(f'must be an object with exactly "{quoted(keys)}"')
    if wrong := [key for key in keys if not isinstance(row[key], str)]:
        raise ValueError(f'"{quoted(wrong)}" must be text; an answer is JSON written as text')
    return row


def quoted(keys):
    return '", "'.join(keys)


def labelled_row(row, task):
    """A row of the task; with an empty input the instruction is the request, as the Alpaca form has it."""
    case = checked_case(row["input"] if row["input"].strip() else row["instruction"])
    return {"input": case, "output": checked_answer(row["response"], "response", task)}


def checked_row(row, task):
    """A labelled row whose answer passes the strict check."""
    if missing := [key for key in ("input", "output") if key not in row]:
        raise ValueError(f'without "{quoted(missing)}"')
    if problems := check_case(row["input"]):
        raise ValueError(*problems)
    checked_answer(json.dumps(row["output"]), "output", task)
    return row


def preference_pair(row, task):
    pair = {"input": {"request": row["prompt"]}, "chosen": row["chosen"], "rejected": row["rejected"]}
    return checked_pair(pair, task) | {"violation": ANY_VIOLATION}


def checked_pair(pair, task):
    """A preference pair whose chosen answer is right in form and whose rejected one is another."""
    if missing := [key for key in PAIR_KEYS if key not in pair]:
        raise ValueError(f'without "{quoted(missing)}"')
    if problems := check_case(pair["input"]):
        raise ValueError(*problems)
    if not isinstance(pair["chosen"], str) or not isinstance(pair["rejected"], str):
        raise ValueError('"chosen" and "rejected" must be text; an answer is JSON written as text')
    chosen = task.completion(checked_answer(pair["chosen"], "chosen", task))
    if not pair["rejected"].strip():
        raise ValueError('"rejected" is empty')
    if task.parsed(pair["rejected"]) == task.parsed(chosen):
        raise ValueError('"rejected" is the same answer as "chosen"')
    return pair | {"chosen": chosen}


def checked_case(request):
    case = {"request": request}
    if problems := check_case(case):
        raise ValueError(*problems)
    return case


def checked_answer(text, key, task):
    """The answer that a text is, as the task's schema has it."""
    try:
        answer = parse_json(text)
    except (ValueError, RecursionError):
        raise ValueError(f'"{key}" is no JSON text') from None
    if violations := checks.strict_violations(answer):
        raise ValueError(*(f'"{key}": {one.path} {one.words}' for one in violations))
    if task.answer_problems(answer):
        raise ValueError(f'"{key}" does not fit src/tasks/qod/answer.schema.json')
    return answer


# Out


def to_sft(rows, task):
    """Lines of an sft.jsonl."""
    return [
        line(instruction=task.system_text, input=row["input"]["request"], response=task.completion(row["output"]))
        for row in rows
    ]


def to_preferences(pairs):
    """Lines of a preferences.jsonl."""
    return [line(prompt=pair["input"]["request"], chosen=pair["chosen"], rejected=pair["rejected"]) for pair in pairs]


def line(**values):
    return json.dumps(values, ensure_ascii=False) + "\n"


def refuse_few(n, kind, source):
    if n < FEWEST[kind]:
        raise UserError(
            f"{source}: {counted(n, 'row')}, and a {kind}.jsonl to train on needs at least {FEWEST[kind]}; "
            "python src/synthesize.py --task qod makes more requests"
        )
