"""Whether a merged model decides as its adapter did: the gate that it must pass before it gets its name."""

import dataclasses
import gc

from language_model.base_model import has_bfloat16_arithmetic
from language_model.verdict_branch import padded_left, verdict_probabilities

N_PROMPTS = 64
# Mean difference of the choices' probabilities between adapter and merged model that rounding alone explains (LOG.md
# has the figures).
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}
NOISE_ALLOWED = 3
CLEAR_MARGIN = 5  # limits by which a choice must lead before a change of it counts
# Of so many choices one clear one may change: rounding alone turned one or two of 5,200 tokens where the mean
# difference was a hundredth of the limit (LOG.md). Of 64 verdicts none may.
CHOICES_A_CHANGE = 1000


def load_merged(folder):
    """A merged model where it will run; on a CPU without bfloat16 arithmetic in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if torch.cuda.is_available():
        return model.to("cuda").eval()
    return (model if has_bfloat16_arithmetic() else model.float()).eval()


@dataclasses.dataclass(frozen=True)
class Look:
    """What one model makes of the parity prompts: its choices one by one and in batches, and the gold answers'
    log-probability a token. A choice is {label: probability}: between verdicts where the task has them, else between
    each token of the gold answer and all others.
    """

    choices: list
    choices_in_batches: list
    logprobs: list


def look(load, prompts, answers, branch, pad_id):
    """A Look at a model that is loaded for this and freed."""
    model = load()
    one_by_one = choices(model, prompts, answers, branch, pad_id, 1)
    in_batches = choices(model, prompts, answers, branch, pad_id, 8)
    logprobs = [answer_logprob(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    del model
    free_memory()
    return Look(one_by_one, in_batches, logprobs)


def choices(model, prompts, answers, branch, pad_id, batch_size):
    """Every choice of a Look, so many prompts at a time."""
    found = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        if branch:
            found += verdict_probabilities(model, prompts[part], branch, pad_id)
        else:
            found += token_choices(model, prompts[part], answers[part], pad_id)
    return found


def token_choices(model, prompts, answers, pad_id):
    """{gold: probability, other: the rest} at every token of each answer."""
    import torch

    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    ids, mask = padded_left(rows, pad_id, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    longest = max(map(len, answers))
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=longest + 1).logits
    shares = logits[:, :-1].float().softmax(-1).gather(-1, ids[:, -longest:, None])[..., 0].tolist()
    gold = [share for row, answer in zip(shares, answers, strict=True) for share in row[-len(answer) :]]
    return [{"gold": share, "other": 1 - share} for share in gold]


def probability_gap(some, others):
    """Mean absolute difference of two lists of choices."""
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


def compare(with_adapter, alone, noise, tolerance, what):
    """How far the merged model is from the adapter, and whether rounding explains it; `what` is being chosen.

    `noise` is how far the adapter model moves from itself when the same prompts come in batches: in a model whose own
    arithmetic is that rough, nothing finer can be asked of the merged one. The same holds for the choices it changes.
    """
    pairs = list(zip(with_adapter.choices, alone.choices, strict=True))
    limit = max(tolerance, NOISE_ALLOWED * noise)
    mean_gap = probability_gap(with_adapter.choices, alone.choices)
    largest = max(abs(a[label] - b[label]) for a, b in pairs for label in a)
    changed, clearly = changes(with_adapter.choices, alone.choices, limit)
    _, by_itself = changes(with_adapter.choices, with_adapter.choices_in_batches, limit)
    allowed = max(len(pairs) // CHOICES_A_CHANGE, NOISE_ALLOWED * by_itself)
    n_answers = len(with_adapter.logprobs)
    logprob_gap = sum(abs(a - b) for a, b in zip(with_adapter.logprobs, alone.logprobs, strict=True)) / n_answers
    words = (
        f"{what} probabilities differ by {mean_gap:.2g} on average (limit {limit:.2g}, the adapter's own noise "
        f"{noise:.2g}), {largest:.2g} at most; {changed} of {len(pairs)} {what}s change, {clearly} of them clear ones "
        f"({allowed} allowed); gold answers by {logprob_gap:.2g} nats a token"
    )
    return {
        "passed": mean_gap <= limit and clearly <= allowed,
        "words": words,
        "prompts": n_answers,
        "mean_probability_gap": mean_gap,
        "max_probability_gap": largest,
        f"{what}s_changed": changed,
        f"clear_{what}s_changed": clearly,
        f"clear_{what}s_allowed": allowed,
        "answer_logprob_gap": logprob_gap,
        "noise": noise,
        "limit": limit,
    }


def changes(some, others, limit):
    """(choices that come out otherwise, those of them that were clear)."""
    changed = [a for a, b in zip(some, others, strict=True) if max(a, key=a.get) != max(b, key=b.get)]
    return len(changed), sum(margin(shares) > CLEAR_MARGIN * limit for shares in changed)


def margin(shares):
    first, second, *_ = sorted(shares.values(), reverse=True)
    return first - second


def free_memory():
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
