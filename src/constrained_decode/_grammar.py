"""What a task's answers are held to while they are written, as one JSON value, so that it reaches a server's worker."""

from constrained_decode import _automaton

SPACES = ("\u2581", "\u0120", " ")  # as vocabularies spell it


def of_task(task, chat=None):
    """{"schema", "tool_call", "spaced"}; None where only the length can be held.

    That is so for free text, for answers that a task's data.py writes down in its own way, and for calls of tools that
    no schema names: an object without named keys has no longest form, and could repeat a key.
    """
    is_call = task.answer == "tool_call"
    in_its_own_way = task.hook("data", "completion") is not None and task.verdict is None
    if task.answer == "text" or in_its_own_way or is_call and _automaton.tools(task.answer_schema) is None:
        return None
    # A verdict's first tokens are fed as the chat template writes them; of any other answer the first one is chosen.
    spaced = chat is not None and task.verdict is None and begins_with_space(chat)
    return {"schema": task.answer_schema, "tool_call": is_call, "spaced": spaced}


def begins_with_space(chat):
    """Whether an answer's first token, as the chat template and the tokenizer write it, holds a space before it."""
    probe = [{"role": "user", "content": "x"}]
    behind = chat.ids(chat.full_text(probe, [{"role": "assistant", "content": "{}"}]))[len(chat.prompt_ids(probe)) :]
    return chat.tokenizer.convert_ids_to_tokens(behind[0])[:1] in SPACES


def compiled(grammar):
    """The automaton of a grammar."""
    automaton = (_automaton.compile_calls if grammar["tool_call"] else _automaton.compile_schema)(grammar["schema"])
    if grammar["spaced"]:
        begun = automaton.start
        edges = automaton.edges[begun] | {ord(" "): begun}
        automaton.start = automaton.add(edges, choices=automaton.choices[begun])
    return automaton


def decoding(grammar, constrained, held):
    """The manifest's word on how answers came about; `held` says what keeps them to the grammar."""
    if not constrained:
        return "unconstrained"
    return held if grammar else "free, held to its length alone"
