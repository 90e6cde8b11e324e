"""A training pass compiled and recorded: a small model's step waits for the launches of its many kernels. Compiled
layers have a few fused ones, and a recorded pass (CUDA graphs) is launched as one.

Heavy to import (torch): only fine_tuning.py does, once it trains.
"""

import signal
import time

import pyarrow.compute
import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from common import in_words
from training import micro_batch
from training.processes import n_processes

PAYS_FROM_S = 180  # of steps as they are; a short training is over before anybody waits for it
ROOM_TO_RECORD = 2  # times the memory of a pass: what it records stays taken
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def speed_up(trainer):
    """Compile the decoder layers and record the pass, each where it can be done; what came of it, in words."""
    if not trainer.plan.packing:
        return "layers not compiled: rows are not packed, so every batch would have another shape"
    before = trainer.data_collator
    trainer.data_collator = FixedShape(trainer)
    trainer.args.dataloader_num_workers = 1  # collating took 10 to 16 ms of a step of 130
    start = time.perf_counter()
    done = [attempted(compile_layers, trainer)]
    obstacle = why_not_recorded(trainer)
    done.append(f"the pass not recorded ({obstacle})" if obstacle else attempted(record, trainer))
    if not (trainer.compiled_layers or trainer.is_recorded):
        trainer.data_collator = before
        trainer.args.dataloader_num_workers = 0
    return f"{', '.join(done)}, in {in_words(time.perf_counter() - start)}"


def attempted(work, trainer):
    """What `work` says of itself; where it fails, training goes on without it."""
    try:
        with micro_batch.undisturbed(trainer):
            return work(trainer)
    except Exception as error:  # of the compiler, of the C compiler that it calls, or of what cannot be recorded
        why = (str(error).strip() or "no reason given").splitlines()[0]
        return f"{work.__name__} failed ({type(error).__name__}: {why})"
    finally:
        trainer.model.zero_grad(set_to_none=True)


def why_not_recorded(trainer):
    """What stands against recording the pass; None where nothing does."""
    if not torch.cuda.is_available():
        return "no CUDA GPU"
    if n_processes() > 1:
        return "several GPUs"
    if trainer.plan.grad_accum > 1:
        # A replay writes its gradients where those of the pass before lie, and would add them to themselves.
        return "a step of several passes"
    if trainer.args.gradient_checkpointing:
        return "gradient checkpointing"
    shape = trainer.model.config.get_text_config()
    window = getattr(shape, "sliding_window", None)
    if getattr(shape, "attention_dropout", 0) or (window and window < trainer.data_collator.longest):
        return "attention with a window or dropout"
    with micro_batch.undisturbed(trainer):
        peak = micro_batch.tried(trainer, spread_rows(trainer))
    if peak is None or ROOM_TO_RECORD * peak > micro_batch.free_bytes():
        return "too little memory"
    return None


