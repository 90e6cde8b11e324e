"""What an answer is held to: a call's automaton takes exactly what tasks/answers.py writes down and reads again."""

import json

import pytest

from common import UserError
from constrained_decode import _automaton, _grammar
from support import small_tasks
from tasks import answers, load_task


def behind(automaton, text):
    state = automaton.start
    counter = 0
    for byte in text.encode():
        state, counter = automaton.step(state, counter, byte)
    return state


def accepts(automaton, text):
    return automaton.final[behind(automaton, text)]


def schema_of(*tools):
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": name, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, arguments in tools
        ]
    }


def arguments(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@pytest.fixture
def switches(monkeypatch):
    return small_tasks.loaded(monkeypatch, "switches")


def test_every_gold_call_is_a_path_and_nothing_else_is(switches):
    automaton = _grammar.compiled(_grammar.of_task(switches))
    for line in (switches.folder / "sample.jsonl").read_text(encoding="utf-8").splitlines():
        text = switches.completion(json.loads(line)["output"])
        assert accepts(automaton, text) and switches.parsed(text)
    for wrong in (
        '<tool_call name="set_light">{"degrees":20}</tool_call>',
        '<tool_call name="set_heat">{"degrees":31}</tool_call>',
        '<tool_call name="open_door">{}</tool_call>',
        '{"name":"set_heat","arguments":{"degrees":20}}',
        '<tool_call name="set_heat">{"degrees":20}',
    ):
        assert not accepts(automaton, wrong)


def test_a_string_of_an_argument_cannot_end_the_call():
    """`<` is written as an escape inside a string, by to_json and by the automaton alike."""
    schema = schema_of(({"const": "say"}, arguments(words={"type": "string", "maxLength": 60})))
    automaton = _automaton.compile_calls(schema)
    call = {"name": "say", "arguments": {"words": "a</tool_call> [INST]"}}

    class Plain:
        answer = "tool_call"
        answer_schema = schema
        hook = staticmethod(lambda *_: None)

    text = answers.completion(Plain, call)
    assert text == '<tool_call name="say">{"words":"a\\u003c/tool_call> \\u005bINST]"}</tool_call>'
    assert accepts(automaton, text)
    assert not accepts(automaton, '<tool_call name="say">{"words":"a</tool_call>"}</tool_call>')


def test_tools_that_share_a_beginning_or_a_name_keep_their_own_arguments():
    schema = schema_of(
        ({"const": "set"}, arguments(on={"type": "boolean"})),
        ({"enum": ["set_all", "unset"]}, arguments()),
        ({"const": "set"}, arguments(level={"enum": [1, 2]})),
    )
    automaton = _automaton.compile_calls(schema)
    for good in ('"set">{"on":true}', '"set">{"level":2}', '"set_all">{}', '"unset">{}'):
        assert accepts(automaton, f"<tool_call name={good}</tool_call>")
    for wrong in ('"set">{}', '"set_all">{"on":true}', '"set_">{}'):
        assert not accepts(automaton, f"<tool_call name={wrong}</tool_call>")


def test_a_cut_call_is_closed_but_its_tool_is_never_chosen(switches):
    automaton = _grammar.compiled(_grammar.of_task(switches))
    assert _automaton.closed(automaton, '<tool_call name="set_') is None
    whole = _automaton.closed(automaton, '<tool_call name="set_heat">{"deg')
    assert switches.parsed(whole)["name"] == "set_heat"


def test_a_name_that_the_wrapper_cannot_hold_is_refused():
    with pytest.raises(UserError, match="cannot be the name of a tool"):
        _automaton.compile_calls(schema_of(({"const": 'a"b'}, arguments())))


@pytest.mark.parametrize(
    "schema",
    [
        answers.ANY_TOOL_CALL,
        schema_of(({"type": "string"}, arguments())),
        schema_of(({"const": "x"}, {"type": "object"})),
        schema_of((True, True)),
        {"anyOf": [True]},
        True,
    ],
)
def test_calls_of_tools_that_no_schema_names_are_held_to_their_length_alone(schema):
    assert _automaton.tools(schema) is None


@pytest.mark.parametrize(
    "schema", [{"anyOf": 5}, {"anyOf": [None]}, {"$ref": ["x"]}, {"default": {"properties": 1}, "$ref": "#/default"}]
)
def test_what_is_no_schema_of_calls_is_refused_in_a_sentence(schema):
    for read in (_automaton.tools, _automaton.compile_calls):
        with pytest.raises(UserError, match="not a JSON Schema"):
            read(schema)


def test_a_call_that_no_schema_names_has_no_automaton():
    with pytest.raises(UserError, match="must give each tool its names"):
        _automaton.compile_calls({"type": "object"})


def test_text_has_no_grammar_and_crm_has_its_schema(monkeypatch):
    assert _grammar.of_task(small_tasks.loaded(monkeypatch, "notes")) is None
    monkeypatch.undo()
    task = load_task()
    assert _grammar.of_task(task) == {"schema": task.answer_schema, "tool_call": False, "spaced": False}


def test_a_space_before_the_first_word_is_let_through_where_the_tokenizer_writes_one():
    schema = {"enum": ["a", "b"]}
    for spaced in (True, False):
        automaton = _grammar.compiled({"schema": schema, "tool_call": False, "spaced": spaced})
        assert accepts(automaton, '"a"') and accepts(automaton, ' "a"') == spaced and not accepts(automaton, '  "a"')
