"""The Transformers engine answers every row with valid JSON, and neither batching, padding nor guessing changes what it
writes. Random weights suffice.
"""

import dataclasses
import os
import subprocess
import sys

import jsonschema
import pytest
import torch

import make_standin
from common import ROOT, UserError, parse_json
from config import load_config
from constrained_decode import _fused, _reading, engine_names, load_engine
from constrained_decode._sampling import drawn
from constrained_decode._writing import Writing
from language_model import model_folder, verdict_branch
from support import families
from tasks import load_task
from tasks.crm.data import swap
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
N_NEW_TOKENS = 40
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
    tokenizer, model = make_standin.make(
        [*texts, TASK.completion({"result": "DUPLICATE", "reasoning": "Same person."})], seed=1
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def engine(folder, batch_size=4, constrained=True, **gen):
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={folder}"])
    gen = dataclasses.replace(config.gen, **{"temperature": 0.0, "max_new_tokens": N_NEW_TOKENS} | gen)
    return load_engine("hf").load(
        folder, TASK, dataclasses.replace(config, gen=gen), batch_size=batch_size, constrained=constrained
    )


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
    assert [position for position, _ in answers] != list(range(len(conversations))), (
        "longest first, so positions are needed"
    )
    for position, answer in answers:
        assert answer.prompt_tokens == len(by_four.chat.prompt_ids(conversations[position]))
        assert 0 < answer.completion_tokens <= N_NEW_TOKENS and answer.seconds > 0
        assert answer.finish_reason == "stop" and jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(
            parse_json(answer.text)
        )
        assert max(answer.probabilities, key=answer.probabilities.get) == parse_json(answer.text)["result"], (
            "the verdict is the model's"
        )
    alone = dict(one_by_one.answers(conversations))
    assert {position: answer.text for position, answer in answers} == {
        position: answer.text for position, answer in alone.items()
    }


@pytest.mark.slow
def test_batching_and_left_padding_change_no_verdict(by_four, one_by_one, conversations):
    together = dict(by_four.verdicts(conversations))
    alone = dict(one_by_one.verdicts(conversations))
    generated = {position: answer.probabilities for position, answer in by_four.answers(conversations)}
    assert together.keys() == alone.keys() == generated.keys() == set(range(len(conversations)))
    for position, shares in together.items():
        assert list(shares) == list(TASK.verdict.labels) and sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert shares == pytest.approx(alone[position], abs=1e-5) and shares == pytest.approx(
            generated[position], abs=1e-5
        )
    assert len({round(shares["DUPLICATE"], 4) for shares in together.values()}) > 3, (
        "the prompts must matter, or equality says nothing"
    )


@pytest.mark.slow
def test_verdicts_are_those_of_a_plain_forward_pass(by_four, conversations):
    branch = verdict_branch.find_branch(by_four.chat, TASK)
    for position, shares in by_four.verdicts(conversations):
        ids = torch.tensor([by_four.chat.prompt_ids(conversations[position]) + branch.opening])
        with torch.no_grad():
            chances = by_four.model(input_ids=ids).logits[0, -1].softmax(-1)
        of_labels = chances[[branch.token_of[label] for label in TASK.verdict.labels]]
        assert list(shares.values()) == pytest.approx((of_labels / of_labels.sum()).tolist(), abs=1e-5)


def written(one, conversations):
    answers = dict(one.answers(conversations))
    return [
        (answers[at].text, answers[at].completion_tokens, answers[at].overruled, answers[at].late)
        for at in range(len(conversations))
    ]


@pytest.mark.slow
def test_without_the_guarantee_the_engine_is_generate(folder, conversations):
    free = engine(folder, constrained=False)
    for position, answer in free.answers(conversations):
        ids = torch.tensor([free.chat.prompt_ids(conversations[position])])
        output = free.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=N_NEW_TOKENS,
            do_sample=False,
            eos_token_id=free.end_ids,
            pad_token_id=free.chat.pad_id,
        )[0, ids.shape[1] :].tolist()
        ended = next((at for at, token in enumerate(output) if token in free.end_ids), None)
        assert answer.text == free.chat.tokenizer.decode(output[:ended]) and answer.completion_tokens == (
            len(output) if ended is None else ended + 1
        )
        assert not answer.text.startswith('{"result"'), (
            "a model of random weights writes no JSON by itself, or the guarantee proves nothing"
        )


