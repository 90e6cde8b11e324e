"""In-process Transformers, every answer valid: _guarantee.py masks each choice, and what is settled anyway costs no
step of its own.

Where a task has a verdict, the answer's opening rides behind the prompt, so the pass that reads the prompt decides the
verdict, and the text from there to the first free word follows in one pass. Any other answer is chosen from its first
token on. What comes then is written by _graphs.py on a GPU (verdicts only), with guesses by _guessing.py elsewhere, and
by `generate` for models whose memory can drop nothing that they have read and for answers that only a length holds.
"""

import time
from dataclasses import dataclass

import constrained_decode
from constrained_decode import _grammar
from constrained_decode._fused import Rope, fuse
from constrained_decode._graphs import Shapes, grouped_attention
from constrained_decode._guarantee import guarantee_for
from constrained_decode._guessing import GUESS, Guessing, forward
from constrained_decode._reading import check_lengths, has_plain_head, read_prompts
from constrained_decode._sampling import LEAST_TEMPERATURE, drawn
from constrained_decode._writing import (
    Writing,
    answer_of,
    behind_verdict,
    first_chosen,
    longest_first,
    rows_of,
    settled_by,
)
from language_model import adapter, calibration, chat_template, hub, verdict_branch
from language_model.base_model import has_bfloat16_arithmetic, load_weights
from language_model.verdict_branch import label_shares, padded_left, verdict_probabilities

STARTS_SERVER = False
NEEDS_ENDPOINT = False
identity = constrained_decode.nothing_but_the_folder
RANDOM_WEIGHTS = True
WIDENED_BELOW = 1e9  # parameters; more would need twice the memory


def load(model_path, task, config, batch_size=None, constrained=True, random_weights=False):
    return Engine(*loaded(model_path, config, random_weights), task, config.gen, batch_size, constrained)


def loaded(model_path, config, random_weights=False):
    """(the model where it will run, its chat, what engines say of both)."""
    import torch

    folder = hub.local_or_hub(model_path)
    if hub.is_adapter(folder):
        adapter.ensure_base(folder)
    chat = chat_template.pinned_chat(hub.load_tokenizer(folder), config.chat)
    if random_weights:
        model = random_model(hub.whole_model(folder))
    else:
        model = adapter.folded(folder) if hub.is_adapter(folder) else load_weights(folder, dtype="auto")
    weights = str(model.dtype).removeprefix("torch.")
    model = (model.to("cuda") if torch.cuda.is_available() else widened(model)).eval()
    return model, chat, Stored(weights, calibration.stored_temperature(folder))


@dataclass
class Stored:
    """What a model's folder holds, before it was made ready to run."""

    weights: str  # their type
    temperature: float  # of the verdicts' probabilities


