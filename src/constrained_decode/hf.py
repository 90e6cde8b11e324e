"""In-process Transformers: the plain engine. Every token is the model's own choice; guesses only spare it steps.

A guess rides along in a forward pass and counts as far as the model, asked at each of its places, chose the very same tokens. The first guess
is the answer's fixed opening, behind the prompt: the pass that reads the prompt then also gives the verdict's probabilities.
The later ones are what followed the same few tokens in earlier answers, as verdicts' sentences resemble one another.
"""

import time

import calibrate
import dataset
from common import UserError
from constrained_decode import Answer

GUESS = 6               # tokens a step; on 300 synthetic answers of 20.6 tokens 8.1 steps an answer with 3, 7.5 with 6, 7.4 with 8
CONTEXTS = (4, 3, 2)    # how many tokens must have been followed before, the longest first; 9.6 steps an answer with (2,) alone and 2 guesses
MOST_KEPT = 100_000     # contexts, about 20 MB
WIDENED_BELOW = 1e9     # parameters; more would need twice the memory


def load(model_path, task, config, batch_size=None):
    import torch
    from transformers import AutoModelForCausalLM

    folder = dataset.local_or_hub(model_path)
    chat = dataset.pinned_chat(dataset.load_tokenizer(folder), config.chat)
    with dataset.hub_errors_explained(model_path):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    cuda = torch.cuda.is_available()
    weights = model.dtype
    model = model.to("cuda") if cuda else widened(model)
    return Engine(model.eval(), chat, task, config.gen, batch_size or (64 if cuda else 16), calibrate.stored_temperature(folder), weights)


def widened(model):
    """A small model's half-precision weights as float32, where the CPU has no bfloat16 arithmetic of its own.

    Where it has (AMX, AVX512-BF16), 16 pairs at once took half the time in bfloat16, and one alone the same.
    """
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict)()
    native = model.dtype == torch.bfloat16 and any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return model if native or model.num_parameters() >= WIDENED_BELOW else model.float()