class FixedShape:
    """A collator that pads packed batches to one number of tokens and of rows."""

    PADDING = "n_padding"  # a batch's tokens and rows that only fill it up

    def __init__(self, trainer):
        self.collate = trainer.data_collator
        self.pad_id = self.collate.pad_token_id
        self.ignores_signals = False
        rows = trainer.train_dataset.with_format("arrow")[:]["seq_lengths"]
        self.longest = max(max(lengths) for lengths in rows.to_pylist())
        n_bins = min(trainer.plan.per_device, len(trainer.train_dataset))
        self.tokens = n_bins * trainer.args.max_length
        most_rows = pyarrow.compute.max(pyarrow.compute.list_value_length(rows)).as_py()
        self.rows = n_bins * most_rows + -(-self.tokens // self.longest)

    def __call__(self, examples):
        self.leave_signals_to_the_parent()
        batch = self.collate(examples)
        taken = batch["input_ids"].shape[1]
        added = self.tokens - taken
        ends = [*range(taken + self.longest, self.tokens, self.longest), self.tokens] if added > 0 else []
        bounds = torch.cat([batch["cu_seq_lens_q"], torch.tensor(ends, dtype=torch.int32)])
        if added < 0 or len(bounds) > self.rows + 1 or batch["max_length_q"] > self.longest:
            return batch  # validation may have more, and longer ones
        batch[self.PADDING] = (added, len(ends))
        for name, value in (("input_ids", self.pad_id), ("labels", -100)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, added), value=value)
        places = torch.arange(added, dtype=batch["position_ids"].dtype) % self.longest
        batch["position_ids"] = torch.cat([batch["position_ids"], places[None]], dim=1)
        bounds = torch.nn.functional.pad(bounds, (0, self.rows + 1 - len(bounds)), value=self.tokens)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = bounds
        batch["max_length_q"] = batch["max_length_k"] = self.longest
        batch["seq_idx"] = torch.repeat_interleave(torch.arange(self.rows, dtype=torch.int32), bounds.diff())[None]
        return batch

    def leave_signals_to_the_parent(self):
        """In the loader's process: Ctrl-C and a stop reach it too, and its end would be an error of the training."""
        if torch.utils.data.get_worker_info() and not self.ignores_signals:
            self.ignores_signals = True
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def compile_layers(trainer):
    decoder = trainer.model.get_base_model().base_model
    # The first one's input has no gradient, which would be a second graph to compile for a thirtieth of the work.
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)][1:]
    if not layers:
        raise TypeError(f"{type(decoder).__name__} has no layers of a known kind")
    try:
        for layer in layers:
            layer.compile(dynamic=False)
        micro_batch.forward_and_backward(trainer, spread_rows(trainer))
    except Exception:
        for layer in layers:
            layer._compiled_call_impl = None
        raise
    trainer.compiled_layers = len(layers)
    return f"{len(layers)} layers compiled"


def record(trainer):
    """Let the decoder replay its forward and backward pass, for batches of the collator's shape."""
    shape = trainer.data_collator
    decoder = trainer.model.get_base_model().base_model
    plain = decoder.forward
    batch = trainer._prepare_inputs(shape(spread_rows(trainer)))
    inputs = tuple(batch[name] for name in ("input_ids", "position_ids", "cu_seq_lens_q"))
    # The trained matrices have met another stream in the passes before.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with torch.autocast("cuda", dtype=getattr(torch, trainer.precision), cache_enabled=False):
        recorded = torch.cuda.make_graphed_callables(
            DecoderPass(decoder, shape).train(), inputs, allow_unused_input=True
        )

    def forward(*args, **given):
        bounds = given.get("cu_seq_lens_q")
        if not (decoder.training and torch.is_grad_enabled()) or bounds is None or len(bounds) != shape.rows + 1:
            return plain(*args, **given)
        hidden = recorded(given["input_ids"], given["position_ids"], bounds)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    decoder.forward = forward
    try:
        micro_batch.forward_and_backward(trainer, spread_rows(trainer))
    except Exception:
        decoder.forward = plain
        raise
    trainer.is_recorded = True
    return "the pass recorded"


class DecoderPass(torch.nn.Module):
    """The decoder's pass over packed rows as a function of three tensors."""

    def __init__(self, decoder, shape):
        super().__init__()
        self.decoder = decoder  # its parameters are the pass's
        self.plain = decoder.forward
        self.longest = shape.longest

    def forward(self, ids, places, bounds):
        return self.plain(
            input_ids=ids,
            position_ids=places,
            # A mask of four dimensions is handed on as it is, and packed attention does not read it. Building one would
            # ask the GPU what the positions are, which a recording cannot.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=self.longest,
            max_length_k=self.longest,
            use_cache=False,
        ).last_hidden_state


def spread_rows(trainer):
    """A micro-batch of rows from all over the data set."""
    rows = trainer.train_dataset
    n = min(trainer.plan.per_device, len(rows))
    return [rows[at * len(rows) // n] for at in range(n)]


def set_aside():
    """A block in which compiled layers run as they were: validation and `generate` have shapes of their own."""
    return torch.compiler.set_stance("force_eager")
