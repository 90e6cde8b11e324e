"""The further wordings for training: in slots that exist, with their gaps, plain where a form or a label holds them."""

import re

import pytest

from config import read_yaml
from tasks.qod import wording

NOUNS = {"device_noun", "server_noun"}
BESIDE = {"person", "city", "invoice", "other_address", "price", "people", "date", *NOUNS}


def slots(words):
    """(key, alternatives) of every slot that holds words alone, the uses one by one."""
    for key, value in words.items():
        if key == "fixed_lengths":
            continue
        yield from ((f"uses.{use}", texts) for use, texts in value.items()) if key == "uses" else [(key, value)]


def gaps(text):
    return tuple(sorted(name for name in re.findall(r"{(\w*)}", text) if name not in BESIDE))


@pytest.mark.parametrize("language", wording.LANGUAGES)
def test_each_says_what_its_slot_says(language):
    test = dict(slots(wording.wordings(language, "test")))
    own = dict(slots(read_yaml(wording.FOLDER / f"{language}.yaml")))
    more = dict(slots(read_yaml(wording.FOLDER / "training" / f"{language}.yaml")))
    assert more.keys() - NOUNS <= test.keys()
    for key, texts in more.items():
        known = {gaps(one) for one in wording.alternatives(own[key], "train")} if key not in NOUNS else {()}
        assert [one for one in texts if gaps(one) not in known] == [], key
        assert len(set(texts)) == len(texts), key
        if key.startswith(("label_", "uses.")) or key in NOUNS:
            assert [one for one in texts if '"' in one or "{" in one] == [], key


@pytest.mark.parametrize("language", wording.LANGUAGES)
def test_training_has_many_ways_to_name_device_and_server(language):
    words = wording.wordings(language, "train")
    for key in ("device_sentence", "server_sentence", "device_noun", "server_noun"):
        assert len(words[key]) >= 40, key
    assert min(map(len, words["uses"].values())) >= 15
    assert len(wording.wordings(language, "test")["server_sentence"]) < 10


@pytest.mark.parametrize("language", wording.LANGUAGES)
def test_validation_has_words_that_training_does_not(language):
    train = dict(slots(wording.wordings(language, "train")))
    validation = dict(slots(wording.wordings(language, "validation")))
    more = dict(slots(read_yaml(wording.FOLDER / "training" / f"{language}.yaml")))
    for key, texts in more.items():
        held_out = set(validation[key]) & set(texts)
        assert not held_out & set(train[key]) or held_out == set(texts), key
        assert set(texts) <= held_out | set(train[key]), key
    for key in ("device_sentence", "server_sentence", "opener", "label_device"):
        assert set(validation[key]) & set(train[key]) == set(), key