@pytest.fixture(scope="module")
def step_by_step(folder, conversations):
    """Every token by `generate`, each under the guarantee: nothing guessed, nothing fed ahead."""
    one = engine(folder)
    one.rewinds = False
    return written(one, conversations)


@pytest.mark.slow
def test_guessing_changes_no_text(by_four, one_by_one, conversations, step_by_step):
    assert len({text for text, *_ in step_by_step}) > 3 and sum(overruled for *_, overruled, _ in step_by_step) > 0
    for one in (by_four, one_by_one):
        assert written(one, conversations) == step_by_step and one.guessing.guesses.next
        assert written(one, conversations) == step_by_step, "the second time everything is guessed"
        one.guessing.guesses.next = dict.fromkeys(one.guessing.guesses.next, 7)
        assert written(one, conversations) == step_by_step, "wrong guesses leave no trace"
        one.guessing.guesses.next = dict.fromkeys(one.guessing.guesses.next, one.end_ids[0])
        assert written(one, conversations) == step_by_step, "nor do guesses that end too early"


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 1])
def test_the_steps_of_a_gpu_write_the_same(folder, conversations, step_by_step, batch_size):
    """The very steps that become CUDA graphs on a GPU, here one call each."""
    one = engine(folder, batch_size)
    one.use_graphs()
    assert written(one, conversations) == step_by_step
    assert written(one, conversations) == step_by_step, "buffers of the batch before leave no trace"
    assert all(answer.first_s > 0 for _, answer in one.answers(conversations[:1]))


@pytest.mark.slow
def test_the_steps_of_a_gpu_keep_budget_and_schema_when_tokens_are_drawn(folder, conversations):
    hot = engine(folder, temperature=1.5, max_new_tokens=24)
    hot.use_graphs()
    found = written(hot, conversations)
    assert all(
        jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(parse_json(text)) and n <= 24
        for text, n, *_ in found
    )
    assert len({text for text, *_ in found}) > 1 and any(late for *_, late in found)


def small(name):
    """A family's architecture with hardly any numbers in it."""
    from transformers import AutoModelForCausalLM

    config = families.ARCHITECTURES[name]()
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 48,
        "vocab_size": 300,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    for key, value in sizes.items():
        setattr(config, key, value)
    if name == "phi4mini":
        config.original_max_position_embeddings = 40
        config.rope_parameters = {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "long_factor": [2.0 + at for at in range(6)],
            "short_factor": [1.0] * 6,
            "original_max_position_embeddings": 40,
        }
    config.layer_types = ["full_attention"] * 2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().float()


@pytest.mark.slow
@pytest.mark.parametrize("name", families.NAMES)
def test_what_is_fused_for_a_gpu_computes_the_same(name):
    model = small(name)
    prompts = [list(range(10, 30)), list(range(40, 52))]
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        expected = torch.stack([model(input_ids=torch.tensor([prompt])).logits[0, -2:] for prompt in prompts])
        assert _reading.has_plain_head(model) and torch.allclose(
            _reading.read_prompts(model, prompts, 2), expected, atol=1e-5
        )
        n_weights = sum(weight.numel() for weight in model.parameters())
        _fused.fuse(model)
        assert torch.allclose(_reading.read_prompts(model, prompts, 2), expected, atol=1e-5)
    home = sys.modules[type(model).__module__]
    rotary = getattr(home, _fused.ROTARY)
    assert (
        rotary.plain
        and type(model.model.layers[0].mlp)._compiled_call_impl is None
        and model.model.layers[0].mlp._compiled_call_impl
    )
    assert hasattr(model.model.layers[1].self_attn, "qkv_proj") or model.model.layers[1].self_attn.q_proj.widths == [
        64,
        32,
        32,
    ]
    assert n_weights == sum(weight.numel() for weight in model.parameters()), "joined weights take no more memory"
    setattr(home, _fused.ROTARY, rotary.plain)


