"""In-process llama.cpp on a CPU, every answer valid: llama.cpp computes, our own tokenizer splits, and each choice is
made here under _guarantee.py.

src/export_gguf.py makes the file of a model folder, whose tokenizer, settings and temperature are used. As in hf.py the
answer's opening rides behind the prompt, the pass that reads both decides the verdict, and what that settles is fed in
one go. Nothing is guessed: a pass costs little here beside its tokens. With the shipped model on 2 cores the best
number of guesses, 2, made answers 8 % quicker one at a time and 2 % quicker sixteen at once; the 6 of hf.py made them
13 % and 24 % slower.
"""

import ctypes
import importlib
import time
import weakref
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import constrained_decode
from common import UserError, WorkFailed, read_json, sha256_file, shown_path
from constrained_decode import _grammar
from constrained_decode._guarantee import guarantee_for
from constrained_decode._reading import check_lengths
from constrained_decode._sampling import drawn
from constrained_decode._writing import (
    Writing,
    answer_of,
    behind_verdict,
    first_chosen,
    longest_first,
    rows_of,
    settled_by,
)
from language_model import calibration, chat_template, hub, model_folder, verdict_branch
from language_model.verdict_branch import label_shares

STARTS_SERVER = False
NEEDS_ENDPOINT = False
RANDOM_WEIGHTS = False
BATCH = 16
LOG_ERROR = 4
WEIGHTS_KEY = "steward.weights_sha256"
REQUIREMENTS = "requirements-llama_cpp.txt"
FILE_TYPES = {"0": "float32", "1": "float16", "32": "bfloat16"}


def load(model_path, task, config, batch_size=None, constrained=True):
    import torch

    library("llama_cpp")
    folder = Path(hub.local_or_hub(model_path))
    model_folder.check_whole(folder)
    file = gguf_of(folder, model_path)
    chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
    check_file(file)
    model = Model(file, torch.get_num_threads())
    if model.metadata(WEIGHTS_KEY) != model_folder.weights_sha256(folder):
        raise UserError(
            f"{file}: not made of the weights in {folder}; make it again: {export_command(model_path, file)}"
        )
    return Engine(
        model, chat, task, config.gen, batch_size or BATCH, calibration.stored_temperature(folder), constrained
    )


def identity(model_path):
    """Which GGUF file it is; one of another type answers otherwise."""
    file = gguf_of(Path(model_path), model_path)
    return file.name, file.stat().st_size, file.stat().st_mtime_ns


def library(name):
    """A package that only this engine and its export need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {error.name or name} is not installed, which --backend llama_cpp and src/export_gguf.py "
            "need; install it, "
            f"with a C++ compiler at hand: pip install -r {REQUIREMENTS}"
        ) from error


def gguf_of(folder, model_path):
    """The folder's GGUF file, inside it or beside it."""
    if not folder.is_dir():
        raise UserError(
            f"{model_path}: --backend llama_cpp needs a model folder; fetch it with: hf download {model_path} "
            "--local-dir <folder>"
        )
    beside = folder.with_name(f"{folder.name}.gguf")
    found = next((file for file in (folder / "model.gguf", beside) if file.is_file()), None)
    if not found:
        raise UserError(
            f"{model_path}: no GGUF file, neither {folder / 'model.gguf'} nor {beside}; make it: "
            f"{export_command(model_path, beside)}"
        )
    return found


def export_command(model_path, file):
    return f"python src/export_gguf.py --model_path {model_path} --out {file}"


def check_file(file):
    """The file must be the one that its manifest names, where one lies beside it."""
    manifest = file.with_suffix(".manifest.json")
    expected = read_json(manifest).get("gguf_sha256") if manifest.is_file() else None
    if expected and sha256_file(file) != expected:
        raise UserError(
            f"{file}: not the file that {manifest.name} names; it is damaged or another model's, make it again with "
            "src/export_gguf.py"
        )


@cache
def started():
    """(llama.cpp's C interface, its last errors, and the callback that keeps them, which must outlive every call)."""
    import llama_cpp

    errors = deque(maxlen=4)

    # It logs each tensor that it loads, and the package's own filter numbers the levels otherwise than llama.cpp does.
    @llama_cpp.llama_log_callback
    def keep(level, text, _):
        if level == LOG_ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp, errors, keep


