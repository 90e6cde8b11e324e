"""What a request says around its values: six languages, two pools of wordings that share no phrase.

words/<language>.yaml has both pools. words/training/<language>.yaml has many more for training, whose writers did not
see those of the test pool: a model that knows six ways to name a server takes a seventh for none. One in ten of these
is kept from training for validation, which would otherwise praise a model that knows its words by heart.
"""

import functools
import re
import zlib
from pathlib import Path

from config import read_yaml

FOLDER = Path(__file__).parent / "words"
LANGUAGES = {"en": 70, "de": 6, "fr": 6, "es": 6, "it": 6, "pt": 6}  # of a hundred requests
LANGUAGES_TO_TRAIN = {"en": 45, "de": 11, "fr": 11, "es": 11, "it": 11, "pt": 11}  # the seldom seen is learnt last
ALONE = ("decimal", "join_units")  # one word for both pools
POOLS = ("train", "test")
VALIDATION = "validation"  # a pool of training's values and of wordings that training does not show
HELD_OUT = 10  # one wording in so many
# Values stand between these two until the request is whole: neither case nor typos touch them.
OPEN = "\x02"
CLOSE = "\x03"
VALUE = re.compile(f"({OPEN}[^{CLOSE}]*{CLOSE})")


def kept(value):
    """A value as it must stand in the request."""
    return f"{OPEN}{value}{CLOSE}"


def plain(text):
    return text.replace(OPEN, "").replace(CLOSE, "")


def weighted(rng, table):
    return rng.choices(list(table), weights=list(table.values()))[0]


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
    if pool != "test":
        add_more(found, read_yaml(FOLDER / "training" / f"{language}.yaml"), pool)
    return found


def add_more(found, more, pool):
    """The further alternatives that the pool has; validation has none beside them, where there are some."""
    for use, texts in more.pop("uses", {}).items():
        found["uses"][use] = of_pool(found["uses"][use], texts, pool)
    found["fixed_lengths"] = found["fixed_lengths"] | more.pop("fixed_lengths")
    for key, texts in more.items():
        found[key] = of_pool(found.get(key, []), texts, pool)


def of_pool(own, texts, pool):
    held_out = [one for one in texts if zlib.crc32(one.encode()) % HELD_OUT == 0]
    if pool == VALIDATION:
        return held_out or own or texts
    return own + ([one for one in texts if one not in held_out] or texts)


def alternatives(text, pool):
    return [one.strip() for one in text.split(" // ")[pool == "test"].split(" | ")]


class Voice:
    """One writer of a request: a language, a pool, and the numbers that decide what is said."""

    def __init__(self, language, pool, source, rng):
        self.language = language
        self.words = wordings(language, pool)
        self.pool = "test" if pool == "test" else "train"  # of values and looks
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
