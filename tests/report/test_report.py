"""The report says what was measured, why a cell is empty, and lets neither records nor people's own text break."""

import copy
import csv
import json
import re

import pytest

import make_report
from common import UserError
from report import wrong_answers
from support.reporting import COLUMNS, HOSTILE, Bench, Elements, damaged, places, scored


@pytest.fixture(scope="module")
def good_and_bad():
    return scored(2), scored(9), scored(2, raw=False)


@pytest.fixture
def bench(tmp_path, monkeypatch, good_and_bad):
    return Bench(tmp_path, monkeypatch, good_and_bad)


def test_table_has_the_plans_columns_and_the_measured_values(bench):
    bench.put("phi4mini", bench.good)
    bench.make()
    assert bench.table()[0] == COLUMNS
    assert bench.row("Title phi4mini")[1:3] == ["some/phi4mini", f"{22 / 24:.3f}"]
    assert re.search(
        r"0\.917<span class=\"small\">0\.\d{3} to [01]\.\d{3}</span><span class=\"small\">n = 24<",
        bench.text("index.html"),
    )


def test_nothing_measured_says_not_run_everywhere_with_the_reason(bench):
    bench.make()
    rows = bench.table()[2:]
    assert [row[0] for row in rows] == ["Title mistral7b", "Title phi4mini"]
    assert all(re.fullmatch(r"not run \[\d]", cell) for row in rows for cell in row[2:])
    block = bench.text("model_comparison.md")
    assert "Nothing has been measured yet" in block
    for text in (block, bench.text("index.html")):
        assert re.search(r"phi4mini: no \S*phi4mini_metrics.json; run make kpi-phi4mini", text)
        assert "the benchmark has not run" in text


def test_standin_appears_only_when_measured(bench):
    bench.put("standin", bench.good)
    bench.make()
    assert bench.row("Title standin")[2] == f"{22 / 24:.3f}"


def test_models_then_baselines_then_what_has_not_run(bench):
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.put("phi4mini", bench.good)
    bench.make()
    rows = bench.table()[-3:]
    assert [row[0] for row in rows[:2]] == ["Title phi4mini", "Title baseline_boosting"] and rows[2][2].startswith(
        "not run"
    )
    assert re.fullmatch(r"n/a \[\d]", rows[1][COLUMNS.index("JSON Valid %")])
    assert re.fullmatch(r"0\.\d{3}", rows[1][COLUMNS.index("Macro-F1")])


def test_loses_to_boosting_only_when_it_does(bench):
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.put("phi4mini", bench.bad)
    bench.make()
    for name in ("model_comparison.md", "index.html"):
        assert "Title phi4mini loses to gradient boosting" in bench.text(name)
    bench.put("phi4mini", bench.good)
    bench.make()
    for name in ("model_comparison.md", "index.html"):
        assert "loses to gradient boosting" not in bench.text(name)


def test_other_data_is_reported_and_not_compared(bench):
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.put("phi4mini", bench.bad, sha256="b" * 64)
    bench.make()
    for name in ("model_comparison.md", "index.html"):
        text = bench.text(name)
        assert "Different data" in text
        assert "bbbbbbbbbbbb" in text
        assert "loses to gradient boosting" not in text
        assert "No baseline beside it" in text


def test_same_real_data_raises_no_such_warning(bench):
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.put("phi4mini", bench.good)
    bench.make()
    assert not re.search("Different data|Synthetic data|No baseline", bench.text("model_comparison.md"))


def test_synthetic_data_is_reported(bench):
    bench.put("phi4mini", bench.good, synthetic=True)
    bench.make()
    for name in ("model_comparison.md", "index.html"):
        assert "Synthetic data" in bench.text(name)


def test_memory_and_quantisation_come_from_the_metrics(bench):
    training = {"method": "qlora", "precision": "bfloat16", "peak_gpu_memory_mib": 14321.0}
    bench.put("phi4mini", bench.good, training=training, predicted={"peak_gpu_memory_mib": 8123.0})
    bench.make()
    for text in ("14,321 MiB", "8,123 MiB", "NF4 (QLoRA)", "not measured (only bfloat16 was run)"):
        assert text in bench.text("model_comparison.md")
    bench.put("phi4mini_4bit", bench.bad, model="phi4mini", precision="nf4")
    bench.make()
    assert re.search(r"macro-F1 \+0\.\d{3} against nf4", bench.text("model_comparison.md"))


def test_own_text_survives_byte_for_byte(bench):
    path = bench.reports / "model_comparison.md"
    before = "\ufeff# Mine\r\n\r\nté | <b>\t \r\n".encode()
    after = b"  \n\nbelow, no newline at the end"
    path.write_bytes(before + b"<!-- steward:begin old note -->stale<!-- steward:end -->" + after)
    bench.put("phi4mini", bench.good)
    bench.make()
    once = path.read_bytes()
    assert once.startswith(before + b"<!-- steward:begin")
    assert once.endswith(b"<!-- steward:end -->" + after)
    assert b"stale" not in once
    bench.make()
    assert path.read_bytes() == once


