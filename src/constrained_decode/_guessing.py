"""Answers on a CPU in few passes of the model: later tokens are guessed from what followed the same few tokens in
earlier answers, as verdicts' sentences resemble one another. A guess counts as far as the model, asked at each of its
places, chose the very same tokens.
"""

from constrained_decode._guarantee import Rows
from constrained_decode._sampling import drawn
from constrained_decode._writing import rows_of

GUESS = 6  # tokens a step; on 300 synthetic answers of 20.6 tokens 8.1 steps an answer with 3, 7.5 with 6, 7.4 with 8
# how many tokens must have been followed before, the longest first; 9.6 steps an answer with (2,) alone and 2 guesses
CONTEXTS = (4, 3, 2)
MOST_KEPT = 100_000  # contexts, about 20 MB


class Guessing:
    def __init__(self, model, guarantee, gen, end_id, pad_id):
        self.model = model
        self.guarantee = guarantee
        self.gen = gen
        self.end_id = end_id
        self.pad_id = pad_id
        self.guesses = Guesses()

    def forget(self):
        """Make the same call draw the same answers: how many numbers are drawn depends on earlier guesses."""
        self.guesses = Guesses()

    def finish(self, written, cache, mask):
        """Write each row to its end; rows leave the batch as they finish."""
        import torch

        going = list(range(len(written)))
        guesses = [[] for _ in written]
        while True:
            fed = padded_right(
                [written[row].ids[written[row].n_fed :] + guesses[row] for row in going], self.pad_id, mask.device
            )
            mask = torch.cat([mask, torch.ones_like(fed)], 1)
            logits = forward(self.model, fed, mask, n_logits=fed.shape[1], cache=cache).logits
            n_right = self.accept([written[row] for row in going], [guesses[row] for row in going], logits)
            # What was fed behind a wrong guess stays in the cache, hidden by the mask.
            mask[:, -fed.shape[1] :] = (
                torch.arange(fed.shape[1], device=mask.device) < torch.tensor(n_right, device=mask.device)[:, None]
            )
            kept = [at for at, row in enumerate(going) if written[row].ids[-1] != self.end_id]
            if not kept:
                break
            if len(kept) < len(going):
                cache.batch_select_indices(torch.tensor(kept, device=mask.device))
                mask = mask[kept]
                going = [going[at] for at in kept]
            for row in going:
                guesses[row] = self.guesses.after(
                    written[row].ids, min(GUESS, self.gen.max_new_tokens - len(written[row].ids) - 1)
                )

    def learn(self, ids):
        """Remember an answer's tokens, its end token among them."""
        self.guesses.learn([*ids, self.end_id])

    def accept(self, written, guesses, logits):
        """Extend each row by its guess as far as it is right, and by the choice behind it; how many of the fed tokens
        stand before that choice.
        """
        import torch

        width = max(map(len, guesses)) + 1
        n_new = [len(one.ids) - one.n_fed for one in written]
        rows = self.places(written, guesses, width)
        places = torch.tensor(n_new, device=logits.device)[:, None] - 1 + torch.arange(width, device=logits.device)
        places = places.clamp(max=logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1])
        allowed, broke, late = self.guarantee.masked(logits.gather(1, places).float(), rows)
        chosen = drawn(allowed, self.gen.temperature, self.gen.top_p).tolist()
        broke = broke.tolist()
        late = late.tolist()
        n_before = []
        for at, (one, guess) in enumerate(zip(written, guesses, strict=True)):
            n_right = next(
                (place for place, token in enumerate(guess) if chosen[at][place] != token or token == self.end_id),
                len(guess),
            )
            one.n_fed = len(one.ids) + n_right
            new = chosen[at][: n_right + 1]
            one.place = self.guarantee.behind(new, one.place)
            one.ids += new
            one.n_overruled += sum(broke[at][: n_right + 1])
            one.n_late += sum(late[at][: n_right + 1])
            n_before.append(n_new[at] + n_right)
        return n_before

    def places(self, written, guesses, width):
        """Where the automaton stands at each place of a row's guess."""
        import torch

        ahead = padded_right(
            [guess + [self.end_id] * (width - len(guess)) for guess in guesses], self.end_id, self.model.device
        )
        places = [rows_of(self.guarantee, written)]
        for at in range(width - 1):
            places.append(self.guarantee.advanced(places[-1], ahead[:, at]))
        return Rows(
            *(torch.stack([getattr(place, name) for place in places], 1) for name in ("state", "counter", "left"))
        )


class Guesses:
    """What last followed a few tokens in an answer."""

    def __init__(self):
        self.next = {}

    def learn(self, ids):
        if len(self.next) > MOST_KEPT:
            self.next.clear()
        for size in CONTEXTS:
            for end in range(size, len(ids)):
                self.next[tuple(ids[end - size : end])] = ids[end]

    def after(self, ids, most):
        guess = []
        last = ids[-max(CONTEXTS) :]
        while len(guess) < most:
            found = (self.next.get(tuple(last[-size:])) for size in CONTEXTS if size <= len(last))
            token = next((token for token in found if token is not None), None)
            if token is None:
                break
            guess.append(token)
            last = [*last, token]
        return guess


def forward(model, ids, mask, n_logits, cache=None):
    """One pass over new tokens behind the cached ones; the mask covers both and says which exist."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=n_logits,
    )


def padded_right(rows, pad_id, device):
    import torch

    width = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
