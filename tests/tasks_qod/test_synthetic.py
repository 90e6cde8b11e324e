"""The generator of QoD requests: every value of an answer stands in its request, the pools share nothing, and all that
the policy names occurs.
"""

import ipaddress
import re
from collections import Counter

import pytest

from common import UserError, read_jsonl
from support import qod_reader
from tasks import load_task
from tasks.qod import checks, profiles, synthetic, typing_habits, values, wording

TASK = load_task("qod")
N = 1_000
POOLS = ("train", "test")
# The policy in a few patterns, English alone; a profile that is taken back makes a text hold two.
NAMED = re.compile(
    r"\b(?:QOS[_ -]|profile[ :=\"-]+(?:QOS_)?|(?:the|letter|class|size|option|tier|labelled|known as) )([ESML])\b", re.I
)
RATE = re.compile(r"(\d+(?:\.\d+)?) (k|m)(?:bit|bps|ilobit|egabit)", re.I)
ALONE = re.compile(r"(?<![\w.])[ESML](?![\w'])")  # a form may hold the letter of a profile alone
LATENCY = re.compile(
    r"latenc|jitter|\bping\b(?! (?:us|me)| https)|reaction|\breact(?:s|ing)?\b|response|\brespond(?!s (?:at|on) )|"
    r"delay|\blag(?:s|gy)?\b|real[- ]time|\binstant(?:ly)?\b(?! messag)|immediate|milliseconds|prompt (?:re|answer)|"
    r"\brtt\b|packets? (?:that )?arriv|packet arrival|(?:smooth|steady|tight) timing|effect at once|on time, every|"
    r"round[- ]trip",
    re.I,
)


def drawn(n=N, seed=41, start=0, pool="train"):
    return list(synthetic.rows(n, seed, start, synthetic.Recipe(pool=pool)))


@pytest.fixture(scope="module", params=POOLS)
def generated(request):
    return drawn(pool=request.param)


@pytest.fixture(scope="module")
def both():
    return {pool: drawn(pool=pool) for pool in POOLS}


@pytest.fixture
def without_slips(monkeypatch):
    monkeypatch.setattr(typing_habits, "SLIPS_SHARE", 0)


def calls(rows):
    return [(row["input"]["request"], row["output"]) for row in rows if "error" not in row["output"]]


def refusals(rows):
    return [row["output"]["error"] for row in rows if "error" in row["output"]]


def test_every_answer_is_valid(generated):
    assert [row["id"] for row in generated if TASK.answer_problems(row["output"])] == []
    assert [row["id"] for row in generated if checks.strict_violations(row["output"])] == []
    assert [row["id"] for row in generated if TASK.check_case(row["input"])] == []
    assert [row["id"] for row in generated if TASK.parsed(TASK.completion(row["output"])) != row["output"]] == []


def test_every_value_stands_in_the_request(generated):
    lost = [(text, missing) for text, call in calls(generated) if (missing := qod_reader.missing_values(text, call))]
    assert len(calls(generated)) > 700
    assert lost == []


def test_the_reader_notices_what_is_not_there():
    noticed = Counter()
    for text, call in calls(drawn(300)):
        other = call | {"duration": call["duration"] % 86_399 + 1, "sink": "https://elsewhere.invalid/x"}
        other["applicationServer"] = {"ipv4Address": "192.0.2.255"}
        noticed.update(type(one).__name__ for one in qod_reader.missing_values(text, other))
        noticed["calls"] += 1
    assert noticed["str"] == 2 * noticed["calls"]
    assert noticed["int"] > 0.95 * noticed["calls"]


def test_the_first_rule_that_fits_decides(without_slips):
    decided = Counter()
    for row in drawn(3_000):
        text = row["input"]["request"]
        if row["meta"]["language"] != "en" or "error" in row["output"]:
            continue
        rule, letter = letter_of(text)
        if letter:
            assert row["output"]["qosProfile"] == f"QOS_{letter}", text
            decided[rule] += 1
    assert all(decided[rule] > 100 for rule in ("named", "throughput", "latency")), decided


