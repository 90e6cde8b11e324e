"""Pretraining's parts against what they imitate or promise: calibration, tokenizer, packing, Muon, settings; and one
tiny model made from nothing.
"""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch

from common import UserError, read_json, sha256_file, to_json
from config import load_config
from language_model import calibration
from steward_mini import held_out, model_card, pretrain_data, vocabulary
from steward_mini.model import WEIGHTS, make_model
from steward_mini.muon import Muon
from steward_mini.plan import Plan, plan_with
from steward_mini.training_loop import dense_mask, loss_weights, packed_loss, to_device
from support.pipeline import ROOT, done, run
from tasks import load_task
from tasks.crm import data, synthetic

TASK = load_task()
CONTROL = [vocabulary.PAD, vocabulary.END, *(f"<|{role}|>" for role in vocabulary.ROLES)]
PAIR = {"record1": {"name": "Zoë Müller", "phone": "+49 30 1234"}, "record2": {"name": "ZOE MULLER"}}


# ---- calibration


def answers_at(temperature, n=4_000, seed=3):
    """(probabilities that are too sure or too shy by a temperature, labels drawn from the right ones)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    right = softmax(logits)
    truth = np.array([rng.choice(3, p=row) for row in right])
    return softmax(logits * temperature), truth


def softmax(logits):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 3.0])
def test_a_known_temperature_is_found_again(temperature):
    probabilities, truth = answers_at(temperature)
    found, before, after = calibration.fit_temperature(probabilities, truth)
    assert found == pytest.approx(temperature, rel=0.12) and after <= before + 1e-9
    assert before == pytest.approx(-np.mean(np.log(probabilities[np.arange(len(truth)), truth])), rel=1e-6)


def test_certainties_of_nothing_do_not_break_the_fit():
    found, before, after = calibration.fit_temperature([[1.0, 0.0, 0.0]] * 60, [0] * 30 + [1] * 30)
    assert calibration.RANGE[0] <= found <= calibration.RANGE[1] and math.isfinite(before) and after < before


def test_rows_without_a_mistake_are_not_certain_beyond_bounds():
    """Perfectly separated rows would be sharpened to the lower bound; one in n + 2 is taken for doubtful."""
    found, *_ = calibration.fit_temperature([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]] * 50, [0, 1] * 50)
    assert found > 2 * calibration.RANGE[0]


def test_what_is_stored_is_read_back_and_too_few_rows_store_nothing(tmp_path):
    assert calibration.stored_temperature(tmp_path) == 1.0
    probabilities, truth = answers_at(2.0, 400)
    rows = [dict(zip(TASK.verdict.labels, map(float, row), strict=True)) for row in probabilities]
    labels = [TASK.verdict.labels[at] for at in truth]
    assert (
        calibration.store(
            tmp_path, rows[: calibration.LEAST_ROWS - 1], labels[: calibration.LEAST_ROWS - 1], TASK.verdict.labels, "x"
        )
        is None
    )
    assert list(tmp_path.iterdir()) == []
    facts = calibration.store(tmp_path, rows, labels, TASK.verdict.labels, "400 rows")
    assert calibration.stored_temperature(tmp_path) == facts["temperature"] == pytest.approx(2.0, rel=0.3)
    assert (facts["rows"], facts["fitted_on"]) == (400, "400 rows") and facts["log_loss_after"] < facts[
        "log_loss_before"
    ]


@pytest.mark.parametrize(
    "text",
    ['{"temperature": "warm"}', '{"temperature": 0}', '{"temperature": 17.5}', "{}", "{", '{"temperature": null}'],
)
def test_a_stored_temperature_that_is_none_is_refused(tmp_path, text):
    (tmp_path / calibration.FILE).write_text(text)
    with pytest.raises(UserError, match=calibration.FILE):
        calibration.stored_temperature(tmp_path)


# ---- the tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer fitted to 600 rows, as pretraining leaves it."""
    out = tmp_path_factory.mktemp("tokenizer")
    vocabulary.fitted(dataclasses.replace(Plan(), pairs=600), TASK, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_verdicts_and_fixed_texts_are_one_token_each(tokenizer):
    texts = [*vocabulary.fixed_texts(TASK), *CONTROL]
    found = [ids(tokenizer, text) for text in texts]
    assert [text for text, some in zip(texts, found, strict=True) if len(some) != 1] == []
    assert len({some[0] for some in found}) == len(texts) and len(tokenizer) <= vocabulary.VOCABULARY
    for label in TASK.verdict.labels:
        answer = TASK.completion({"result": label, "reasoning": "Clear duplicate: phone matches."})
        assert ids(tokenizer, answer)[1] == ids(tokenizer, label)[0], "opening, verdict, rest"


def test_no_record_can_spell_a_control_token(tokenizer):
    control = {tokenizer.convert_tokens_to_ids(text) for text in CONTROL}
    assert None not in control and len(control) == len(CONTROL)
    hostile = {
        "record1": {spelling: [spelling, f" {spelling}\n"] for spelling in CONTROL},
        "record2": {"a": "".join(CONTROL).upper(), "b": "<|PAD|><| end |>"},
    }
    assert not control & set(ids(tokenizer, to_json(data.canonical(hostile))))
    text = tokenizer.apply_chat_template(TASK.messages(hostile), tokenize=False, add_generation_prompt=True)
    found = [token for token in ids(tokenizer, text) if token in control]
    assert tokenizer.convert_ids_to_tokens(found) == ["<|system|>", "<|user|>", "<|assistant|>"]


def test_digits_stand_alone_and_case_and_accents_do_not_count(tokenizer):
    assert len(ids(tokenizer, "4711")) == 4 and len(set(ids(tokenizer, "77"))) == 1
    assert ids(tokenizer, "Zoë MÜLLER") == ids(tokenizer, "zoe muller") != ids(tokenizer, "zoe miller")


def test_an_answer_survives_the_round_trip(tokenizer):
    for row in synthetic.rows(200, 4):
        text = TASK.completion(row["output"])
        back = json.loads(tokenizer.decode(ids(tokenizer, text)))
        assert (
            back["result"] == row["output"]["result"]
            and back["reasoning"].lower() == row["output"]["reasoning"].lower()
        )


def test_any_text_has_tokens(tokenizer):
    for text in ("佐藤 健 🎌", "\u2028\x00", "ﬁ", "-" * 50, "x" * 500, "ئ", "🏴"):
        assert ids(tokenizer, text) and tokenizer.unk_token_id not in ids(tokenizer, text)


def test_the_prompt_around_the_records_never_changes(tokenizer):
    before, after = vocabulary.prompt_parts(tokenizer)
    start = ids(tokenizer, before.replace("SYSTEM", TASK.system_text))
    end = ids(tokenizer, after)
    assert len(start) == 3, "system, its one token, user: all of it can be kept between prompts"
    for row in synthetic.rows(40, 5):
        text = tokenizer.apply_chat_template(TASK.messages(row["input"]), tokenize=False, add_generation_prompt=True)
        found = ids(tokenizer, text)
        assert found[: len(start)] == start and found[-len(end) :] == end
        assert text == before.replace("SYSTEM", TASK.system_text) + to_json(data.canonical(row["input"])) + after


# ---- pairs as tokens


def source(folder, **more):
    return pretrain_data.Source(
        **{"task": "crm", "tokenizer": str(folder), "seed": 1, "recipe": {}, "dropout": 0.0, "canonical": True} | more
    )


@pytest.fixture(scope="module")
def block(folder):
    return pretrain_data.Encoder(source(folder)).block(0, 60)


def cut(block):
    """The block's rows as (ids, kinds)."""
    all_ids, kinds, lengths = block
    ends = np.cumsum(lengths)
    assert ends[-1] == len(all_ids) == len(kinds)
    return [(all_ids[end - n : end], kinds[end - n : end]) for end, n in zip(ends, lengths, strict=True)]


def test_a_row_is_the_prompt_that_the_engine_sees_then_the_answer_and_its_end(block, tokenizer):
    for (found, _), row in zip(cut(block), synthetic.rows(60, 1), strict=True):
        text = tokenizer.apply_chat_template(
            [*TASK.messages(row["input"]), {"role": "assistant", "content": TASK.completion(row["output"])}],
            tokenize=False,
        )
        assert found.tolist() == ids(tokenizer, text)


def test_kinds_say_what_each_token_predicts(block, tokenizer):
    verdicts = {ids(tokenizer, label)[0] for label in TASK.verdict.labels}
    for (found, kinds), row in zip(cut(block), synthetic.rows(60, 1), strict=True):
        [at] = np.flatnonzero(kinds == pretrain_data.VERDICT)
        assert found[at + 1] == ids(tokenizer, row["output"]["result"])[0] and found[at + 1] in verdicts
        assert (kinds[:at] == pretrain_data.PROMPT).all() and (kinds[at + 1 : -1] == pretrain_data.TEXT).all()
        assert kinds[-1] == pretrain_data.NONE, "the end of a row predicts nothing of the next"
        assert found[-1] == tokenizer.eos_token_id


def test_dropout_changes_prompts_and_no_answer(folder, block):
    other = pretrain_data.Encoder(source(folder, dropout=0.5)).block(0, 60)
    changed = 0
    for (plain, plain_kinds), (varied, varied_kinds) in zip(cut(block), cut(other), strict=True):
        changed += len(plain) != len(varied) or (plain != varied).any()
        assert (
            plain[plain_kinds != pretrain_data.PROMPT].tolist() == varied[varied_kinds != pretrain_data.PROMPT].tolist()
        )
    assert 20 <= changed <= 30, "every second prompt"


def test_packed_rows_restart_their_positions_and_keep_their_kinds(block, tokenizer):
    rows = cut(block)[:8]
    size = sum(len(found) for found, _ in rows) + 37
    pack = pretrain_data.packed(rows, size)
    at = 0
    for number, (found, kinds) in enumerate(rows):
        here = slice(at, at + len(found))
        assert pack["ids"][here].tolist() == found.tolist() and pack["positions"][here].tolist() == list(
            range(len(found))
        )
        assert pack["kinds"][here].tolist() == kinds.tolist() and pack["bounds"][number] == at
        at += len(found)
    assert pack["positions"][at:].tolist() == list(range(37)) and not pack["kinds"][at:].any()
    assert pack["bounds"][len(rows)] == at and (pack["bounds"][len(rows) + 1 :] == size).all()
    assert (pack["rows"], pack["tokens"]) == (8, at)
    verdicts = {ids(tokenizer, label)[0] for label in TASK.verdict.labels}
    assert set(pack["following"][pack["kinds"] == pretrain_data.VERDICT].tolist()) <= verdicts
    assert (pack["following"][:-1] == pack["ids"][1:]).all()


def test_every_row_arrives_once_whatever_the_size_of_a_step(folder, monkeypatch):
    encoder = pretrain_data.Encoder(source(folder))
    monkeypatch.setattr(pretrain_data, "blocks", lambda *_: (encoder.block(start, 20) for start in range(0, 60, 20)))
    packs = list(pretrain_data.steps(None, 60, 2_048, 1))
    rows = [row for pack in packs for row in np.split(pack["ids"][: pack["tokens"]], pack["bounds"][1 : pack["rows"]])]
    wanted = [found.tolist() for found, _ in cut(encoder.block(0, 60)) if len(found) <= pretrain_data.LONGEST]
    assert [row.tolist() for row in rows] == wanted and len(packs) >= 3
    assert all(np.diff(pack["bounds"]).max() <= pretrain_data.LONGEST for pack in packs), (
        "padding is cut into rows that the kernel expects"
    )
    assert all(len(pack["ids"]) == 2_048 and pack["rows"] <= 2_048 // pretrain_data.FEWEST for pack in packs)


def tiny_model(tokenizer):
    torch.manual_seed(1)
    return make_model(plan_with(["layers=2", "width=64", "heads=2", "hidden=96"]), tokenizer)


def test_rows_of_a_pack_do_not_see_one_another(block, tokenizer):
    """A row's hidden states are those of the row alone, and changing its neighbours changes nothing."""
    rows = cut(block)[:4]
    model = tiny_model(tokenizer).eval()

    def hidden(rows):
        pack = pretrain_data.packed(rows, sum(len(found) for found, _ in rows) + 20)
        tokens = torch.from_numpy(pack["ids"])
        positions = torch.from_numpy(pack["positions"])
        mask = {"full_attention": dense_mask(positions)}
        with torch.no_grad():
            states = model.model(
                input_ids=tokens[None], position_ids=positions[None], attention_mask=mask, use_cache=False
            )
        ends = np.cumsum([len(found) for found, _ in rows])
        return np.split(states.last_hidden_state[0].numpy(), ends)[: len(rows)]

    together = hidden(rows)
    for row, states in zip(rows, together, strict=True):
        assert np.allclose(hidden([row])[0], states, atol=1e-4)
    swapped = hidden([rows[3], rows[1]])[1]
    assert np.allclose(swapped, together[1], atol=1e-4) and not np.allclose(
        hidden([rows[0]])[0][-1], together[1][-1], atol=1e-2
    )


def test_the_loss_weighs_verdict_prompt_and_text_as_planned(block, tokenizer):
    model = tiny_model(tokenizer)
    rows = cut(block)[:3]
    batch = to_device(pretrain_data.packed(rows, sum(len(found) for found, _ in rows) + 11), torch.device("cpu"))
    with torch.no_grad():
        only_verdict = packed_loss(model, batch, torch.tensor([0.0, 0.0, 6.0, 0.0]))
        mixed = packed_loss(model, batch, loss_weights(Plan(), 0.0, "cpu"))
    assert (
        only_verdict[0].item()
        == pytest.approx(only_verdict[1].item(), rel=1e-5)
        == pytest.approx(mixed[1].item(), rel=1e-5)
    )
    assert mixed[0].item() not in (mixed[1].item(), mixed[2].item())
    start, end = (loss_weights(Plan(), share, "cpu").tolist() for share in (0.0, 1.0))
    assert start[0] == end[0] == 0 and start[1] > end[1] > 0 and start[2:] == end[2:]


# ---- Muon


def test_muon_takes_the_steps_of_torchs_own():
    """Both orthogonalise in bfloat16: the steps agree to its rounding, the weights far closer."""
    torch.manual_seed(4)
    shapes = [(48, 16), (16, 48), (48, 16), (32, 32)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(weights.clone()) for weights in start] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = (
        Muon(ours, **settings),
        torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings),
    )
    for _ in range(6):
        gradients = [torch.randn(shape) * 0.1 + weights * 0.3 for shape, weights in zip(shapes, start, strict=True)]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for weights, gradient in zip(parameters, gradients, strict=True):
                weights.grad = gradient.clone()
            optimizer.step()
    for before, mine, other in zip(start, ours, theirs, strict=True):
        moved = (other - before).norm()
        assert moved > 0.1 and (mine - other).norm() < 0.02 * moved


def test_muons_step_has_adamws_usual_size_whatever_the_gradients():
    for scale in (1e-6, 1.0, 1e4):
        weights = torch.nn.Parameter(torch.zeros(64, 32))
        weights.grad = torch.randn(64, 32) * scale
        Muon([weights], lr=1.0, weight_decay=0.0).step()
        assert weights.detach().pow(2).mean().sqrt().item() == pytest.approx(0.2, rel=0.35)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["pears=3"], "unknown key 'pears' (value 3), did you mean 'pairs'?"),
        (["pairs=many"], "pairs: 'many' is str, expected a whole number"),
        (["lr=fast"], "lr: 'fast' is str, expected a number"),
        (["canonical=maybe"], "canonical: 'maybe' is str, expected true or false"),
        (["optimizer=mun"], "optimizer: 'mun' is none of muon, adamw"),
        (["pairs"], "write it as key=value"),
        (["pairs=0"], "pairs: 0 must be at least 1"),
        (["step_tokens=10"], "step_tokens: 10 must be at least 1024"),
        (["width=100", "heads=3"], "width must be a multiple of heads"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, words):
    with pytest.raises(UserError) as refused:
        plan_with(settings)
    assert "--set" in str(refused.value) and words in str(refused.value)


