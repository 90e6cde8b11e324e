"""Fold an adapter into its base and prove that the merged model decides alike before it gets its name.

A QLoRA adapter was trained against the 4-bit weights, so by default those are dequantized and merged; the deltas are
added in float32 and rounded once. Folding into the 4-bit weights themselves would erase nearly all of a small delta.
"""

import dataclasses
import shutil

import dataset
from common import WorkFailed, folder_written_whole, read_json, sha256_file
from language_model import base_model, calibration, chat_template, hub, model_folder, verdict_branch
from manifest import Clock, write_manifest
from training import parity

N_CALIBRATION = 1000  # validation rows that the temperature is fitted on; one number needs no more
# bfloat16 keeps 8 bits of each weight and can round a small adapter away; float16 keeps 11, but large activations
# overflow it.
DTYPES = {"auto": ("bfloat16", "float16")}


def merge(config, task, lora, merged, rows, fingerprint):
    """Write the merged model, compare it with the adapter on real prompts, and only then give it its name."""
    clock = Clock()
    check_disk(lora, merged)
    chat = chat_template.pinned_chat(hub.load_tokenizer(str(lora)), config.chat)
    examples, _ = dataset.encode_rows(rows, chat, config)
    branch = verdict_branch.find_branch(chat, task) if task.verdict else None
    trained = read_json(lora / "manifest.json")
    print(f"merging {lora}", flush=True)
    with folder_written_whole(merged) as part:
        dtype, gate, alone = folded_alike(config, lora, part, chat, examples, branch, trained)
        fitted = None
        if branch:
            fitted = calibrated(part, examples, branch, chat, alone.choices, trained["data"]["val"]["path"])
        write_manifest(
            part / "manifest.json",
            clock,
            config=dataclasses.asdict(config),
            fingerprint=fingerprint,
            task=task.name,
            parity=gate,
            calibration=fitted,
            merge={"dtype": dtype, "base": qlora_base(config)},
            training=trained["training"] | {"wall_s": trained["wall_s"], "hardware": trained["hardware"]},
            data=trained["data"],
            adapter_sha256=sha256_file(lora / "adapter_model.safetensors"),
            weights_sha256=model_folder.weights_sha256(part),
        )
    print(f"merged model in {merged}")


def folded_alike(config, lora, part, chat, examples, branch, trained):
    """(precision, parity, Look) of the first precision in which the merged model passes the parity gate."""
    prompts, answers = cases(examples, parity.N_PROMPTS)
    what = "verdict" if branch else "token"
    adapter = parity.look(lambda: load_adapter_model(config, lora), prompts, answers, branch, chat.pad_id)
    noise = parity.probability_gap(adapter.choices, adapter.choices_in_batches)
    for dtype in DTYPES.get(config.merge.dtype, (config.merge.dtype,)):
        fold(config, dtype, lora, part, chat)
        alone = parity.look(lambda: parity.load_merged(part), prompts, answers, branch, chat.pad_id)
        tolerance = parity.tolerance(config, dtype, trained["training"]["precision"])
        found = parity.compare(adapter, alone, noise, tolerance, what)
        print(f"parity gate, {dtype}: {'passed' if found['passed'] else 'not passed'}: {found['words']}", flush=True)
        if found["passed"]:
            return dtype, found, alone
    raise WorkFailed(refusal(lora, found, config))


def check_disk(lora, merged):
    """The merged model is written beside an older one, so there must be room for it whole."""
    merged.parent.mkdir(parents=True, exist_ok=True)
    needed = base_bytes(read_json(lora / "adapter_config.json")["base_model_name_or_path"])
    free = shutil.disk_usage(merged.parent).free
    if needed and free < needed:
        raise WorkFailed(
            f"{merged.parent}: the merged model takes about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "make room, then run the same command: the adapter is kept and only the merge runs again"
        )


def base_bytes(base):
    """Size of the base model's weights where they lie in a folder or in the hub's cache; 0 when unknown."""
    place = hub.place_of(base)
    return sum(path.stat().st_size for path in place.glob("*.safetensors")) if place else 0


def qlora_base(config):
    return config.merge.qlora_base if config.peft.method == "qlora" else "as trained"


def cases(examples, most):
    """Prompts and answers of evenly spaced examples, at most so many."""
    step = max(1, len(examples) // most)
    examples = examples[::step][:most]
    lengths = [dataset.n_answer_tokens(example) for example in examples]
    return (
        [example["input_ids"][:-n] for example, n in zip(examples, lengths, strict=True)],
        [example["input_ids"][-n:] for example, n in zip(examples, lengths, strict=True)],
    )


def load_adapter_model(config, lora):
    """The model as it was trained: base in training precision, 4-bit for QLoRA, adapter on top."""
    from peft import PeftModel

    model_folder.check_weights(lora)
    base, _ = base_model.load_base(config)
    return PeftModel.from_pretrained(base, lora).eval()


def fold(config, dtype, lora, folder, chat):
    """Base + adapter -> plain weights in `folder`, with tokenizer, pinned template and end tokens for any server."""
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    model = PeftModel.from_pretrained(load_fold_base(config), lora).merge_and_unload(safe_merge=True)
    model = model.to(getattr(torch, dtype))
    if not all(torch.isfinite(weights).all() for weights in model.parameters()):
        raise WorkFailed(f"the merged weights overflow {dtype}; set merge.dtype: float32")
    ends = chat_template.end_ids(chat)
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=chat.pad_id, bos_token_id=chat.tokenizer.bos_token_id
    )
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    del model
    parity.free_memory()


def load_fold_base(config):
    """The weights that the delta is added to, in float32."""
    if config.peft.method == "qlora" and config.merge.qlora_base == "dequantized":
        base, _ = base_model.load_base(config)
        base = base.dequantize()
        return base.to(roomy_device(base.num_parameters())).float()
    base = base_model.load_weights(config.model_id, dtype="auto")
    return base.to(roomy_device(base.num_parameters())).float()


def roomy_device(n_parameters):
    """The GPU when it can hold the model in float32 beside its half-precision copy, else the CPU; folding is ten times
    quicker there.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if free > 7 * n_parameters else "cpu"


def calibrated(folder, examples, branch, chat, known, rows_from):
    """Keep the temperature under which the merged model's verdicts on validation rows mean what they say; None where
    the rows are too few.

    `known` are the verdicts that the parity gate asked for, on the same rows where there are no more than its prompts.
    """
    (folder / calibration.FILE).unlink(missing_ok=True)
    prompts, answers = cases(examples, N_CALIBRATION)
    if len(prompts) < calibration.LEAST_ROWS:
        return None
    if len(prompts) > len(known):
        model = parity.load_merged(folder)
        known = parity.choices(model, prompts, answers, branch, chat.pad_id, 8)
        del model
        parity.free_memory()
    label_of = {token: label for label, token in branch.token_of.items()}
    facts = calibration.store(
        folder, known, [label_of[answer[len(branch.opening)]] for answer in answers], list(branch.token_of), rows_from
    )
    print(f"temperature {facts['temperature']:.3f}, fitted on {facts['rows']:,} validation rows", flush=True)
    return facts


def refusal(lora, gate, config):
    advice = "add --set merge.dtype=float32"
    if config.merge.dtype == "float32":
        advice = "look whether base model and adapter belong together"
    if config.peft.method == "qlora":
        advice = f"set merge.qlora_base to the other of dequantized and original, or {advice}"
    return (
        f"the merged model does not decide like the adapter: {gate['words']}. The adapter in {lora} is whole and was "
        f"kept, the merged model was not. Next: {advice}, and run the same command again: only the merge runs"
    )