class Model:
    """The weights, and room for sequences that are read through llama.cpp's C interface."""

    def __init__(self, file, n_threads):
        self.c, self.errors, _ = started()
        self.file = file
        self.n_threads = n_threads
        self.errors.clear()
        params = self.c.llama_model_default_params()
        params.n_gpu_layers = 0
        self.weights = self.c.llama_model_load_from_file(str(file).encode(), params)
        if not self.weights:
            raise UserError(
                f"{file}: llama.cpp cannot load this file; make it again with src/export_gguf.py ({self.reason()})"
            )
        weakref.finalize(self, self.c.llama_model_free, self.weights)
        self.n_vocab = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.weights))
        self.n_positions = self.c.llama_model_n_ctx_train(self.weights)
        self.room = (0, 0)
        self.context = None
        self.freed = None

    def reason(self):
        return "; ".join(self.errors) or "llama.cpp gives no reason"

    def metadata(self, key):
        """A value of the file's metadata; None where it has none."""
        text = ctypes.create_string_buffer(256)
        return (
            text.value.decode()
            if self.c.llama_model_meta_val_str(self.weights, key.encode(), text, len(text)) >= 0
            else None
        )

    def make_room(self, n_sequences, n_tokens, n_logits):
        """Empty sequences of so many tokens each, of which a pass wants so many logits, or one a sequence; larger room
        from before is kept.
        """
        if n_sequences > self.room[0] or n_tokens > self.room[1]:
            self._make_context(max(n_sequences, self.room[0]), max(-(-n_tokens // 256) * 256, self.room[1]), n_logits)
        self.c.llama_memory_clear(self.memory, False)

    def _make_context(self, n_sequences, n_tokens, n_logits):
        if self.freed:
            self.freed()
        self.room = (0, 0)
        params = self.c.llama_context_default_params()
        params.n_ctx = params.n_batch = n_sequences * n_tokens
        params.n_seq_max = n_sequences
        params.n_outputs_max = max(n_sequences, n_logits)
        params.n_threads = params.n_threads_batch = self.n_threads
        # Prompts share little: in one buffer each would be compared with all the others' tokens.
        params.kv_unified = False
        self.context = self.c.llama_init_from_model(self.weights, params)
        if not self.context:
            raise WorkFailed(
                f"{self.file}: llama.cpp finds no room for {n_sequences} x {n_tokens:,} tokens; give a smaller "
                f"--batch_size ({self.reason()})"
            )
        self.freed = weakref.finalize(self, self.c.llama_free, self.context)
        self.memory = self.c.llama_get_memory(self.context)
        self.batch = Batch(self.c, params.n_batch)
        self.room = (n_sequences, n_tokens)

    def read(self, pieces):
        """Logits behind the last tokens of each piece: (sequence, position of its first token, tokens, how many of them
        want logits).
        """
        import numpy as np
        import torch

        if self.c.llama_decode(self.context, self.batch.filled(pieces)):
            raise WorkFailed(
                f"{self.file}: llama.cpp could not read {sum(len(tokens) for _, _, tokens, _ in pieces):,} tokens "
                f"({self.reason()})"
            )
        n_logits = sum(n for *_, n in pieces)
        return torch.from_numpy(
            np.ctypeslib.as_array(self.c.llama_get_logits(self.context), (n_logits, self.n_vocab)).copy()
        )

    def forget(self, sequence, position):
        """Drop what a sequence holds from a position on."""
        self.c.llama_memory_seq_rm(self.memory, sequence, position, -1)


class Batch:
    """The arrays that llama.cpp reads a pass's tokens from."""

    def __init__(self, c, size):
        import numpy as np

        self.tokens, self.positions, self.sequences = (np.zeros(size, np.int32) for _ in range(3))
        self.ones = np.ones(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        # Each token may belong to several sequences, so llama.cpp wants a pointer to each token's own.
        self.pointers = self.sequences.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self.c_struct = c.llama_batch()
        for name, values in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self.ones),
            ("seq_id", self.pointers),
            ("logits", self.wanted),
        ):
            setattr(self.c_struct, name, values.ctypes.data_as(dict(c.llama_batch._fields_)[name]))

    def filled(self, pieces):
        end = 0
        for sequence, position, tokens, n_logits in pieces:
            start = end
            end = end + len(tokens)
            self.tokens[start:end] = tokens
            self.positions[start:end] = range(position, position + len(tokens))
            self.sequences[start:end] = sequence
            self.wanted[start:end] = 0
            self.wanted[end - n_logits : end] = 1
        self.c_struct.n_tokens = end
        return self.c_struct


@dataclass
class Row:
    """One answer while it is written: its prompt, and the sequence that holds both in llama.cpp."""

    prompt: list
    sequence: int
    writing: Writing


class Engine(constrained_decode.Engine):
    def __init__(self, model, chat, task, gen, batch_size, temperature, constrained):
        self.model = model
        self.chat = chat
        self.gen = gen
        self.batch_size = batch_size
        self.temperature = temperature
        self.branch = verdict_branch.find_branch(chat, task) if task.verdict else None
        self.opening = self.branch.opening if self.branch else []
        self.end_ids = chat_template.end_ids(chat)
        self.guarantee = None
        grammar = _grammar.of_task(task, chat)
        if constrained and grammar:
            n_tokens = max(len(chat.tokenizer), model.n_vocab)
            self.guarantee = guarantee_for(
                grammar, chat.tokenizer, n_tokens, self.end_ids[0], gen.max_new_tokens, "cpu"
            )
            self.guarantee.rows(1)  # a UserError where the budget is too small
            self.settled = settled_by(self.branch, self.guarantee) if self.branch else {}
        kept_in = FILE_TYPES.get(model.metadata("general.file_type"), "quantized")
        self.facts = {
            "precision": kept_in,
            "weights": kept_in,
            "gguf": shown_path(model.file),
            "device": "cpu",
            "batch_size": batch_size,
            "threads": model.n_threads,
            "decoding": _grammar.decoding(grammar, constrained, "guaranteed"),
            "steps": "one token a step",
            "llama_cpp_python": model.c.__version__,
            "calibration_temperature": temperature,
        }

    def check_prompt(self, messages):
        prompt = self.chat.prompt_ids(messages)
        self._check([prompt])
        return len(prompt)

    def _check(self, prompts):
        check_lengths(prompts, self.gen.max_new_tokens, self.model.n_positions)

    def answers(self, conversations, done=()):
        import torch

        for positions, prompts in self._batches(conversations, done):
            # So that a run that goes on draws what an uninterrupted one would.
            torch.manual_seed(positions[0])
            start = time.perf_counter()
            # One by one: in a pass of sixteen prompts, which llama.cpp cuts into pieces of equal lengths, each took 1.7
            # times as long.
            rows = [self._begun(sequence, prompt) for sequence, prompt in enumerate(prompts)]
            first_s = time.perf_counter() - start
            self._finish(rows)
            seconds = (time.perf_counter() - start) / len(prompts)
            for position, row in zip(positions, rows, strict=True):
                yield position, answer_of(row.writing, len(row.prompt), seconds, self.chat, self.end_ids, first_s)

    def verdicts(self, conversations, done=()):
        import torch

        for positions, prompts in self._batches(conversations, done):
            logits = [
                self.model.read([(sequence, 0, prompt + self.opening, 1)]) for sequence, prompt in enumerate(prompts)
            ]
            yield from zip(positions, label_shares(torch.cat(logits), self.branch, self.temperature), strict=True)

    def _batches(self, conversations, done):
        prompts_of_all = self.chat.prompts_ids(conversations)
        self._check(prompts_of_all)
        for positions, prompts in longest_first(prompts_of_all, self.batch_size, done):
            if not prompts:
                continue
            n_tokens = len(prompts[0]) + max(self.gen.max_new_tokens, len(self.opening))
            self.model.make_room(len(positions), n_tokens, len(self.opening) + 1)
            yield positions, prompts

    def _begun(self, sequence, prompt):
        """The verdict, chosen behind the prompt and the opening, and what it settles; of any other answer the first
        token.
        """
        logits = self.model.read([(sequence, 0, prompt + self.opening, len(self.opening) + 1)])
        shares = label_shares(logits[-1:], self.branch, self.temperature)[0] if self.branch else None
        if not self.guarantee:
            self.model.forget(sequence, len(prompt))
            return Row(prompt, sequence, Writing(self._drawn(logits[:1]), probabilities=shares))
        if not self.branch:
            return Row(prompt, sequence, first_chosen(self.guarantee, logits[-1:], self._drawn)[0])
        labels = self.branch.cautious_labels
        [at] = self._drawn(logits[-1:, [self.branch.token_of[label] for label in labels]])
        wished = logits[:-1].argmax(-1).tolist()
        return Row(prompt, sequence, behind_verdict(self.opening, wished, self.settled[labels[at]], shares))

    def _finish(self, rows):
        """Write each row to its end, all of them a token further at a time."""
        while going := [
            row
            for row in rows
            if row.writing.ids[-1] not in self.end_ids and len(row.writing.ids) < self.gen.max_new_tokens
        ]:
            written = [row.writing for row in going]
            logits = self.model.read(
                [
                    (row.sequence, len(row.prompt) + one.n_fed, one.ids[one.n_fed :], 1)
                    for row, one in zip(going, written, strict=True)
                ]
            )
            broke = late = [False] * len(going)
            if self.guarantee:
                logits, *found = self.guarantee.masked(logits, rows_of(self.guarantee, written))
                broke, late = (values.tolist() for values in found)
            for one, token, *wrong in zip(written, self._drawn(logits), broke, late, strict=True):
                self._extend(one, token, *wrong)

    def _extend(self, one, token, broke, late):
        one.n_fed = len(one.ids)
        one.ids = [*one.ids, token]
        one.place = self.guarantee and self.guarantee.behind([token], one.place)
        one.n_overruled += broke
        one.n_late += late

    def _drawn(self, logits):
        return drawn(logits, self.gen.temperature, self.gen.top_p).tolist()
