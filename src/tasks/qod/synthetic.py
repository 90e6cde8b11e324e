"""Labelled requests without end: the answer is built first, then said in words.

The same seed and row number always give the same request. The pools share neither wordings nor values; `validation` is
training's with wordings that training does not show.
"""

import random
from dataclasses import dataclass

from common import UserError
from tasks.qod import facts, flaws, layouts, profiles
from tasks.qod.typing_habits import typed
from tasks.qod.values import SOURCES
from tasks.qod.wording import LANGUAGES, LANGUAGES_TO_TRAIN, POOLS, VALIDATION, Voice, plain, weighted

CHOICES = (*POOLS, "all", VALIDATION)
USE_KINDS = tuple(profiles.PROFILE_OF_USE)
LAYOUT_KINDS = tuple(layouts.LAYOUTS)
USE_KIND_SHARE = 0.6
SOMETHING_ELSE = "something_else"
SOMETHING_ELSE_SHARE = 0.02
FLAWED_SHARE = 0.19
OPTIONAL = {"device_ports": 0.1, "server_ports": 0.13, "sink": 0.14}
MOST_CHARACTERS = 1_200
SLOTS = ("device", "server", "device_ports", "server_ports", "profile", "duration", "sink")
KEYS = ("device", "applicationServer", "devicePorts", "applicationServerPorts", "qosProfile", "duration", "sink")
ALL_MISSING = [("missing", name) for name in ("device", "applicationServer", "qosProfile", "duration")]


@dataclass(frozen=True)
class Recipe:
    """What the rows are drawn from: the wordings and values of one pool, or of both."""

    pool: str = "train"
    reference: str | None = None


def rows(n, seed, start=0, recipe=Recipe()):
    """Rows `start` to `start + n` of the endless sequence that a seed names, whatever the number asked for at once."""
    if recipe.pool not in CHOICES:
        raise UserError(f"--pool {recipe.pool}: there is {', '.join(CHOICES)}")
    for index in range(start, start + n):
        kind, language, request, answer = drawn(numbers(seed, index, recipe.pool), recipe.pool)
        yield {
            "id": f"qod-{recipe.pool}-{seed}-{index:07d}",
            "input": {"request": request},
            "output": answer,
            "meta": {"kind": kind, "language": language},
        }


def numbers(seed, index, pool):
    """The source of a row's random numbers; one seed gives unlike rows in each pool."""
    return random.Random((seed << 66) + (index << 2) + CHOICES.index(pool))


def drawn(rng, pool):
    """(kind, language, request, answer) of one row; a rare one that grew too long is drawn again."""
    while True:
        one = rng.choice(POOLS) if pool == "all" else pool
        language = weighted(rng, LANGUAGES_TO_TRAIN if one == "train" else LANGUAGES)
        kind, text, answer = said(Voice(language, one, SOURCES[one], rng))
        request = plain(text) if kind in layouts.WRITTEN_BY_MACHINES else typed(text, rng)
        if len(request) <= MOST_CHARACTERS:
            return kind, language, request, answer


def said(voice):
    rng = voice.rng
    if rng.random() < SOMETHING_ELSE_SHARE:
        return SOMETHING_ELSE, something_else(voice), flaws.error(ALL_MISSING)
    found = flaws.draw(rng) if rng.random() < FLAWED_SHARE else {}
    # A request without a profile names no use either, so its kind is how it is written.
    by_use = rng.random() < USE_KIND_SHARE and ("missing", "qosProfile") not in found.values()
    kind = rng.choice(USE_KINDS if by_use else LAYOUT_KINDS)
    stated, gold = content(voice, kind if by_use else None, found)
    layout = layouts.message if by_use else layouts.LAYOUTS[kind]
    text = layout(voice, stated)
    return kind, text, flaws.error(set(found.values())) if found else gold


def content(voice, use, found):
    """(facts, answer): what a request states, with the flaws of `found` in place of what they spoil."""
    stated = []
    gold = {}
    for slot in SLOTS:
        if slot in found:
            stated += flaws.said(voice, found[slot])
            if slot == "profile" and found[slot][0] != "missing" and use:
                stated.append(facts.use(voice, use))
        elif voice.rng.random() < OPTIONAL.get(slot, 1) and not (slot == "server_ports" and KEYS[3] in gold):
            value, more = SAID[slot](voice, use)
            gold |= value
            stated += more
    return stated, {key: gold[key] for key in KEYS if key in gold}


def device(voice, use):
    value, fact = facts.device(voice)
    return {"device": value}, [fact]


def server(voice, use):
    value, fact = facts.server(voice)
    return value, [fact]


def device_ports(voice, use):
    value, fact = facts.ports(voice, "device")
    return {"devicePorts": value}, [fact]


def server_ports(voice, use):
    value, fact = facts.ports(voice, "server")
    return {"applicationServerPorts": value}, [fact]


def profile(voice, use):
    letter, found = profiles.profile(voice, use)
    return {"qosProfile": f"QOS_{letter}"}, found


def duration(voice, use):
    value, fact = facts.duration(voice)
    return {"duration": value}, [fact]


def sink(voice, use):
    value, fact = facts.sink(voice)
    return {"sink": value}, [fact]


SAID = {
    "device": device,
    "server": server,
    "device_ports": device_ports,
    "server_ports": server_ports,
    "profile": profile,
    "duration": duration,
    "sink": sink,
}


def something_else(voice):
    """A question that no session answers, with the usual words around it."""
    rng = voice.rng
    parts = [voice.say("greeting")] if rng.random() < 0.5 else []
    if rng.random() < 0.3:
        parts.append(voice.say("filler"))
    parts.append(voice.say("else_topic"))
    if rng.random() < 0.4:
        parts.append(voice.say("closing"))
    return " ".join(parts)
