"""In-process Transformers, every answer valid: _guarantee.py masks each choice, and what is settled anyway costs no
step of its own.

The answer's opening rides behind the prompt, so the pass that reads the prompt decides the verdict. The text from there
to the first free word follows in one pass. What comes then is written by _graphs.py on a GPU, with guesses by
_guessing.py on a CPU, and by `generate` for models whose memory can drop nothing that they have read.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common import UserError, read_json, sha256_file
from constrained_decode import Answer
from constrained_decode._fused import Rope, fuse
from constrained_decode._graphs import Shapes, grouped_attention
from constrained_decode._guarantee import guarantee_for
from constrained_decode._guessing import GUESS, Guessing, Writing, forward, rows_of
from constrained_decode._reading import check_lengths, has_plain_head, read_prompts, text_of
from constrained_decode._sampling import drawn
from language_model import calibration, chat_template, hub, verdict_branch
from language_model.verdict_branch import label_shares, padded_left, verdict_probabilities

WIDENED_BELOW = 1e9  # parameters; more would need twice the memory


def load(model_path, task, config, batch_size=None, constrained=True, random_weights=False):
    import torch
    from transformers import AutoModelForCausalLM

    folder = hub.local_or_hub(model_path)
    chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
    if random_weights:
        model = of_chance(folder)
    else:
        check_whole(folder)
        with hub.hub_errors_explained(model_path):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    cuda = torch.cuda.is_available()
    weights = model.dtype
    model = (model.to("cuda") if cuda else widened(model)).eval()
    return Engine(
        model,
        chat,
        task,
        config.gen,
        batch_size or (64 if cuda else 16),
        calibration.stored_temperature(folder),
        weights,
        constrained,
    )


def of_chance(folder):
    """The shape that a folder's config.json describes, with random weights, made where it will run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)


def check_whole(folder):
    """A model whose manifest names its weights' hash must have these weights: damaged ones load, and answer at random."""
    manifest = Path(folder) / "manifest.json"
    expected = read_json(manifest).get("weights_sha256") if manifest.is_file() else None
    if expected and sha256_file(Path(folder) / "model.safetensors") != expected:
        raise UserError(
            f"{folder}/model.safetensors: not the weights that manifest.json names; they are damaged or another "
            "model's, copy the folder again"
        )


def widened(model):
    """A small model's half-precision weights as float32, where the CPU has no bfloat16 arithmetic of its own.

    Where it has (AMX, AVX512-BF16), 16 pairs at once took half the time in bfloat16, and one alone the same.
    """
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict)()
    native = model.dtype == torch.bfloat16 and any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return model if native or model.num_parameters() >= WIDENED_BELOW else model.float()


@dataclass
class Batch:
    """What a batch of prompts came to."""

    written: list  # a Writing a row
    probabilities: list  # {label: probability} a row
    first_s: float | None  # until every row's verdict, the first token that is the model's own choice, was known


