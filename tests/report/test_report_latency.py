"""The benchmark's numbers reach the comparison with what they were measured on, and an unfinished or damaged run stops
the report.
"""

import csv
import json
import re

import pytest

from common import UserError
from report.charts import decimal_ticks, doublings
from report.shapes import LEVEL_NUMBERS
from support.reporting import COLUMNS, Bench, Elements, damaged, scored

HOSTILE = '<script>alert(1)</script> | "x" <!-- steward:end --> {{wrong}} \ud800'
H200 = {"machine": "x86_64", "cpu_cores": 16, "gpu": "NVIDIA H200", "gpu_count": 1}
FLOOR = {"bandwidth_gb_s": 4000.0, "matmul_tflop_s": 700.0, "weights_gb": 8.0, "note": "measured before the run"}
LATENCY_HEAD = (
    "model,title,backend,decoding,weights,form,concurrency,rate_per_s,n,n_failed,p50_ms,p95_ms,p99_ms,"
    "first_token_p50_ms,first_token_p95_ms,floor_p50_ms,p50_of_floor"
)
THROUGHPUT_HEAD = (
    "model,title,backend,decoding,weights,form,concurrency,rate_per_s,n,n_failed,req_per_s,output_tok_per_s,"
    "prompt_tok_per_s,json_valid_raw_pct,json_valid_pct,closed_at_budget_pct,mask_overruled_pct,"
    "floor_req_per_s,req_per_s_of_floor_pct"
)
NAMES = ("model_comparison.md", "index.html")


def level(concurrency, p50_ms, req_per_s, form="closed", **more):
    """A level with the floor half as long as its median; what a test does not name is null."""
    return {
        "form": form,
        "concurrency": concurrency,
        "rate_per_s": None,
        "n": 200,
        "n_failed": 0,
        **dict.fromkeys(LEVEL_NUMBERS),
        "p50_ms": p50_ms,
        "p95_ms": 2 * p50_ms,
        "p99_ms": 3 * p50_ms,
        "req_per_s": req_per_s,
        "output_tok_per_s": 40 * req_per_s,
        "json_valid_pct": 100.0,
        "floor_p50_ms": p50_ms / 2,
        "p50_of_floor": 2.0,
        "floor_req_per_s": 4 * req_per_s,
        **more,
    }


def put(bench, name, model, levels, backend="vllm", decoding="guaranteed", **more):
    facts = {
        "task": "crm",
        "model": model,
        "title": f"Title {model}",
        "checkpoint": f"outputs/{model}-merged",
        "backend": backend,
        "decoding": decoding,
        "engine": {"max_num_seqs": 64},
        "data": {"path": "data/test.jsonl", "sha256": "a" * 64, "rows": 200},
        "weights": "trained",
        "floor": FLOOR,
        "levels": levels,
        "command": "python src/eval_latency_throughput.py",
        "git_commit": "c" * 40,
        "versions": {"vllm": "0.25.1"},
        "hardware": H200,
        "finished": "2026-01-01T00:00:00Z",
        "wall_s": 9.0,
        **more,
    }
    (bench.reports / f"{name}_latency.csv").write_text("the report reads the manifest\n")
    (bench.reports / f"{name}_latency.manifest.json").write_text(json.dumps(facts))


LADDER = [level(1, 50.5, 19.0), level(4, 60.0, 66.0), level(8, 70.0, 111.0), level(64, 300.0, 210.0)]


@pytest.fixture(scope="module")
def scores():
    return scored(2), scored(9), scored(2, raw=False)


@pytest.fixture
def bench(tmp_path, monkeypatch, scores):
    return Bench(tmp_path, monkeypatch, scores)


def latency_cells(bench, title):
    return [re.sub(r" \[\d+]$", "", cell) for cell in bench.row(title)[-4:]]


def note(bench, title, column):
    """The numbered note of a cell, which page and Markdown share."""
    number = re.search(r"\[(\d+)]$", bench.row(title)[COLUMNS.index(column)]).group(1)
    text = re.search(rf"^- \[{number}] (.*)$", bench.text("model_comparison.md"), re.M).group(1)
    assert re.search(rf'<li id="note-{number}">', bench.text("index.html"))
    return text


