"""What the machine allows, one token a step: the bytes and operations that an answer needs over this machine's measured
memory bandwidth and matrix rate.

A prompt is bound by arithmetic, a token after it by reading the weights once for all rows together and each row's own
keys and values.
"""

import time
from dataclasses import asdict, dataclass

COPIED_BYTES = 1 << 31
MATRIX = 8_192
COPIED_ON_CPU = COPIED_BYTES // 16
MATRIX_ON_CPU = 2_048
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    bandwidth_gb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True)
class Shape:
    """What a model's every token costs."""

    linear_parameters: int  # that every token is multiplied by, the output layer left out
    head_parameters: int  # the output layer, for places whose logits are wanted
    weight_bytes: int  # read for every step
    kv_bytes_a_token: int
    attention_flop_a_pair: int  # for each token and each token that it looks at


def measured_machine():
    """The rates of this machine's GPU, or of its CPU where it has none."""
    import torch

    cuda = torch.cuda.is_available()
    device, n, side = ("cuda", COPIED_BYTES, MATRIX) if cuda else ("cpu", COPIED_ON_CPU, MATRIX_ON_CPU)
    source = torch.ones(n // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copied = best_seconds(lambda: target.copy_(source), cuda)
    # A CPU may be quicker in either.
    multiplied = min(
        multiply_seconds(side, dtype, device) for dtype in (torch.bfloat16, torch.float32)[: 1 if cuda else 2]
    )
    return Machine(round(2 * n / copied / 1e9, 1), round(2 * side**3 / multiplied / 1e12, 3))


def multiply_seconds(side, dtype, device):
    import torch

    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return best_seconds(lambda: left @ right, device == "cuda")


def best_seconds(work, cuda):
    import torch

    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def model_shape(config, bytes_a_weight, kv_bytes=2):
    """The shape of a model by its transformers config, counted on a model without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings().weight.numel()
    embedded = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    linear = model.num_parameters() - embedded - (0 if tied else head)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        linear,
        head,
        int((linear + head) * bytes_a_weight),
        2 * text.num_hidden_layers * text.num_key_value_heads * width * kv_bytes,
        4 * text.num_hidden_layers * text.num_attention_heads * width,
    )


def prompt_s(machine, shape, n_tokens):
    """Seconds to read one prompt."""
    flop = (
        2 * shape.linear_parameters * n_tokens
        + 2 * shape.head_parameters
        + shape.attention_flop_a_pair * n_tokens * n_tokens / 2
    )
    return flop / machine.matmul_tflop_s / 1e12


def step_s(machine, shape, n_rows, n_tokens):
    """Seconds for the next token of n_rows rows behind n_tokens tokens each."""
    read = (shape.weight_bytes + n_rows * n_tokens * shape.kv_bytes_a_token) / machine.bandwidth_gb_s / 1e9
    flop = n_rows * (2 * (shape.linear_parameters + shape.head_parameters) + shape.attention_flop_a_pair * n_tokens)
    return max(read, flop / machine.matmul_tflop_s / 1e12)


def answers_floor(machine, shape, n_rows, prompt_tokens, written_tokens):
    """(seconds of a round of n_rows answers, answers a second): first all prompts, whose passes give a token each, then
    one token a step.
    """
    steps = max(0.0, written_tokens - 1)
    round_s = n_rows * prompt_s(machine, shape, prompt_tokens) + steps * step_s(
        machine, shape, n_rows, prompt_tokens + written_tokens / 2
    )
    return round_s, n_rows / round_s


def facts(machine, shape):
    return (
        asdict(machine)
        | asdict(shape)
        | {
            "weights_gb": round(shape.weight_bytes / 1e9, 3),
            "note": (
                "prompts of a round at the measured matrix rate, then one token a step at the measured copy bandwidth, "
                "tokens that were settled and "
                "read left out, no prefix taken as cached; an engine that guesses tokens or reads prompts beside them "
                "can undercut it"
            ),
        }
    )


def measured_flops_per_s(seconds=0.5):
    """The matrix rate of this machine, from half a second of products."""
    import torch

    cuda = torch.cuda.is_available()
    size, kind = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.randn(size, size, dtype=kind, device="cuda" if cuda else "cpu")
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    a @ a
    wait()
    n = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ a
        wait()
        n += 1
    return 2 * size**3 * n / (time.perf_counter() - start)
