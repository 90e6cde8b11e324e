"""The tables of docs/results.md are those of the measured runs, and what nobody measured leaves its cell empty."""

import json

import pytest

from common import ROOT, UserError
from measurements import tables as measured_tables
from report import marked_text

RUNS = ROOT / "docs/measured"
TABLES = {
    "pretraining": measured_tables.pretraining_table,
    "ablation": measured_tables.ablation_table,
    "faithful": measured_tables.faithful_table,
    "gpu_speed": lambda runs: measured_tables.gpu_speed_table(runs / "h200"),
    "models": lambda runs: measured_tables.models_table(runs / "smollm2"),
    "micro_batches": lambda runs: measured_tables.micro_batches_table(runs / "micro_batches"),
    "pairs": lambda runs: measured_tables.curve_table(runs / "adaptation"),
}


def test_the_service_page_shows_what_was_measured():
    path = ROOT / "docs/serving.md"
    text = path.read_text(encoding="utf-8")
    (before, after) = marked_text.around(path, "service")
    assert measured_tables.service_table(RUNS / "service") in text[len(before) : len(text) - len(after)]


def test_a_service_table_tells_failures_and_overload(tmp_path):
    level = {
        "concurrency": 8,
        "service_of_direct": 0.5,
        "service": {"n": 4, "n_valid": 3, "req_per_s": 1.0, "p50_ms": 10.0, "p95_ms": 20.0},
        "direct": {"n": 4, "n_valid": 4, "req_per_s": 2.0, "p50_ms": 5.0, "p95_ms": 6.0},
    }
    overload = {
        "rate_per_s": 5.0,
        "n": 10,
        "statuses": {"429": 6, "200": 4},
        "memory_mib": [100.0, 101.0],
        "next_answer_ms": 7.0,
    }
    (tmp_path / "cpu_steward_mini.json").write_text(
        json.dumps({"levels": [level], "overload": overload}), encoding="utf-8"
    )
    table = measured_tables.service_table(tmp_path)
    assert "| 8 | 4 | 1.0 | 10 | 20 | 2.0 | 5 | 0.50 | 75.0 |" in table
    assert (
        "ended 4 with 200, 6 with 429; memory 100 MiB before, 101 after; the next request was answered in 7 ms" in table
    )
    (tmp_path / "elsewhere.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="elsewhere.json: its name must be one of cpu_steward_mini"):
        measured_tables.service_table(tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_the_results_page_shows_what_was_measured(name):
    path = ROOT / "docs/results.md"
    text = path.read_text(encoding="utf-8")
    before, after = marked_text.around(path, name)
    assert TABLES[name](RUNS) in text[len(before) : len(text) - len(after)]


def test_the_tables_of_qod_are_those_of_what_was_measured():
    tables = measured_tables.qod_tables(RUNS / "qod")
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    of_cost = {"training_speed", "qod_serving", "qod_speed"}
    assert set(tables) == of_cost | {"phases", "ablations", "judge", "odd_requests"}
    assert [name for name, table in tables.items() if table and table not in text] == []


def test_requests_are_shown_by_load(tmp_path):
    assert not any(measured_tables.qod_tables(tmp_path).values())
    level = {"form": "closed", "concurrency": 8, "n": 1200, "p50_ms": 1234.4, "p95_ms": 2000.0, "req_per_s": 6.54}
    level |= {"output_tok_per_s": 345.6, "json_valid_pct": None}
    facts = {"title": "Small", "backend": "hf", "decoding": "guaranteed", "weights": "random"}
    facts |= {"hardware": {"gpu": "a GPU"}, "levels": [level, level | {"form": "open"}]}
    put(tmp_path, "serving_small_hf", facts)
    table = measured_tables.qod_tables(tmp_path)["qod_serving"]
    row = "| Small, random weights | Transformers, JSON guaranteed | 8 | 1,200 | 1,234 | 2,000 | 6.5 | 346 |  |"
    assert table.count("| Small") == 1 and row in table and table.endswith("Measured on: a GPU.")


def test_the_plot_beside_the_page_is_that_of_the_measured_runs():
    drawn = measured_tables.curve_plot(RUNS / "adaptation")
    assert (ROOT / "docs" / measured_tables.PLOT).read_text(encoding="utf-8") == drawn


def adapted(title, pairs, seed, before, after, boosting):
    scorers = {name: {"metrics": {"f1": {"value": value}}} for name, value in locals().items() if name in SCORERS}
    return {"model": {"title": title}, "pairs": pairs, "seed": seed, "sets": {"a_set": {"scorers": scorers}}}


SCORERS = ("before", "after", "boosting")


def test_a_curve_tells_seeds_apart_and_leaves_out_what_did_not_run(tmp_path):
    put(tmp_path, "one", adapted("Small", 100, 1, 0.5, 0.8, 0.7))
    put(tmp_path, "two", adapted("Small", 100, 2, 0.5, 0.9, 0.6))
    put(tmp_path, "same pairs, another model", adapted("Large", 100, 2, 0.6, 1.0, 0.6))
    put(tmp_path, "more", adapted("Large", 1000, 2, 0.6, 1.0, 0.8))
    failed = adapted("Large", 5000, 2, 0, 0, 0)
    failed["sets"]["a_set"] = {"reason": "too few"}
    put(tmp_path, "failed", failed)
    rows = measured_tables.curve_table(tmp_path).splitlines()[2:]
    assert rows == [
        "| a set | 0 | 0.600 (n = 1) | 0.500 (n = 2) | not run |",
        "| a set | 100 | 1.000 (n = 1) | 0.850 ± 0.071 (n = 2) | 0.650 ± 0.071 (n = 2) |",
        "| a set | 1,000 | 1.000 (n = 1) | not run | 0.800 (n = 1) |",
    ]
    plot = measured_tables.curve_plot(tmp_path)
    assert plot.count("<circle") == 3 + 3 + 2 + 2, "a legend of three, and a mark for every cell that ran"
    assert ">0.5<" in plot, "the floor lies below the lowest value"


def h200(name, **changed):
    return json.loads((RUNS / f"h200/{name}.json").read_text(encoding="utf-8")) | changed


def put(folder, name, facts):
    (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def rows_of(folder):
    return [line for line in measured_tables.gpu_speed_table(folder).splitlines() if line.startswith("| ")][2:]


def test_what_was_not_run_is_an_empty_cell(tmp_path):
    facts = h200("qwen3_4b_vllm")
    facts["levels"] = [level for level in facts["levels"] if level["concurrency"] == 64]
    put(tmp_path, "one", facts)
    (row,) = rows_of(tmp_path)
    assert row.startswith("| qwen3_4b vLLM, JSON guaranteed |  |  |  |  |  |  |  | 55.1 | 48 | 100 |  |  |"), row
    facts["levels"] = [level | {"form": "verdicts", "concurrency": None} for level in facts["levels"]]
    put(tmp_path, "one", facts)
    assert rows_of(tmp_path)[0].endswith("| 55.1 | 47.7 |")


def test_model_and_run_are_what_the_manifest_says_whatever_its_file_is_called(tmp_path):
    put(tmp_path, "a_mistral7b_hf", h200("qwen3_4b_vllm_unconstrained"))
    put(tmp_path, "b", h200("qwen3_4b_vllm_json_schema"))
    put(tmp_path, "c", h200("phi4mini_hf"))
    assert [row.split(" | ")[0] for row in rows_of(tmp_path)] == [
        "| qwen3_4b vLLM as it comes, no JSON asked for",
        "| qwen3_4b vLLM, its own json_schema",
        "| phi4mini Transformers, JSON guaranteed",
    ]


def test_a_run_that_nobody_knows_is_not_guessed_at(tmp_path):
    put(tmp_path, "one", h200("qwen3_4b_hf", backend="sglang"))
    with pytest.raises(UserError, match=r"one.json: sglang \(guaranteed\) has no words.*known are hf \(guaranteed\)"):
        measured_tables.gpu_speed_table(tmp_path)


def test_the_table_says_which_runs_cannot_be_repeated(tmp_path):
    command = "python src/eval_latency_throughput.py --model_path models/steward-mini --out x_latency.csv"
    put(tmp_path, "one", h200("qwen3_4b_hf", command=command))
    assert "repeat" not in measured_tables.gpu_speed_table(tmp_path)
    put(tmp_path, "two", h200("phi4mini_vllm"))
    table = measured_tables.gpu_speed_table(tmp_path)
    assert "1 of these 2 commands read `.gpu/...`" in table and "In 1 of them no script is named (`python x`)" in table


def test_a_folder_without_runs_says_who_makes_them(tmp_path):
    with pytest.raises(UserError, match="eval_latency_throughput.py makes them"):
        measured_tables.gpu_speed_table(tmp_path)
