"""Preference pairs as a file holds them: good ones become token ids, wrong ones stop the run by line."""

import dataclasses
import json

import pytest

import make_standin
from common import ROOT, UserError
from config import load_config
from language_model import chat_template
from support import small_tasks
from training import preference_pairs

CASE = {"request": "Ann Lee wants 2 nights in Oslo."}
CHOSEN = '{"city":"Oslo","nights":2,"guest":"Ann Lee"}'
REJECTED = '{"city":"Oslo","nights":"2","guest":"Ann Lee"}'
GOOD = {"id": "a", "input": CASE, "chosen": CHOSEN, "rejected": REJECTED, "violation": "types"}


@pytest.fixture
def task(monkeypatch):
    return small_tasks.loaded(monkeypatch, "booking")


@pytest.fixture
def chat(task):
    tokenizer, _ = make_standin.make([message["content"] for message in task.messages(CASE)] + [CHOSEN], 1)
    return chat_template.Chat(tokenizer, False)


def config(**limits):
    read = load_config(ROOT / "configs" / "standin.yaml")
    return dataclasses.replace(read, train=dataclasses.replace(read.train, **limits))


def file_of(folder, *pairs):
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{pair if isinstance(pair, str) else json.dumps(pair)}\n" for pair in pairs))
    return path


def test_a_pair_has_the_prompt_of_the_task_and_both_texts_end_as_in_training(task, chat, tmp_path):
    pairs = preference_pairs.read_pairs(file_of(tmp_path, GOOD, ""), task)
    assert pairs == [{"id": "a", "prompt": task.messages(CASE), "chosen": CHOSEN, "rejected": REJECTED}]
    [example], left_out = preference_pairs.encode_pairs(pairs, chat, config())
    assert left_out == []
    end = chat_template.end_ids(chat)[0]
    assert example["prompt_ids"] == chat.prompt_ids(task.messages(CASE))
    for side, text in (("chosen_ids", CHOSEN), ("rejected_ids", REJECTED)):
        *ids, last = example[side]
        assert last == end and chat.tokenizer.decode(ids) == text


def test_the_pairs_of_a_review_are_read_while_their_prompt_is_the_present_one(task, tmp_path):
    exported = {"id": "a", "prompt": task.messages(CASE), "chosen": CHOSEN, "rejected": REJECTED, "reason": "a number"}
    [pair] = preference_pairs.read_pairs(file_of(tmp_path, exported), task)
    assert pair["prompt"] == task.messages(CASE)
    exported["prompt"][0]["content"] += " Be brief."
    with pytest.raises(UserError, match="pairs.jsonl:1: 'prompt' is not made by this task with its present system"):
        preference_pairs.read_pairs(file_of(tmp_path, exported), task)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (GOOD | {"rejected": CHOSEN}, "'chosen' and 'rejected' are the same text"),
        (GOOD | {"chosenn": "x"}, "unknown key 'chosenn'; a pair may have id, chosen, "),
        (GOOD | {"rejected": " "}, "'rejected' must be there, a text and not empty"),
        (GOOD | {"chosen": {"city": "Oslo"}}, "'chosen' must be there, a text and not empty"),
        ({key: GOOD[key] for key in ("id", "chosen", "rejected")}, "either 'input' or 'prompt' must be there"),
        (GOOD | {"input": {}}, "'input' must hold a request"),
        ([1], "a pair is an object, this is list"),
        ('{"id": "a", ', "not valid JSON"),
    ],
)
def test_a_wrong_line_is_named(task, tmp_path, pair, said):
    with pytest.raises(UserError) as stopped:
        preference_pairs.read_pairs(file_of(tmp_path, GOOD, pair), task)
    first, last = str(stopped.value).splitlines()
    assert first.startswith(f"{tmp_path}/pairs.jsonl:2: {said}") and last.startswith("1 problem in 1 line")


def test_a_file_without_pairs_is_said_to_be_one(task, tmp_path):
    with pytest.raises(UserError, match="there is no preference pair in it"):
        preference_pairs.read_pairs(file_of(tmp_path, ""), task)


def test_what_does_not_fit_is_left_out_whole(task, chat, tmp_path):
    end = chat.tokenizer.decode(chat_template.end_ids(chat)[0])
    long = GOOD | {"id": "long", "rejected": REJECTED * 40}
    broken = GOOD | {"id": "control", "rejected": f"{REJECTED}{end}{REJECTED}"}
    pairs = preference_pairs.read_pairs(file_of(tmp_path, long, GOOD, broken), task)
    n_tokens = max(map(len, chat.ids([CHOSEN, REJECTED]))) + len(chat.prompt_ids(task.messages(CASE))) + 1
    examples, left_out = preference_pairs.encode_pairs(pairs, chat, config(max_seq_len=n_tokens))
    assert len(examples) == 1
    assert [row["id"] for row in left_out] == ["long", "control"]
    assert left_out[0]["reason"].startswith("rejected: ")
    assert left_out[1]["reason"] == "rejected: the text spells a control token of this model"


def test_a_rejected_text_may_be_longer_than_an_answer(task, chat, tmp_path):
    pairs = preference_pairs.read_pairs(file_of(tmp_path, GOOD | {"rejected": f"Here you are: {CHOSEN}"}), task)
    read = config()
    n_answer = len(chat.ids(CHOSEN)) + 1
    fitting = dataclasses.replace(read, gen=dataclasses.replace(read.gen, max_new_tokens=n_answer))
    [example], _ = preference_pairs.encode_pairs(pairs, chat, fitting)
    assert len(example["rejected_ids"]) > n_answer == len(example["chosen_ids"])
    tight = dataclasses.replace(read, gen=dataclasses.replace(read.gen, max_new_tokens=n_answer - 1))
    [left_out] = preference_pairs.encode_pairs(pairs, chat, tight)[1]
    assert left_out["reason"].startswith("chosen: the answer takes ")
