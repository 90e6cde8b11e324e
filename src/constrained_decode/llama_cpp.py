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

from common import UserError, WorkFailed, read_json, sha256_file, sha256_text, shown_path
from constrained_decode import Answer
from constrained_decode._guarantee import guarantee_for
from constrained_decode._guessing import rows_of
from constrained_decode._reading import check_lengths, text_of
from constrained_decode._sampling import drawn
from constrained_decode.hf import check_whole
from language_model import calibration, chat_template, hub, verdict_branch
from language_model.verdict_branch import label_shares

BATCH = 16
LOG_ERROR = 4
WEIGHTS_KEY = "steward.weights_sha256"
REQUIREMENTS = "requirements-llama_cpp.txt"
FILE_TYPES = {"0": "float32", "1": "float16", "32": "bfloat16"}


def load(model_path, task, config, batch_size=None, constrained=True):
    import torch

    library("llama_cpp")
    folder = Path(hub.local_or_hub(model_path))
    file = gguf_of(folder, model_path)
    chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
    check_whole(folder)
    model = Model(file, torch.get_num_threads())
    if model.told(WEIGHTS_KEY) != weights_sha256(folder):
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


def weights_sha256(folder):
    """One hash of a folder's weights, however many files they are in."""
    hashes = [sha256_file(file) for file in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else sha256_text(" ".join(hashes))


def weight_files(folder):
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no weights, {missing[0]} is missing; copy the folder again, or train the model")
    return [folder / name for name in names]


@cache
def started():
    """(llama.cpp's C interface, its last errors, and what hears them, which must outlive every call)."""
    import llama_cpp

    errors = deque(maxlen=4)

    # It tells each tensor that it loads, and the package's own filter numbers the levels otherwise than llama.cpp does.
    @llama_cpp.llama_log_callback
    def hear(level, text, _):
        if level == LOG_ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp, errors, hear


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

    def told(self, key):
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
class Writing:
    """One row's answer so far."""

    prompt: list
    sequence: int
    ids: list
    n_fed: int  # tokens of the answer that the model has read
    probabilities: dict
    place: tuple = None  # (the automaton's state, characters of its string) behind the answer so far
    n_overruled: int = 0  # choices that would have broken the schema
    n_late: int = 0  # choices behind which the answer could not have been finished in time
    n_settled: int = 0  # tokens that were read with the prompt or behind the verdict, not written


class Engine:
    def __init__(self, model, chat, task, gen, batch_size, temperature, constrained):
        self.model = model
        self.chat = chat
        self.gen = gen
        self.batch_size = batch_size
        self.temperature = temperature
        self.branch = verdict_branch.find_branch(chat, task)
        self.end_ids = chat_template.end_ids(chat)
        # Of equally likely verdicts the first is taken: the one that asks a person.
        self.labels = sorted(self.branch.token_of, key=lambda label: label != task.verdict.review)
        self.guarantee = None
        if constrained:
            n_tokens = max(len(chat.tokenizer), model.n_vocab)
            self.guarantee = guarantee_for(
                task.answer_schema, chat.tokenizer, n_tokens, self.end_ids[0], gen.max_new_tokens, "cpu"
            )
            self.places = {label: self._place_behind(label) for label in self.labels}
        kept_in = FILE_TYPES.get(model.told("general.file_type"), "quantized")
        self.facts = {
            "precision": kept_in,
            "weights": kept_in,
            "gguf": shown_path(model.file),
            "device": "cpu",
            "batch_size": batch_size,
            "threads": model.n_threads,
            "decoding": "guaranteed" if constrained else "unconstrained",
            "steps": "one token a step",
            "llama_cpp_python": model.c.__version__,
            "calibration_temperature": temperature,
        }

    def check_prompt(self, messages):
        """A UserError where the model cannot read so much."""
        self._check([self.chat.prompt_ids(messages)])

    def _check(self, prompts):
        check_lengths(prompts, self.gen.max_new_tokens, self.model.n_positions)

    def _settled(self, label):
        """The tokens that a verdict settles, itself first."""
        return [self.branch.token_of[label], *self.branch.rest_of[label]]

    def _place_behind(self, label):
        ids = self.branch.opening + self._settled(label)
        state = self.guarantee.state_behind(ids)
        self.guarantee.rows(1, state, len(ids))  # says so where the budget is too small
        return state, 0

    def answers(self, conversations):
        import torch

        torch.manual_seed(0)
        for positions, prompts in self._batches(conversations):
            start = time.perf_counter()
            # One by one: in a pass of sixteen prompts, which llama.cpp cuts into pieces of equal lengths, each took 1.7
            # times as long.
            written = [self._begun(sequence, prompt) for sequence, prompt in enumerate(prompts)]
            first_s = time.perf_counter() - start
            self._finish(written)
            seconds = (time.perf_counter() - start) / len(prompts)
            for position, one in zip(positions, written, strict=True):
                yield position, self._answer(one, seconds, first_s)

    def verdicts(self, conversations):
        import torch

        opening = self.branch.opening
        for positions, prompts in self._batches(conversations):
            logits = [self.model.read([(sequence, 0, prompt + opening, 1)]) for sequence, prompt in enumerate(prompts)]
            yield from zip(positions, label_shares(torch.cat(logits), self.branch, self.temperature), strict=True)

    def _batches(self, conversations):
        """Longest first: the first batch shows whether memory suffices."""
        prompts = self.chat.prompts_ids(conversations)
        self._check(prompts)
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for start in range(0, len(order), self.batch_size):
            positions = order[start : start + self.batch_size]
            n_tokens = len(prompts[positions[0]]) + max(self.gen.max_new_tokens, len(self.branch.opening))
            self.model.make_room(len(positions), n_tokens, len(self.branch.opening) + 1)
            yield positions, [prompts[at] for at in positions]

    def _begun(self, sequence, prompt):
        """The verdict, chosen behind the prompt and the opening, and what it settles; without the guarantee the first
        token.
        """
        opening = self.branch.opening
        logits = self.model.read([(sequence, 0, prompt + opening, len(opening) + 1)])
        [probabilities] = label_shares(logits[-1:], self.branch, self.temperature)
        if not self.guarantee:
            self.model.forget(sequence, len(prompt))
            return Writing(prompt, sequence, self._drawn(logits[:1]), 0, probabilities)
        [at] = self._drawn(logits[-1:, [self.branch.token_of[label] for label in self.labels]])
        label = self.labels[at]
        wished = logits[:-1].argmax(-1).tolist()
        ids = opening + self._settled(label)
        return Writing(
            prompt,
            sequence,
            ids,
            len(opening),
            probabilities,
            self.places[label],
            n_settled=len(ids),
            n_overruled=sum(a != b for a, b in zip(wished, opening, strict=True)),
        )

    def _finish(self, rows):
        """Write each row to its end, all of them a token further at a time."""
        while going := [
            row for row in rows if row.ids[-1] not in self.end_ids and len(row.ids) < self.gen.max_new_tokens
        ]:
            logits = self.model.read(
                [(row.sequence, len(row.prompt) + row.n_fed, row.ids[row.n_fed :], 1) for row in going]
            )
            broke = late = [False] * len(going)
            if self.guarantee:
                logits, *found = self.guarantee.masked(logits, rows_of(self.guarantee, going))
                broke, late = (values.tolist() for values in found)
            for row, token, *wrong in zip(going, self._drawn(logits), broke, late, strict=True):
                self._extend(row, token, *wrong)

    def _extend(self, row, token, broke, late):
        row.n_fed = len(row.ids)
        row.ids = [*row.ids, token]
        row.place = self.guarantee and self.guarantee.behind([token], row.place)
        row.n_overruled += broke
        row.n_late += late

    def _drawn(self, logits):
        return drawn(logits, self.gen.temperature, self.gen.top_p).tolist()

    def _answer(self, one, seconds, first_s):
        text, reason, n_tokens = text_of(one.ids, self.end_ids, self.chat.tokenizer)
        return Answer(
            text,
            reason,
            len(one.prompt),
            n_tokens,
            one.probabilities,
            seconds,
            overruled=one.n_overruled,
            late=one.n_late,
            first_s=first_s,
            n_settled=one.n_settled,
        )
