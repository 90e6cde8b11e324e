"""How an answer is written down and read again, by its kind: JSON that fits a schema, a tool call, or plain text.

A task's data.py may say otherwise with `completion(answer)` and `parsed(text)`.
"""

import re
from dataclasses import dataclass

import jsonschema

from common import parse_json, parsed_answer, to_json

CONTROL_OPENING = re.compile(r"<(?=\|)|<(?=/?\w+>)|\[(?=/?[A-Z_]{2,}\])")
ANY_TOOL_CALL = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
TOOL_NAME = re.compile(r'[^"<>]+')
TOOL_CALL = re.compile(rf'<tool_call name="({TOOL_NAME.pattern})">(.*)</tool_call>', re.S)


@dataclass(frozen=True)
class Outcome:
    """What of a written text goes to whoever asked, and why the request has no better answer, in sentences.

    An answer with reasons is a refusal of the task's own; reasons without an answer say what was wrong with it.
    """

    answer: object  # None where nothing may go out
    reasons: tuple[str, ...] = ()


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
    whole = in_order(answer, task.answer_schema)
    if task.answer == "tool_call":
        return f'<tool_call name="{whole["name"]}">{to_json(whole["arguments"])}</tool_call>'
    return to_json(whole)


def in_order(value, schema, root=None):
    """The value with its keys in the schema's order at every depth, as the grammar writes them."""
    root = schema if root is None else root
    if "$ref" in schema:
        return in_order(value, referred(schema["$ref"], root), root)
    if "anyOf" in schema:
        # The root's checker finds what a part refers to.
        checker = jsonschema.Draft202012Validator(root)
        fitting = (one for one in schema["anyOf"] if checker.evolve(schema=one).is_valid(value))
        return in_order(value, next(fitting, {}), root)
    if isinstance(value, list):
        return [in_order(item, schema.get("items", {}), root) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    keys = [*(key for key in properties if key in value), *(key for key in value if key not in properties)]
    return {key: in_order(value[key], properties.get(key, {}), root) for key in keys}


def referred(reference, root):
    """The part of a schema that a reference within it names."""
    part = root
    for name in reference.removeprefix("#").split("/")[1:]:
        part = part[name.replace("~1", "/").replace("~0", "~")]
    return part


def parsed(task, text):
    """The answer that a text is, or None."""
    if own := task.hook("data", "parsed"):
        return own(text)
    if task.answer == "text":
        return text.strip() or None
    if task.answer == "tool_call":
        return tool_call(task, text)
    return parsed_answer(text, task.schema_checker)


def outcome(task, text):
    """What of a text goes to whoever asked: by default the answer that it is."""
    own = task.hook("inference", "outcome")
    return own(text) if own else Outcome(parsed(task, text))


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
    found = sorted(task.schema_checker.iter_errors(answer), key=str)
    if task.answer == "tool_call" and not found and not TOOL_NAME.fullmatch(answer["name"]):
        return [f"output.name: {answer['name']!r} holds a quote or a bracket, which the call's wrapper cannot"]
    return found
