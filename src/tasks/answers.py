"""How an answer is written down and read again, by its kind: JSON that fits a schema, a tool call, or plain text.

A task's data.py may say otherwise with `completion(answer)` and `parsed(text)`.
"""

import re

from common import parse_json, parsed_answer, to_json

CONTROL_OPENING = re.compile(r"<(?=\|)|<(?=/?\w+>)|\[(?=/?[A-Z_]{2,}\])")
ANY_TOOL_CALL = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
TOOL_CALL = re.compile(r'<tool_call name="([^"<>]+)">(.*)</tool_call>', re.S)


def harmless(text):
    """A text in which no control token can be spelled: templates open theirs with `<|`, `<name>` or `[NAME]`.

    JSON needs none of this, common.to_json writes these brackets as escapes.
    """
    return CONTROL_OPENING.sub(r"\g<0> ", text)


def completion(task, answer):
    """The answer as the model is taught to write it; of a verdict the verdict comes first."""
    if own := task.hook("data", "completion"):
        return own(answer)
    if task.answer == "text":
        return harmless(answer)
    if task.answer == "tool_call":
        return f'<tool_call name="{answer["name"]}">{to_json(answer["arguments"])}</tool_call>'
    # Keys in the schema's order, which is the order that the grammar writes them in.
    order = [key for key in task.answer_schema.get("properties", ()) if key in answer]
    return to_json({key: answer[key] for key in [*order, *(key for key in answer if key not in order)]})


def parsed(task, text):
    """The answer that a text is, or None."""
    if own := task.hook("data", "parsed"):
        return own(text)
    if task.answer == "text":
        return text.strip() or None
    if task.answer == "tool_call":
        return tool_call(task, text)
    return parsed_answer(text, task.schema_checker)


def tool_call(task, text):
    """Exactly one call in its wrapper with nothing around it."""
    found = TOOL_CALL.fullmatch(text.strip())
    if not found:
        return None
    try:
        call = {"name": found.group(1), "arguments": parse_json(found.group(2))}
    except (ValueError, RecursionError):
        return None
    return call if task.schema_checker.is_valid(call) else None


def problems(task, answer):
    """What is wrong with a row's output: errors of jsonschema, or words."""
    if task.answer == "text":
        return [] if isinstance(answer, str) and answer.strip() else ["output must be a text that is not empty"]
    return sorted(task.schema_checker.iter_errors(answer), key=str)
