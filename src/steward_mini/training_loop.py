"""The training itself: optimizers, rates, the weighted loss of one pack, and how fast it all was."""

import math
import time

from common import WorkFailed, progress
from load_test.roofline import measured_flops_per_s
from steward_mini import pretrain_data

LOG_EVERY = 50  # steps
START_UP = 20  # steps that compile kernels and fill queues; they do not count for the speed


def fit(plan, task, model, out, n_workers):
    """Train the model on the plan's pairs; how fast it was."""
    import torch

    cuda = model.device.type == "cuda"
    source = pretrain_data.Source(task.name, str(out), plan.seed, plan.recipe, plan.bpe_dropout, plan.canonical)
    optimizers = make_optimizers(plan, model, cuda)
    torch.set_float32_matmul_precision("high")
    step_loss = torch.compile(packed_loss, dynamic=False) if cuda else packed_loss
    record = Record()
    model.train()
    with progress(plan.pairs, "pairs", "pretrain") as bar:
        for arrays, wait in timed(pretrain_data.steps(source, plan.pairs, plan.step_tokens, n_workers)):
            share = record.pairs / plan.pairs
            set_rate(optimizers, plan, share, record.steps)
            batch = to_device(arrays, model.device)
            weights = loss_weights(plan, share, model.device)
            losses, norm = take_step(model, optimizers, step_loss, batch, weights)
            bar.update(arrays["rows"])
            if record.add(arrays, wait, losses, norm):
                bar.set_postfix_str(record.words)
    return speed_facts(model, plan, record)


class Record:
    """What happened so far: steps, pairs, tokens, the log, and the time since the start-up."""

    def __init__(self):
        self.start = time.perf_counter()
        self.steps = 0
        self.pairs = 0
        self.tokens = 0
        self.waited_s = 0.0
        self.log = []
        self.words = ""
        # Time and tokens from which on the speed counts.
        self.counted_from = (self.start, 0)

    def add(self, arrays, wait, losses, norm):
        """One step more; whether it is one that the log holds."""
        number = self.steps
        self.steps += 1
        self.pairs += arrays["rows"]
        self.tokens += arrays["tokens"]
        if number > START_UP:
            self.waited_s += wait
        if number == START_UP:
            self.counted_from = (time.perf_counter(), self.tokens)
        if number % LOG_EVERY:
            return False
        self.log.append(log_entry(number, self.pairs, losses, norm, self.start))
        self.words = "loss {loss:.3f}, verdict {verdict_loss:.3f}, text {text_loss:.3f}".format(**self.log[-1])
        return True


def log_entry(step, pairs, losses, norm, start):
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


def speed_facts(model, plan, record):
    """Tokens a second without the start-up, and the share of the machine's measured matrix rate that the model's own
    operations make.
    """
    import torch

    since, tokens_before = record.counted_from
    rate = (record.tokens - tokens_before) / max(time.perf_counter() - since, 1e-9)
    tokens_a_pair = record.tokens / plan.pairs
    flops = 6 * sum(p.numel() for p in model.parameters()) + 6 * plan.layers * plan.width * tokens_a_pair
    peak = measured_flops_per_s()
    return {
        "steps": record.steps,
        "tokens": record.tokens,
        "tokens_per_s": round(rate),
        "train_s": record.log[-1]["seconds"],
        "flops_per_token": round(flops),
        "model_flops_utilisation": round(rate * flops / peak, 4),
        "matrix_flops_per_s": round(peak),
        "precision": "bfloat16 autocast" if model.device.type == "cuda" else "float32",
        "log": record.log[::4],
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None,
        "waited_for_pairs_s": round(record.waited_s, 1),
    }