class Engine:
    def __init__(self, model, chat, task, gen, batch_size, temperature=1.0, weights=None, constrained=True):
        self.model = model
        self.chat = chat
        self.gen = gen
        self.batch_size = batch_size
        self.temperature = temperature
        self.branch = verdict_branch.find_branch(chat, task)
        self.end_ids = chat_template.end_ids(chat)
        self.review_label = task.verdict.review
        self.rewinds = can_rewind(model)
        self.plain_head = has_plain_head(model)
        self.guarantee = None
        self.shapes = None
        self.rope = Rope(model)
        self.tells_probabilities = True
        if constrained:
            n_tokens = max(len(chat.tokenizer), model.get_output_embeddings().weight.shape[0])
            self.guarantee = guarantee_for(
                task.answer_schema, chat.tokenizer, n_tokens, self.end_ids[0], gen.max_new_tokens, model.device
            )
            self.settled = {label: self.settled_by(label) for label in self.branch.token_of}
            self.guessing = Guessing(model, self.guarantee, gen, self.end_ids[0], chat.pad_id)
            if model.device.type == "cuda" and self.rewinds and self.plain_head:
                fuse(model)
                self.use_graphs()
        steps = (
            "one token a step"
            if not constrained or not self.rewinds
            else f"up to {GUESS} guessed tokens checked a step"
        )
        self.facts = {
            "precision": str(model.dtype).removeprefix("torch."),
            "weights": str(weights or model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "batch_size": batch_size,
            "decoding": "guaranteed" if constrained else "unconstrained",
            "steps": "one token a step, a CUDA graph each" if self.shapes else steps,
            "attention": model.config._attn_implementation,
            "calibration_temperature": temperature,
        }

    def use_graphs(self):
        self.model.set_attn_implementation(grouped_attention())
        settled = [self.settled[label] for label in self.labels_by_caution()]
        self.shapes = Shapes(self.model, self.guarantee, self.gen, self.branch.opening, settled, self.end_ids[0])

    def labels_by_caution(self):
        """Of equally likely verdicts the first is taken: the one that asks a person."""
        return sorted(self.branch.token_of, key=lambda label: label != self.review_label)

    def settled_by(self, label):
        """(the tokens that a verdict settles, itself first; the automaton's state behind them)."""
        ids = [self.branch.token_of[label], *self.branch.rest_of[label]]
        state = self.guarantee.state_behind(self.branch.opening + ids)
        self.guarantee.rows(1, state, len(self.branch.opening) + len(ids))  # says so where the budget is too small
        return ids, state

    def answers(self, conversations):
        import torch

        torch.manual_seed(0)
        if self.gen.temperature and self.guarantee:
            self.guessing.forget()
        asked = self._prompts(conversations)
        fits = self.rope.fits(max(map(len, asked), default=0) + self.gen.max_new_tokens)
        write = (
            self._generated
            if not self.guarantee or not self.rewinds
            else self._graphed
            if self.shapes and fits
            else self._guessed
        )
        for positions, prompts in self._batches(asked):
            start = time.perf_counter()
            with torch.inference_mode():
                batch = write(prompts)
            seconds = time.perf_counter() - start
            for position, prompt, one, shares in zip(
                positions, prompts, batch.written, batch.probabilities, strict=True
            ):
                yield position, self._answer(prompt, one, shares, seconds / len(prompts), batch.first_s)

    def verdicts(self, conversations):
        import torch

        asked = self._prompts(conversations)
        self.rope.fits(max(map(len, asked), default=0) + self.gen.max_new_tokens)
        if not self.plain_head:
            for positions, prompts in self._batches(asked):
                yield from zip(
                    positions,
                    verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature),
                    strict=True,
                )
            return
        before = None
        for positions, prompts in self._batches(asked):
            with torch.inference_mode():
                logits = read_prompts(self.model, [prompt + self.branch.opening for prompt in prompts], 1)[:, -1]
            # A device works on this batch while the one before is told.
            if before:
                yield from self._told(*before)
            before = positions, logits
        if before:
            yield from self._told(*before)

    def _told(self, positions, logits):
        return zip(positions, label_shares(logits, self.branch, self.temperature), strict=True)

    def prepare(self, conversations):
        """Whatever is made once for batches of such prompts, so that no answer's time holds it."""
        if self.shapes:
            import torch

            asked = self._prompts(conversations)
            fitting = [prompt for prompt in asked if len(prompt) + self.gen.max_new_tokens <= self.rope.longest]
            # A batch with a longer prompt is answered without graphs.
            if fitting:
                longest = max(fitting, key=len)
                self.rope.fits(len(longest) + self.gen.max_new_tokens)
                with torch.inference_mode():
                    self.shapes.prepare([longest + self.branch.opening], self.batch_size)

    def check_prompt(self, messages):
        """A UserError where the model cannot read so much."""
        self._prompts([messages])

    def _prompts(self, conversations):
        prompts = self.chat.prompts_ids(conversations)
        check_lengths(
            prompts,
            self.gen.max_new_tokens,
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
        )
        return prompts

    def _batches(self, prompts):
        """Longest first: the first batch shows whether memory suffices, and little is padded."""
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for start in range(0, len(order), self.batch_size):
            positions = order[start : start + self.batch_size]
            yield positions, [prompts[at] for at in positions]

    def _graphed(self, prompts):
        opening = self.branch.opening
        decided = Stopwatch(self.model.device)
        prompts = [prompt + opening for prompt in prompts]
        shape = self.shapes.of(prompts)
        logits = shape.begin(prompts)
        decided.stop()
        shape.finish()
        columns = (shape.written, shape.at, shape.n_overruled, shape.n_late, shape.settled.n[shape.label])
        written = [
            Writing(ids[:at], n_overruled=broke, n_late=late, n_settled=len(opening) + n)
            for ids, at, broke, late, n in zip(*(column[: len(prompts)].tolist() for column in columns), strict=True)
        ]
        return Batch(written, label_shares(logits, self.branch, self.temperature), decided.seconds())

    def _guessed(self, prompts):
        batch, cache, mask = self._begun(prompts)
        self.guessing.finish(batch.written, cache, mask)
        return batch

    def _begun(self, prompts):
        """(the verdicts chosen behind the prompts and the opening: Writings up to the first free word; cache; mask)."""
        start = time.perf_counter()
        opening = self.branch.opening
        fed, mask = padded_left([prompt + opening for prompt in prompts], self.chat.pad_id, self.model.device)
        output = forward(self.model, fed, mask, n_logits=len(opening) + 1)
        wished = output.logits[:, :-1].argmax(-1).tolist()
        labels = self._chosen_labels(output.logits[:, -1])
        written = []
        for label, wish in zip(labels, wished, strict=True):
            ids, state = self.settled[label]
            n_overruled = sum(a != b for a, b in zip(wish, opening, strict=True))
            written.append(
                Writing(opening + ids, len(opening), n_overruled, place=(state, 0), n_settled=len(opening) + len(ids))
            )
        shares = label_shares(output.logits[:, -1], self.branch, self.temperature)
        return Batch(written, shares, time.perf_counter() - start), output.past_key_values, mask

    def _chosen_labels(self, logits):
        labels = self.labels_by_caution()
        of_labels = logits[:, [self.branch.token_of[label] for label in labels]]
        return [labels[at] for at in drawn(of_labels, self.gen.temperature, self.gen.top_p).tolist()]

    def _generated(self, prompts):
        """Left to `generate`, token by token: without the guarantee, or with it for models whose memory cannot drop a
        wrong guess.
        """
        if not self.guarantee:
            written = [Writing(one) for one in self._generate(prompts, self.gen.max_new_tokens)]
            shares = (
                verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature)
                if self.tells_probabilities
                else None
            )
            return Batch(written, shares or [None] * len(prompts), None)
        batch, *_ = self._begun(prompts)
        written = batch.written
        for n_settled in {len(one.ids) for one in written}:
            # Rows behind settled texts of one length have the same budget left.
            these = [at for at, one in enumerate(written) if len(one.ids) == n_settled]
            admitted = Admitted(self.guarantee, rows_of(self.guarantee, [written[at] for at in these]))
            ids = self._generate(
                [prompts[at] + written[at].ids for at in these], self.gen.max_new_tokens - n_settled, admitted
            )
            for place, at in enumerate(these):
                written[at].ids += ids[place]
                written[at].n_overruled += admitted.n_overruled[place]
                written[at].n_late += admitted.n_late[place]
        return batch

    def _generate(self, prompts, budget, admitted=None):
        ids, mask = padded_left(prompts, self.chat.pad_id, self.model.device)
        greedy = {"do_sample": False}
        sampled = {"do_sample": True, "temperature": self.gen.temperature, "top_p": self.gen.top_p, "top_k": 0}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=budget,
            logits_processor=[admitted] if admitted else [],
            eos_token_id=self.end_ids,
            pad_token_id=self.chat.pad_id,
            **(sampled if self.gen.temperature else greedy),
        )
        return output[:, ids.shape[1] :].tolist()

    def _answer(self, prompt, one, probabilities, seconds, first_s=None):
        text, reason, n_tokens = text_of(one.ids, self.end_ids, self.chat.tokenizer)
        return Answer(
            text,
            reason,
            len(prompt),
            n_tokens,
            probabilities,
            seconds,
            overruled=one.n_overruled,
            late=one.n_late,
            first_s=first_s,
            n_settled=one.n_settled,
        )