@pytest.mark.slow
def test_rope_that_follows_the_longest_prompt_is_fixed_while_all_are_short_and_follows_again(monkeypatch):
    model = small("phi4mini")
    short = [[*range(10, 40)]]
    long = [[*range(10, 90)]]
    with torch.inference_mode():
        expected = [_reading.read_prompts(model, prompts, 2) for prompts in (short, long)]
        rope = _fused.Rope(model)
        assert rope.longest == 40 and len(rope.following) == 1 and not rope.fits(80)
        assert torch.allclose(_reading.read_prompts(model, long, 2), expected[1])
        assert rope.fits(40)
        monkeypatch.setattr(torch, "max", lambda *_: pytest.fail("the device was asked for the longest position"))
        assert torch.allclose(_reading.read_prompts(model, short, 2), expected[0]), (
            "the short factors, also after a long prompt"
        )
        monkeypatch.undo()
        assert not rope.fits(80) and torch.allclose(_reading.read_prompts(model, long, 2), expected[1])
    assert not _fused.Rope(small("qwen3_4b")).following and _fused.Rope(small("qwen3_4b")).fits(10**9)


@pytest.mark.slow
def test_what_a_gpu_records_needs_no_prompt_before(folder, conversations):
    one = engine(folder)
    one.use_graphs()
    with torch.inference_mode():
        one.prepare(conversations)
        assert {n_rows for n_rows, _ in one.shapes.kept} == {1, 2, 4} and len(
            {width for _, width in one.shapes.kept}
        ) == 1
        for shape in one.shapes.kept.values():
            for step in (shape._read, shape._read, shape._settle, shape._write_one):
                step()
    n_kept = len(one.shapes.kept)
    assert written(one, conversations) == written(engine(folder), conversations) and len(one.shapes.kept) == n_kept, (
        "nothing was made while answering"
    )


@pytest.mark.slow
def test_every_budget_from_the_least_on_is_kept_and_a_smaller_one_refused(folder, conversations):
    one = engine(folder)
    least = len(one.branch.opening) + max(
        len(ids) + one.guarantee.tables.shortest(state) for ids, state in one.settled.values()
    )
    for budget in (least, least + 1, least + 2):
        for rewinds in (True, False):
            tight = engine(folder, max_new_tokens=budget)
            tight.rewinds = rewinds
            found = written(tight, conversations)
            assert all(
                jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(parse_json(text)) and n <= budget
                for text, n, *_ in found
            )
            assert any(late for *_, late in found), "the budget must have cut in"
    with pytest.raises(UserError, match=f"max_new_tokens is {least - 1}"):
        engine(folder, max_new_tokens=least - 1)


@pytest.mark.slow
def test_guesses_that_lead_beyond_the_budget_do_no_harm_when_tokens_are_drawn(folder, conversations):
    """Behind a guess that fits the schema but not the budget nothing is admitted, and nothing can be drawn."""
    hot = engine(folder, batch_size=3, temperature=1.5, max_new_tokens=24)
    texts = [text for text, *_ in written(hot, [*conversations, *conversations])]
    assert hot.guessing.guesses.next and all(
        jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(parse_json(text)) for text in texts
    )


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_chance_or_a_number_leave_every_way_of_writing_valid(folder, conversations, temperature):
    """Verdicts can be told apart, and what must follow them has no finite logit; only a control token has."""
    one = engine(folder, temperature=temperature, top_p=0.9, max_new_tokens=26)
    finite = [*one.branch.token_of.values(), one.chat.pad_id]
    ways = {"generate": one._generated, "guessing": one._guessed}
    one.use_graphs()
    ways["graphs"] = one._graphed
    for value in (float("-inf"), float("nan")):

        def spoilt(module, inputs, logits, value=value):
            return torch.full_like(logits, value).index_copy(-1, torch.tensor(finite), logits[..., finite])

        hook = one.model.get_output_embeddings().register_forward_hook(spoilt)
        for name, write in ways.items():
            with torch.inference_mode():
                batch = write([one.chat.prompt_ids(messages) for messages in conversations[:3]])
            for at, written_one in enumerate(batch.written):
                answer = one._answer([1], written_one, 0.0)
                assert TASK.parsed(answer.text) and answer.finish_reason == "stop", (name, value, at, answer.text)
        hook.remove()