def letter_of(text):
    """(rule, letter) where exactly one profile or rate is named, or latency alone; (None, None) otherwise."""
    named = set(map(str.upper, NAMED.findall(text)))
    if named:
        return "named", named.pop() if len(named) == 1 else None
    if ALONE.search(text):
        return None, None
    rates = [float(number) * (1 if unit.lower() == "k" else 1_000) for number, unit in RATE.findall(text)]
    if len(rates) == 1:
        small = rates[0] <= 500 and LATENCY.search(text)
        return "throughput", "E" if small else "S" if rates[0] <= 4_000 else "M" if rates[0] <= 8_000 else "L"
    return ("latency", "E") if LATENCY.search(text) and not rates else (None, None)


def test_a_use_alone_decides_by_the_table(without_slips):
    uses = Counter()
    for row in drawn(3_000):
        kind = row["meta"]["kind"]
        text = row["input"]["request"]
        if row["meta"]["language"] != "en" or kind not in profiles.PROFILE_OF_USE or "error" in row["output"]:
            continue
        if letter_of(text) == (None, None) and not ALONE.search(text):
            assert row["output"]["qosProfile"] == f"QOS_{profiles.PROFILE_OF_USE[kind]}", text
            uses[kind] += 1
    assert set(uses) == set(profiles.PROFILE_OF_USE)


def test_rows_are_the_same_in_any_portion():
    whole = drawn(40)
    assert drawn(15) + drawn(25, start=15) == whole
    assert drawn(40, seed=42) != whole


def test_an_unknown_pool_is_an_error():
    with pytest.raises(UserError, match="--pool dev: there is train, test, all"):
        drawn(1, pool="dev")


def test_all_draws_from_both_pools():
    texts = " ".join(row["input"]["request"] for row in drawn(60, pool="all"))
    assert "203.0.113." in texts and "192.0.2." in texts


def test_kinds_languages_and_refusals_have_their_shares(generated):
    kinds = Counter(row["meta"]["kind"] for row in generated)
    languages = Counter(row["meta"]["language"] for row in generated)
    assert len(kinds) >= 40 and min(kinds.values()) >= 4
    assert set(languages) == set(wording.LANGUAGES)
    of_pool = wording.LANGUAGES_TO_TRAIN if "-train-" in generated[0]["id"] else wording.LANGUAGES
    assert 100 * languages["en"] / N == pytest.approx(of_pool["en"], abs=5)
    assert 0.17 < len(refusals(generated)) / N < 0.24
    assert {call["qosProfile"] for _, call in calls(generated)} == set(checks.PROFILES)


def test_every_error_of_the_policy_occurs_alone_and_together(generated):
    seen = {(of, name) for error in refusals(generated) for of, names in error.items() for name in names}
    wanted = {("missing", name) for name in ("device", "device.publicPort", "applicationServer", "qosProfile")}
    wanted |= {("conflicting", name) for name in ("device", "applicationServer", "qosProfile", "duration")}
    wanted |= {("invalid", name) for name in checks.NAMES} | {("missing", "duration")}
    assert wanted <= seen
    numbers = Counter(sum(map(len, error.values())) for error in refusals(generated))
    assert numbers[1] > numbers[2] > numbers[3] > 0


def test_all_forms_of_device_and_server_occur(generated):
    devices = {tuple(sorted(call["device"])) for _, call in calls(generated)}
    assert len(devices) >= 6
    ipv4 = {tuple(call["device"]["ipv4Address"]) for _, call in calls(generated) if "ipv4Address" in call["device"]}
    assert ipv4 == {
        ("publicAddress", "publicPort"),
        ("publicAddress", "privateAddress"),
        ("publicAddress", "privateAddress", "publicPort"),
    }
    servers = [one for _, call in calls(generated) for one in call["applicationServer"].values()]
    assert any("/" in one and ":" in one for one in servers) and any("/" in one and "." in one for one in servers)
    keys = Counter(key for _, call in calls(generated) for key in call)
    assert min(keys[key] for key in ("devicePorts", "applicationServerPorts", "sink")) > N / 20


