"""Fold an adapter into its base and prove that the merged model decides alike before it gets its name.

A QLoRA adapter was trained against the 4-bit weights, so by default those are dequantized and merged; the deltas are
added in float32 and rounded once. Folding into the 4-bit weights themselves would erase nearly all of a small delta.
"""

import dataclasses
import gc
import shutil

from common import UserError, WorkFailed, read_json, sha256_file
from manifest import Clock, write_manifest

N_PROMPTS = 64
N_CALIBRATION = 1000  # validation rows that the temperature is fitted on; one number needs no more
# Mean difference of verdict probabilities between adapter and merged model that rounding alone explains (LOG.md has the
# figures).
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
NOISE_ALLOWED = 3
# bfloat16 keeps 8 bits of each weight and can round a small adapter away; float16 keeps 11, but large activations
# overflow it.
DTYPES = {"auto": ("bfloat16", "float16")}
CLEAR_MARGIN = 5  # limits by which a verdict must lead before a change of it counts


def merge(config, task, lora, merged, rows, fingerprint):
    """Write the merged model, compare it with the adapter on real prompts, and only then give it its name."""
    import dataset
    from language_model import chat_template, hub, verdict_branch

    clock = Clock()
    check_disk(lora, merged)
    chat = chat_template.pinned_chat(hub.load_tokenizer(str(lora)), config.chat)
    examples, _ = dataset.encode_rows(rows, chat, config)
    prompts, answers = cases(examples, N_PROMPTS)
    branch = verdict_branch.find_branch(chat, task)
    print(f"merging {lora}", flush=True)
    with_adapter = look(lambda: load_adapter_model(config, lora), prompts, answers, branch, chat)
    noise = probability_gap(with_adapter.verdicts, with_adapter.verdicts_in_batches)
    part = merged.with_name(merged.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    trained = read_json(lora / "manifest.json")
    try:
        for dtype in DTYPES.get(config.merge.dtype, (config.merge.dtype,)):
            fold(config, dtype, lora, part, chat)
            alone = look(lambda: load_merged(part), prompts, answers, branch, chat)
            parity = compare(with_adapter, alone, noise, tolerance(config, dtype, trained["training"]["precision"]))
            print(
                f"parity gate, {dtype}: {'passed' if parity['passed'] else 'not passed'}: {parity['words']}", flush=True
            )
            if parity["passed"]:
                break
        else:
            raise WorkFailed(refusal(lora, parity, config))
        calibration = calibrated(part, examples, branch, chat, alone.verdicts, trained["data"]["val"]["path"])
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(merged, ignore_errors=True)
    part.rename(merged)
    write_manifest(
        merged / "manifest.json",
        clock,
        config=dataclasses.asdict(config),
        fingerprint=fingerprint,
        task=task.name,
        parity=parity,
        calibration=calibration,
        merge={"dtype": dtype, "base": qlora_base(config)},
        training=trained["training"] | {"wall_s": trained["wall_s"], "hardware": trained["hardware"]},
        data=trained["data"],
        adapter_sha256=sha256_file(lora / "adapter_model.safetensors"),
    )
    print(f"merged model in {merged}")


def check_disk(lora, merged):
    """The merged model is written beside an older one, so there must be room for it whole."""
    merged.parent.mkdir(parents=True, exist_ok=True)
    needed = base_bytes(read_json(lora / "adapter_config.json")["base_model_name_or_path"])
    free = shutil.disk_usage(merged.parent).free
    if needed and free < needed:
        raise UserError(
            f"{merged.parent}: the merged model takes about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "make room, then run the same command: the adapter is kept and only the merge runs again"
        )


def base_bytes(base):
    """Size of the base model's weights where they lie in a folder or in the hub's cache; 0 when unknown."""
    from pathlib import Path

    from language_model import hub

    folder = Path(hub.local_or_hub(base))
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base, "config.json")
        if not isinstance(found, str):
            return 0
        folder = Path(found).parent
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def qlora_base(config):
    return config.merge.qlora_base if config.peft.method == "qlora" else "as trained"


def cases(examples, most):
    """Prompts and answers of evenly spaced examples, at most so many."""
    import dataset

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

    from language_model import base_model

    base, _ = base_model.load_base(config)
    return PeftModel.from_pretrained(base, lora).eval()