def csv_rows(bench, name):
    return list(csv.DictReader(bench.text(name).splitlines()))


def test_without_a_benchmark_both_files_are_heads_and_the_section_says_how_to_run_it(bench):
    bench.make()
    assert (bench.text("latency.csv"), bench.text("throughput.csv")) == (LATENCY_HEAD + "\n", THROUGHPUT_HEAD + "\n")
    assert "\n\nNot measured: the benchmark has not run; make bench-&lt;model> runs it." in bench.text(
        "model_comparison.md"
    )
    assert ">Not measured: the benchmark has not run; make bench-&lt;model&gt; runs it.<" in bench.text("index.html")
    # What the step wrote itself is no run of the benchmark.
    bench.make()


def test_cells_come_from_concurrency_one_and_eight_and_say_how(bench):
    bench.put("phi4mini", bench.good)
    put(bench, "phi4mini", "phi4mini", LADDER)
    bench.make()
    assert latency_cells(bench, "Title phi4mini") == ["50.5", "101", "111", "4,440"]
    for column, concurrency in (("p50 (ms)", 1), ("p95 (ms)", 1), ("Req/s @8", 8), ("Tok/s", 8)):
        words = note(bench, "Title phi4mini", column)
        assert all(
            part in words
            for part in ("vLLM (guaranteed)", f"concurrency {concurrency},", "n = 200", "none failed", "NVIDIA H200")
        ), words
        assert "lowest measured" not in words and "random" not in words
    assert re.search(
        r'<td>50\.5 <a class="ref" href="#note-\d" aria-label="note \d">\[\d]</a><span class="small">n = 200</span>',
        bench.text("index.html"),
    )
    assert latency_cells(bench, "Title mistral7b") == ["not run"] * 4
    assert "the benchmark has not run" in note(bench, "Title mistral7b", "Tok/s")


@pytest.mark.parametrize(
    ("runs", "engine"),
    [
        ([("vllm", "unconstrained"), ("openai_api", "guaranteed")], "vLLM (unconstrained)"),
        ([("hf", "guaranteed"), ("llama_cpp", "guaranteed"), ("sglang", "guaranteed")], "SGLang (guaranteed)"),
        ([("hf", "guaranteed"), ("llama_cpp", "guaranteed")], "llama.cpp (guaranteed)"),
        ([("hf", "unconstrained"), ("hf", "guaranteed"), ("hf", "half")], "transformers (guaranteed)"),
        ([("hf", "unconstrained"), ("hf", "half")], "transformers (half)"),
        ([("new_engine", "guaranteed"), ("hf", "unconstrained")], "transformers (unconstrained)"),
    ],
)
def test_the_preferred_engine_fills_the_row(bench, runs, engine):
    for at, (backend, decoding) in enumerate(runs):
        put(bench, f"phi4mini_{at}", "phi4mini", LADDER, backend, decoding)
    bench.make()
    assert engine in note(bench, "Title phi4mini", "p50 (ms)")


def test_of_equal_runs_a_row_takes_the_one_of_its_own_name(bench):
    bench.put("phi4mini", bench.good)
    bench.put("phi4mini_4bit", bench.bad, model="phi4mini", title="Title phi4mini", precision="nf4")
    put(bench, "phi4mini", "phi4mini", LADDER)
    put(bench, "phi4mini_4bit", "phi4mini", [level(1, 33.0, 30.0)])
    bench.make()
    assert [latency_cells(bench, f"Title phi4mini ({name})")[0] for name in ("phi4mini", "phi4mini_4bit")] == [
        "50.5",
        "33.0",
    ]
    assert "Title phi4mini on vLLM (guaranteed) [phi4mini_4bit]" in bench.text("index.html")


