"""In-process Transformers, every answer valid: _guarantee.py masks each choice, and what is settled anyway costs no step of its own.

The answer's opening rides behind the prompt, so the pass that reads the prompt decides the verdict. The text from there to the first free
word follows in one pass. Later tokens are guessed from what followed the same few tokens in earlier answers, as verdicts' sentences
resemble one another; a guess counts as far as the model, asked at each of its places, chose the very same tokens.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import calibrate
import dataset
from common import UserError, read_json, sha256_file
from constrained_decode import Answer
from constrained_decode._guarantee import Rows, guarantee_for

GUESS = 6               # tokens a step; on 300 synthetic answers of 20.6 tokens 8.1 steps an answer with 3, 7.5 with 6, 7.4 with 8
CONTEXTS = (4, 3, 2)    # how many tokens must have been followed before, the longest first; 9.6 steps an answer with (2,) alone and 2 guesses
MOST_KEPT = 100_000     # contexts, about 20 MB
WIDENED_BELOW = 1e9     # parameters; more would need twice the memory


def load(model_path, task, config, batch_size=None, constrained=True):
    import torch
    from transformers import AutoModelForCausalLM

    folder = dataset.local_or_hub(model_path)
    chat = dataset.pinned_chat(dataset.load_tokenizer(folder), config.chat)
    check_whole(folder)
    with dataset.hub_errors_explained(model_path):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    cuda = torch.cuda.is_available()
    weights = model.dtype
    model = (model.to("cuda") if cuda else widened(model)).eval()
    return Engine(model, chat, task, config.gen, batch_size or (64 if cuda else 16), calibrate.stored_temperature(folder), weights, constrained)


def check_whole(folder):
    """A model whose manifest names its weights' hash must have these weights: damaged ones load, and answer at random."""
    manifest = Path(folder) / "manifest.json"
    expected = read_json(manifest).get("weights_sha256") if manifest.is_file() else None
    if expected and sha256_file(Path(folder) / "model.safetensors") != expected:
        raise UserError(f"{folder}/model.safetensors: not the weights that manifest.json names; they are damaged or another model's, copy the folder again")


def widened(model):
    """A small model's half-precision weights as float32, where the CPU has no bfloat16 arithmetic of its own.

    Where it has (AMX, AVX512-BF16), 16 pairs at once took half the time in bfloat16, and one alone the same.
    """
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict)()
    native = model.dtype == torch.bfloat16 and any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return model if native or model.num_parameters() >= WIDENED_BELOW else model.float()


@dataclass
class Writing:
    """One row's answer so far."""

    ids: list
    n_fed: int = 0          # tokens that the model has read
    n_overruled: int = 0    # choices that would have broken the schema
    n_late: int = 0         # choices behind which the answer could not have been finished in time


