"""What a request says around its values: six languages, two pools of wordings that share no phrase.

words/<language>.yaml has both pools. words/training/<language>.yaml has many more for training, whose writers did not
see those of the test pool: a model that knows six ways to name a server takes a seventh for none.
"""

import functools
import re
from pathlib import Path

from config import read_yaml

FOLDER = Path(__file__).parent / "words"
LANGUAGES = {"en": 70, "de": 6, "fr": 6, "es": 6, "it": 6, "pt": 6}  # of a hundred requests
ALONE = ("decimal", "join_units")  # one word for both pools
POOLS = ("train", "test")
# Values stand between these two until the request is whole: neither case nor typos touch them.
OPEN = "\x02"
CLOSE = "\x03"
VALUE = re.compile(f"({OPEN}[^{CLOSE}]*{CLOSE})")


def kept(value):
    """A value as it must stand in the request."""
    return f"{OPEN}{value}{CLOSE}"


def plain(text):
    return text.replace(OPEN, "").replace(CLOSE, "")


@functools.cache
def wordings(language, pool):
    """{key: alternatives} of one language and one pool; the uses lie below `uses`."""
    found = {}
    for key, value in read_yaml(FOLDER / f"{language}.yaml").items():
        if key == "uses":
            found[key] = {use: alternatives(text, pool) for use, text in value.items()}
        elif isinstance(value, dict) or key in ALONE:
            found[key] = value
        elif key in ("numbers", "units"):
            found[key] = value.split()
        else:
            found[key] = alternatives(value, pool)
    if pool == "train":
        add_more(found, read_yaml(FOLDER / "training" / f"{language}.yaml"))
    return found


def add_more(found, more):
    """The further alternatives in their places; the nouns that some of them name are keys of their own."""
    for use, texts in more.pop("uses", {}).items():
        found["uses"][use] = found["uses"][use] + texts
    for key, texts in more.items():
        found[key] = found.get(key, []) + texts


def alternatives(text, pool):
    return [one.strip() for one in text.split(" // ")[POOLS.index(pool)].split(" | ")]


class Voice:
    """One writer of a request: a language, a pool, and the numbers that decide what is said."""

    def __init__(self, language, pool, source, rng):
        self.language = language
        self.words = wordings(language, pool)
        self.pool = pool
        self.source = source
        self.rng = rng

    def pick(self, key):
        return self.rng.choice(self.words[key])

    def say(self, key, value=None, **values):
        """A wording with its gaps filled; people, towns and the like are drawn where it names them."""
        text = self.pick(key)
        if value is not None:
            text = text.replace("{}", value)
        return self.filled(text, **values)

    def filled(self, text, **values):
        return text.format_map(Gaps(self, values)) if "{" in text else text

    def use(self, name):
        return self.rng.choice(self.words["uses"][name])


class Gaps(dict):
    """What fills the gaps of a wording: given values, a noun, or what the pool has beside the point."""

    def __init__(self, voice, values):
        super().__init__(values)
        self.voice = voice

    def __missing__(self, name):
        words = self.voice.words
        self[name] = self.voice.pick(name) if name in words else kept(getattr(self.voice.source, name)(self.voice.rng))
        return self[name]