def test_a_level_that_was_not_measured_is_not_run_and_says_which_were(bench):
    put(
        bench,
        "phi4mini",
        "phi4mini",
        [level(2, 55.0, 36.0), level(16, 90.0, 170.0), level(None, 80.0, 40.0, "open", rate_per_s=40.0)],
    )
    put(bench, "mistral7b", "mistral7b", [level(32, 20.0, 900.0, "verdicts")])
    bench.make()
    assert latency_cells(bench, "Title phi4mini") == ["55.0", "110", "not run", "not run"]
    assert "concurrency 2, the lowest measured," in note(bench, "Title phi4mini", "p95 (ms)")
    assert "concurrency 8 was not measured (measured: 2, 16;" in note(bench, "Title phi4mini", "Req/s @8")
    assert latency_cells(bench, "Title mistral7b") == ["not run"] * 4
    assert "concurrency 1 was not measured (measured: none;" in note(bench, "Title mistral7b", "p50 (ms)")


def test_a_level_where_nothing_was_answered_is_no_number(bench):
    lost = {"n_failed": 200, "p50_ms": None, "p95_ms": None, "p99_ms": None, "floor_p50_ms": None, "p50_of_floor": None}
    put(bench, "phi4mini", "phi4mini", [level(1, 1.0, 0.0) | lost])
    bench.make()
    assert latency_cells(bench, "Title phi4mini")[:2] == ["n/a", "n/a"]
    assert "200 of 200 requests failed" in note(bench, "Title phi4mini", "p50 (ms)")
    assert "200 (200 failed)" in bench.text("model_comparison.md")


def test_a_baseline_is_never_served(bench):
    bench.put("baseline_boosting", bench.boosting, kind="baseline")
    bench.make()
    assert latency_cells(bench, "Title baseline_boosting") == ["not run"] * 4
    assert "a baseline is not served" in note(bench, "Title baseline_boosting", "p50 (ms)")


def test_random_weights_are_said_wherever_their_numbers_stand(bench):
    put(bench, "phi4mini", "phi4mini", LADDER, weights="random")
    put(bench, "mistral7b", "mistral7b", LADDER)
    bench.make()
    assert "random weights, so only speed" in note(bench, "Title phi4mini", "p50 (ms)")
    assert "random" not in note(bench, "Title mistral7b", "p50 (ms)")
    assert "Title phi4mini (random weights)" in bench.text("model_comparison.md")
    assert bench.text("index.html").count('Title phi4mini<span class="small">random weights</span>') == 1
    assert "Title phi4mini on vLLM (guaranteed), random weights: 50.5 ms at 1" in bench.text("index.html")
    assert {row["weights"] for row in csv_rows(bench, "throughput.csv") if row["model"] == "phi4mini"} == {"random"}
    for name in NAMES:
        assert "Random weights" in bench.text(name) and "Nothing has been measured yet" not in bench.text(name)


@pytest.mark.parametrize(
    ("more", "warning"),
    [
        ({"hardware": {"machine": "x86_64", "cpu_cores": 8}}, "Benchmarks on different hardware"),
        ({"data": {"path": "x", "sha256": "b" * 64, "rows": 9}}, "Benchmarks on different data"),
        ({}, None),
    ],
)
def test_runs_that_do_not_compare_say_so(bench, more, warning):
    put(bench, "phi4mini", "phi4mini", LADDER)
    put(bench, "mistral7b", "mistral7b", LADDER, **more)
    bench.make()
    for name in NAMES:
        assert re.findall("Benchmarks on different [a-z]+", bench.text(name)) == [warning] * bool(warning)


def test_both_files_hold_every_level_of_every_run(bench):
    put(bench, "phi4mini", "phi4mini", [*LADDER, level(None, 80.0, 40.0, "open", rate_per_s=40.0)])
    put(bench, "phi4mini_hf_plain", "phi4mini", [level(1, 900.0, 1.1)], "hf", "unconstrained", floor=None)
    bench.make()
    assert (bench.text("latency.csv").splitlines()[0], bench.text("throughput.csv").splitlines()[0]) == (
        LATENCY_HEAD,
        THROUGHPUT_HEAD,
    )
    latency = csv_rows(bench, "latency.csv")
    throughput = csv_rows(bench, "throughput.csv")
    assert [(row["backend"], row["form"], row["concurrency"], row["rate_per_s"], row["p50_ms"]) for row in latency] == [
        ("vllm", "closed", "1", "", "50.5"),
        ("vllm", "closed", "4", "", "60.0"),
        ("vllm", "closed", "8", "", "70.0"),
        ("vllm", "closed", "64", "", "300.0"),
        ("vllm", "open", "", "40.0", "80.0"),
        ("hf", "closed", "1", "", "900.0"),
    ]
    assert [row["req_per_s"] for row in throughput] == ["19.0", "66.0", "111.0", "210.0", "40.0", "1.1"]
    assert latency[0]["first_token_p50_ms"] == throughput[0]["mask_overruled_pct"] == ""


