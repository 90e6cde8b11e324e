"""The guarantee inside vLLM's worker, as a logits processor of its first model runner.

It masks, draws and advances by itself, on the device, and leaves the sampler no choice: what was drawn is thus known
without asking the host, which with vLLM's asynchronous scheduling would learn it a step too late.
"""

from dataclasses import dataclass
from pathlib import Path

from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from constrained_decode._guarantee import Rows, guarantee_for
from constrained_decode._sampling import drawn, noise_for
from language_model import hub


@dataclass(eq=False)
class Request:
    """One row of the batch."""

    place: tuple  # (state, counter, tokens left) where it was added
    written: list  # vLLM's own list of its tokens; it grows with each that counts
    n_drawn_at: int = -1  # how long that list was when a token was last drawn


class Guaranteed(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        import torch

        options = vllm_config.additional_config["guarantee"]
        model = vllm_config.model_config
        tokenizer = hub.load_tokenizer(Path(model.tokenizer))
        n_tokens = max(len(tokenizer), model.get_vocab_size())
        self.guarantee = guarantee_for(
            options["grammar"], tokenizer, n_tokens, options["end_id"], model.max_model_len, device
        )
        self.temperature = options["temperature"]
        self.top_p = options["top_p"]
        self.device = device
        self.pinned = is_pin_memory
        self.longest = model.max_model_len
        n_rows = vllm_config.scheduler_config.max_num_seqs
        self.rows, self.before = (
            Rows(*(torch.zeros(n_rows, dtype=torch.long, device=device) for _ in range(3))) for _ in range(2)
        )
        self.held = torch.zeros(n_rows, dtype=torch.bool, device=device)
        self.requests = [None] * n_rows
        self.pick = self._picked
        if torch.device(device).type == "cuda":
            self._prepare(n_rows, model.get_vocab_size())

    @classmethod
    def validate_params(cls, sampling_params):
        n = (sampling_params.extra_args or {}).get("answer_tokens")
        if n is not None and (type(n) is not int or n < 0):
            raise ValueError("answer_tokens: the number of the prompt's last tokens that belong to the answer")

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        """Take back what did not count, then move rows as vLLM moves them."""
        # Of a prompt that is read in pieces the tokens drawn before its end are thrown away.
        dropped = [at for at, one in enumerate(self.requests) if one and one.n_drawn_at == len(one.written)]
        if dropped:
            self._take_back(dropped)
        if batch_update:
            self._move(batch_update)

    def _move(self, update):
        came_from = list(range(len(self.requests)))
        for at in update.removed:
            self.requests[at] = None
        new = {}
        for at, params, prompt, written in update.added:
            self.requests[at] = self._request(params, prompt, written)
            new[id(self.requests[at])] = self.requests[at]
        for a, b, direction in update.moved:
            for slots in (self.requests, came_from):
                slots[a], slots[b] = (
                    (slots[b], slots[a]) if direction == MoveDirectionality.SWAP else (slots[a], slots[a])
                )
            if direction != MoveDirectionality.SWAP:
                self.requests[a] = None
        if update.moved:
            self._gather(came_from)
        begun = [at for at, one in enumerate(self.requests) if one and id(one) in new]
        if begun:
            self._put(begun, [self.requests[at].place for at in begun])
        self._mark()

    def _request(self, params, prompt, written):
        """A new row, or one that was taken off for want of memory and goes on behind what it had written."""
        n_answer = (params.extra_args or {}).get("answer_tokens")
        if n_answer is None:
            return None
        begun = self.guarantee.behind(prompt[len(prompt) - n_answer :])
        state, counter = self.guarantee.behind(written, begun)
        return Request((state, counter, min(params.max_tokens, self.longest - len(prompt)) - len(written)), written)

    def _sent(self, values):
        """A tensor of host values on the device, without waiting for the work that is queued there."""
        import torch

        return torch.tensor(values, pin_memory=self.pinned).to(self.device, non_blocking=True)

    def _take_back(self, ats):
        index = self._sent(ats)
        for name in ("state", "counter", "left"):
            getattr(self.rows, name).index_copy_(0, index, getattr(self.before, name)[index])
        for at in ats:
            self.requests[at].n_drawn_at = -1

    def _gather(self, came_from):
        order = self._sent(came_from)
        for name in ("state", "counter", "left"):
            getattr(self.rows, name).copy_(getattr(self.rows, name)[order])

    def _put(self, ats, places):
        index = self._sent(ats)
        values = self._sent(places)
        for column, name in enumerate(("state", "counter", "left")):
            getattr(self.rows, name).index_copy_(0, index, values[:, column])

    def _mark(self):
        self.held.copy_(self._sent([one is not None for one in self.requests]))

    def apply(self, logits):
        n = logits.shape[0]
        if not any(self.requests[:n]):
            return logits
        for request in filter(None, self.requests[:n]):
            request.n_drawn_at = len(request.written)
        self._step(logits, n)
        return logits

    def _step(self, logits, n):
        """Draw for the first n rows, advance them, and leave the sampler nothing but what was drawn: among others it
        would take one that is no number.
        """
        rows = Rows(self.rows.state[:n], self.rows.counter[:n], self.rows.left[:n])
        held = self.held[:n]
        chosen, *behind = self.pick(
            logits, rows.state, rows.counter, rows.left, noise_for(logits) if self.temperature else None
        )
        kept = logits.gather(1, chosen[:, None]).masked_fill(held[:, None], 0.0)
        logits.masked_fill_(held[:, None], float("-inf")).scatter_(1, chosen[:, None], kept)
        for name, value in zip(("state", "counter", "left"), behind, strict=True):
            getattr(self.before, name)[:n] = getattr(rows, name)
            getattr(self.rows, name)[:n] = value

    def _picked(self, logits, state, counter, left, noise):
        """(a token for each row, and its state, counter and tokens left behind it)"""
        rows = Rows(state, counter, left)
        chosen = drawn(self.guarantee.masked(logits.float(), rows)[0], self.temperature, self.top_p, noise)
        behind = self.guarantee.advanced(rows, chosen)
        return chosen, behind.state, behind.counter, behind.left

    def _prepare(self, n_rows, n_tokens):
        """Compile the pick for every number of rows, so that no request waits for it."""
        import torch

        self.pick = torch.compile(self._picked)
        with torch.inference_mode(), torch.random.fork_rng(devices=[self.device]):
            for n in sorted({1, min(2, n_rows), n_rows}):
                self._step(torch.zeros(n, n_tokens, device=self.device), n)
        for slots in (self.rows, self.before):
            for name in ("state", "counter", "left"):
                getattr(slots, name).zero_()