@pytest.mark.slow
def test_prompts_beyond_what_the_model_reads_are_refused_with_their_numbers(by_four, conversations):
    long = TASK.messages({"record1": {"name": "long " * 5000}, "record2": {}})
    with pytest.raises(UserError, match=r"1 of 3 prompts are too long.*shorten the input of row 2"):
        list(by_four.answers([conversations[0], long, conversations[1]]))


@pytest.mark.slow
def test_of_equally_likely_verdicts_the_one_for_a_person_is_taken(by_four):
    logits = torch.zeros(1, by_four.model.config.vocab_size)
    assert by_four._chosen_labels(logits) == [TASK.verdict.review]


def test_weights_that_the_manifest_does_not_name_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"weights_sha256": "0"}')
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="damaged or another model's"):
        model_folder.check_weights(tmp_path)


def test_tokens_are_drawn_in_the_shares_that_temperature_and_top_p_leave():
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    expected = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(0.7)(None, logits)).softmax(-1)[0]
    torch.manual_seed(1)
    tokens = drawn(logits.expand(4, 5000, 12), 0.7, 0.8)
    shares = tokens.flatten().bincount(minlength=12) / tokens.numel()
    assert 2 < (expected > 0).sum() < 12 and not shares[expected == 0].any()
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.015)


@pytest.mark.slow
def test_a_temperature_near_zero_draws_what_greedy_takes(folder, by_four, conversations):
    assert written(engine(folder, temperature=1e-4), conversations) == written(by_four, conversations)


@pytest.mark.slow
def test_the_answer_ends_before_the_end_token_and_says_why(by_four, conversations):
    end = by_four.end_ids[0]
    other = by_four.chat.ids("a")[0]
    stopped = by_four._answer([1, 2], Writing([other, other, end, by_four.chat.pad_id]), 0.1)
    assert (stopped.text, stopped.finish_reason, stopped.completion_tokens, stopped.prompt_tokens) == (
        "aa",
        "stop",
        3,
        2,
    )
    cut = by_four._answer([1], Writing([other] * 3), 0.1)
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("aaa", "length", 3)


@pytest.mark.slow
def test_sampling_is_the_same_every_time(folder, conversations):
    texts = [
        [answer.text for _, answer in engine(folder, temperature=1.0, top_p=0.9).answers(conversations[:4])]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_weights_that_overflow_are_said_and_not_scored(folder, conversations):
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
    heavy = ("torch", "transformers", "vllm", "sglang", "llama_cpp", "openai", "outlines")
    code = f"import sys, {', '.join(modules)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.slow
def test_rope_is_fixed_before_anything_is_recorded(folder, conversations, monkeypatch):
    one = engine(folder)
    order = []
    one.use_graphs()
    lengths = sorted(len(one.chat.prompt_ids(messages)) for messages in conversations)
    one.rope.longest = lengths[2] + one.gen.max_new_tokens  # longer ones are answered without graphs
    monkeypatch.setattr(one.rope, "fits", lambda n_tokens: order.append(n_tokens) or True)
    monkeypatch.setattr(one.shapes, "prepare", lambda prompts, _: order.append(len(prompts[0])))
    one.prepare(conversations)
    assert order == [lengths[2] + one.gen.max_new_tokens, lengths[2] + len(one.branch.opening)]
    order.clear()
    one.rope.longest = 1
    one.prepare(conversations)
    assert order == []


@pytest.mark.slow
def test_prompts_too_long_for_graphs_are_answered_alike_under_their_attention(
    folder, conversations, step_by_step, monkeypatch
):
    """Padded on the left, with masks that transformers makes."""
    one = engine(folder)
    one.use_graphs()
    monkeypatch.setattr(one.rope, "fits", lambda n_tokens: False)
    assert written(one, conversations) == step_by_step
