"""A training pass compiled and recorded: a small model's step waits for the launches of its many kernels. Compiled
layers have a few fused ones, and a recorded pass (CUDA graphs) is launched as one.

Heavy to import (torch): only fine_tuning.py does, once it trains.
"""

import time

import pyarrow.compute
import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from common import in_words
from training import micro_batch
from training.processes import n_processes

PAYS_FROM_S = 180  # of steps as they are; compiling and recording take about a minute
ROOM_TO_RECORD = 2  # times the memory that a pass was predicted to need: what it records stays taken


def speed_up(trainer):
    """Compile the decoder layers and record the pass; what came of it, in words.

    Where one of the two fails, training goes on without it.
    """
    if not trainer.plan.packing:
        return "layers not compiled: rows are not packed, so every batch would have another shape"
    trainer.data_collator = FixedShape(trainer)
    trainer.args.dataloader_num_workers = 1  # collating would take an eighth of a step
    start = time.perf_counter()
    done = [attempted(compile_layers, trainer)]
    if n_processes() == 1 and has_room(trainer.micro_batch):
        done.append(attempted(record, trainer))
    return f"{' and '.join(done)} in {in_words(time.perf_counter() - start)}"


def attempted(work, trainer):
    try:
        with micro_batch.undisturbed(trainer):
            return work(trainer)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, of the C compiler that it calls, or of what cannot be recorded
        why = (str(error).strip() or "no reason given").splitlines()[0]
        return f"{work.__name__} failed ({type(error).__name__}: {why})"


def has_room(choice):
    return None not in (choice.predicted_gb, choice.free_gb) and choice.predicted_gb * ROOM_TO_RECORD < choice.free_gb


class FixedShape:
    """A collator whose packed batches all have the same number of tokens and of rows: it adds rows that nothing is
    learnt from.
    """

    REAL = "real"  # a batch's tokens and rows without what fills it up

    def __init__(self, trainer):
        self.collate = trainer.data_collator
        self.pad_id = self.collate.pad_token_id
        rows = trainer.train_dataset.with_format("arrow")[:]["seq_lengths"]
        self.longest = max(max(lengths) for lengths in rows.to_pylist())
        n_bins = trainer.plan.per_device
        self.tokens = n_bins * trainer.args.max_length
        most = pyarrow.compute.max(pyarrow.compute.list_value_length(rows)).as_py()
        self.rows = n_bins * most + -(-self.tokens // self.longest)

    def __call__(self, examples):
        batch = self.collate(examples)
        taken = batch["input_ids"].shape[1]
        if taken > self.tokens or len(batch["cu_seq_lens_q"]) > self.rows:
            return batch  # validation may take more at once
        batch[self.REAL] = (taken, len(batch["cu_seq_lens_q"]) - 1)
        added = self.tokens - taken
        filled = {"input_ids": self.pad_id, "labels": -100}
        for name, value in filled.items():
            batch[name] = torch.nn.functional.pad(batch[name], (0, added), value=value)
        places = torch.arange(added, dtype=batch["position_ids"].dtype) % self.longest
        batch["position_ids"] = torch.cat([batch["position_ids"], places[None]], dim=1)
        ends = [*range(taken + self.longest, self.tokens, self.longest), self.tokens] if added else []
        bounds = torch.cat([batch["cu_seq_lens_q"], torch.tensor(ends, dtype=torch.int32)])
        bounds = torch.nn.functional.pad(bounds, (0, self.rows + 1 - len(bounds)), value=self.tokens)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = bounds
        batch["max_length_q"] = batch["max_length_k"] = self.longest
        batch["seq_idx"] = torch.repeat_interleave(torch.arange(self.rows, dtype=torch.int32), bounds.diff())[None]
        return batch


def compile_layers(trainer):
    # The first one's input has no gradient, which would be a second graph to compile for a thirtieth of the work.
    layers = [module for module in trainer.model.modules() if isinstance(module, GradientCheckpointingLayer)][1:]
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        micro_batch.forward_and_backward(trainer, some_rows(trainer))
    except Exception:
        for layer in layers:
            layer._compiled_call_impl = None
        raise
    finally:
        trainer.model.zero_grad(set_to_none=True)
    trainer.compiled_layers = len(layers)
    return f"{len(layers)} layers compiled"


def record(trainer):
    """Let the decoder replay its forward and backward pass, for batches of the collator's shape."""
    shape = trainer.data_collator
    decoder = trainer.model.get_base_model().base_model
    plain = decoder.forward
    batch = trainer._prepare_inputs(shape(some_rows(trainer)))
    inputs = tuple(batch[name] for name in ("input_ids", "position_ids", "cu_seq_lens_q"))
    # The trained matrices have met another stream in the passes before.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with torch.autocast("cuda", dtype=getattr(torch, trainer.precision), cache_enabled=False):
        recorded = torch.cuda.make_graphed_callables(Pass(decoder, shape).train(), inputs, allow_unused_input=True)

    def forward(*args, **given):
        bounds = given.get("cu_seq_lens_q")
        if not (decoder.training and torch.is_grad_enabled()) or bounds is None or len(bounds) != shape.rows + 1:
            return plain(*args, **given)
        hidden = recorded(given["input_ids"], given["position_ids"], bounds)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    decoder.forward = forward
    trainer.model.zero_grad(set_to_none=True)
    trainer.is_recorded = True
    return "the pass recorded"


class Pass(torch.nn.Module):
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
            # A mask of four dimensions is handed on as it is. Nothing reads it where bounds are given, and building one
            # would ask the GPU what the positions are, which a recording cannot.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=self.longest,
            max_length_k=self.longest,
            use_cache=False,
        ).last_hidden_state


def some_rows(trainer):
    """A micro-batch of rows from all over the data set."""
    rows = trainer.train_dataset
    n = trainer.plan.per_device
    return [rows[at * len(rows) // n] for at in range(n)]


def set_aside():
    """A block in which compiled layers run as they were: validation and `generate` have shapes of their own."""
    return torch.compiler.set_stance("force_eager")
