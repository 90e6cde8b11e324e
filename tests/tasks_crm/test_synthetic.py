"""The generator: the same rows everywhere, two pools that share nothing, labels by the policy, true sentences, and the
variety that it promises.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from common import UserError, sha256_file, to_json
from tasks import load_task, synthesis
from tasks.crm import data, entities, fields, kpis, policy, pools, schemas, surfaces, synthetic

ROOT = Path(__file__).resolve().parents[2]
TASK = load_task()
N = 2_000
SHIPPED = ROOT / "models" / "steward-mini"
CLAIM = re.compile(r"answer|duplicate|no[ _]match|merge|not a match|other record", re.I)
NUMBERED_KEY = re.compile(r"(?:Attribute_|col|field_|c|Spalte |value|f)\d+")


def drawn(n=N, seed=31, **recipe):
    return list(synthetic.rows(n, seed, recipe=synthetic.Recipe(**recipe)))


def texts(rows):
    return [to_json(row) for row in rows]


@pytest.fixture(scope="module")
def generated():
    return drawn()


@pytest.fixture(scope="module")
def judged():
    """Of each row what the label was made from: relations, rarity, points, groups, contradiction, truth, label."""
    found = []
    weigh = policy.weigh
    verdict = policy.verdict

    def noted_weigh(relations, rarity, shared_mailbox):
        found.append({"relations": relations, "rarity": rarity})
        return weigh(relations, rarity, shared_mailbox)

    def noted_verdict(points, groups, contradicted, same):
        label = verdict(points, groups, contradicted, same)
        found[-1] |= {"points": points, "groups": groups, "contradicted": contradicted, "same": same}
        return label

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "weigh", noted_weigh)
        patch.setattr(policy, "verdict", noted_verdict)
        labels = [synthetic.pair(31, at, synthetic.Recipe())[0] for at in range(2 * N)]
    for row, label in zip(found, labels, strict=True):
        row["label"] = label
    return found


def records(rows):
    return [record for row in rows for record in row["input"].values()]


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


# ---- the same rows everywhere


def test_blocks_are_the_whole_and_another_seed_or_pool_is_another_set(generated):
    blocks = [
        row for start, n in ((0, 7), (7, 1), (8, 192)) for row in synthetic.rows(n, 31, start, synthetic.Recipe())
    ]
    assert texts(blocks) == texts(generated[:200])
    assert texts(drawn(20, 32)) != texts(generated[:20]) != texts(drawn(20, pool="test"))
    assert len({row["id"] for row in generated}) == N


def test_other_pools_drawn_before_do_not_change_the_rows(generated):
    drawn(20, 5, pool="test"), drawn(20, 5, pool="all")
    assert texts(drawn(50)) == texts(generated[:50])


def call(*options, cwd=ROOT, **variables):
    script = ROOT / "src" / "synthesize.py"
    return subprocess.run(
        [sys.executable, script, *map(str, options)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )


def test_bytes_depend_neither_on_hash_seed_nor_on_cores(tmp_path):
    """2,300 rows are two blocks: on two processes in one run, and drawn here in one go."""
    sums = set()
    for hash_seed in ("1", "77"):
        done = call("--rows", 2_300, "--seed", 31, "--out", tmp_path / f"{hash_seed}.jsonl", PYTHONHASHSEED=hash_seed)
        assert done.returncode == 0, done.stderr
        sums.add(sha256_file(tmp_path / f"{hash_seed}.jsonl"))
    assert len(sums) == 1
    lines = (tmp_path / "1.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == drawn(2_300)


# ---- the script


def names_folder(folder):
    """Two small lists as the reference folder holds them, below a folder of their own."""
    (folder / "names").mkdir(parents=True)
    forenames, surnames = pools.REFERENCE_LISTS.values()
    first = "".join(f"US,{'FM'[n % 2]},,Forename{n}\n" for n in range(40))
    (folder / "names" / forenames).write_text(
        f"Country,Gender,Localized Name,Romanized Name\n{first}", encoding="utf-8-sig"
    )
    last = "".join(f"US,,Surname{n}\n" for n in range(40))
    (folder / "names" / surnames).write_text(f"Country,Localized Name,Romanized Name\n{last}", encoding="utf-8-sig")
    return folder


def test_the_manifest_says_pool_and_reference_and_the_lists_are_used(tmp_path):
    done = call(
        "--rows", 60, "--out", tmp_path / "s.jsonl", "--pool", "test", "--reference", names_folder(tmp_path / "lists")
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "s.jsonl.manifest.json").read_text())
    assert (facts["pool"], facts["reference"], facts["rows"], facts["task"]) == ("test", "lists", 60, "crm")
    assert facts["lists"].keys() == {f"names/{name}" for name in pools.REFERENCE_LISTS.values()}
    assert str(tmp_path) not in json.dumps(facts)
    assert re.search(r"60 pairs in .*: [\d,]+ pairs/s on 1 core, [\d,]+ a core", done.stdout)
    rows = drawn(60, 1, pool="test", reference=str(tmp_path / "lists"))
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").split("\n")[:-1]] == rows
    assert pools.reference_names(str(tmp_path / "lists"), "en_US")["last"][0] == "Surname0", (
        "the lists that the script looks for are those that the pools read"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rows", "0"), ("--rows 0", "at least 1")),
        (("--rows", "-3"), ("--rows -3", "at least 1")),
        (("--rows", "3", "--pool", "tset"), ("--pool tset", "train, test, all")),
        (("--rows", "3", "--reference", "nowhere"), ("--reference nowhere", "no such folder")),
        (("--rows", "3", "--reference", "."), ("--reference .", *pools.REFERENCE_LISTS.values())),
        (("--rows", "3", "--task", "crn"), ("no task 'crn'", "crm")),
    ],
)
def test_what_is_wrong_with_a_call_is_said_before_any_work(options, words, tmp_path):
    done = call(*options, "--out", tmp_path / "s.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and all(word in done.stderr for word in words), (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_the_default_recipe_is_the_training_pool(tmp_path, capsys):
    synthesis.make("crm", 5, 31, tmp_path / "s.jsonl")
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()] == drawn(
        5, pool="train"
    )
    with pytest.raises(UserError, match="--pool"):
        synthesis.make("crm", 5, 31, tmp_path / "s.jsonl", pool="nothing")


# ---- two pools


def people_and_firms(pool, n, seed):
    recipe = synthetic.Recipe(pool=pool)
    return [synthetic.first_side(random.Random(f"{seed}:{at}"), recipe)[0].entity for at in range(n)]


@pytest.fixture(scope="module")
def by_pool():
    return {pool: people_and_firms(pool, n, 5) for pool, n in (("train", 4_000), ("test", 1_500))}


def values(found, field):
    read = (lambda entity: entity["street"][0]) if field == "street" else lambda entity: entity.get(field)
    return [value for value in map(read, found) if value]


@pytest.mark.parametrize(
    ("field", "most"), [("city", 0.005), ("birthplace", 0.005), ("street", 0.01), ("last", 0.03), ("first", 0.05)]
)
def test_what_is_tested_was_not_drawn_in_training(by_pool, field, most):
    """The few that both pools show: made-up names that meet by chance, and countries whose list is too short to cut in
    two.
    """
    train = set(values(by_pool["train"], field))
    test = values(by_pool["test"], field)
    assert len(train) > 500 and len(test) > 500
    assert share(value in train for value in test) < most
    again = values(people_and_firms("train", 1_500, 6), field)
    assert share(value in train for value in again) > 5 * most, "measured alike, training values do come back"


def test_words_and_lists_are_cut_in_two_and_all_is_both():
    train, test, everything = (pools.pools(pool) for pool in pools.POOLS)
    assert not set(train.words.values) & set(test.words.values)
    assert set(train.words.values) | set(test.words.values) == set(everything.words.values)
    countries = [(train.country(locale), test.country(locale)) for locale in pools.LOCALES]
    parts = ("women", "men", "last", "cities", "streets")
    both = [
        (one.locale, part)
        for one, other in countries
        for part in parts
        if set(getattr(one, part).values) & set(getattr(other, part).values)
    ]
    assert both == [] and all(getattr(country, part).values for pair in countries for country in pair for part in parts)
    assert {value for value in pools.ORG_WORDS if pools.in_pool(value, "test")} <= set(test.words.values)


# ---- labels


def test_classes_have_sane_shares(generated):
    said = Counter(row["output"]["result"] for row in generated)
    assert (
        0.2 < said["DUPLICATE"] / N < 0.45 and 0.12 < said["POSSIBLE"] / N < 0.35 and 0.35 < said["NO_MATCH"] / N < 0.6
    )


def test_labels_follow_the_policy(judged):
    for row in judged:
        if row["label"] == "DUPLICATE":
            assert (
                row["same"]
                and not row["contradicted"]
                and row["groups"] > 1
                and row["points"] >= policy.DUPLICATE_FROM - policy.BORDER
            )
        if row["label"] == "NO_MATCH":
            assert row["points"] < policy.NO_MATCH_BELOW + policy.BORDER and (
                not row["same"] or row["contradicted"] or row["points"] < policy.DOUBTED_FROM
            )
    assert 0.35 < share(row["same"] for row in judged) < 0.55
    assert len({row["label"] for row in judged}) == 3


def test_most_labels_are_those_of_somebody_who_only_sees_the_records(judged):
    """What only the truth decides cannot be learnt; beyond the border it must stay rare."""

    def alone(row):
        if row["points"] >= policy.DUPLICATE_FROM:
            return "DUPLICATE" if row["groups"] > 1 and not row["contradicted"] else "POSSIBLE"
        return "NO_MATCH" if row["points"] < policy.NO_MATCH_BELOW else "POSSIBLE"

    def at_a_border(row):
        return (
            min(abs(row["points"] - policy.DUPLICATE_FROM), abs(row["points"] - policy.NO_MATCH_BELOW)) <= policy.BORDER
        )

    assert share(alone(row) != row["label"] for row in judged) < 0.2
    assert share(alone(row) != row["label"] for row in judged if not at_a_border(row)) < 0.1


def chosen(judged, **bounds):
    """Rows whose fields agree at least, or at most, so far."""
    return [
        row
        for row in judged
        if all(
            field in row["relations"]
            and (row["relations"][field] >= bound if bound > 0 else row["relations"][field] <= bound)
            for field, bound in bounds.items()
        )
    ]


def test_hard_kinds_appear_and_are_labelled_with_care(judged):
    household = chosen(judged, last=0.6, street=0.6, first=-0.9)
    assert len(household) >= 5 and all(row["label"] != "DUPLICATE" or row["same"] for row in household)
    assert share(row["label"] == "DUPLICATE" for row in household) < 0.2
    namesakes = [row for row in chosen(judged, first=0.6, last=0.6) if not row["same"]]
    assert len(namesakes) >= 20 and all(row["label"] != "DUPLICATE" for row in namesakes)
    assert any(row["relations"].get("birth", 0) < -0.9 for row in namesakes) and any(
        "birth" not in row["relations"] for row in namesakes
    )
    branches = [row for row in chosen(judged, org=0.6, street=-0.5) if not row["same"]]
    assert len(branches) >= 5 and all(row["label"] != "DUPLICATE" for row in branches)
    moved = [row for row in chosen(judged, street=-0.5, first=0.3, last=0.3) if row["same"]]
    assert len(moved) >= 10 and any(row["label"] == "DUPLICATE" for row in moved)
    moved_firms = [row for row in chosen(judged, org=0.6, street=-0.5) if row["same"]]
    assert len(moved_firms) >= 5 and all(row["label"] == "POSSIBLE" for row in moved_firms)
    twins = [row for row in chosen(judged, last=0.6, birth=0.9, first=-0.9) if not row["same"]]
    assert twins and all(row["label"] != "DUPLICATE" for row in twins)


def test_generations_of_one_name_and_shared_mailboxes_are_drawn():
    rng = random.Random(3)
    country = pools.pools("train").country("en_US")
    pairs = [
        (person, entities.other_person(person, rng, country))
        for person in (entities.person(rng, country) for _ in range(3_000))
    ]
    one_name = [
        (a, b)
        for a, b in pairs
        if b["birth"][0] - a["birth"][0] >= entities.FAMILY_GAP[0]
        and all(a[field] == b[field] for field in ("first", "last", "street"))
    ]
    assert 0.03 < len(one_name) / len(pairs) < 0.12 and any(b["suffix"] == "Jr" for _, b in one_name)
    assert sum(entities.is_shared(a["email"]) and a["email"] == b["email"] for a, b in pairs) > 3
    surnames = [(a["last"], b["last"]) for a, b in pairs]
    assert (
        sum(one != other and one[:1] == other[:1] and abs(len(one) - len(other)) <= 2 for one, other in surnames) > 100
    ), "names alike to the eye"
    one_phone = [(a, b) for a, b in pairs if a["phone"] == b["phone"]]
    assert one_phone and all(a["street"] == b["street"] or a["company"] == b["company"] for a, b in one_phone), (
        "nobody shares a telephone for nothing"
    )


def test_common_names_are_drawn_more_often_and_count_less():
    rng = random.Random(1)
    last = pools.pools("train").country("en_US").last
    ranked = sorted(last.values, key=lambda name: last.rarity[name])
    times = Counter(last.pick(rng) for _ in range(20_000))
    tenth = len(ranked) // 10
    assert sum(times[name] for name in ranked[:tenth]) > 5 * sum(times[name] for name in ranked[-tenth:])
    assert last.rarity[ranked[0]] < 2.5 < last.rarity[ranked[-1]]
    person = {"type": "person", "gender": "F", "first": "Xqzzt", "last": "Xqzzt"}
    common = person | {"last": ranked[0]}
    rarity = [
        synthetic.rarity(one, pools.pools("train").country("en_US"), synthetic.Recipe())["last"]
        for one in (common, person)
    ]
    assert rarity[0] < rarity[1]
    flat = synthetic.Recipe(frequency=False)
    assert synthetic.rarity(common, None, flat) == synthetic.rarity(person, None, flat)


# ---- sentences


def test_every_sentence_is_true_short_and_without_sides(generated):
    made = 0
    for row in generated:
        sentence = row["output"]["reasoning"]
        found = kpis.score(row, row["output"])
        assert found["true"] == found["statements"] and found["invented"] == 0, row
        assert 0 < len(sentence) <= 320 and not data.SIDES.search(sentence), row
        made += found["statements"]
    assert made > 3 * N


def test_answers_fit_the_token_budget_and_most_are_far_shorter(generated):
    """Of 64 tokens one ends the answer; nearly all need 45 at most."""
    answers = [TASK.completion(row["output"]) for row in generated]
    if (SHIPPED / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
        lengths = [len(item.ids) for item in tokenizer.encode_batch(answers, add_special_tokens=False)]
    else:
        lengths = [1.5 * len(re.findall(r"\w+", row["output"]["reasoning"])) for row in generated]
    assert max(lengths) <= 63 and share(length <= 45 for length in lengths) > 0.97


def test_remarks_reach_neither_the_evidence_nor_the_sentence(generated):
    seen = 0
    for row in generated:
        notes = {
            value
            for record in row["input"].values()
            for key, value in fields.flat(record)
            if fields.kind_of(key) is None
        }
        seen += bool(notes)
        held = {side for item in fields.evidence(row["input"]) for side in (item.left, item.right)}
        assert not notes & held, row
    assert seen > N * 0.01


@pytest.mark.parametrize("name", [name for names in schemas.NOISE_NAMES.values() for name in names.split("|")])
def test_every_name_of_a_remark_is_ignored_however_it_is_written(name):
    for write in schemas.WRITINGS:
        assert fields.kind_of(write(name)) is None
        for whose in ("contact", "customer", "billing", "primary"):
            assert fields.kind_of(write(f"{whose} {name}")) is None


def test_free_text_rows_have_the_same_pairs_and_labels(generated):
    other = drawn(100, free_text=True)
    assert [(row["input"], row["output"]["result"]) for row in other] == [
        (row["input"], row["output"]["result"]) for row in generated[:100]
    ]
    assert all(a["output"]["reasoning"] != b["output"]["reasoning"] for a, b in zip(other, generated, strict=False))


# ---- variety


def test_the_promised_variety_is_there(generated):
    found = records(generated)
    keys = [list(record) for record in found]
    held = [[value for _, value in fields.flat(record)] for record in found]
    shares = {
        "anonymous keys": (share(any(NUMBERED_KEY.fullmatch(key) for key in names) for names in keys), 0.04),
        "nested": (share(any(isinstance(value, dict) for value in record.values()) for record in found), 0.05),
        "lists": (share(any(isinstance(value, list) for value in record.values()) for record in found), 0.01),
        "placeholders": (share(any(value.strip().lower() in fields.NOTHING for value in some) for some in held), 0.05),
        "not Latin": (
            share(any(not kpis._latin(c) for value in some for c in value if c.isalpha()) for some in held),
            0.03,
        ),
        "remarks": (
            share(any(fields.kind_of(key) is None for key, _ in fields.flat(record)) for record in found),
            0.01,
        ),
        "instructions": (share(any(CLAIM.search(value) for value in some) for some in held), 0.003),
        "fields on one side": (
            share(any(item.relation.endswith("_only") for item in fields.evidence(row["input"])) for row in generated),
            0.3,
        ),
        "two systems": (
            share(row["input"]["record1"].keys() != row["input"]["record2"].keys() for row in generated),
            0.3,
        ),
        "organisations": (share(kpis.slices(row["input"])["subject"] == "organisation" for row in generated), 0.15),
    }
    assert {name: value for name, (value, least) in shares.items() if value < least} == {}
    assert share(not record for record in found) < 0.01
    assert len({key for names in keys for key in names}) > 300


def test_without_variety_there_are_few_plain_schemas():
    found = records(drawn(300, variety=False))
    assert len({key for record in found for key in record}) < 60 and not any(
        isinstance(value, dict | list) for record in found for value in record.values()
    )


def test_a_repeated_subject_stands_in_two_rows(generated):
    pairs = [
        (generated[at - 1], generated[at]) for at in range(synthetic.REPEATED_EVERY - 1, N, synthetic.REPEATED_EVERY)
    ]
    assert len(pairs) == N // synthetic.REPEATED_EVERY and all(
        a["input"]["record1"] == b["input"]["record1"] for a, b in pairs
    )
    assert share(a["input"]["record2"] != b["input"]["record2"] for a, b in pairs) > 0.95


def test_every_schema_renders_every_field_it_shows():
    """Each of a thousand schemas: every visible field's text arrives in the record, whatever the keys."""
    rng = random.Random(2)
    country = pools.pools("train").country("de_DE")
    for kind, make in (("person", entities.person), ("org", entities.organisation)):
        for number in range(500):
            layout = schemas.schema(kind, number)
            text = surfaces.written(make(rng, country), schemas.Style(locale=country.locale, **layout.style), rng) | {
                "note": "remark"
            }
            record = schemas.record(layout, text)
            shown = " ".join(value for _, value in fields.flat(record))
            lost = [field for field in layout.visible if text.get(field) and text[field] not in shown]
            assert lost == [], (kind, number, layout.slots, record)


