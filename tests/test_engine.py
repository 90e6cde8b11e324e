"""The plain engine answers every row, and neither batching nor padding changes what it thinks. A stand-in with random weights is enough for both."""

import ast
import dataclasses
import os
import subprocess
import sys

import pytest

import dataset
import make_standin
from common import ROOT, UserError
from config import load_config
from constrained_decode import engine_names, load_engine
from tasks import load_task
from tasks.crm.data import swap
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
N_NEW_TOKENS = 12
ENGINE_FILES = sorted(path.stem for path in (ROOT / "src" / "constrained_decode").glob("*.py"))


@pytest.fixture(scope="module")
def conversations():
    """Prompts of very different lengths, in no order of length."""
    cases = [row["input"] for row in synthetic_rows(7, 1)]
    cases[2]["record1"] |= {"notes": "long " * 60}
    return [TASK.messages(case) for case in [*cases, {"record1": {}, "record2": {}}, swap(cases[0])]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, conversations):
    folder = tmp_path_factory.mktemp("engine") / "standin"
    texts = [message["content"] for messages in conversations for message in messages]
    tokenizer, model = make_standin.make([*texts, TASK.completion({"result": "DUPLICATE", "reasoning": "Same person."})], seed=1)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def engine(folder, batch_size=4, **gen):
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={folder}"])
    gen = {"temperature": 0.0, "max_new_tokens": N_NEW_TOKENS} | gen
    return load_engine("hf").load(folder, TASK, dataclasses.replace(config, gen=dataclasses.replace(config.gen, **gen)), batch_size=batch_size)


@pytest.fixture(scope="module")
def by_four(folder):
    return engine(folder)


@pytest.fixture(scope="module")
def one_by_one(folder):
    return engine(folder, batch_size=1)


@pytest.mark.slow
def test_every_row_has_one_answer_under_its_own_position(by_four, one_by_one, conversations):
    answers = list(by_four.answers(conversations))
    assert sorted(position for position, _ in answers) == list(range(len(conversations)))
    assert [position for position, _ in answers] != list(range(len(conversations))), "longest first, so positions are needed"
    for position, answer in answers:
        assert answer.prompt_tokens == len(by_four.chat.prompt_ids(conversations[position]))
        assert 0 < answer.completion_tokens <= N_NEW_TOKENS and answer.seconds > 0
        assert answer.finish_reason == "stop" or answer.finish_reason == "length" and answer.completion_tokens == N_NEW_TOKENS
    alone = dict(one_by_one.answers(conversations))
    assert {position: answer.text for position, answer in answers} == {position: answer.text for position, answer in alone.items()}


@pytest.mark.slow
def test_batching_and_left_padding_change_no_verdict(by_four, one_by_one, conversations):
    together, alone = dict(by_four.verdicts(conversations)), dict(one_by_one.verdicts(conversations))
    generated = {position: answer.probabilities for position, answer in by_four.answers(conversations)}
    assert together.keys() == alone.keys() == generated.keys() == set(range(len(conversations)))
    for position, shares in together.items():
        assert list(shares) == list(TASK.labels) and sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert shares == pytest.approx(alone[position], abs=1e-5) and shares == pytest.approx(generated[position], abs=1e-5)
    assert len({round(shares["DUPLICATE"], 4) for shares in together.values()}) > 3, "the prompts must matter, or equality says nothing"


@pytest.mark.slow
def test_verdicts_are_those_of_a_plain_forward_pass(by_four, conversations):
    import torch

    branch = dataset.find_branch(by_four.chat, TASK)
    for position, shares in by_four.verdicts(conversations):
        ids = torch.tensor([by_four.chat.prompt_ids(conversations[position]) + branch.opening])
        with torch.no_grad():
            chances = by_four.model(input_ids=ids).logits[0, -1].softmax(-1)
        of_labels = chances[[branch.token_of[label] for label in TASK.labels]]
        assert list(shares.values()) == pytest.approx((of_labels / of_labels.sum()).tolist(), abs=1e-5)


def plain_texts(one, conversations, **options):
    """What `generate` writes row by row, nothing guessed: (text, tokens) of each."""
    import torch

    found = []
    for messages in conversations:
        ids = torch.tensor([one.chat.prompt_ids(messages)])
        output = one.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=one.gen.max_new_tokens, do_sample=False,
                                    eos_token_id=one.end_ids, pad_token_id=one.chat.pad_id, **options)[0, ids.shape[1]:].tolist()
        found.append(one._answer([], output, {}, 0.0))
    return [(answer.text, answer.completion_tokens, answer.finish_reason) for answer in found]


def written(one, conversations):
    answers = dict(one.answers(conversations))
    return [(answers[at].text, answers[at].completion_tokens, answers[at].finish_reason) for at in range(len(conversations))]