def test_markdown_section_has_every_level_and_what_the_speed_depends_on(bench):
    put(
        bench,
        "phi4mini",
        "phi4mini",
        [*LADDER, level(None, 80.0, 40.0, "open", rate_per_s=40.0, first_token_p50_ms=12.25)],
    )
    bench.make()
    section = bench.text("model_comparison.md").split("### Latency and throughput")[1].split("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| Title")]
    assert len(rows) == 5
    assert (
        rows[0]
        == "| Title phi4mini | vLLM (guaranteed) | C = 1 | 200 | 50.5 | 101 | 152 | – | 19.0 | 760 | 100.0 | 2.0× |"
    )
    assert (
        rows[4]
        == "| Title phi4mini | vLLM (guaranteed) | open loop, 40 req/s | 200 | 80.0 | 160 | 240 | 12.2 | 40.0 | 1,600 "
        "| 100.0 | 2.0× |"
    )
    for part in (
        "gpu NVIDIA H200",
        "vllm 0.25.1",
        "max_num_seqs 64",
        "8.00 GB of weights, 4,000 GB/s, 700 TFLOP/s, measured before the run",
    ):
        assert part in section and part in bench.text("index.html")


def test_curves_say_their_numbers_and_draw_the_floor_where_it_is_known(bench):
    put(bench, "phi4mini", "phi4mini", LADDER)
    put(
        bench,
        "phi4mini_hf",
        "phi4mini",
        [level(c, 900.0 * c, 1.1, floor_p50_ms=None, floor_req_per_s=None) for c in (1, 2)],
        "hf",
    )
    put(bench, "mistral7b", "mistral7b", [level(32, 20.0, 900.0, "verdicts")])
    bench.make()
    page = bench.text("index.html")
    found = Elements(page)
    charts = [attrs for attrs in found.tags("svg") if attrs["class"] == "chart"]
    assert len(charts) == 3 and all(attrs["role"] == "img" for attrs in charts)
    p50, p95, throughput = (attrs["aria-label"] for attrs in charts)
    assert "vLLM (guaranteed): 50.5 ms at 1, 60.0 ms at 4, 70.0 ms at 8, 300 ms at 64 (floor: 25.2 ms at 1," in p50
    assert "transformers (guaranteed): 900 ms at 1, 1,800 ms at 2" in p50 and "mistral7b" not in p50
    assert "101 ms at 1" in p95 and "floor" not in p95
    assert "210 requests/s at 64 (floor: 76.0 requests/s at 1" in throughput
    lines = [attrs for attrs in found.tags("polyline") if "run" in attrs["class"]]
    assert [len(attrs["points"].split()) for attrs in lines] == [4, 2] * 3
    assert [len(attrs["points"].split()) for attrs in found.tags("polyline") if attrs["class"].startswith("floor")] == [
        4,
        4,
    ]
    assert page.count("C = 32") == 1


def test_ticks_enclose_the_values():
    assert (doublings([1]), doublings([3, 64])) == ([1, 2], [2, 4, 8, 16, 32, 64])
    assert (decimal_ticks([100.0]), decimal_ticks([0.7, 18.0])) == ([100, 200], [0.5, 1, 2, 5, 10, 20])
    assert decimal_ticks([0.001, 10.0**11]) == [10.0**power for power in range(-3, 13)]


def test_hostile_text_stays_text(bench):
    put(
        bench,
        "phi4mini",
        "phi4mini",
        LADDER,
        HOSTILE,
        HOSTILE,
        title=HOSTILE,
        checkpoint=HOSTILE,
        engine={HOSTILE: HOSTILE},
        floor=FLOOR | {"note": HOSTILE},
        hardware={"gpu": HOSTILE},
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        data={"path": HOSTILE, "sha256": HOSTILE, "rows": 3},
    )
    bench.make()
    bench.make()
    assert len(Elements(bench.text("index.html")).tags("script")) == 2
    assert all(len(row) == len(COLUMNS) for row in bench.table()) and len(bench.table()) == 4
    assert (
        bench.text("model_comparison.md").count("steward:end -->")
        == bench.text("model_comparison.md").count("&lt;!-- steward:end -->") + 1
    )
    assert csv_rows(bench, "latency.csv")[0]["title"] == HOSTILE.replace("\ud800", "\\ud800")


