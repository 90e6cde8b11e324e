"""A value's words without case, accents, punctuation, key names or their order: what near duplicates are found by."""

import re
import unicodedata


def plain_text(record):
    """A record's values without case, accents, punctuation, key names or their order."""
    return " ".join(sorted(word for word in (plain(value) for value in leaves(record)) if word))


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield str(value)


def plain(text):
    if text.isascii():
        if text.isalnum():
            return text.lower()
    else:
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _NOT_WORD.sub("", text.casefold())


_NOT_WORD = re.compile(r"[\W_]+")