def test_requests_are_short_and_differ(generated):
    texts = [row["input"]["request"] for row in generated]
    assert max(map(len, texts)) <= synthetic.MOST_CHARACTERS
    assert sum(len(text) < 300 for text in texts) > 0.55 * N
    assert len(set(texts)) > 0.98 * N
    assert not re.search("[\x00-\x08{]\\w*}", "".join(texts))


def test_the_pools_share_no_phrase():
    for language in wording.LANGUAGES:
        train, test, validation = (phrases(language, pool) for pool in (*POOLS, wording.VALIDATION))
        assert len(train) > 150 and len(test) > 120 and len(validation) > 120
        assert (train | validation) & test == set(), language


def phrases(language, pool):
    """What says more than a bare value or a single word or two; these no language can say in two ways."""
    found = wording.wordings(language, pool)
    lists = [*(one for key, one in found.items() if key not in WITHOUT_CHOICE), *found["uses"].values()]
    several = [text for one in lists if isinstance(one, list) for text in one]
    return {text.lower() for text in several if len(re.findall(r"[^\W\d_]{2,}", re.sub("{.*?}", "", text))) > 0}


WITHOUT_CHOICE = ("units", "numbers", "megabits", "kilobits", "short_minutes", "short_hours", "named", "v6", "v4_port")


def test_the_pools_share_no_value(both):
    seen = {pool: Counter(one for _, call in calls(rows) for one in kept_apart(call)) for pool, rows in both.items()}
    assert min(map(len, seen.values())) > 1_000
    assert seen["train"].keys() & seen["test"].keys() == set()
    train = values.TRAIN
    test = values.TEST
    assert {code for code, _ in train.countries} & {code for code, _ in test.countries} == set()
    for name in ("documentation", "first_bytes", "hosts", "domains", "hooks", "paths", "people_names", "cities"):
        assert set(getattr(train, name)) & set(getattr(test, name)) == set(), name


def kept_apart(call):
    """Phone number, addresses, networks and sink of a call."""
    device = call["device"]
    yield from (one for one in device.get("ipv4Address", {}).values() if isinstance(one, str))
    yield from (device[key] for key in ("phoneNumber", "ipv6Address") if key in device)
    yield from map(str, map(as_network, call["applicationServer"].values()))
    if "sink" in call:
        yield call["sink"]


def as_network(text):
    return ipaddress.ip_network(text, strict=False)


def test_no_test_request_is_near_a_train_request(both):
    known = {gram for row in both["train"] for gram in grams(row["input"]["request"])}
    shares = []
    for row in both["test"]:
        own = grams(row["input"]["request"])
        if len(own) >= 5:
            shares.append(len(own & known) / len(own))
    assert len(shares) > 700
    assert max(shares) < 0.5
    assert sum(shares) / len(shares) < 0.02
    texts = {pool: {row["input"]["request"].lower() for row in rows} for pool, rows in both.items()}
    assert texts["train"] & texts["test"] == set()


def grams(text):
    """Five words in a row, values left out."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def test_the_sample_shows_the_range():
    rows = list(read_jsonl(TASK.folder / "sample.jsonl"))
    assert len(rows) == 12 == len({row["meta"]["kind"] for row in rows})
    assert len(refusals(rows)) == 3
    assert len({row["meta"]["language"] for row in rows}) >= 4
    assert {call["qosProfile"] for _, call in calls(rows)} == set(checks.PROFILES)
    assert [row["id"] for row in rows if checks.strict_violations(row["output"])] == []
    assert [missing for text, call in calls(rows) if (missing := qod_reader.missing_values(text, call))] == []