class Engine:
    def __init__(self, model, chat, task, gen, batch_size, temperature=1.0, weights=None):
        self.model, self.chat, self.gen, self.batch_size, self.temperature = model, chat, gen, batch_size, temperature
        self.branch, self.end_ids, self.guesses = dataset.find_branch(chat, task), dataset.end_ids(chat), Guesses()
        self.rewinds = can_rewind(model)
        self.facts = {"precision": str(model.dtype).removeprefix("torch."), "weights": str(weights or model.dtype).removeprefix("torch."),
                      "device": model.device.type, "batch_size": batch_size, "decoding": "unconstrained",
                      "steps": f"up to {GUESS} guessed tokens checked a step" if self.rewinds else "one token a step",
                      "attention": model.config._attn_implementation, "calibration_temperature": temperature}

    def answers(self, conversations):
        import torch

        torch.manual_seed(0)
        if self.gen.temperature:
            # How many numbers are drawn depends on the guesses: without earlier ones the same call draws the same answers.
            self.guesses = Guesses()
        for positions, prompts in self._batches(conversations):
            start = time.perf_counter()
            generated, probabilities = self._guessed(prompts) if self.rewinds else self._plain(prompts)
            seconds = (time.perf_counter() - start) / len(prompts)
            for position, prompt, ids, shares in zip(positions, prompts, generated, probabilities, strict=True):
                yield position, self._answer(prompt, ids, shares, seconds)

    def verdicts(self, conversations):
        for positions, prompts in self._batches(conversations):
            yield from zip(positions, verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature), strict=True)

    def _batches(self, conversations):
        """Longest first: the first batch shows whether memory suffices, and little is padded."""
        prompts = [self.chat.prompt_ids(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        for start in range(0, len(order), self.batch_size):
            positions = order[start:start + self.batch_size]
            yield positions, [prompts[at] for at in positions]

    def _guessed(self, prompts):
        """(each row's tokens, its verdict's probabilities); rows leave as they finish."""
        import torch

        opening = self.branch.opening
        fed, mask = padded_left([prompt + opening for prompt in prompts], self.chat.pad_id, self.model.device)
        written, rows, guesses = [[] for _ in prompts], list(range(len(prompts))), [opening] * len(prompts)
        with torch.inference_mode():
            output = forward(self.model, fed, mask, n_logits=len(opening) + 1)
            probabilities = label_shares(output.logits[:, -1], self.branch, self.temperature)
            while True:
                n_kept = [self._accept(written[row], guess, chosen) for row, guess, chosen in zip(rows, guesses, self._choose(output.logits), strict=True)]
                going = [at for at, row in enumerate(rows) if not self._is_done(written[row])]
                if not going:
                    break
                # What was fed behind a wrong guess stays in the cache, hidden by the mask.
                width = output.logits.shape[1]
                mask[:, -width:] = torch.arange(width, device=mask.device) < torch.tensor(n_kept, device=mask.device)[:, None]
                cache = output.past_key_values
                if len(going) < len(rows):
                    kept = torch.tensor(going, device=mask.device)
                    cache.batch_select_indices(kept)
                    mask, rows = mask[kept], [rows[at] for at in going]
                guesses = [self.guesses.after(written[row], min(GUESS, self.gen.max_new_tokens - len(written[row]) - 1)) for row in rows]
                fed = padded_right([written[row][-1:] + guess for row, guess in zip(rows, guesses, strict=True)], self.chat.pad_id, mask.device)
                mask = torch.cat([mask, torch.ones_like(fed)], 1)
                output = forward(self.model, fed, mask, n_logits=fed.shape[1], cache=cache)
        for ids in written:
            self.guesses.learn(ids)
        return written, probabilities

    def _accept(self, ids, guess, chosen):
        """Append what the model chose, as far as it saw its own tokens; how many of the fed tokens stand before that choice."""
        if self._is_done(ids):
            return 0
        n_right = next((at for at, token in enumerate(guess) if chosen[at] != token), len(guess))
        for token in chosen[:n_right + 1]:
            ids.append(token)
            if self._is_done(ids):
                break
        return n_right + 1

    def _is_done(self, ids):
        return bool(ids) and (ids[-1] in self.end_ids or len(ids) >= self.gen.max_new_tokens)

    def _choose(self, logits):
        """A token for each place: the likeliest, or drawn as `generate` draws with this temperature and top_p."""
        import torch

        if not self.gen.temperature:
            return logits.argmax(-1).tolist()
        ranked, tokens = logits.float().div(self.gen.temperature).sort(dim=-1, descending=True)
        shares = ranked.softmax(-1)
        # A token stays while those above it fall short of top_p, so the first always does.
        shares = shares.where(shares.cumsum(-1) - shares < self.gen.top_p, 0.0)
        drawn = torch.multinomial(shares.flatten(0, 1), 1).view(*logits.shape[:2], 1)
        return tokens.gather(-1, drawn)[..., 0].tolist()

    def _plain(self, prompts):
        """For models whose memory of the text cannot drop a wrong guess: `generate`, and a second pass for the probabilities."""
        import torch

        ids, mask = padded_left(prompts, self.chat.pad_id, self.model.device)
        greedy, sampled = {"do_sample": False}, {"do_sample": True, "temperature": self.gen.temperature, "top_p": self.gen.top_p, "top_k": 0}
        with torch.inference_mode():
            output = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=self.gen.max_new_tokens,
                                         eos_token_id=self.end_ids, pad_token_id=self.chat.pad_id, **(sampled if self.gen.temperature else greedy))
        return output[:, ids.shape[1]:].tolist(), verdict_probabilities(self.model, prompts, self.branch, self.chat.pad_id, self.temperature)

    def _answer(self, prompt, ids, probabilities, seconds):
        end = next((at for at, token in enumerate(ids) if token in self.end_ids), None)
        text = self.chat.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Answer(text, "length" if end is None else "stop", len(prompt), len(ids) if end is None else end + 1, probabilities, seconds)


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
