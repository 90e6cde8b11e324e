"""Train steward_mini from nothing: python src/pretrain.py --out models/steward-mini

Synthetic pairs are made while a GPU trains on them; tokenizer, weights, calibration and model card are left in --out.
About six minutes on one H200. On a CPU only a tiny model is sensible: --set pairs=2000 layers=2 width=96
step_tokens=4096
"""

import argparse
import dataclasses
import math
import os
import time
from pathlib import Path

from common import (
    ROOT,
    UserError,
    WorkFailed,
    progress,
    quiet_libraries,
    read_json,
    run,
    sha256_file,
    to_json,
    write_text,
)
from config import load_config
from constrained_decode import hf
from language_model import calibration, packed_attention
from load.roofline import measured_flops_per_s
from manifest import Clock, write_manifest
from steward_mini import model_card, pretrain_data, vocabulary
from tasks import DEFAULT, load_task

TOKENIZER_ROWS = 30_000
VALIDATION_SEED = 90_001  # rows of the test pool: other names, places and words than in training
HELD_OUT_SEED = 90_002
SAY_EVERY = 50  # steps
WEIGHTS = "model.safetensors"
CONFIG = ROOT / "configs" / "steward_mini.yaml"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that shapes the weights; --set changes one value."""

    pairs: int = 3_200_000  # 6 million were no better on records from elsewhere (LOG.md)
    seed: int = 3  # of seeds 1 to 3 the one with the lowest log loss on validation rows
    width: int = 192
    layers: int = 14
    heads: int = 3
    hidden: int = 512
    step_tokens: int = 98_304
    optimizer: str = "muon"  # for the matrices inside the layers; or adamw
    lr: float = 6e-3
    warmup_steps: int = 100
    flat: float = 0.25  # share of the training at the full rate; then a cosine to nothing
    weight_decay: float = 0.1
    verdict_weight: float = 6.0
    text_weight: float = 0.4
    prompt_weight: float = 0.12
    prompt_weight_end: float = 0.03
    bpe_dropout: float = 0.1
    canonical: bool = True  # keys sorted, records in a fixed order, as every prompt has them
    variety: bool = True
    frequency: bool = True
    free_text: bool = False
    held_out: int = 4_000  # rows that calibrate it, and as many others that judge it

    @property
    def recipe(self):
        return {"variety": self.variety, "frequency": self.frequency, "free_text": self.free_text}


def main():
    args = parse_args()
    plan = with_settings(Plan(), args.set)
    quiet_libraries()
    pretrain(plan, load_task(args.task), args.out, args.workers or max(1, (os.cpu_count() or 2) - 1))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("models/steward-mini"), help="folder to write (default models/steward-mini)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a setting, for example seed=2 pairs=1000000"
    )
    parser.add_argument("--workers", type=int, help="processes that make pairs (default: all cores but one)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def with_settings(plan, settings):
    """The plan with the values of --set, each read as its setting's type."""
    kinds = {field.name: field.type for field in dataclasses.fields(plan)}
    values = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in kinds:
            raise UserError(f"--set {setting}: no setting '{key}'; there is: {', '.join(kinds)}")
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if kinds[key] is bool else kinds[key](text)
        except (ValueError, KeyError):
            raise UserError(f"--set {setting}: {text!r} is not a value of type {kinds[key].__name__}") from None
    plan = dataclasses.replace(plan, **values)
    for key, least in (("pairs", 1), ("step_tokens", vocabulary.CONTEXT), ("heads", 1)):
        if getattr(plan, key) < least:
            raise UserError(f"--set {key}={getattr(plan, key)}: at least {least}")
    if plan.width % plan.heads:
        raise UserError(f"--set width={plan.width} heads={plan.heads}: width must be a multiple of heads")
    return plan


def pretrain(plan, task, out, n_workers):
    """Tokenizer, weights, temperature, manifest and card, in this order."""
    import torch

    clock = Clock()
    torch.manual_seed(plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    tokenizer = make_tokenizer(plan, task, out)
    model = make_model(plan, tokenizer)
    n_parameters = sum(p.numel() for p in model.parameters())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"{n_parameters:,} parameters, {len(tokenizer):,} tokens, {plan.pairs:,} pairs on {device}, {n_workers} "
        "workers",
        flush=True,
    )
    speed = fit(plan, task, model.to(device), out, n_workers)
    save(model, out)
    scores = held_out_scores(task, out, plan.held_out)
    weights = sha256_file(out / WEIGHTS)
    write_manifest(
        out / "manifest.json",
        clock,
        config=dataclasses.asdict(load_config(CONFIG)),
        fingerprint=weights,
        task=task.name,
        plan=dataclasses.asdict(plan),
        parameters=n_parameters,
        training={"method": "from scratch on synthetic pairs", "rows": plan.pairs, **speed},
        held_out=scores,
        weights_sha256=weights,
    )
    write_card(out)
    print(
        f"{out}: held-out accuracy {scores['accuracy']:.4f}, calibration error {scores['ece']:.4f}, temperature "
        f"{scores['temperature']:.3f}"
    )


