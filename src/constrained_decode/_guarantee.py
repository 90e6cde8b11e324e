"""Whatever the weights and the sampling: an answer that fits the schema, ended within the token budget, its verdict the
model's own choice.

The automaton's state of each row and its counters are tensors beside the logits; a step gathers, compares and masks,
and never waits for the host. A token is admitted if the answer can still be finished behind it with the tokens that are
left, so there is always one.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from common import UserError
from constrained_decode import _grammar, _tokens
from constrained_decode._sampling import finite


@dataclass
class Rows:
    """Where each row stands in its answer. Tensors of any one shape."""

    state: object
    counter: object  # characters of the string that the row is writing
    left: object  # tokens that may still be written, the end token among them


class Guarantee:
    """The tables of one schema for one vocabulary, on one device."""

    def __init__(self, automaton, tables, texts, end_id, max_new_tokens, device):
        import torch

        self.automaton = automaton
        self.tables = tables
        self.texts = texts
        self.end_id = end_id
        self.max_new_tokens = max_new_tokens
        self.device = device
        for name in ("class_of", "next", "need", "fewest", "most", "inside", "added"):
            setattr(self, name, torch.as_tensor(getattr(tables, name), device=device).long())
        self.leaves = torch.as_tensor(tables.leaves, device=device)
        self.done = int(tables.done)

    def rows(self, n, state=None, spent=0):
        """n rows behind the same bytes."""
        import torch

        state = self.automaton.start if state is None else state
        needed = self.tables.shortest(state)
        if needed > self.max_new_tokens - spent:
            raise UserError(
                f"gen.max_new_tokens is {self.max_new_tokens}, and the shortest answers take {needed + spent} tokens "
                "with this tokenizer; raise it"
            )
        return Rows(*(torch.full((n,), value, device=self.device) for value in (state, 0, self.max_new_tokens - spent)))

    def state_behind(self, ids):
        """The automaton's state behind tokens that stand before any free text; a space that a tokenizer puts before its
        first word is none.
        """
        state, _ = self.behind(ids)
        if not state:
            raise UserError(
                "the answer's opening, as this tokenizer writes it, is not what the schema allows; is the task's label "
                "its schema's first key?"
            )
        return state

    def behind(self, ids, place=None):
        """(state, counter) behind an answer's tokens: from its beginning, or from such a place."""
        data = b"".join(self.texts[token] or b"\0" for token in ids)
        state, counter = place or (self.automaton.start, 0)
        for byte in data if place else data.lstrip(b" "):
            state, counter = self.automaton.step(state, counter, byte)
        return state, counter

    def within(self, rows):
        """(classes that fit the schema, those of them behind which the answer can still be finished)."""
        state = rows.state[..., None]
        counter = rows.counter[..., None]
        target = self.next[rows.state]
        leaves = self.leaves[rows.state]
        length = counter + self.added[rows.state]
        bound = self.most[state].where(leaves | (self.inside[state] > 0), self.most[target])
        fits = (target > 0) & (length <= bound) & ~(leaves & (length < self.fewest[state]))
        behind = length.where((self.inside[target] > 0) & ~leaves, 0)
        need = self.need[target] + (self.fewest[target] - behind).clamp(min=0)
        return fits, fits & (need < rows.left[..., None].clamp(min=1))

    def masked(self, logits, rows):
        """(logits of the admitted tokens, whether the likeliest token of all broke the schema, whether it only came too
        late).

        Where an answer stands, something is always admitted, and can be drawn whatever the model makes of it; behind a
        wrong guess nothing may be, and what is chosen there is dropped.
        """
        logits = finite(logits)
        fits, admitted = self.within(rows)
        admitted = admitted | ~admitted.any(-1, keepdim=True)
        column = self.class_of[: logits.shape[-1]]
        likeliest = column[logits.argmax(-1)][..., None]
        broke = ~fits.gather(-1, likeliest)[..., 0]
        late = ~admitted.gather(-1, likeliest)[..., 0]
        return logits.masked_fill_(~admitted[..., column], float("-inf")), broke, late & ~broke

    def advanced(self, rows, tokens):
        """The rows behind one more token each; behind one that is not admitted a row stands nowhere."""
        column = self.class_of[tokens]
        done = self.done
        target, leaves, added = (table[rows.state, column] for table in (self.next, self.leaves, self.added))
        target = target.where(rows.state != done, done)  # what fills up a finished row
        counter = (rows.counter + added).where((self.inside[target] > 0) & ~leaves, 0)
        return Rows(target, counter, rows.left - 1)

    def is_done(self, rows):
        return rows.state == self.done


def guarantee_for(grammar, tokenizer, n_tokens, end_id, max_new_tokens, device):
    return Guarantee(*laid_over(json.dumps(grammar), tokenizer, n_tokens, end_id), end_id, max_new_tokens, device)


@lru_cache(maxsize=16)
def laid_over(grammar_text, tokenizer, n_tokens, end_id):
    automaton = _grammar.compiled(json.loads(grammar_text))
    texts = _tokens.token_bytes(tokenizer, n_tokens)
    return automaton, _tokens.lay_over(automaton, texts, end_id), texts