@pytest.mark.slow
def test_guessing_changes_no_text_where_the_model_writes_no_opening(by_four, one_by_one, conversations):
    """A random model never writes the answer's opening: what it wrote instead must show, also when earlier answers are guessed."""
    expected = plain_texts(one_by_one, conversations)
    assert not any(text.startswith('{"result"') for text, *_ in expected) and len(set(expected)) > 3
    for one in (by_four, one_by_one):
        assert written(one, conversations) == expected and one.guesses.next
        assert written(one, conversations) == expected, "the second time everything is guessed"
        one.guesses.next = dict.fromkeys(one.guesses.next, 7)
        assert written(one, conversations) == expected, "wrong guesses leave no trace"


@pytest.mark.slow
@pytest.mark.parametrize("n_wrong", [0, 1])
def test_the_opening_is_taken_as_far_as_the_model_writes_it(folder, conversations, n_wrong):
    """Openings made of the model's own first tokens, for some rows right and for others wrong from some place on."""
    one = engine(folder)
    expected = plain_texts(one, conversations)
    first = one.chat.prompt_ids(conversations[0])
    ids = one._plain([first])[0][0]
    one.branch = dataset.Branch(ids[:3 - n_wrong] + [7] * n_wrong, one.branch.token_of)
    assert written(one, conversations) == expected
    shares = dict(one.answers(conversations))
    for position, plain in one.verdicts(conversations):
        assert shares[position].probabilities == pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
def test_rows_end_at_their_end_token_wherever_a_guess_ran_past_it(folder, conversations):
    """End tokens are taken from the model's own texts, so that rows end at different steps and others reach the length."""
    one = engine(folder, batch_size=5)
    tokens = [one._plain([one.chat.prompt_ids(messages)])[0][0] for messages in conversations]
    one.end_ids = [tokens[0][4], tokens[1][7]]
    expected = plain_texts(one, conversations)
    assert {reason for *_, reason in expected} == {"stop", "length"}
    assert written(one, conversations) == expected == written(one, conversations)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_no_answer_is_longer_than_its_budget(folder, conversations, budget):
    one = engine(folder, max_new_tokens=budget)
    one.guesses.learn(list(range(20)))
    assert written(one, conversations) == plain_texts(one, conversations)


@pytest.mark.slow
def test_a_model_that_cannot_rewind_is_left_to_generate(folder, conversations, monkeypatch):
    one = engine(folder)
    expected = written(one, conversations)
    monkeypatch.setattr(one, "rewinds", False)
    monkeypatch.setattr(one, "_guessed", None)
    assert written(one, conversations) == expected


@pytest.mark.slow
def test_tokens_are_drawn_in_the_shares_that_temperature_and_top_p_leave(folder):
    import torch
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    one, logits = engine(folder, temperature=0.7, top_p=0.8), torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    expected = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(0.7)(None, logits)).softmax(-1)[0]
    torch.manual_seed(1)
    drawn = torch.tensor(one._choose(logits.expand(4, 5000, 12)))
    shares = drawn.flatten().bincount(minlength=12) / drawn.numel()
    assert 2 < (expected > 0).sum() < 12 and not shares[expected == 0].any()
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.015)


@pytest.mark.slow
def test_a_temperature_near_zero_draws_what_greedy_takes(folder, by_four, conversations):
    assert written(engine(folder, temperature=1e-4), conversations) == written(by_four, conversations)


@pytest.mark.slow
def test_the_answer_ends_before_the_end_token_and_says_why(by_four, conversations):
    end, other = by_four.end_ids[0], by_four.chat.ids("a")[0]
    stopped = by_four._answer([1, 2], [other, other, end, by_four.chat.pad_id], {}, 0.1)
    assert (stopped.text, stopped.finish_reason, stopped.completion_tokens, stopped.prompt_tokens) == ("aa", "stop", 3, 2)
    cut = by_four._answer([1], [other] * 3, {}, 0.1)
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("aaa", "length", 3)


@pytest.mark.slow
def test_sampling_is_the_same_every_time(folder, conversations):
    texts = [[answer.text for _, answer in engine(folder, temperature=1.0, top_p=0.9).answers(conversations[:4])] for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_weights_that_overflow_are_said_and_not_scored(folder, conversations):
    import torch

    broken = engine(folder)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        list(broken.verdicts(conversations[:2]))


def test_an_engine_is_a_file_and_a_wrong_name_is_answered_with_the_nearest():
    assert "hf" in engine_names() and engine_names() == [name for name in ENGINE_FILES if not name.startswith("_")]
    with pytest.raises(UserError, match=r"--backend hff: .*nearest: hf"):
        load_engine("hff")


def test_engines_are_light_to_import():
    """An engine's own library is loaded when the engine is, so that --help and another engine never wait for it."""
    modules = ["constrained_decode", *(f"constrained_decode.{name}" for name in engine_names())]
    heavy = ("torch", "transformers", "vllm", "sglang", "llama_cpp", "openai")
    code = f"import sys, {', '.join(modules)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", engine_names())
def test_every_engine_offers_load_and_what_it_returns_answers(name):
    tree = ast.parse((ROOT / "src" / "constrained_decode" / f"{name}.py").read_text(encoding="utf-8"))
    assert "load" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    methods = {node.name for part in ast.walk(tree) if isinstance(part, ast.ClassDef) for node in part.body if isinstance(node, ast.FunctionDef)}
    assert {"answers", "verdicts"} <= methods
