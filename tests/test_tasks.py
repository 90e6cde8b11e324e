"""A task.yaml that contradicts itself is refused with the file and the key; what tasks share is tested here."""

import json
import shutil

import pytest

import tasks
from common import ROOT, UserError
from config import load_config
from rows import cases_from_file, named_case
from support import small_tasks
from tasks import answers

ORDERED = {
    "type": "object",
    "properties": {
        "b": {"type": "object", "properties": {"y": {"type": "integer"}, "x": {"type": "integer"}}},
        "a": {"type": "array", "items": {"type": "object", "properties": {"n": {}, "m": {}}}},
    },
}


def test_keys_stand_in_the_schemas_order_at_every_depth():
    value = {"a": [{"m": 1, "n": 2}], "b": {"x": 1, "y": 2}}
    assert list(answers.in_order(value, ORDERED)) == ["b", "a"]
    assert list(answers.in_order(value, ORDERED)["b"]) == ["y", "x"]
    assert list(answers.in_order(value, ORDERED)["a"][0]) == ["n", "m"]
    assert answers.in_order(value, ORDERED) == value


def test_a_part_that_a_schema_refers_to_has_its_order_too():
    schema = {
        "$defs": {"span": {"type": "object", "properties": {"from": {}, "to": {}}, "required": ["from"]}},
        "anyOf": [
            {"type": "object", "properties": {"why": {}}, "additionalProperties": False},
            {
                "type": "object",
                "properties": {"spans": {"items": {"$ref": "#/$defs/span"}}, "span": {"$ref": "#/$defs/span"}},
            },
        ],
    }
    found = answers.in_order({"span": {"to": 2, "from": 1}, "spans": [{"to": 4, "from": 3}]}, schema)
    assert json.dumps(found) == '{"spans": [{"from": 3, "to": 4}], "span": {"from": 1, "to": 2}}'


@pytest.mark.parametrize(
    ("schema", "is_one"),
    [
        ({"type": "object"}, True),
        ({"anyOf": [{"type": "object"}, {"type": "object"}]}, True),
        ({"anyOf": [{"type": "object"}, {"type": "array"}]}, False),
        ({"anyOf": [{"type": "object"}, True]}, False),
        ({}, False),
        (True, False),
    ],
)
def test_a_json_answer_is_an_object_in_every_alternative(schema, is_one):
    assert tasks.describes_objects(schema) is is_one


def test_a_call_follows_the_schema_of_its_tool(monkeypatch):
    task = small_tasks.loaded(monkeypatch, "switches")
    call = {"arguments": {"on": True, "room": "hall"}, "name": "set_light"}
    assert task.completion(call) == '<tool_call name="set_light">{"room":"hall","on":true}</tool_call>'
    assert task.parsed(task.completion(call)) == call


@pytest.mark.parametrize("text", ["<|im_end|>", "</s>", "[INST]", "<start_of_turn>"])
def test_a_text_prompt_spells_no_control_token(monkeypatch, text):
    task = small_tasks.loaded(monkeypatch, "notes")
    assert text not in task.messages({"question": f"What is {text}?"})[1]["content"]


def test_a_line_is_a_row_or_a_case_with_an_id(monkeypatch):
    task = small_tasks.loaded(monkeypatch, "booking")
    assert named_case({"id": 7, "input": {"request": "x"}, "output": {}}, task) == ({"id": 7}, {"request": "x"})
    assert named_case({"id": 7, "request": "x"}, task) == ({"id": 7}, {"id": 7, "request": "x"})
    crm = {"id": 7, "record1": {}, "record2": {}}
    monkeypatch.undo()
    assert named_case(crm, tasks.load_task()) == ({"id": 7}, {"record1": {}, "record2": {}})


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_cases_shows_what_one_is(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"no pair in it; one \{\"record1\""):
        cases_from_file(path, tasks.load_task())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("answer: json", "answer: jsn", "did you mean 'json'"),
        ("answer: json", "answer: verdict", "the section verdict"),
        ("answer: json", "answer: text", "has no schema"),
        ("schema: answer.schema.json", "schema: nowhere.json", "neither in the task's folder nor in the project"),
        ("stratify_by:", "select_by: macro_f1\nstratify_by:", "'macro_f1' is none of exact_pct, loss"),
        ("stratify_by:", "stratify:", "did you mean 'stratify_by'"),
        ("title:", "tilte:", "did you mean 'title'"),
    ],
)
def test_a_wrong_task_file_is_named_with_its_key(tmp_path, monkeypatch, old, new, words):
    shutil.copytree(small_tasks.FOLDERS / "booking", tmp_path / "booking")
    path = tmp_path / "booking" / "task.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=words) as error:
        tasks.load_task("booking")
    assert "src/tasks/booking/task.yaml" in str(error.value)


def test_a_task_lays_its_own_settings_over_every_section_that_it_may(tmp_path, monkeypatch):
    shutil.copytree(small_tasks.FOLDERS / "booking", tmp_path / "booking")
    path = tmp_path / "booking" / "task.yaml"
    path.write_text(path.read_text() + "peft: {r: 3}\ndpo: {beta: 0.3}\n")
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    task = tasks.load_task("booking")
    config = load_config(ROOT / "configs" / "standin.yaml", ["dpo.lr=1e-6"], task.overlay)
    assert set(task.overlay) == set(tasks.OVERLAID)
    assert (config.gen.max_new_tokens, config.train.warmup_ratio, config.peft.r) == (48, 0.1, 3)
    assert (config.dpo.beta, config.dpo.lr, config.dpo.batch_size) == (0.3, 1e-6, 1)


def test_what_a_model_says_of_verdicts_holds_where_a_verdict_picks_the_checkpoint():
    path = ROOT / "configs" / "smollm2_135m.yaml"
    found = {name: load_config(path, (), tasks.load_task(name).overlay) for name in ("crm", "qod")}
    assert {name: config.train.verdict_weight for name, config in found.items()} == {"crm": 2.0, "qod": 1.0}
    # What is asked for by name is not dropped in silence: training refuses it.
    asked = load_config(path, ["train.verdict_weight=4"], tasks.load_task("qod").overlay)
    assert asked.train.verdict_weight == 4
