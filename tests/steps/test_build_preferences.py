"""Preference pairs: balanced, of good chosen and known bad answers, nothing of the test rows, the same each time."""

import json
from collections import Counter

import pytest

import build_preferences
from common import read_json, read_jsonl
from support import small_tasks
from support.pipeline import exit_code
from tasks import load_task
from tasks.preferences import failed_checks
from tasks.qod import synthetic, violations
from training import preference_pairs

QOD = load_task("qod")
ROWS = list(synthetic.rows(160, 4))
TEST = list(synthetic.rows(20, 4, recipe=synthetic.Recipe(pool="test")))
FILES = ("preferences.jsonl", "preferences_val.jsonl")
BOOKING = {
    "input": {"request": "Ann Lee wants 2 nights in Oslo."},
    "gold": {"city": "Oslo", "nights": 2, "guest": "Ann Lee"},
}


def written(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def build(tmp_path, capsys):
    """The step on rows of the task qod; its pairs as (training, validation)."""

    def built(*words, rows=ROWS, test=TEST, out="out", code=0):
        train = written(tmp_path / "train.jsonl", rows)
        held = written(tmp_path / "test.jsonl", test)
        given = ["--task", "qod", "--in", train, "--test", held, "--out", tmp_path / out, *words]
        assert exit_code(build_preferences, *given) == code
        built.said = capsys.readouterr()
        return [read_jsonl(tmp_path / out / name) for name in FILES] if code == 0 else None

    built.folder = tmp_path
    return built


def predicted(rows, raws):
    return [
        {"id": row["id"], "input": row["input"], "gold": row["output"], "raw": raw, "seconds": 0.1}
        for row, raw in zip(rows, raws, strict=True)
    ]


def violations_of(pairs):
    return Counter(pair["violation"] for pair in pairs)


def requests(pairs):
    return {pair["input"]["request"] for pair in pairs}


def test_pairs_are_balanced_and_every_answer_is_what_it_is_called(build):
    training, validation = build("--n_pairs", 90)
    pairs = training + validation
    assert (len(training), len(validation)) == (81, 9)
    assert violations_of(pairs) == dict.fromkeys(violations.VIOLATIONS, 5)
    gold = {row["input"]["request"]: row["output"] for row in ROWS}
    for pair in pairs:
        right = gold[pair["input"]["request"]]
        assert pair["chosen"] == QOD.completion(right) and violations.fails(pair["chosen"], right) == []
        failed = violations.fails(pair["rejected"], right)
        assert set(failed) == set(violations.VIOLATIONS[pair["violation"]][1]) and pair["reason"] == ", ".join(failed)
    assert len({pair["id"] for pair in pairs}) == len(requests(pairs)) == 90, "no input twice while there are others"


def test_the_training_on_preferences_reads_them(build):
    for name, pairs in zip(FILES, build("--n_pairs", 40), strict=True):
        read = preference_pairs.read_pairs(build.folder / "out" / name, QOD)
        assert [pair["id"] for pair in read] == [pair["id"] for pair in pairs]


def test_the_manifest_counts_and_names_what_was_read(build):
    training, validation = build("--n_pairs", 60, "--seed", 5)
    facts = read_json(build.folder / "out" / "preferences.manifest.json")
    assert facts["seed"] == 5 and facts["pairs"] == {"preferences.jsonl": 54, "preferences_val.jsonl": 6}
    assert facts["violations"] == {FILES[0]: dict(violations_of(training)), FILES[1]: dict(violations_of(validation))}
    broken = sum(pair["reason"] == "json" for pair in training + validation)
    assert facts["rejected_no_json_pct"] == round(100 * broken / 60, 2) <= 30
    assert len(facts["test_sha256"]) == 1 and len(facts["sha256"]) == 2


def test_the_seed_decides(build):
    texts = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        build("--n_pairs", 30, "--seed", seed, out=out)
        texts.append([(build.folder / out / name).read_bytes() for name in FILES])
    assert texts[0] == texts[1] != texts[2]


def test_no_input_of_the_test_rows_and_none_that_is_nearly_one_comes_out(build):
    rows = ROWS[:30]
    slip = ROWS[1]["input"]["request"] + "!"
    test = [*TEST, ROWS[0], ROWS[1] | {"id": "slip", "input": {"request": slip}}]
    before = requests(sum(build("--n_pairs", 1_000, rows=rows), []))
    after = requests(sum(build("--n_pairs", 1_000, rows=rows, test=test), []))
    assert before - after == {ROWS[0]["input"]["request"], ROWS[1]["input"]["request"]}
    assert "left out, in the test rows or nearly: 2 inputs" in build.said.out
    assert requests(sum(build("--n_pairs", 1_000, "--no_test", rows=rows, test=test), [])) == before


def test_near_duplicates_stay_in_one_file(build):
    twins = [row | {"id": f"{row['id']}-twin", "input": {"request": row["input"]["request"] + " !"}} for row in ROWS]
    training, validation = map(requests, build("--n_pairs", 300, "--val_share", 0.5, rows=[*ROWS, *twins]))
    assert len(training) > 50 and len(validation) > 50
    assert {one.removesuffix(" !") for one in training} & {one.removesuffix(" !") for one in validation} == set()


def test_where_rows_are_few_inputs_come_again_with_other_faults(build):
    training, validation = build("--n_pairs", 60, rows=ROWS[:8])
    pairs = training + validation
    assert len(pairs) == 60 and requests(training) & requests(validation) == set()
    assert len({(pair["input"]["request"], pair["violation"]) for pair in pairs}) == 60
    most, *_, least = [n for _, n in Counter(pair["input"]["request"] for pair in pairs).most_common()]
    assert most - least <= 6


def test_more_pairs_than_there_can_be_is_said(build):
    assert len(sum(build("--n_pairs", 5_000, rows=ROWS[:6]), [])) < 6 * len(violations.VIOLATIONS)
    assert "5,000 pairs were asked for" in build.said.out


# ---- what a model wrote


def sampled():
    """For each row: the gold answer, one with a wrong duration, no JSON."""
    calls = [row for row in ROWS if "error" not in row["output"]][:40]
    gold = [QOD.completion(row["output"]) for row in calls]
    wrong = [QOD.completion(row["output"] | {"duration": 77}) for row in calls]
    return [predicted(calls, raws) for raws in (gold, wrong, ["Sure!"] * 40, [" "] * 40)]


def test_answers_that_fail_a_check_become_rejected_ones(build):
    right, wrong, broken, empty = sampled()
    files = [written(build.folder / "1.jsonl", [*right, *wrong, *empty]), written(build.folder / "2.jsonl", broken)]
    pairs = sum(build("--n_pairs", 40, "--predictions", *files), [])
    own = [pair for pair in pairs if pair["violation"] == "on_policy"]
    assert len(pairs) == 40 and len(own) == 20
    assert {pair["reason"] for pair in own} == {"value.duration", "json"}
    assert sum(pair["reason"] == "json" for pair in own) <= 6, "texts that are no JSON are at most 30 %"
    gold = {row["input"]["request"]: row["gold"] for row in right}
    assert all(pair["chosen"] == QOD.completion(gold[pair["input"]["request"]]) for pair in own)
    facts = read_json(build.folder / "out" / "preferences.manifest.json")
    assert facts["on_policy_failed"] == dict(Counter(pair["reason"] for pair in own).most_common())


def test_the_share_of_a_models_own_answers_is_an_option_and_none_comes_twice(build):
    _, wrong, *_ = sampled()
    path = written(build.folder / "p.jsonl", wrong + wrong)
    for share, n_own, n in ((0, 0, 60), (0.25, 15, 60), (1, 40, 40)):
        pairs = sum(build("--n_pairs", 60, "--predictions", path, "--on_policy_share", share), [])
        assert (violations_of(pairs)["on_policy"], len(pairs)) == (n_own, n)
        assert len({(pair["input"]["request"], pair["rejected"]) for pair in pairs}) == len(pairs)


def test_answers_to_test_rows_are_left_out(build):
    answers = predicted(TEST, [QOD.completion({"error": {"missing": ["sink"], "conflicting": [], "invalid": []}})] * 20)
    path = written(build.folder / "p.jsonl", answers)
    assert violations_of(sum(build("--n_pairs", 20, "--predictions", path), []))["on_policy"] == 0
    assert "left out, in the test rows or nearly: 20 inputs" in build.said.out


def test_a_task_without_checks_of_its_own_compares_answers(tmp_path, monkeypatch, capsys):
    booking = small_tasks.loaded(monkeypatch, "booking")
    gold = BOOKING["gold"]
    rows = [{"id": str(n), "input": {"request": f"Guest {n} wants {n} nights"}, "output": gold} for n in range(1, 9)]
    right = json.dumps(gold)
    raws = [right, json.dumps(gold | {"nights": 3}), "two nights"] * 3
    train = written(tmp_path / "train.jsonl", rows)
    answers = written(tmp_path / "p.jsonl", predicted(rows, raws[:8]))
    words = ["--task", "booking", "--in", train, "--no_test", "--out", tmp_path, "--predictions", answers]
    assert exit_code(build_preferences, *words, "--on_policy_share", 0.5) == 2
    assert "--on_policy_share 0.5: the task booking makes no wrong answers itself" in capsys.readouterr().err
    assert exit_code(build_preferences, *words) == 0
    pairs = [pair for name in FILES for pair in preference_pairs.read_pairs(tmp_path / name, booking)]
    failed = Counter(pair["reason"] for name in FILES for pair in read_jsonl(tmp_path / name))
    assert failed == {"other": 3, "unparsed": 1} and len(pairs) == 4


def test_of_a_verdict_the_label_counts_and_not_its_sentence():
    crm = load_task("crm")
    label, other, *_ = crm.verdict.labels
    gold = {crm.verdict.key: label, crm.verdict.reason: "Clear."}
    found = [
        failed_checks(crm, crm.completion(gold | {crm.verdict.key: one, crm.verdict.reason: "Another sentence."}), gold)
        for one in (label, other)
    ]
    assert found == [[], ["verdict"]]


# ---- what stops the run


def test_a_chosen_answer_that_fails_a_check_is_a_wrong_line(build):
    call = next(row for row in ROWS if "sink" in row["output"])
    wrong = call | {"id": "w", "output": call["output"] | {"sink": "http://a.example/b"}}
    assert QOD.answer_problems(wrong["output"]) == [], "the answer's schema alone lets it pass"
    build(rows=[*ROWS, wrong], code=2)
    assert "train.jsonl:161: 'output' fails official.pattern" in build.said.err
    path = written(build.folder / "p.jsonl", predicted([call, wrong], ["x", "y"]))
    build("--predictions", path, code=2)
    assert "p.jsonl:2: 'gold' fails official.pattern" in build.said.err
    assert not (build.folder / "out").exists()


def test_a_violation_that_fails_another_check_stops_the_run(build, monkeypatch):
    make, _ = violations.VIOLATIONS["missing_field"]
    monkeypatch.setitem(violations.VIOLATIONS, "missing_field", (make, ("json",)))
    build(code=1)
    assert "missing_field of the row qod-train-4" in build.said.err
    assert "fails required and should fail json" in build.said.err


WRONG = {
    "pairs": (["--n_pairs", "1"], "--n_pairs 1: at least 2"),
    "share": (["--on_policy_share", "1.5"], "--on_policy_share 1.5: a share from 0 to 1"),
    "validation": (["--val_share", "1"], "--val_share 1.0: a share between 0 and 1"),
    "no answers": (["--on_policy_share", "0.5"], "name them with --predictions"),
    "no such answers": (["--predictions", "nowhere.jsonl"], "nowhere.jsonl: no such file; src/predict.py writes it"),
    "rows": (["--in", "nowhere.jsonl"], "nowhere.jsonl: no such file; "),
    "test rows": (["--test", "nowhere.jsonl"], "nowhere.jsonl: no such file, so nobody knows which requests must stay"),
    "task": (["--task", "crm", "--no_test"], "--task crm: it makes no wrong answers"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_what_a_user_gets_wrong_is_said_in_one_sentence(build, words, said):
    build(*words, code=2)
    assert said in build.said.err and build.said.err.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["[]", "no", '{"input": {"request": "x"}, "raw": "y"}', '{"input": 1, "gold": 2, "raw": 3}']
)
def test_a_wrong_line_of_answers_is_named(build, line):
    path = build.folder / "p.jsonl"
    path.write_text(json.dumps(predicted(ROWS[:1], ["x"])[0]) + "\n\n" + line + "\n")
    build("--predictions", path, code=2)
    assert f"{path}:3: " in build.said.err and "Traceback" not in build.said.err


def test_one_input_alone_cannot_be_split(build):
    build(rows=ROWS[:1], code=2)
    assert "of 1 input came out" in build.said.err


def test_earlier_pairs_stay_where_the_run_stops(build):
    first = build("--n_pairs", 20)
    build("--n_pairs", 20, rows=[{"input": {}, "output": {}}], code=2)
    assert [read_jsonl(build.folder / "out" / name) for name in FILES] == first
    assert (build.folder / "out" / "preferences.manifest.json").is_file()
