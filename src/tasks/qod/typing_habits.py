"""How a person types: small letters, capitals, slips in plain words. Values stay as they are."""

import re

from tasks.qod.wording import OPEN, VALUE, plain

SMALL_SHARE = 0.12
CAPITALS_SHARE = 0.03
SLIPS_SHARE = 0.14
LONG_WORD = re.compile(r"[^\W\d_]{5,}")


def typed(text, rng):
    """The request as it was typed, without the marks around its values."""
    draw = rng.random()
    if draw < SMALL_SHARE:
        text = outside_values(text, str.lower)
    elif draw < SMALL_SHARE + CAPITALS_SHARE:
        text = outside_values(text, str.upper)
    if rng.random() < SLIPS_SHARE:
        text = with_slips(text, rng, rng.choice((1, 1, 2, 3)))
    return plain(text)


def outside_values(text, change):
    return "".join(part if part.startswith(OPEN) else change(part) for part in VALUE.split(text))


def with_slips(text, rng, n):
    parts = VALUE.split(text)
    for _ in range(n):
        words = [
            (at, word)
            for at, part in enumerate(parts)
            if not part.startswith(OPEN)
            for word in LONG_WORD.finditer(part)
        ]
        if not words:
            break
        at, word = rng.choice(words)
        part = parts[at]
        parts[at] = part[: word.start()] + slip(word.group(), rng) + part[word.end() :]
    return "".join(parts)


def slip(word, rng):
    """Two letters swapped, one left out or one doubled; the first letter stays."""
    at = rng.randint(1, len(word) - 2)
    return rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