def test_settings_change_what_they_name_and_nothing_else():
    plan = plan_with(["pairs=7", "lr=1e-3", "variety=False", "optimizer=adamw"])
    assert plan == dataclasses.replace(Plan(), pairs=7, lr=1e-3, variety=False, optimizer="adamw")
    assert (
        plan.recipe == {"variety": False, "frequency": True, "free_text": False}
        and synthetic.Recipe(**plan.recipe).pool == "train"
    )


def test_held_out_rows_are_of_the_other_pool():
    validation, others = (
        held_out.held_out_rows(TASK, 30, seed) for seed in (held_out.VALIDATION_SEED, held_out.HELD_OUT_SEED)
    )
    assert (
        validation == list(synthetic.rows(30, held_out.VALIDATION_SEED, recipe=synthetic.Recipe(pool="test"))) != others
    )


# ---- the model card


def test_the_shipped_models_card_is_made_of_its_manifest():
    folder = ROOT / "models/steward-mini"
    made = model_card.card(read_json(folder / "manifest.json"), TASK)
    assert made == (folder / "README.md").read_text(encoding="utf-8")


# ---- from nothing to a model


@pytest.mark.slow
def test_a_tiny_model_is_made_whole_and_loads_alike_twice(tmp_path):
    """A process of its own makes it, two more loads answer the same."""
    from constrained_decode import hf

    out = tmp_path / "tiny"
    refused = run("src/pretrain.py", "--out", out, "--set", "pears=3", cwd=ROOT)
    assert refused.returncode == 2 and "unknown key 'pears'" in refused.stderr and not out.exists()
    tiny = ("pairs=600", "layers=2", "width=64", "heads=1", "hidden=128", "step_tokens=2048", "held_out=200")
    said = done("src/pretrain.py", "--out", out, "--workers", 1, "--set", *tiny, cwd=ROOT)
    assert "held-out accuracy" in said
    assert {"model.safetensors", "config.json", "tokenizer.json", "calibration.json", "manifest.json", "README.md"} <= {
        path.name for path in out.iterdir()
    }
    facts = read_json(out / "manifest.json")
    assert facts["plan"]["pairs"] == facts["training"]["rows"] == 600 and facts["plan"]["layers"] == 2
    assert facts["weights_sha256"] == facts["fingerprint"] == sha256_file(out / WEIGHTS)
    assert (
        facts["held_out"]["rows"] == 200
        and 0.2 < facts["held_out"]["accuracy"] <= 1
        and facts["training"]["tokens"] > 50_000
    )
    assert str(tmp_path) not in json.dumps(facts)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (
        facts["weights_sha256"] in card
        and f"{facts['parameters']:,} parameters" in card
        and f"{facts['held_out']['accuracy']:.4f}" in card
    )
    assert "None" not in card and "nan" not in card

    config = load_config(ROOT / "configs" / "steward_mini.yaml")
    prompts = [TASK.messages(row["input"]) for row in synthetic.rows(6, 12)]
    engines = [hf.load(str(out), TASK, config) for _ in range(2)]
    assert all(
        engine.temperature == calibration.stored_temperature(out) == facts["held_out"]["temperature"]
        for engine in engines
    )
    first, second = (dict(engine.verdicts(prompts)) for engine in engines)
    assert first == second and len(first) == 6
    for shares in first.values():
        assert set(shares) == set(TASK.verdict.labels) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    mirrored = dict(engines[0].verdicts([TASK.messages(data.swap(row["input"])) for row in synthetic.rows(6, 12)]))
    assert mirrored == first
    assert sys.getrecursionlimit() < 10_000, "the script's own limit stays in its process"