def test_block_is_appended_to_a_file_without_markers(bench):
    path = bench.reports / "model_comparison.md"
    path.write_bytes(b"only mine\r\n")
    bench.make()
    assert path.read_bytes().startswith(b"only mine\r\n\n<!-- steward:begin")


@pytest.mark.parametrize(
    "text",
    [
        "a <!-- steward:begin --> b",
        "a <!-- steward:end --> b",
        "<!-- steward:end --> x <!-- steward:begin -->",
        "<!-- steward:begin --><!-- steward:begin --><!-- steward:end -->",
        "<!-- steward:begin --><!-- steward:end --><!-- steward:end -->",
        "<!-- steward:begin <!-- steward:end -->",
    ],
)
def test_broken_markers_are_refused_and_nothing_is_written(bench, text):
    path = bench.reports / "model_comparison.md"
    path.write_text(text)
    with pytest.raises(UserError, match="model_comparison.md.*steward:begin"):
        bench.make()
    assert [file.name for file in bench.reports.iterdir()] == ["model_comparison.md"]
    assert path.read_text() == text


def test_hostile_records_stay_data(bench):
    bench.make()
    empty = Elements(bench.text("index.html"))
    bench.put("phi4mini", bench.good)
    bench.make()
    page = bench.text("index.html")
    found = Elements(page)
    assert len(found.tags("script")) == len(empty.tags("script")) == 2
    assert not found.tags("img")
    assert "<img" not in page
    assert "\u2028" not in page
    payload = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S).group(1))
    assert len(payload["rows"]) == 2
    assert "".join(payload["rows"][0]["fields"][0]["left"]) == HOSTILE


def test_hostile_titles_stay_text(bench):
    bench.put("phi4mini", bench.good, title='<script>alert(1)</script> | "x" <!-- steward:end -->')
    bench.make()
    bench.make()
    assert len(Elements(bench.text("index.html")).tags("script")) == 2
    assert all(len(row) == len(COLUMNS) for row in bench.table())
    assert len(bench.table()) == 4


def test_differences_are_marked_letter_by_letter():
    fields = wrong_answers.marked(
        {"field": "city", "left": "Springfield", "right": "Sprinfield", "relation": "similar"}
    )
    assert (fields["left"], fields["right"]) == (["Sprin", "g", "field"], ["Sprinfield"])
    whole = wrong_answers.marked({"field": "city", "left": "Dover", "right": "Salem", "relation": "different"})
    assert (whole["left"], whole["right"]) == (["", "Dover"], ["", "Salem"])
    same = wrong_answers.marked({"field": "phone", "left": "+1 2", "right": "12", "relation": "same"})
    assert (same["left"], same["right"]) == (["+1 2"], ["12"])


def test_what_a_sentence_states_and_the_comparison_does_not_show_is_marked(bench):
    bench.put("phi4mini", bench.bad)
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.make()
    payload = json.loads(
        re.search(r'<script type="application/json"[^>]*>(.*?)</script>', bench.text("index.html"), re.S).group(1)
    )
    marks = [mark for row in payload["rows"] for mark in row["unsupported"]]
    assert marks and all((mark["words"], mark["stated"]) == ("email", "same") for mark in marks)
    for row in payload["rows"]:
        shown = {field["field"]: field["relation"] for field in row["fields"]}
        is_true = "reasoning" not in row["answerText"] or shown.get("email") == "same"
        assert [mark["evidence"] for mark in row["unsupported"]] == (
            [] if is_true else [shown.get("email", "not_given")]
        )


def test_long_list_is_capped_and_says_so(bench, monkeypatch):
    monkeypatch.setattr(make_report, "MOST_WRONG", 4)
    bench.put("phi4mini", bench.bad)
    bench.make()
    payload = json.loads(
        re.search(r'<script type="application/json"[^>]*>(.*?)</script>', bench.text("index.html"), re.S).group(1)
    )
    assert (len(payload["rows"]), payload["most"], payload["models"][0]["wrong"]) == (4, 4, 9)


def test_page_loads_nothing_from_elsewhere(bench):
    bench.put("phi4mini", bench.good)
    bench.make()
    page = bench.text("index.html")
    found = Elements(page)
    links = [
        value
        for _, attrs in found.found
        for key, value in attrs.items()
        if key in ("src", "href", "srcset", "action", "poster")
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert not re.search(r"url\(|@import", page)


def test_every_chart_has_a_text_alternative_and_every_control_a_label(bench):
    bench.put("phi4mini", bench.good)
    bench.make()
    found = Elements(bench.text("index.html"))
    charts = [attrs for attrs in found.tags("svg") if attrs["class"] == "chart"]
    assert len(charts) == 3
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in charts)
    labelled = {attrs["for"] for attrs in found.tags("label")}
    assert {attrs["id"] for attrs in found.tags("select") + found.tags("input")} == labelled