class Admitted:
    """The guarantee as `generate` calls it, once a step; the rows stand where the tokens so far led them."""

    def __init__(self, guarantee, rows):
        self.guarantee = guarantee
        self.rows = rows
        self.width = None
        self.n_overruled, self.n_late = ([0] * len(rows.state) for _ in range(2))

    def __call__(self, input_ids, scores):
        if self.width:
            self.rows = self.guarantee.advanced(self.rows, input_ids[:, -1])
        self.width = input_ids.shape[1]
        allowed, broke, late = self.guarantee.masked(scores, self.rows)
        writing = ~self.guarantee.is_done(self.rows)
        self.n_overruled = [n + new for n, new in zip(self.n_overruled, (broke & writing).tolist(), strict=True)]
        self.n_late = [n + new for n, new in zip(self.n_late, (late & writing).tolist(), strict=True)]
        return allowed


class Stopwatch:
    """Seconds of the device's own work, read when that work is done and without waiting for it before."""

    def __init__(self, device):
        import torch

        self.start, self.end = (
            (torch.cuda.Event(enable_timing=True) for _ in range(2)) if device.type == "cuda" else (None, None)
        )
        self.began = time.perf_counter()
        if self.start:
            self.start.record()

    def stop(self):
        self.took = time.perf_counter() - self.began
        if self.end:
            self.end.record()

    def seconds(self):
        return self.start.elapsed_time(self.end) / 1000 if self.end else self.took


def can_rewind(model):
    """Whether tokens can be hidden from the model after it has read them; attention can, a recurrent state cannot."""
    from transformers import DynamicCache

    return all(layer.is_croppable for layer in DynamicCache(config=model.config).layers)