class Engine:
    def __init__(self, model, chat, task, gen, batch_size, temperature=1.0, weights=None, constrained=True):
        self.model, self.chat, self.gen, self.batch_size, self.temperature = model, chat, gen, batch_size, temperature
        self.branch, self.end_ids, self.guesses = dataset.find_branch(chat, task), dataset.end_ids(chat), Guesses()
        self.rewinds, self.guarantee, self.review_label = can_rewind(model), None, task.review_label
        if constrained:
            n_tokens = max(len(chat.tokenizer), model.get_output_embeddings().weight.shape[0])
            self.guarantee = guarantee_for(task.answer_schema, chat.tokenizer, n_tokens, self.end_ids[0], gen.max_new_tokens, model.device)
            self.settled = {label: self.settled_by(label) for label in self.branch.token_of}
        self.facts = {"precision": str(model.dtype).removeprefix("torch."), "weights": str(weights or model.dtype).removeprefix("torch."),
                      "device": model.device.type, "batch_size": batch_size, "decoding": "guaranteed" if constrained else "unconstrained",
                      "steps": f"up to {GUESS} guessed tokens checked a step" if constrained and self.rewinds else "one token a step",
                      "attention": model.config._attn_implementation, "calibration_temperature": temperature}

    def settled_by(self, label):
        """(the tokens that a verdict settles, itself first; the automaton's state behind them)."""
        ids = [self.branch.token_of[label], *self.branch.rest_of[label]]
        state = self.guarantee.state_behind(self.branch.opening + ids)
        self.guarantee.rows(1, state, len(self.branch.opening) + len(ids))   # says so where the budget is too small
        return ids, state

    def answers(self, conversations):
        import torch

        torch.manual_seed(0)
        if self.gen.temperature:
            # How many numbers are drawn depends on the guesses: without earlier ones the same call draws the same answers.
            self.guesses = Guesses()
        write = self._guessed if self.guarantee and self.rewinds else self._generated
        for positions, prompts in self._batches(conversations):
            start = time.perf_counter()
            with torch.inference_mode():
                written, probabilities = write(prompts)
            seconds = (time.perf_counter() - start) / len(prompts)
            for position, prompt, one, shares in zip(positions, prompts, written, probabilities, strict=True):
                yield position, self._answer(prompt, one, shares, seconds)

    def verdicts(self, conversations):
        for positions, prompts in self._batches(conversations):
            yield from zip(positions, verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature), strict=True)

    def _batches(self, conversations):
        """Longest first: the first batch shows whether memory suffices, and little is padded."""
        prompts = [self.chat.prompt_ids(messages) for messages in conversations]
        self._check_lengths(prompts)
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for start in range(0, len(order), self.batch_size):
            positions = order[start:start + self.batch_size]
            yield positions, [prompts[at] for at in positions]

    def _check_lengths(self, prompts):
        """A model asked beyond what it was made to read answers at random; said before anything is answered."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        too_long = [at for at, prompt in enumerate(prompts, 1) if len(prompt) + self.gen.max_new_tokens > most]
        if too_long:
            longest = max(len(prompts[at - 1]) for at in too_long)
            raise UserError(f"{len(too_long):,} of {len(prompts):,} prompts are too long: the longest takes {longest:,} tokens and an answer "
                            f"{self.gen.max_new_tokens}, the model reads {most:,}; shorten the records of pair {', '.join(map(str, too_long[:10]))}"
                            f"{' and others' if len(too_long) > 10 else ''}")

    def _guessed(self, prompts):
        """(each row's Writing, its verdict's probabilities); rows leave as they finish."""
        import torch

        written, probabilities, cache, mask = self._begun(prompts)
        going, guesses = list(range(len(prompts))), [[] for _ in prompts]
        while True:
            fed = padded_right([written[row].ids[written[row].n_fed:] + guesses[row] for row in going], self.chat.pad_id, mask.device)
            mask = torch.cat([mask, torch.ones_like(fed)], 1)
            logits = forward(self.model, fed, mask, n_logits=fed.shape[1], cache=cache).logits
            n_right = self._accept([written[row] for row in going], [guesses[row] for row in going], logits)
            # What was fed behind a wrong guess stays in the cache, hidden by the mask.
            mask[:, -fed.shape[1]:] = torch.arange(fed.shape[1], device=mask.device) < torch.tensor(n_right, device=mask.device)[:, None]
            kept = [at for at, row in enumerate(going) if written[row].ids[-1] not in self.end_ids[:1]]
            if not kept:
                break
            if len(kept) < len(going):
                cache.batch_select_indices(torch.tensor(kept, device=mask.device))
                mask, going = mask[kept], [going[at] for at in kept]
            for row in going:
                guesses[row] = self.guesses.after(written[row].ids, min(GUESS, self.gen.max_new_tokens - len(written[row].ids) - 1))
        for one in written:
            self.guesses.learn(one.ids)
        return written, probabilities

    def _begun(self, prompts):
        """The verdicts, chosen behind the prompts and the opening: (Writings up to the first free word, probabilities, cache, mask)."""
        opening = self.branch.opening
        fed, mask = padded_left([prompt + opening for prompt in prompts], self.chat.pad_id, self.model.device)
        output = forward(self.model, fed, mask, n_logits=len(opening) + 1)
        wished = output.logits[:, :-1].argmax(-1).tolist()
        labels = self._chosen_labels(output.logits[:, -1])
        written = [Writing(opening + self.settled[label][0], len(opening), sum(a != b for a, b in zip(wish, opening, strict=True)))
                   for label, wish in zip(labels, wished, strict=True)]
        return written, label_shares(output.logits[:, -1], self.branch, self.temperature), output.past_key_values, mask

    def _chosen_labels(self, logits):
        # Of equally likely verdicts the first is taken: the one that asks a person.
        labels = sorted(self.branch.token_of, key=lambda label: label != self.review_label)
        return [labels[at] for at in self._drawn(logits[:, [self.branch.token_of[label] for label in labels]]).tolist()]

    def _accept(self, written, guesses, logits):
        """Extend each row by its guess as far as it is right, and by the choice behind it; how many of the fed tokens stand before that choice."""
        import torch

        width = max(map(len, guesses)) + 1
        n_new = [len(one.ids) - one.n_fed for one in written]
        rows = self._places(written, guesses, width)
        places = torch.tensor(n_new, device=logits.device)[:, None] - 1 + torch.arange(width, device=logits.device)
        places = places.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1])
        allowed, broke, late = self.guarantee.masked(logits.gather(1, places).float(), rows)
        chosen, broke, late = self._drawn(allowed).tolist(), broke.tolist(), late.tolist()
        n_before = []
        for at, (one, guess) in enumerate(zip(written, guesses, strict=True)):
            n_right = next((place for place, token in enumerate(guess) if chosen[at][place] != token or token == self.end_ids[0]), len(guess))
            one.n_fed = len(one.ids) + n_right
            one.ids += chosen[at][:n_right + 1]
            one.n_overruled += sum(broke[at][:n_right + 1])
            one.n_late += sum(late[at][:n_right + 1])
            n_before.append(n_new[at] + n_right)
        return n_before

    def _places(self, written, guesses, width):
        """Where the automaton stands at each place of a row's guess."""
        import torch

        rows = self._rows_of(written)
        ahead = padded_right([guess + [self.end_ids[0]] * (width - len(guess)) for guess in guesses], self.end_ids[0], self.model.device)
        places = [rows]
        for at in range(width - 1):
            places.append(self.guarantee.advanced(places[-1], ahead[:, at]))
        return Rows(*(torch.stack([getattr(place, name) for place in places], 1) for name in ("state", "counter", "left")))

    def _rows_of(self, written):
        """The automaton behind each row's text, read anew from its tokens: a few dozen look-ups beside a pass of the model."""
        import torch

        found = [self.guarantee.behind(one.ids) for one in written]
        return Rows(*(torch.tensor(values, device=self.model.device) for values in zip(*found, strict=True)))

    def _drawn(self, logits):
        """A token for each place: the likeliest, or drawn as `generate` draws with this temperature and top_p."""
        import torch

        if not self.gen.temperature:
            return logits.argmax(-1)
        ranked, tokens = logits.float().div(self.gen.temperature).sort(dim=-1, descending=True)
        shares = ranked.softmax(-1)
        # A token stays while those above it fall short of top_p, so the first always does.
        shares = shares.where(shares.cumsum(-1) - shares < self.gen.top_p, 0.0)
        drawn = torch.multinomial(shares.flatten(0, -2), 1).view(*logits.shape[:-1], 1)
        return tokens.gather(-1, drawn)[..., 0]

    def _generated(self, prompts):
        """Left to `generate`, token by token: without the guarantee, or with it for models whose memory cannot drop a wrong guess."""
        if not self.guarantee:
            ids = self._generate(prompts, self.gen.max_new_tokens)
            return [Writing(one) for one in ids], verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature)
        written, probabilities, *_ = self._begun(prompts)
        for n_settled in {len(one.ids) for one in written}:
            # Rows behind settled texts of one length have the same budget left.
            these = [at for at, one in enumerate(written) if len(one.ids) == n_settled]
            admitted = Admitted(self.guarantee, self._rows_of([written[at] for at in these]))
            ids = self._generate([prompts[at] + written[at].ids for at in these], self.gen.max_new_tokens - n_settled, admitted)
            for place, at in enumerate(these):
                written[at].ids += ids[place]
                written[at].n_overruled += admitted.n_overruled[place]
                written[at].n_late += admitted.n_late[place]
        return written, probabilities

    def _generate(self, prompts, budget, admitted=None):
        ids, mask = padded_left(prompts, self.chat.pad_id, self.model.device)
        greedy, sampled = {"do_sample": False}, {"do_sample": True, "temperature": self.gen.temperature, "top_p": self.gen.top_p, "top_k": 0}
        output = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=budget, logits_processor=[admitted] if admitted else [],
                                     eos_token_id=self.end_ids, pad_token_id=self.chat.pad_id, **(sampled if self.gen.temperature else greedy))
        return output[:, ids.shape[1]:].tolist()

    def _answer(self, prompt, one, probabilities, seconds):
        end = next((at for at, token in enumerate(one.ids) if token in self.end_ids), None)
        text = self.chat.tokenizer.decode(one.ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Answer(text, "length" if end is None else "stop", len(prompt), len(one.ids) if end is None else end + 1, probabilities, seconds,
                      overruled=one.n_overruled, late=one.n_late)


class Admitted:
    """The guarantee as `generate` calls it, once a step; the rows stand where the tokens so far led them."""

    def __init__(self, guarantee, rows):
        self.guarantee, self.rows, self.width = guarantee, rows, None
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


class Guesses:
    """What last followed a few tokens in an answer."""

    def __init__(self):
        self.next = {}

    def learn(self, ids):
        if len(self.next) > MOST_KEPT:
            self.next.clear()
        for size in CONTEXTS:
            for end in range(size, len(ids)):
                self.next[tuple(ids[end - size:end])] = ids[end]

    def after(self, ids, most):
        guess, last = [], ids[-max(CONTEXTS):]
        while len(guess) < most:
            found = (self.next.get(tuple(last[-size:])) for size in CONTEXTS if size <= len(last))
            token = next((token for token in found if token is not None), None)
            if token is None:
                break
            guess.append(token)
            last = [*last, token]
        return guess


def can_rewind(model):
    """Whether tokens can be hidden from the model after it has read them; attention can, a recurrent state cannot."""
    from transformers import DynamicCache

    return all(layer.is_croppable for layer in DynamicCache(config=model.config).layers)


def forward(model, ids, mask, n_logits, cache=None):
    """One pass over new tokens behind the cached ones; the mask covers both and says which exist."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1]:]
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=n_logits)


def padded_left(prompts, pad_id, device):
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def padded_right(rows, pad_id, device):
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)


def verdict_probabilities(model, prompts, branch, pad_id, temperature=1.0):
    """{label: probability} for each prompt's ids, from one forward pass that ends where the verdict is decided."""
    import torch

    ids, mask = padded_left([prompt + branch.opening for prompt in prompts], pad_id, model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1).logits[:, -1]
    return label_shares(logits, branch, temperature)


def label_shares(logits, branch, temperature):
    """Each row's {label: probability} from the logits where the verdict is decided."""
    shares = logits[:, list(branch.token_of.values())].float().div(temperature).softmax(-1)
    if not shares.isfinite().all():
        raise UserError("the model's logits are not finite numbers; its weights overflow in this precision, merge it with --set merge.dtype=float32")
    return [dict(zip(branch.token_of, row, strict=True)) for row in shares.tolist()]