def make_tokenizer(plan, task, out):
    """Fitted to prompts and answers of the training pool."""
    synthetic = task.module("synthetic")
    canonical = task.module("data").canonical
    texts = (
        text
        for row in synthetic.rows(min(TOKENIZER_ROWS, plan.pairs), plan.seed, recipe=synthetic.Recipe(**plan.recipe))
        for text in (to_json(canonical(row["input"])), task.completion(row["output"]))
    )
    tokenizer = vocabulary.train(texts, task)
    tokenizer.save_pretrained(out)
    return tokenizer


def make_model(plan, tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        head_dim=plan.width // plan.heads,
        intermediate_size=plan.hidden,
        max_position_embeddings=vocabulary.CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_bias=False,
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation(packed_attention.register())
    # Twice as many layers add up in the residual stream as a block has outputs; scaled down, depth starts harmless.
    for name, weights in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights.data /= math.sqrt(2 * plan.layers)
    return model


def fit(plan, task, model, out, n_workers):
    """The training loop; how fast it was."""
    import torch

    cuda = model.device.type == "cuda"
    source = pretrain_data.Source(task.name, str(out), plan.seed, plan.recipe, plan.bpe_dropout, plan.canonical)
    optimizers = make_optimizers(plan, model, cuda)
    torch.set_float32_matmul_precision("high")
    step_loss = torch.compile(packed_loss, dynamic=False) if cuda else packed_loss
    log = []
    start = time.perf_counter()
    first = None
    done = 0
    tokens = 0
    waited = 0.0
    model.train()
    with progress(plan.pairs, "pairs", "pretrain") as bar:
        for number, (arrays, wait) in enumerate(
            timed(pretrain_data.steps(source, plan.pairs, plan.step_tokens, n_workers))
        ):
            waited += wait if number > 20 else 0.0
            share = done / plan.pairs
            set_rate(optimizers, plan, share, number)
            batch = to_device(arrays, model.device)
            weights = loss_weights(plan, share, model.device)
            losses, norm = take_step(model, optimizers, step_loss, batch, weights)
            done = done + arrays["rows"]
            tokens = tokens + arrays["tokens"]
            bar.update(arrays["rows"])
            if number == 20:
                first = (time.perf_counter(), tokens)
            if number % SAY_EVERY == 0:
                log.append(said(number, done, losses, norm, start))
                bar.set_postfix_str(log[-1]["said"])
    return speed_facts(model, plan, first or (start, 0), tokens, number + 1, log) | {
        "waited_for_pairs_s": round(waited, 1)
    }


def take_step(model, optimizers, step_loss, batch, weights):
    """One step of every optimizer; the pack's losses and the norm of its gradient."""
    import torch

    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        losses = step_loss(model, batch, weights)
    losses[0].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses, norm


def timed(items):
    """(item, seconds that it took to come)."""
    items = iter(items)
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start


def make_optimizers(plan, model, cuda):
    import torch

    from steward_mini.muon import Muon

    matrices = [weights for name, weights in model.named_parameters() if weights.ndim > 1 and "embed" not in name]
    others = [weights for name, weights in model.named_parameters() if weights.ndim < 2 or "embed" in name]
    settings = {"lr": plan.lr, "betas": (0.9, 0.98), "eps": 1e-9, "fused": cuda}
    if plan.optimizer == "muon":
        return [
            Muon(matrices, lr=plan.lr, weight_decay=plan.weight_decay),
            torch.optim.AdamW(others, weight_decay=0.0, **settings),
        ]
    return [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}],
            **settings,
        )
    ]