def random_model(folder):
    """The shape that a folder's config.json describes, with random weights, made where it will run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)


def widened(model):
    """A small model's half-precision weights as float32, where the CPU has no bfloat16 arithmetic of its own.

    Where it has (AMX, AVX512-BF16), 16 pairs at once took half the time in bfloat16, and one alone the same.
    """
    import torch

    native = model.dtype == torch.bfloat16 and has_bfloat16_arithmetic()
    return model if native or model.num_parameters() >= WIDENED_BELOW else model.float()


@dataclass
class Batch:
    """What a batch of prompts came to."""

    written: list  # a Writing a row
    first_s: float | None  # until every row's verdict, the first token that is the model's own choice, was known


class Engine(constrained_decode.Engine):
    def __init__(self, model, chat, stored, task, gen, batch_size=None, constrained=True):
        self.model = model
        self.chat = chat
        self.gen = gen
        self.batch_size = batch_size or (64 if model.device.type == "cuda" else 16)
        self.temperature = stored.temperature
        self.branch = verdict_branch.find_branch(chat, task) if task.verdict else None
        self.opening = self.branch.opening if self.branch else []
        self.end_ids = chat_template.end_ids(chat)
        self.n_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.rewinds = can_rewind(model)
        self.plain_head = has_plain_head(model)
        self.guarantee = None
        self.shapes = None
        self.rope = Rope(model)
        grammar = _grammar.of_task(task, chat)
        if constrained and grammar:
            self.hold_to(grammar)
        steps = (
            f"up to {GUESS} guessed tokens checked a step" if self.guarantee and self.rewinds else "one token a step"
        )
        self.facts = {
            "precision": str(model.dtype).removeprefix("torch."),
            "weights": stored.weights,
            "device": model.device.type,
            "batch_size": self.batch_size,
            "decoding": _grammar.decoding(grammar, constrained, "guaranteed"),
            "steps": "one token a step, a CUDA graph each" if self.shapes else steps,
            "attention": model.config._attn_implementation,
            "calibration_temperature": self.temperature,
        }

    def hold_to(self, grammar):
        """Make the guarantee, and what chooses tokens under it."""
        n_tokens = max(len(self.chat.tokenizer), self.model.get_output_embeddings().weight.shape[0])
        self.guarantee = guarantee_for(
            grammar, self.chat.tokenizer, n_tokens, self.end_ids[0], self.gen.max_new_tokens, self.model.device
        )
        self.guessing = Guessing(self.model, self.guarantee, self.gen, self.end_ids[0], self.chat.pad_id)
        if not self.branch:
            self.guarantee.rows(1)  # a UserError where the budget is too small
            return
        self.settled = settled_by(self.branch, self.guarantee)
        if self.model.device.type == "cuda" and self.rewinds and self.plain_head:
            fuse(self.model)
            self.use_graphs()

    def use_graphs(self):
        self.model.set_attn_implementation(grouped_attention())
        settled = [self.settled[label] for label in self.branch.cautious_labels]
        self.shapes = Shapes(self.model, self.guarantee, self.gen, self.opening, settled, self.end_ids[0])

    def answers(self, conversations, done=()):
        import torch

        if self.gen.temperature and self.guarantee:
            self.guessing.forget()
        prompts_of_all = self._prompts(conversations)
        fits = self.rope.fits(max(map(len, prompts_of_all), default=0) + self.gen.max_new_tokens)
        if not self.guarantee or not self.rewinds:
            write = self._generated
        else:
            write = self._graphed if self.shapes and fits else self._guessed
        for positions, prompts in longest_first(prompts_of_all, self.batch_size, done):
            if not prompts:
                self._learn(done[at].text for at in positions)
                continue
            # So that a run that goes on draws what an uninterrupted one would.
            torch.manual_seed(positions[0])
            start = time.perf_counter()
            with torch.inference_mode():
                batch = write(prompts)
            seconds = (time.perf_counter() - start) / len(prompts)
            answers = [
                self._answer(prompt, one, seconds, batch.first_s)
                for prompt, one in zip(prompts, batch.written, strict=True)
            ]
            self._learn(answer.text for answer in answers)
            yield from zip(positions, answers, strict=True)

    def _learn(self, texts):
        """Later guesses come from these answers, as their texts are spelled: of a kept answer nothing else is known."""
        if self.guarantee and self.rewinds and not self.shapes:
            for text in texts:
                self.guessing.learn(self.chat.tokenizer.encode(text, add_special_tokens=False))

    def _answer(self, prompt, one, seconds, first_s=None):
        return answer_of(one, len(prompt), seconds, self.chat, self.end_ids, first_s)

    def verdicts(self, conversations, done=()):
        import torch

        prompts_of_all = self._prompts(conversations)
        self.rope.fits(max(map(len, prompts_of_all), default=0) + self.gen.max_new_tokens)
        if not self.plain_head:
            for positions, prompts in longest_first(prompts_of_all, self.batch_size, done):
                if prompts:
                    yield from zip(positions, self._probabilities(prompts), strict=True)
            return
        before = None
        for positions, prompts in longest_first(prompts_of_all, self.batch_size, done):
            if not prompts:
                continue
            with torch.inference_mode():
                logits = read_prompts(self.model, [prompt + self.opening for prompt in prompts], 1)[:, -1]
            # A device works on this batch while the one before is handed over.
            if before:
                yield from self._shares(*before)
            before = positions, logits
        if before:
            yield from self._shares(*before)

    def _shares(self, positions, logits):
        return zip(positions, label_shares(logits, self.branch, self.temperature), strict=True)

    def _probabilities(self, prompts):
        return verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature)

    def prepare(self, conversations):
        if self.shapes:
            import torch

            fitting = [
                prompt
                for prompt in self._prompts(conversations)
                if len(prompt) + self.gen.max_new_tokens <= self.rope.longest
            ]
            # A batch with a longer prompt is answered without graphs.
            if fitting:
                longest = max(fitting, key=len)
                self.rope.fits(len(longest) + self.gen.max_new_tokens)
                with torch.inference_mode():
                    self.shapes.prepare([longest + self.opening], self.batch_size)

    def check_prompt(self, messages):
        return len(self._prompts([messages])[0])

    def _prompts(self, conversations):
        prompts = self.chat.prompts_ids(conversations)
        check_lengths(prompts, self.gen.max_new_tokens, self.n_positions)
        return prompts

    def _graphed(self, prompts):
        decided = Stopwatch(self.model.device)
        prompts = [prompt + self.opening for prompt in prompts]
        shape = self.shapes.of(prompts)
        logits = shape.begin(prompts)
        decided.stop()
        shape.finish()
        shares = label_shares(logits, self.branch, self.temperature)
        columns = (shape.written, shape.at, shape.n_overruled, shape.n_late, shape.settled.n[shape.label])
        written = [
            Writing(
                ids[:at], n_overruled=broke, n_late=late, n_settled=len(self.opening) + n, probabilities=probabilities
            )
            for ids, at, broke, late, n, probabilities in zip(
                *(column[: len(prompts)].tolist() for column in columns), shares, strict=True
            )
        ]
        return Batch(written, decided.seconds())

    def _guessed(self, prompts):
        batch, cache, mask = self._begun(prompts)
        self.guessing.finish(batch.written, cache, mask)
        return batch

    def _begun(self, prompts):
        """(Writings up to the first free word, or to the first token where the task has no verdict; cache; mask)."""
        start = time.perf_counter()
        fed, mask = padded_left([prompt + self.opening for prompt in prompts], self.chat.pad_id, self.model.device)
        output = forward(self.model, fed, mask, n_logits=len(self.opening) + 1)
        written = self._decided(output.logits) if self.branch else self._first_chosen(output.logits[:, -1])
        return Batch(written, time.perf_counter() - start), output.past_key_values, mask

    def _decided(self, logits):
        """The verdicts chosen behind the prompts and the opening, and what they settle."""
        wished = logits[:, :-1].argmax(-1).tolist()
        labels = self._chosen_labels(logits[:, -1])
        shares = label_shares(logits[:, -1], self.branch, self.temperature)
        return [
            behind_verdict(self.opening, wish, self.settled[label], probabilities)
            for label, wish, probabilities in zip(labels, wished, shares, strict=True)
        ]

    def _chosen_labels(self, logits):
        labels = self.branch.cautious_labels
        return [labels[at] for at in self._drawn(logits[:, [self.branch.token_of[label] for label in labels]])]

    def _first_chosen(self, logits):
        return first_chosen(self.guarantee, logits, self._drawn)

    def _drawn(self, logits):
        return drawn(logits, self.gen.temperature, self.gen.top_p).tolist()

    def _generated(self, prompts):
        """Left to `generate`, token by token: without the guarantee, or with it for models whose memory cannot drop a
        wrong guess.
        """
        if not self.guarantee:
            written = [Writing(one) for one in self._generate(prompts, self.gen.max_new_tokens)]
            if self.branch and self.tells_probabilities:
                for one, probabilities in zip(written, self._probabilities(prompts), strict=True):
                    one.probabilities = probabilities
            return Batch(written, None)
        batch, *_ = self._begun(prompts)
        written = batch.written
        for n_begun in {len(one.ids) for one in written}:
            # Rows behind texts of one length have the same budget left.
            these = [at for at, one in enumerate(written) if len(one.ids) == n_begun]
            admitted = Admitted(self.guarantee, rows_of(self.guarantee, [written[at] for at in these]))
            ids = self._generate(
                [prompts[at] + written[at].ids for at in these], self.gen.max_new_tokens - n_begun, admitted
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
            **(greedy if self.gen.temperature < LEAST_TEMPERATURE else sampled),
        )
        return output[:, ids.shape[1] :].tolist()


class Admitted:
    """The guarantee as `generate` calls it, once a step; the rows stand where the tokens so far led them."""

    def __init__(self, guarantee, rows):
        self.guarantee = guarantee
        self.rows = rows
        self.width = None
        self.n_overruled = [0] * len(rows.state)
        self.n_late = [0] * len(rows.state)

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

        on_gpu = device.type == "cuda"
        self.start = torch.cuda.Event(enable_timing=True) if on_gpu else None
        self.end = torch.cuda.Event(enable_timing=True) if on_gpu else None
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
