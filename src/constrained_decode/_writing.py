"""An answer while it is written, and what it came to, on every engine that chooses its tokens here."""

from dataclasses import dataclass

from constrained_decode import Answer
from constrained_decode._guarantee import Rows


@dataclass
class Writing:
    """One row's answer so far."""

    ids: list
    n_fed: int = 0  # tokens that the model has read
    n_overruled: int = 0  # choices that would have broken the schema
    n_late: int = 0  # choices behind which the answer could not have been finished in time
    place: tuple = None  # (the automaton's state, characters of its string) behind the answer so far
    n_settled: int = 0  # tokens that were read with the prompt or behind the verdict, not written
    probabilities: dict | None = None  # of each verdict


def longest_first(prompts, batch_size, done=()):
    """(positions, prompts) of each batch: the first batch shows whether memory suffices, and little is padded.

    Of a batch whose positions are all in `done` there are no prompts.
    """
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        is_done = all(at in done for at in positions)
        yield positions, [] if is_done else [prompts[at] for at in positions]


def settled_by(branch, guarantee):
    """{label: (the tokens that this verdict settles, the automaton's state behind them)}; a UserError where the budget
    is too small for one of them.
    """
    found = {}
    for label in branch.token_of:
        ids = branch.settled(label)
        state = guarantee.state_behind(branch.opening + ids)
        guarantee.rows(1, state, len(branch.opening) + len(ids))
        found[label] = (ids, state)
    return found


def behind_verdict(opening, wished, settled, probabilities):
    """The Writing up to the first free word behind a verdict; `wished` are the model's own choices for the opening."""
    ids, state = settled
    return Writing(
        opening + ids,
        len(opening),
        sum(a != b for a, b in zip(wished, opening, strict=True)),
        place=(state, 0),
        n_settled=len(opening) + len(ids),
        probabilities=probabilities,
    )


def first_chosen(guarantee, logits, draw):
    """A Writing a row with its first token, chosen by the logits behind its prompt."""
    rows = guarantee.rows(len(logits))
    allowed, broke, late = guarantee.masked(logits.float(), rows)
    start = (guarantee.automaton.start, 0)
    return [
        Writing([token], n_overruled=int(wrong), n_late=int(too_late), place=guarantee.behind([token], start))
        for token, wrong, too_late in zip(draw(allowed), broke.tolist(), late.tolist(), strict=True)
    ]


def rows_of(guarantee, written):
    """The automaton behind each row's answer so far."""
    import torch

    found = [(*one.place, guarantee.max_new_tokens - len(one.ids)) for one in written]
    return Rows(*(torch.tensor(values, device=guarantee.device) for values in zip(*found, strict=True)))


def text_of(ids, end_ids, tokenizer):
    """(an answer's text without its end token, why it ended, how many tokens it took)."""
    end = next((at for at, token in enumerate(ids) if token in end_ids), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text, "length" if end is None else "stop", len(ids) if end is None else end + 1


def answer_of(one, n_prompt, seconds, chat, end_ids, first_s=None):
    """What a Writing came to."""
    text, reason, n_tokens = text_of(one.ids, end_ids, chat.tokenizer)
    return Answer(
        text,
        reason,
        n_prompt,
        n_tokens,
        one.probabilities,
        seconds,
        overruled=one.n_overruled,
        late=one.n_late,
        first_s=first_s,
        n_settled=one.n_settled,
    )
