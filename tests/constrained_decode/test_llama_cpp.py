"""The llama.cpp engine decides as Transformers does, keeps the guarantee, and takes no weights but the folder's own.

What runs llama.cpp needs requirements-llama_cpp.txt and is skipped where that is not installed; messages are tested
everywhere.
"""

import dataclasses
import json
import shutil
import sys
import types

import jsonschema
import pytest

import export_gguf
import make_standin
from common import ROOT, UserError, parse_json, read_json
from config import load_config
from constrained_decode import llama_cpp, load_engine
from language_model import model_folder
from support import families
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
SHIPPED = ROOT / "models" / "steward-mini"
VALID = jsonschema.Draft202012Validator(TASK.answer_schema)


@pytest.fixture(scope="module")
def packages():
    for name in ("llama_cpp", "gguf"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install -r requirements-llama_cpp.txt")


@pytest.fixture(scope="module")
def conversations():
    return [TASK.messages(row["input"]) for row in synthetic_rows(64, 11)]


@pytest.fixture(scope="module")
def shipped(packages, tmp_path_factory):
    """The model that ships with the project, its GGUF beside it."""
    folder = tmp_path_factory.mktemp("shipped") / "steward-mini"
    shutil.copytree(SHIPPED, folder)
    export_gguf.export(folder, folder.with_name("steward-mini.gguf"), "f16")
    return folder


def saved(folder, tokenizer, model, dtype="f32"):
    """A model folder, its GGUF inside it."""
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    export_gguf.export(folder, folder / "model.gguf", dtype)
    return folder


@pytest.fixture(scope="module")
def chance(packages, conversations, tmp_path_factory):
    """A model of random weights."""
    texts = [message["content"] for messages in conversations for message in messages]
    tokenizer, model = make_standin.make(
        [*texts, TASK.completion({"result": "DUPLICATE", "reasoning": "Same person."})], seed=1
    )
    return saved(tmp_path_factory.mktemp("chance") / "standin", tokenizer, model)


def engine(folder, name="llama_cpp", batch_size=None, constrained=True, **gen):
    config = load_config(
        ROOT / "configs" / ("steward_mini.yaml" if folder.name == "steward-mini" else "standin.yaml"),
        [f"model_id={folder}"],
    )
    gen = dataclasses.replace(config.gen, **{"temperature": 0.0} | gen)
    return load_engine(name).load(
        folder, TASK, dataclasses.replace(config, gen=gen), batch_size=batch_size, constrained=constrained
    )


def in_float32(folder, **settings):
    """Transformers as the judge, in the same numbers on every CPU."""
    judge = engine(folder, "hf", **settings)
    judge.model.float()
    return judge


def in_order(numbered):
    return [value for _, value in sorted(numbered, key=lambda found: found[0])]


def likeliest(shares):
    return max(shares, key=shares.get)


def largest_gap(some, others):
    return max(
        abs(one[label] - other[label]) for one, other in zip(some, others, strict=True) for label in TASK.verdict.labels
    )


@pytest.mark.slow
def test_verdicts_and_answers_are_those_of_transformers(shipped, conversations):
    one = engine(shipped)
    judge = in_float32(shipped)
    said = in_order(one.verdicts(conversations))
    expected = in_order(judge.verdicts(conversations))
    assert [likeliest(shares) for shares in said] == [likeliest(shares) for shares in expected] and len(
        {likeliest(shares) for shares in said}
    ) == 3
    assert largest_gap(said, expected) < 0.005
    answers = in_order(one.answers(conversations))
    others = in_order(judge.answers(conversations))
    assert all(
        answer.probabilities == pytest.approx(shares, abs=1e-3) for answer, shares in zip(answers, said, strict=True)
    )
    for answer, other in zip(answers, others, strict=True):
        assert parse_json(answer.text)["result"] == parse_json(other.text)["result"] == likeliest(answer.probabilities)
        assert (
            (answer.finish_reason, answer.prompt_tokens) == ("stop", other.prompt_tokens)
            and answer.seconds > 0
            and answer.first_s > 0
        )
    # A rounding may turn a word where two are equally likely.
    alike = [
        answer.completion_tokens == other.completion_tokens
        for answer, other in zip(answers, others, strict=True)
        if answer.text == other.text
    ]
    assert len(alike) >= 60 and all(alike)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shipped", "chance"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_is_valid(model, temperature, conversations, request):
    one = engine(request.getfixturevalue(model), temperature=temperature, max_new_tokens=40)
    answers = in_order(one.answers(conversations))
    assert len(answers) == len(conversations)
    for answer in answers:
        assert (
            VALID.is_valid(parse_json(answer.text))
            and answer.finish_reason == "stop"
            and answer.completion_tokens <= 40
        )
    assert model == "shipped" or sum(answer.overruled + answer.late for answer in answers) > len(answers), (
        "chance must have been overruled"
    )


@pytest.mark.slow
def test_sampling_is_the_same_every_time_and_the_verdict_is_drawn_too(shipped, conversations):
    hot = engine(shipped, temperature=1.5)
    texts = [[answer.text for answer in in_order(hot.answers(conversations))] for _ in range(2)]
    assert texts[0] == texts[1] != [answer.text for answer in in_order(engine(shipped).answers(conversations))]
    assert [parse_json(text)["result"] for text in texts[0]] != [
        likeliest(shares) for shares in in_order(hot.verdicts(conversations))
    ]


@pytest.mark.slow
def test_batches_of_any_size_say_the_same_in_their_own_order(shipped, conversations):
    alone = engine(shipped, batch_size=1)
    together = engine(shipped, batch_size=7)
    answers = list(together.answers(conversations[:20]))
    assert sorted(position for position, _ in answers) == list(range(20)) != [position for position, _ in answers], (
        "longest first, so positions are needed"
    )
    others = in_order(alone.answers(conversations[:20]))
    assert sum(answer.text == other.text for answer, other in zip(in_order(answers), others, strict=True)) >= 19
    assert largest_gap(in_order(alone.verdicts(conversations)), in_order(together.verdicts(conversations))) < 0.005
    # Room grows with what is asked, and a shorter call behind a longer one meets nothing of it.
    again = in_order(
        alone.answers([TASK.messages({"record1": {"name": "long " * 300}, "record2": {}}), *conversations[:20]])
    )[1:]
    assert [answer.text for answer in again] == [answer.text for answer in others]


@pytest.mark.slow
def test_without_the_guarantee_it_writes_what_generate_writes(chance, conversations):
    free, judge = (made(chance, constrained=False, max_new_tokens=24) for made in (engine, in_float32))
    answers = in_order(free.answers(conversations[:16]))
    others = in_order(judge.answers(conversations[:16]))
    assert sum(answer.text == other.text for answer, other in zip(answers, others, strict=True)) >= 15
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"} and not any(
        answer.text.startswith('{"result"') for answer in answers
    )
    assert largest_gap([answer.probabilities for answer in answers], [other.probabilities for other in others]) < 0.005