def test_csv_holds_value_and_interval(bench):
    bench.put("phi4mini", bench.good)
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.make()
    rows = {row["model"]: row for row in csv.DictReader(bench.text("metrics.csv").splitlines())}
    assert list(rows) == ["phi4mini", "baseline_boosting", "mistral7b"]
    phi = rows["phi4mini"]
    assert float(phi["accuracy"]) == pytest.approx(22 / 24, abs=1e-6)
    assert float(phi["accuracy_low"]) < float(phi["accuracy"]) < float(phi["accuracy_high"])
    assert (phi["n"], rows["mistral7b"]["accuracy"], rows["baseline_boosting"]["json_valid_pct"]) == ("24", "", "")


def test_manifest_names_the_inputs(bench):
    bench.put("phi4mini", bench.good)
    bench.make()
    inputs = json.loads(bench.text("manifest.json"))["inputs"]
    assert set(inputs) == {"phi4mini_metrics.json", "phi4mini_predictions.jsonl", "mistral7b.yaml"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in inputs.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "an object was expected"),
        ('{"model": "x"}', "'kpis' is missing"),
        ('{"model": "x", "kpis": 3}', "'kpis' is 3"),
    ],
)
def test_broken_metrics_file_is_named(bench, text, says):
    (bench.reports / "phi4mini_metrics.json").write_text(text)
    with pytest.raises(UserError, match=f"phi4mini_metrics.json: .*{says}"):
        bench.make()
    assert not (bench.reports / "index.html").exists()


FACTS = {
    "task": "crm",
    "backend": "hf",
    "command": "python src/evaluate_kpis.py",
    "git_commit": "c" * 40,
    "finished": "2026-01-01T00:00:00Z",
    "versions": {"python": "3.11"},
    "hardware": {"gpu": "H200"},
    "predicted": {"peak_gpu_memory_mib": 9.5, "hardware": {"gpu": "H200"}},
    "training": {
        "method": "lora",
        "quantization": "none",
        "precision": "bfloat16",
        "peak_memory_mib": 9.5,
        "hardware": {"gpu": "H200"},
    },
}
TOP_KEYS = [
    "model",
    "title",
    "checkpoint",
    "kind",
    "precision",
    "data",
    "predictions",
    "predictions_sha256",
    "kpis",
    "confusion",
    "calibration",
    "risk_coverage",
    "slices",
    *FACTS,
]


@pytest.mark.parametrize("key", TOP_KEYS)
def test_damaged_metrics_make_a_report_or_name_file_key_and_next_step(bench, key):
    bench.for_many_runs()
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.put("phi4mini", bench.good, **FACTS)
    path = bench.reports / "phi4mini_metrics.json"
    whole = json.loads(path.read_text())
    assert set(whole) == set(TOP_KEYS)
    for place in places(whole[key], (key,)):
        for damage in (None, 5, "x", [], {}, -1, True, float("nan"), 10**400, "long" * 1000):
            path.write_text(json.dumps(damaged(whole, place, damage)))
            try:
                bench.make()
            except UserError as error:
                assert all(part in str(error) for part in ("phi4mini_metrics.json", key, "; ")), error
                assert re.search("evaluate_kpis.py|--task", str(error)), error
            except Exception as error:
                raise AssertionError(f"{place} = {damage!r:.20}") from error


def test_broken_kpi_is_named(bench):
    rows, metrics = copy.deepcopy(bench.good)
    metrics["kpis"]["accuracy"]["ci95"] = [0.1]
    bench.put("phi4mini", (rows, metrics))
    with pytest.raises(UserError, match="phi4mini_metrics.json: kpis.accuracy"):
        bench.make()


def test_predictions_that_are_missing_broken_or_not_the_scored_ones_are_refused(bench):
    bench.put("phi4mini", bench.good)
    predictions = bench.reports / "phi4mini_predictions.jsonl"
    lines = predictions.read_text().splitlines(keepends=True)
    for text, says in (
        ("".join(lines[1:]), "not the ones that .*phi4mini_metrics.json scored"),
        ("{}\n", "predictions.jsonl:1: not a prediction"),
        ("{", ":1: not a JSON line"),
    ):
        predictions.write_text(text)
        with pytest.raises(UserError, match=says):
            bench.make()
    predictions.unlink()
    with pytest.raises(UserError, match="phi4mini_metrics.json: its predictions"):
        bench.make()


def test_the_report_says_what_each_model_is(bench):
    yaml = bench.configs / "phi4mini.yaml"
    yaml.write_text(yaml.read_text() + "about: a model with {{wrong}} in its words\n")
    bench.put("phi4mini_shipped", bench.good, checkpoint="some/phi4mini")
    bench.make()
    for name in ("index.html", "model_comparison.md"):
        assert "a model with {{wrong}} in its words" in bench.text(name) and "What the models are" in bench.text(name)