def test_a_table_without_its_manifest_is_a_run_that_did_not_finish(bench):
    put(bench, "phi4mini", "phi4mini", LADDER)
    (bench.reports / "phi4mini_latency.manifest.json").unlink()
    with pytest.raises(
        UserError,
        match="phi4mini_latency.csv: .*did not finish.*eval_latency_throughput.py --out .*phi4mini_latency.csv .make "
        "bench-",
    ):
        bench.make()
    assert not (bench.reports / "index.html").exists()


def test_a_run_of_another_task_is_refused(bench):
    put(bench, "phi4mini", "phi4mini", LADDER, task="invoices")
    with pytest.raises(
        UserError, match="phi4mini_latency.manifest.json: it is of the task 'invoices', not 'crm'; give --task invoices"
    ):
        bench.make()


@pytest.mark.parametrize(
    ("place", "damage", "says"),
    [
        (("levels",), [], "'levels' is \\[], expected minItems 1"),
        (("levels", 0), {}, "levels.0.form is missing"),
        (("levels", 0, "p50_ms"), "fast", "levels.0.p50_ms is 'fast', expected number or null"),
        (("levels", 0, "p50_ms"), -1, "expected minimum 0"),
        (("levels", 0, "form"), "burst", "levels.0.form is 'burst'"),
        (("levels", 0, "concurrency"), None, "levels.0.concurrency is None, expected integer"),
        (("levels", 0, "concurrency"), 0, "expected minimum 1"),
        (("levels", 4, "rate_per_s"), None, "levels.4.rate_per_s is None, expected number"),
        (("weights",), "guessed", "'weights' is 'guessed'"),
        (("floor",), {}, "floor.bandwidth_gb_s is missing"),
        (("hardware",), "fast", "'hardware' is 'fast'"),
    ],
)
def test_a_manifest_of_another_shape_is_named(bench, place, damage, says):
    put(bench, "phi4mini", "phi4mini", [*LADDER, level(None, 80.0, 40.0, "open", rate_per_s=40.0)])
    path = bench.reports / "phi4mini_latency.manifest.json"
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), place, damage)))
    with pytest.raises(
        UserError,
        match=f"phi4mini_latency.manifest.json: .*{says}.*; make it again with src/eval_latency_throughput.py",
    ):
        bench.make()


def places(value, path=()):
    """Every place of a manifest; the first level stands for all."""
    keys = list(value) if isinstance(value, dict) else range(len(value))[:1] if isinstance(value, list) else []
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def test_a_damaged_manifest_makes_a_report_or_names_file_key_and_next_step(bench):
    bench.for_many_runs()
    put(bench, "phi4mini", "phi4mini", LADDER)
    path = bench.reports / "phi4mini_latency.manifest.json"
    whole = json.loads(path.read_text())
    for place in places(whole):
        for damage in (None, 5, "x", [], {}, -1, 1e-300, True, float("nan"), 10**400, "long" * 1000):
            path.write_text(json.dumps(damaged(whole, place, damage)))
            try:
                bench.make()
            except UserError as error:
                assert all(part in str(error) for part in ("phi4mini_latency.manifest.json", str(place[0]), "; ")), (
                    error
                )
                assert re.search("eval_latency_throughput.py|--task", str(error)), error
            except Exception as error:
                raise AssertionError(f"{place} = {damage!r:.20}") from error


def test_manifest_names_the_benchmarks_files(bench):
    put(bench, "phi4mini_hf", "phi4mini", LADDER, "hf")
    bench.make()
    inputs = json.loads(bench.text("manifest.json"))["inputs"]
    assert {"phi4mini_hf_latency.csv", "phi4mini_hf_latency.manifest.json"} < set(inputs)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in inputs.values())