@pytest.mark.slow
def test_every_budget_from_the_least_on_is_kept_and_a_smaller_one_refused(chance, conversations):
    one = engine(chance)
    least = len(one.opening) + max(
        len(ids) + one.guarantee.tables.shortest(state) for ids, state in one.settled.values()
    )
    for budget in (least, least + 1):
        answers = in_order(engine(chance, max_new_tokens=budget).answers(conversations[:9]))
        assert all(VALID.is_valid(parse_json(answer.text)) and answer.completion_tokens <= budget for answer in answers)
        assert any(answer.late for answer in answers), "the budget must have cut in"
    with pytest.raises(UserError, match=f"max_new_tokens is {least - 1}"):
        engine(chance, max_new_tokens=least - 1)


@pytest.mark.slow
def test_prompts_beyond_what_the_model_reads_are_refused_with_their_numbers(shipped, conversations):
    long = TASK.messages({"record1": {"name": "long " * 5000}, "record2": {}})
    with pytest.raises(
        UserError, match=r"1 of 3 prompts are too long.*the model reads 1,024; shorten the input of row 2"
    ):
        list(engine(shipped).answers([conversations[0], long, conversations[1]]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_other_architectures_compute_what_transformers_computes(family, packages, conversations, tmp_path):
    """Llama's rows of queries and keys are re-ordered, and its rotary frequencies scaled; Mistral's vocabulary is of
    another kind.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    tokenizer = (
        families.mistral_tokenizer()
        if family == "mistral"
        else make_standin.make([json.dumps(conversations)], seed=1)[0]
    )
    if family == "mistral":
        tokenizer.chat_template = families.MISTRAL_TEMPLATE
    kind, model = (MistralConfig, MistralForCausalLM) if family == "mistral" else (LlamaConfig, LlamaForCausalLM)
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    }
    torch.manual_seed(2)
    made = model(
        kind(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=family == "llama",
            initializer_range=0.2,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **({"rope_parameters": scaled} if family == "llama" else {"sliding_window": None}),
        )
    )
    folder = saved(tmp_path / family, tokenizer, made)
    settings = load_config(
        ROOT / "configs" / "standin.yaml",
        [f"model_id={folder}", f"chat.system_in_user={str(family == 'mistral').lower()}"],
    )
    one, judge = (load_engine(name).load(folder, TASK, settings) for name in ("llama_cpp", "hf"))
    said = in_order(one.verdicts(conversations[:12]))
    expected = in_order(judge.verdicts(conversations[:12]))
    assert largest_gap(said, expected) < 0.01 and len({round(shares["DUPLICATE"], 2) for shares in expected}) > 6, (
        "the prompts must matter"
    )
    assert all(VALID.is_valid(parse_json(answer.text)) for _, answer in one.answers(conversations[:4]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", export_gguf.FILE_TYPES)
def test_the_file_says_what_it_holds_and_of_which_weights(dtype, shipped, conversations, tmp_path):
    shutil.copytree(shipped, tmp_path / "steward-mini")
    export_gguf.export(tmp_path / "steward-mini", tmp_path / "steward-mini" / "model.gguf", dtype)
    facts = engine(tmp_path / "steward-mini").facts
    manifest = read_json(tmp_path / "steward-mini" / "model.manifest.json")
    assert (
        manifest["weights_sha256"] == model_folder.weights_sha256(shipped)
        and manifest["dtype"] == dtype
        and manifest["gguf_package"]
    )
    assert (
        facts["precision"] == {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}[dtype]
        and facts["gguf"] == "model.gguf"
    )
    assert facts["calibration_temperature"] == read_json(shipped / "calibration.json")["temperature"]


@pytest.mark.slow
def test_weights_in_several_files_are_one_model(packages, chance, conversations, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(chance).save_pretrained(tmp_path / "parts")
    AutoModelForCausalLM.from_pretrained(chance).save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    assert len(model_folder.weight_files(tmp_path / "parts")) > 1
    export_gguf.export(tmp_path / "parts", tmp_path / "parts.gguf", "f32")
    said, whole = (in_order(engine(folder).verdicts(conversations[:5])) for folder in (tmp_path / "parts", chance))
    assert said == whole


@pytest.mark.slow
def test_a_file_of_other_weights_is_refused_with_the_command_that_makes_it_again(shipped, chance):
    misplaced = chance.with_name("other")
    shutil.copytree(chance, misplaced)
    shutil.copy(shipped.with_name("steward-mini.gguf"), misplaced / "model.gguf")
    with pytest.raises(
        UserError,
        match=f"not made of the weights in .*python src/export_gguf.py --model_path {misplaced} --out "
        f"{misplaced}/model.gguf",
    ):
        engine(misplaced)
    (misplaced / "model.gguf").write_bytes(shipped.with_name("steward-mini.gguf").read_bytes()[:100_000])
    with pytest.raises(
        UserError, match=r"cannot load this file; make it again with src/export_gguf.py \(.*corrupted or incomplete"
    ):
        engine(misplaced)


def test_a_missing_file_is_answered_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", types.ModuleType("llama_cpp"))
    folder = tmp_path / "steward-mini"
    shutil.copytree(SHIPPED, folder)
    with pytest.raises(
        UserError, match=rf"no GGUF file.*: python src/export_gguf.py --model_path {folder} --out {folder}\.gguf$"
    ):
        engine(folder)
    with pytest.raises(UserError, match="needs a model folder; fetch it with: hf download some/model"):
        llama_cpp.load("some/model", TASK, None)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("llama_cpp", lambda: llama_cpp.load(SHIPPED, TASK, None)),
        ("gguf", lambda: export_gguf.export(SHIPPED, SHIPPED.with_name("x.gguf"), "f16")),
    ],
)
def test_a_missing_package_is_answered_with_what_installs_it(name, call, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=f"the package {name} is not installed.*pip install -r requirements-llama_cpp.txt"
    ):
        call()
    pins = (ROOT / "requirements-llama_cpp.txt").read_text().splitlines()
    assert "-r requirements.txt" in pins and any(pin.startswith(("llama-cpp-python==", "gguf==")) for pin in pins)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Phi3ForCausalLM"]}, "Phi3ForCausalLM is not exported here"),
        ({"attention_bias": True}, "biases in attention"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "a sliding window"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 1024,
                }
            },
            "the rope scaling yarn",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_left_to_its_own_converter(changes, words):
    from transformers import Qwen3Config

    config = Qwen3Config.from_dict(read_json(SHIPPED / "config.json") | changes)
    with pytest.raises(UserError, match=f"{words}.*use llama.cpp's own convert_hf_to_gguf.py"):
        export_gguf.check_supported(config, "x")


def test_the_file_is_written_whole_or_not_at_all(packages, tmp_path, monkeypatch):
    import torch

    out = tmp_path / "model.gguf"
    out.write_bytes(b"the older one")
    written = export_gguf.array

    def fails_at_the_last(tensor):
        if tensor.name == "output_norm.weight":
            raise OSError("192 requested and 7 written")
        return written(tensor)

    monkeypatch.setattr(export_gguf, "array", fails_at_the_last)
    with pytest.raises(UserError, match=r"could not be written whole \(192 requested and 7 written\)"):
        export_gguf.export(SHIPPED, out, "f16")
    assert out.read_bytes() == b"the older one" and list(tmp_path.iterdir()) == [out]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match="make room or choose another --out"):
        export_gguf.export(SHIPPED, out, "f16")
    large = export_gguf.Tensor("blk.0.ffn_up.weight", (1, 2), "f16", lambda: torch.tensor([[1.0, 1e6]]))
    with pytest.raises(
        UserError, match=r"'blk.0.ffn_up.weight': some weights are not finite numbers in f16; give --dtype bf16 or f32"
    ):
        written(large)


def test_a_name_that_is_none_of_a_gguf_file_is_refused(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["export_gguf.py", "--model_path", "models/steward-mini", "--out", "models/steward-mini"]
    )
    with pytest.raises(UserError, match=r"a GGUF file's name ends with \.gguf"):
        export_gguf.main()