def test_no_text_is_broken_and_no_key_repeats(generated):
    for row in generated:
        line = json.dumps(row, ensure_ascii=False)
        line.encode("utf-8")
        assert json.loads(line, object_pairs_hook=without_repeats) == row
        assert all(key.strip() for record in row["input"].values() for key, _ in fields.flat(record))


def without_repeats(pairs):
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


ALL_SLIPS = {slip.__name__: slip for some in (*surfaces.SLIPS.values(), surfaces.GENERAL) for slip, _ in some}


@pytest.mark.parametrize("slip", ALL_SLIPS.values(), ids=ALL_SLIPS)
def test_no_slip_breaks_on_odd_text(slip):
    rng = random.Random(4)
    names = {field for field, some in surfaces.SLIPS.items() if slip in [one for one, _ in some]} or {"city"}
    for field in sorted(names):
        for value in (
            "a",
            "ß",
            "Ab",
            "佐藤",
            "1",
            "12",
            "a b",
            "& and",
            "O'Neil-Smith  Jr",
            "1990-01-01",
            "19900101",
            "1.1.1990",
            "x" * 60,
            "-",
        ):
            for _ in range(20):
                text = {
                    "first": "Ann",
                    "last": "Lee",
                    "middle": "",
                    "city": "Rome",
                    "unit": "",
                    "street": "Via 1",
                    "state": "",
                } | {field: value}
                slip(text, field, rng)
                assert all(isinstance(item, str) for item in text.values())
                "".join(text.values()).encode("utf-8")