def load_merged(folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def fold(config, dtype, lora, folder, chat):
    """Base + adapter -> plain weights in `folder`, with tokenizer, pinned template and end tokens for any server."""
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    from language_model import chat_template

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
    free_memory()


def load_fold_base(config):
    """The weights that the delta is added to, in float32."""
    from language_model import base_model

    if config.peft.method == "qlora" and config.merge.qlora_base == "dequantized":
        base, _ = base_model.load_base(config)
        base = base.dequantize()
        return base.to(roomy_device(base.num_parameters())).float()
    base = base_model.load_weights(config, dtype="auto")
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


@dataclasses.dataclass(frozen=True)
class Look:
    """What one model says to the parity prompts: verdict probabilities one by one and in batches, and the gold answers'
    log-probability a token.
    """

    verdicts: list
    verdicts_in_batches: list
    logprobs: list


def look(load, prompts, answers, branch, chat):
    """A Look at a model that is loaded for this and freed."""
    from constrained_decode.hf import verdict_probabilities

    model = load()
    one_by_one, in_batches = (
        [
            shares
            for start in range(0, len(prompts), size)
            for shares in verdict_probabilities(model, prompts[start : start + size], branch, chat.pad_id)
        ]
        for size in (1, 8)
    )
    logprobs = [answer_logprob(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    del model
    free_memory()
    return Look(one_by_one, in_batches, logprobs)


def calibrated(folder, examples, branch, chat, known, rows_from):
    """Keep the temperature under which the merged model's verdicts on validation rows mean what they say; None where
    the rows are too few.

    `known` are the verdicts that the parity gate asked for, on the same rows where there are no more than its prompts.
    """
    from constrained_decode.hf import verdict_probabilities
    from language_model import calibration

    (folder / calibration.FILE).unlink(missing_ok=True)
    prompts, answers = cases(examples, N_CALIBRATION)
    if len(prompts) < calibration.LEAST_ROWS:
        return None
    if len(prompts) > len(known):
        model = load_merged(folder)
        known = [
            shares
            for start in range(0, len(prompts), 8)
            for shares in verdict_probabilities(model, prompts[start : start + 8], branch, chat.pad_id)
        ]
        del model
        free_memory()
    label_of = {token: label for label, token in branch.token_of.items()}
    facts = calibration.store(
        folder, known, [label_of[answer[len(branch.opening)]] for answer in answers], list(branch.token_of), rows_from
    )
    print(f"temperature {facts['temperature']:.3f}, fitted on {facts['rows']:,} validation rows", flush=True)
    return facts


def probability_gap(some, others):
    """Mean absolute difference of two lists of verdict probabilities."""
    gaps = [abs(a[label] - b[label]) for a, b in zip(some, others, strict=True) for label in a]
    return sum(gaps) / len(gaps)


def answer_logprob(model, prompt, answer):
    import torch

    ids = torch.tensor([prompt + answer], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, -len(answer) :, None]).mean().item()


def tolerance(config, dtype, trained_in):
    """The coarsest rounding on the way: the training's, the merge's, or that of the 4-bit kernels."""
    precisions = [dtype, trained_in] + (["bfloat16"] if config.peft.method == "qlora" else [])
    return max(TOLERANCE[precision] for precision in precisions)


def compare(with_adapter, alone, noise, tolerance):
    """How far the merged model is from the adapter, and whether rounding explains it.

    `noise` is how far the adapter model moves from itself when the same prompts come in batches: in a model whose own
    arithmetic is that rough, nothing finer can be asked of the merged one.
    """
    pairs = list(zip(with_adapter.verdicts, alone.verdicts, strict=True))
    limit = max(tolerance, NOISE_ALLOWED * noise)
    mean_gap = probability_gap(with_adapter.verdicts, alone.verdicts)
    largest = max(abs(a[label] - b[label]) for a, b in pairs for label in a)
    changed = [a for a, b in pairs if max(a, key=a.get) != max(b, key=b.get)]
    clearly = sum(margin(shares) > CLEAR_MARGIN * limit for shares in changed)
    logprob_gap = sum(abs(a - b) for a, b in zip(with_adapter.logprobs, alone.logprobs, strict=True)) / len(pairs)
    words = (
        f"verdict probabilities differ by {mean_gap:.2g} on average (limit {limit:.2g}, the adapter's own noise "
        f"{noise:.2g}), {largest:.2g} at most; "
        f"{len(changed)} of {len(pairs)} verdicts change, {clearly} of them clear ones; gold answers by "
        f"{logprob_gap:.2g} nats a token"
    )
    return {
        "passed": mean_gap <= limit and clearly == 0,
        "words": words,
        "prompts": len(pairs),
        "mean_probability_gap": mean_gap,
        "max_probability_gap": largest,
        "verdicts_changed": len(changed),
        "clear_verdicts_changed": clearly,
        "answer_logprob_gap": logprob_gap,
        "noise": noise,
        "limit": limit,
    }


def margin(shares):
    first, second, *_ = sorted(shares.values(), reverse=True)
    return first - second


def refusal(lora, parity, config):
    advice = (
        "set merge.qlora_base to the other of dequantized and original, or " if config.peft.method == "qlora" else ""
    ) + (
        "add --set merge.dtype=float32"
        if config.merge.dtype != "float32"
        else "look whether base model and adapter belong together"
    )
    return (
        f"the merged model does not decide like the adapter: {parity['words']}. The adapter in {lora} is whole and was "
        "kept, the merged model was not. "
        f"Next: {advice}, and run the same command again: only the merge runs"
    )


def free_memory():
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
