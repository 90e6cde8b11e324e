"""The roofline of one model on one machine: the bytes and operations that an answer needs over this machine's measured
memory bandwidth and matrix rate, one token a step.

A prompt is bound by arithmetic, a token after it by reading the weights once for all rows together and each row's own
keys and values.
"""

import time
from dataclasses import asdict, dataclass

from language_model import hub

COPIED_BYTES = 1 << 31
MATRIX = 8_192
COPIED_ON_CPU = COPIED_BYTES // 16
MATRIX_ON_CPU = 1_024
SMALL_MATRIX = 256
PROBE_S = 0.5
SHORT_PROBE_S = 0.1
COPIES = 5
FASTER = 2  # so many times as fast a small product must be before a kind of number is tried on a large one


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


class Roofline:
    """What this machine allows this model at best."""

    def __init__(self, machine, model_path, precision):
        from transformers import AutoConfig

        bytes_a_number = 4 if precision == "float32" else 2
        self.machine = machine
        self.shape = model_shape(
            AutoConfig.from_pretrained(hub.whole_model(model_path)), bytes_a_number, kv_bytes=bytes_a_number
        )

    @property
    def facts(self):
        return facts(self.machine, self.shape)

    def answers(self, n_rows, prompt_tokens, written_tokens):
        """(p50 in ms, requests a second)"""
        seconds, rate = answers_at_best(self.machine, self.shape, n_rows, prompt_tokens, written_tokens)
        return 1000 * seconds, rate

    def verdicts_a_s(self, prompt_tokens):
        return 1 / prompt_s(self.machine, self.shape, prompt_tokens)


def measured_machine():
    """The rates of this machine's GPU, or of its CPU where it has none."""
    import torch

    cuda = torch.cuda.is_available()
    device, n_bytes = ("cuda", COPIED_BYTES) if cuda else ("cpu", COPIED_ON_CPU)
    source = torch.ones(n_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copied = best_seconds(lambda: target.copy_(source), cuda, COPIES)
    rate = flop_per_s(MATRIX, torch.bfloat16, device) if cuda else cpu_flop_per_s()
    return Machine(round(2 * n_bytes / copied / 1e9, 1), round(rate / 1e12, 3))


def cpu_flop_per_s():
    """The better of two kinds of number. A CPU without bfloat16 arithmetic is 50 times slower in it, and one large
    product takes it half a minute in which nothing can stop it: a small product decides whether a large one is tried.
    """
    import torch

    rate = flop_per_s(MATRIX_ON_CPU, torch.float32, "cpu")
    small, small_bfloat16 = (
        flop_per_s(SMALL_MATRIX, kind, "cpu", SHORT_PROBE_S) for kind in (torch.float32, torch.bfloat16)
    )
    if small_bfloat16 * FASTER < small:
        return rate
    return max(rate, flop_per_s(MATRIX_ON_CPU, torch.bfloat16, "cpu"))


def measured_flops_per_s():
    """The matrix rate in the kind of number that training computes in: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    if torch.cuda.is_available():
        return flop_per_s(MATRIX, torch.bfloat16, "cuda")
    return flop_per_s(MATRIX_ON_CPU, torch.float32, "cpu")


def flop_per_s(side, kind, device, seconds=PROBE_S):
    """The rate of the fastest of the square products that fit into this time."""
    import torch

    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: left @ right, device == "cuda", within_s=seconds)


def best_seconds(work, cuda, times=1, within_s=0.0):
    """The fastest of so many runs, or of as many as fit into this time; one more at first to warm up."""
    import torch

    found = []
    start = time.perf_counter()
    while len(found) <= times or time.perf_counter() - start < within_s:
        before = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - before)
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


def answers_at_best(machine, shape, n_rows, prompt_tokens, written_tokens):
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
            "note": (
                "prompts of a round at the measured matrix rate, then one token a step at the measured copy bandwidth, "
                "tokens that were settled and read left out, no prefix taken as cached; an engine that guesses tokens "
                "or reads prompts beside them can undercut it"
            ),
            "weights_gb": round(shape.weight_bytes / 1e9, 3),
        }
    )