def test_pairs_are_made_quickly():
    drawn(50)
    start = time.process_time()
    drawn(500, 8)
    assert 500 / (time.process_time() - start) > 60, "several hundred a second and core on any machine of today"


# ---- what a prompt shows


def shuffled(value, rng):
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return value


def test_neither_the_order_of_the_records_nor_of_their_keys_reaches_the_prompt(generated):
    rng = random.Random(1)
    prompts = defaultdict(set)
    for row in generated[:400]:
        case = row["input"]
        for variant in (case, data.swap(case), shuffled(case, rng), data.swap(shuffled(case, rng))):
            prompts[row["id"]].add(to_json(TASK.messages(variant)))
    assert {len(found) for found in prompts.values()} == {1}


def test_canonical_changes_no_value_and_is_its_own_fixed_point(generated):
    for row in generated[:400]:
        case = data.canonical(row["input"])
        assert list(case) == ["record1", "record2"] and json.dumps(data.canonical(case)) == json.dumps(case)
        before, after = (
            sorted(json.dumps(record, sort_keys=True) for record in one.values()) for one in (row["input"], case)
        )
        assert before == after
    odd = {"record1": {"b": [{"z": 1, "a": None}], "a": True}, "record2": {}}
    assert json.dumps(data.canonical(odd)) == '{"record1": {"a": true, "b": [{"a": null, "z": 1}]}, "record2": {}}'
    assert data.canonical({"record1": {}}) == {"record1": {}}, "an incomplete case is for the checks to refuse"