def set_rate(optimizers, plan, share, step):
    """A few steps of warming up, flat for a while, then a cosine; share is how much of the training is done."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    fall = 1.0 if share < plan.flat else 0.5 * (1 + math.cos(math.pi * (share - plan.flat) / (1 - plan.flat)))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = plan.lr * warm * max(fall, 0.005)


def loss_weights(plan, share, device):
    import torch

    prompt = plan.prompt_weight + (plan.prompt_weight_end - plan.prompt_weight) * share
    return torch.tensor([0.0, prompt, plan.verdict_weight, plan.text_weight], device=device)


def to_device(arrays, device):
    import torch

    batch = {
        key: torch.from_numpy(arrays[key]).to(device, non_blocking=True)
        for key in ("ids", "following", "kinds", "positions", "bounds")
    }
    return batch | {"longest": pretrain_data.LONGEST}


def packed_loss(model, batch, weights):
    """(weighted loss, mean loss of verdicts, mean loss of the sentences) of one pack."""
    import torch

    bounds = batch["bounds"]
    longest = batch["longest"]
    mask = None
    rows = {}
    if batch["ids"].device.type == "cuda":
        rows = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    else:
        mask = dense_mask(batch["positions"])
    found = model.model(
        input_ids=batch["ids"][None],
        position_ids=batch["positions"][None],
        attention_mask={"full_attention": mask},
        use_cache=False,
        **rows,
    )
    logits = model.lm_head(found.last_hidden_state[0]).float()
    each = torch.nn.functional.cross_entropy(logits, batch["following"], reduction="none")
    weight = weights[batch["kinds"]]
    kinds = (pretrain_data.VERDICT, pretrain_data.TEXT)
    means = [(each * (batch["kinds"] == kind)).sum() / (batch["kinds"] == kind).sum().clamp(min=1) for kind in kinds]
    return (each * weight).sum() / weight.sum(), means[0].detach(), means[1].detach()


def dense_mask(positions):
    """Which token sees which, where no kernel knows row boundaries: the same row, not later."""
    import torch

    row = (positions == 0).cumsum(0)
    at = torch.arange(len(positions), device=positions.device)
    return ((row[:, None] == row[None]) & (at[:, None] >= at[None]))[None, None]


def said(step, pairs, losses, norm, start):
    """A line of the log, and the words of it that the progress bar shows."""
    loss, verdict, text = (round(one.item(), 4) for one in losses)
    if not math.isfinite(loss):
        raise WorkFailed(f"the loss is {loss} at step {step}; lower the rate: --set lr=1e-3")
    return {
        "step": step,
        "pairs": pairs,
        "loss": loss,
        "verdict_loss": verdict,
        "text_loss": text,
        "grad_norm": round(float(norm), 3),
        "seconds": round(time.perf_counter() - start, 1),
        "said": f"loss {loss:.3f}, verdict {verdict:.3f}, text {text:.3f}",
    }


def speed_facts(model, plan, first, tokens, steps, log):
    """Tokens a second without the start-up, and the share of the GPU's measured matrix rate that the model's own
    operations make.
    """
    import torch

    seconds = time.perf_counter() - first[0]
    rate = (tokens - first[1]) / max(seconds, 1e-9)
    flops = 6 * sum(p.numel() for p in model.parameters()) + 6 * plan.layers * plan.width * tokens / plan.pairs
    peak = measured_flops_per_s()
    return {
        "steps": steps,
        "tokens": tokens,
        "tokens_per_s": round(rate),
        "train_s": log[-1]["seconds"],
        "flops_per_token": round(flops),
        "model_flops_utilisation": round(rate * flops / peak, 4),
        "matrix_flops_per_s": round(peak),
        "precision": "bfloat16 autocast" if model.device.type == "cuda" else "float32",
        "log": [{key: entry[key] for key in entry if key != "said"} for entry in log[::4]],
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None,
    }


def save(model, out):
    """bfloat16 weights under the library's own attention, so that every engine loads them."""
    import torch

    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise WorkFailed("training diverged: some weights are not finite; lower the rate: --set lr=1e-3")
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).to("cpu").save_pretrained(out)


def held_out_scores(task, out, n_rows):
    """Temperature from validation rows, then accuracy and calibration on other rows; both of the held-out pool."""
    config = load_config(CONFIG)
    (out / calibration.FILE).unlink(missing_ok=True)
    engine = hf.load(str(out), task, config)
    validation, held_out = (held_out_rows(task, n_rows, seed) for seed in (VALIDATION_SEED, HELD_OUT_SEED))
    fitted = calibration.store(
        out,
        verdicts(engine, task, validation),
        [row["output"][task.verdict.key] for row in validation],
        task.verdict.labels,
        f"{n_rows:,} synthetic pairs, seed {VALIDATION_SEED}, test pool",
    )
    engine.temperature = fitted["temperature"]
    found = verdicts(engine, task, held_out)
    return scores_of(found, [row["output"][task.verdict.key] for row in held_out], task) | {
        "temperature": fitted["temperature"],
        "rows": n_rows,
    }


def held_out_rows(task, n, seed):
    synthetic = task.module("synthetic")
    return list(synthetic.rows(n, seed, recipe=synthetic.Recipe(pool="test")))


def verdicts(engine, task, rows):
    found = [None] * len(rows)
    for at, shares in engine.verdicts([task.messages(row["input"]) for row in rows]):
        found[at] = shares
    return found


def scores_of(found, labels, task):
    """Accuracy, macro-F1, calibration error over ten bins, and log loss."""
    import numpy as np
    from sklearn.metrics import f1_score

    shares = np.array([[row[label] for label in task.verdict.labels] for row in found])
    truth = np.array([task.verdict.labels.index(label) for label in labels])
    told = shares.argmax(1)
    sure = shares.max(1)
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [
        abs(np.mean(told[bins == b] == truth[bins == b]) - np.mean(sure[bins == b])) * np.mean(bins == b)
        for b in range(10)
        if (bins == b).any()
    ]
    return {
        "accuracy": float(np.mean(told == truth)),
        "macro_f1": float(f1_score(truth, told, average="macro")),
        "ece": float(sum(gaps)),
        "log_loss": float(-np.mean(np.log(np.clip(shares[np.arange(len(truth)), truth], 1e-12, 1)))),
    }


def write_card(out):
    write_text(out / "README.md", model_card.card(read_json(out / "manifest.json")))


if __name__ == "__main__":
    run(main)
