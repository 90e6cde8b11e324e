"""The benchmark's loads, clocks, counts and files, on callers whose times the test decides and on the model that ships
with the project.
"""

import csv
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import eval_latency_throughput as bench
import make_report
from common import ROOT, UserError, WorkFailed
from load_test import measures, roofline
from load_test.clients import Level, MicroBatches, Processes, closed_loop, open_loop
from report import shapes as report_shapes
from support import small_tasks
from support.callers import Failing, answer
from support.endpoint import GOOD, Server, saying
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()


class Slow:
    """Answers after a while, and knows how many it had at once."""

    def __init__(self, seconds, text=GOOD, **facts):
        self.seconds = seconds
        self.text = text
        self.facts = facts
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0
        self.asked = []

    def ask(self, messages):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.asked.append(messages)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return answer(self.text, first_s=self.seconds / 2, **self.facts)


def test_a_closed_loop_keeps_so_many_under_way_and_asks_everything_once():
    caller = Slow(0.02)
    records = closed_loop(caller, list(range(40)), 5)
    assert caller.most == 5 and sorted(caller.asked) == list(range(40))
    assert all(
        0.02 <= record["latency_s"] < 0.2 and 0.01 <= record["first_token_s"] < record["latency_s"]
        for record in records
    )


def test_an_open_loop_counts_the_wait_of_a_request_that_could_not_be_sent():
    """One at a time, 20 ms each, asked for 200 a second: the last one's time must hold the queue in front of it."""
    caller = Slow(0.02)
    lock = threading.Lock()

    class OneAtATime:
        def ask(self, messages):
            with lock:
                return caller.ask(messages)

    records = open_loop(OneAtATime(), list(range(30)), 200, seed=1)
    assert records[-1]["latency_s"] > 0.3 and records[0]["latency_s"] < 0.1
    assert all(record["latency_s"] >= record["done_s"] - record["sent_s"] for record in records)
    gaps = [later["intended_s"] - sooner["intended_s"] for sooner, later in zip(records, records[1:], strict=False)]
    assert 0.002 < sum(gaps) / len(gaps) < 0.009 and len({round(gap, 5) for gap in gaps}) > 20, (
        "moments are random, 200 of them a second"
    )


def test_a_micro_batch_takes_what_waits_and_an_error_reaches_everyone():
    sizes = []

    class Engine:
        batch_size = 4

        def answers(self, conversations):
            sizes.append(len(conversations))
            time.sleep(0.02)
            if "bad" in conversations:
                raise ValueError("broken")
            yield from ((at, answer(f"{said}")) for at, said in enumerate(conversations))

    caller = MicroBatches(Engine())
    records = closed_loop(caller, list(range(12)), 4)
    assert (
        [record["answer"].text for record in records] == [str(at) for at in range(12)]
        and max(sizes) == 4
        and len(sizes) <= 5
    )
    with pytest.raises(ValueError, match="broken"):
        caller.ask("bad")
    assert caller.ask("good again").text == "good again"


def test_a_load_is_shared_out_among_processes_and_every_row_comes_back_in_its_place():
    load = Processes(Failing, ("well",), 20)
    assert len(load.workers) == 2
    records = load.run(list(range(9)), Level("closed", 9, 20))
    assert len(records) == 9 and all(record["answer"].text == GOOD for record in records)
    assert len(load.run(["one"], Level("open", 1, rate=50.0))) == 1, "fewer rows than processes"
    load.close()


@pytest.mark.parametrize(
    ("how", "rows", "error", "words"),
    [
        ("dies at once", [], WorkFailed, "a client process of the benchmark died"),
        ("fails at once", [], UserError, "no server here"),
        ("well", ["die"] * 4, WorkFailed, "a client process of the benchmark died"),
        ("well", ["fail"] * 4, UserError, "wrong in an answer"),
    ],
)
def test_a_client_process_that_dies_or_fails_ends_the_run_with_its_words(how, rows, error, words):
    with pytest.raises(error, match=words):
        Processes(Failing, (how,), 2).run(rows, Level("closed", len(rows), 2))


def test_an_error_ends_a_level_at_once():
    caller = Slow(0.01)

    class OnceWrong:
        def ask(self, messages):
            if messages == 3:
                raise UserError("wrong")
            return caller.ask(messages)

    with pytest.raises(UserError, match="wrong"):
        closed_loop(OnceWrong(), list(range(500)), 2)
    assert len(caller.asked) < 20


def test_the_first_token_of_a_micro_batch_counts_the_wait_for_it():
    class Engine:
        batch_size = 1

        def answers(self, conversations):
            time.sleep(0.05)
            yield 0, answer(first_s=0.01)

    records = closed_loop(MicroBatches(Engine()), list(range(3)), 3)
    firsts = sorted(record["first_token_s"] for record in records)
    assert firsts[0] < 0.04 and firsts[2] > 0.1, "the third waited for two others"


def summed(records, level=None, limit=None, task=TASK):
    level = level or Level("closed", len(records), 2)
    log = [measures.logged(task, level, f"row-{at}", record) for at, record in enumerate(records)]
    return measures.summary(task, level, log, limit)


def record(latency, at=0.0, **facts):
    return {
        "intended_s": at,
        "sent_s": at,
        "done_s": at + latency,
        "latency_s": latency,
        "first_token_s": latency / 4,
        "answer": answer(**facts),
    }


def test_what_a_level_says_is_what_its_requests_were():
    found = summed([record(0.1 * at, at=at) for at in range(1, 11)])
    assert (found["n"], found["n_failed"], found["p50_ms"], found["first_token_p50_ms"]) == (10, 0, 550.0, 137.5)
    assert (
        found["p95_ms"] == pytest.approx(955)
        and found["req_per_s"] == pytest.approx(10 / 10)
        and found["output_tok_per_s"] == pytest.approx(20)
    )
    assert found["json_valid_pct"] == found["json_valid_raw_pct"] == 100 and found["mask_overruled_pct"] == 0


def test_failures_are_counted_and_are_no_times():
    found = summed(
        [record(0.1), record(0.1), record(9.0, text="", finish_reason="failed: timeout"), record(0.1, text="{")]
    )
    assert (found["n"], found["n_failed"], found["p50_ms"], found["json_valid_pct"]) == (
        4,
        1,
        100.0,
        pytest.approx(200 / 3, abs=0.01),
    )
    with pytest.raises(WorkFailed, match="all 2 requests failed; the first: failed: connection cut"):
        summed([record(0.1, text="", finish_reason="failed: connection cut: x") for _ in range(2)])


def test_what_the_guarantee_did_is_told_apart():
    found = summed([record(0.1), record(0.1, late=2), record(0.1, overruled=5), record(0.1, overruled=0)])
    assert (
        found["json_valid_pct"],
        found["json_valid_raw_pct"],
        found["closed_at_budget_pct"],
        found["mask_overruled_pct"],
    ) == (100, 50, 25, 6.25)
    untold = summed([record(0.1, overruled=None, late=None)])
    assert [
        untold[key] for key in ("mask_overruled_pct", "closed_at_budget_pct", "json_valid_raw_pct", "json_valid_pct")
    ] == [None, None, None, 100]


def test_the_roofline_is_bytes_and_operations_over_the_machines_rates():
    machine = roofline.Machine(bandwidth_gb_s=1000.0, matmul_tflop_s=100.0)
    shape = roofline.Shape(
        linear_parameters=10**9,
        head_parameters=10**8,
        weight_bytes=2 * 10**9,
        kv_bytes_a_token=10**5,
        attention_flop_a_pair=0,
    )
    assert roofline.prompt_s(machine, shape, 500) == pytest.approx((2e9 * 500 + 2e8) / 1e14)
    assert roofline.step_s(machine, shape, 4, 500) == pytest.approx((2e9 + 4 * 500 * 1e5) / 1e12)
    seconds, rate = roofline.answers_at_best(machine, shape, 4, 500, 41)
    assert seconds == pytest.approx(
        4 * roofline.prompt_s(machine, shape, 500) + 40 * roofline.step_s(machine, shape, 4, 520.5)
    )
    assert rate == pytest.approx(4 / seconds)
    # So many rows that arithmetic takes longer than reading the weights.
    assert roofline.step_s(machine, shape, 4000, 0) == pytest.approx(4000 * 2.2e9 / 1e14)


def test_a_models_shape_is_counted_from_its_config():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(ROOT / "models/steward-mini")
    shape = roofline.model_shape(config, 2)
    model = AutoModelForCausalLM.from_config(config)
    assert shape.linear_parameters + shape.head_parameters == model.num_parameters() and config.tie_word_embeddings
    assert shape.kv_bytes_a_token == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2


def call(*words):
    return exit_code(bench, *words)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in synthetic_rows(30, 1)), encoding="utf-8"
    )
    return path


@pytest.mark.slow
def test_the_shipped_model_is_measured_and_the_report_shows_it(rows, tmp_path, capsys):
    out = tmp_path / "steward_mini_hf_latency.csv"
    assert (
        call(
            "--model_path",
            ROOT / "models/steward-mini",
            "--config",
            ROOT / "configs/steward_mini.yaml",
            "--data",
            rows,
            "--requests",
            4,
            "--concurrency",
            1,
            2,
            "--rate",
            20,
            "--verdicts",
            "--out",
            out,
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        "C=1" in shown
        and "C=2" in shown
        and "20.0/s" in shown
        and "verdicts" in shown
        and "requests asked a row again" in shown
    )
    levels = list(csv.DictReader(out.open()))
    assert [(level["form"], level["concurrency"], level["n"]) for level in levels] == [
        ("closed", "1", "4"),
        ("closed", "2", "8"),
        ("open", "", "4"),
        ("verdicts", "", "8"),
    ]
    assert all(level["json_valid_pct"] == "100.0" and float(level["p50_of_floor"]) > 0 for level in levels[:2])
    assert float(levels[0]["first_token_p50_ms"]) < float(levels[0]["p50_ms"])
    requests = [json.loads(line) for line in bench.requests_path(out).read_text().splitlines()]
    assert len(requests) == 4 + 8 + 4 and all(request["valid"] and request["id"] for request in requests)
    assert not any("record1" in json.dumps(request) for request in requests)
    manifest = json.loads(bench.manifest_path(out).read_text())
    assert (manifest["model"], manifest["backend"], manifest["floor"]["linear_parameters"] > 6e6) == (
        "steward_mini",
        "hf",
        True,
    )
    assert not list(report_shapes.BENCHMARK_SHAPE.iter_errors(manifest))
    assert exit_code(make_report, "--reports", tmp_path) == 0
    assert "Steward mini" in (tmp_path / "latency.csv").read_text() and "p50" in (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_the_pages_command_measures_a_running_server(rows, tmp_path):
    """The page's own words, with this server's address in them: no model is named, the server lists one."""
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^(python src/eval_latency_throughput.py .*--endpoint.*)$", page, re.M)
    server = Server(saying(GOOD))
    words = (
        command.replace("http://localhost:8000/v1", server.endpoint)
        .replace("reports/", f"{tmp_path}/")
        .replace("data/test.jsonl", str(rows))
        .split()
    )
    done = subprocess.run(
        [sys.executable, *words[1:], "--requests", "6"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    server.http.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    [manifest] = [json.loads(path.read_text()) for path in tmp_path.glob("*.manifest.json")]
    assert manifest["engine"]["served_model"] == "steward" and manifest["floor"] is None
    assert [level["concurrency"] for level in manifest["levels"]] == [1, 4, 8, 16] and all(
        level["n_failed"] == 0 for level in manifest["levels"]
    )


def test_a_server_that_ignores_the_constraint_is_not_measured(rows, tmp_path, capsys):
    server = Server(saying(GOOD), obeys=False)
    out = tmp_path / "x_latency.csv"
    assert call("--endpoint", server.endpoint, "--data", rows, "--no_floor", "--out", out) == 2
    server.http.shutdown()
    assert "ignores response_format" in capsys.readouterr().err and server.n_asked == 0 and not list(tmp_path.iterdir())


LIMIT = SimpleNamespace(answers=lambda n_rows, prompt_tokens, written: (written, 100 / written))


def test_a_median_answer_is_held_against_the_limit_of_a_median_one_and_a_rate_against_that_of_a_mean_one():
    found = summed([record(0.1, completion_tokens=n, n_settled=4) for n in (14, 14, 44)], Level("closed", 3, 1), LIMIT)
    assert (found["floor_p50_ms"], found["p50_of_floor"]) == (10, 10.0) and found["floor_req_per_s"] == pytest.approx(5)


def test_an_open_loop_that_is_stopped_sends_nothing_more():
    caller = Slow(0.01)
    start = time.monotonic()

    class Stopped:
        def ask(self, messages):
            if messages == 2:
                raise KeyboardInterrupt
            return caller.ask(messages)

    with pytest.raises(KeyboardInterrupt):
        open_loop(Stopped(), list(range(400)), 20, seed=1)
    assert time.monotonic() - start < 5 and len(caller.asked) < 40, "the last of them was meant for the 20th second"


def test_clients_end_with_the_benchmark_that_started_them():
    script = (
        "import sys, time; sys.path[:0] = ['src', 'tests']\n"
        "from load_test.clients import Processes; from support.callers import Failing\n"
        "if __name__ == '__main__':\n    load = Processes(Failing, ('well',), 1); print(load.workers[0].pid, "
        "flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as outer:
        pid = int(outer.stdout.readline())
        outer.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until, "the client lives on"
        time.sleep(0.05)


def test_a_full_disk_leaves_the_run_before_whole(rows, tmp_path, monkeypatch):
    out = tmp_path / "x_hf_latency.csv"
    for path in (out, bench.requests_path(out), bench.manifest_path(out)):
        path.write_text("before")
    server = Server(saying(GOOD))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.json, "dumps", full)
    assert call("--endpoint", server.endpoint, "--data", rows, "--requests", 2, "--concurrency", 1, "--out", out) == 1
    assert [path.read_text() for path in (out, bench.requests_path(out), bench.manifest_path(out))] == ["before"] * 3
    server.http.shutdown()


@pytest.mark.parametrize("option", ["--show", "--beside"])
def test_another_kind_of_csv_is_refused_before_anything_is_measured(option, tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("model,accuracy\nx,0.9\n")
    assert call("--out", tmp_path / "x.csv", "--model_path", "m", option, tmp_path / "metrics.csv") == 2
    assert "metrics.csv: not a benchmark's CSV" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x.csv", "--model_path", "m", "--rate", "nan"), "above 0"),
        (("--out", "x.csv", "--model_path", "m", "--rate", "inf"), "above 0"),
        ((), "give --out, and --model_path or --endpoint"),
        (("--out", "x.csv"), "give --out, and --model_path"),
        (("--out", "x.json", "--model_path", "m"), "a .csv"),
        (("--out", "x.csv", "--model_path", "m", "--concurrency", "0"), "above 0"),
        (("--out", "x.csv", "--model_path", "m", "--concurrency"), "nothing to measure"),
        (("--out", "x.csv", "--backend", "hf", "--endpoint", "http://x/v1"), "leave --backend out"),
        (("--show", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--out", "x.csv", "--model_path", "nowhere"), "no such model folder"),
        (("--out", "x.csv", "--backend", "openai_api", "--model_path", "m"), "--endpoint"),
        (("--out", "x.csv", "--endpoint", "http://x/v1", "--random_weights"), "--random_weights"),
        (("--out", "x.csv", "--model_path", "m", "--engine_args=--x"), "starts no server"),
    ],
)
def test_a_wrong_call_is_told(words, message, capsys):
    assert call(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("words", "name"), [((), "phi4mini_hf_plain"), (("--name", "phi4mini"), "phi4mini")])
def test_a_model_is_called_as_the_call_says_else_as_the_file(words, name, rows, tmp_path):
    server = Server(saying(GOOD))
    out = tmp_path / "phi4mini_hf_plain_latency.csv"
    load = ("--data", rows, "--requests", 2, "--concurrency", 1, "--out", out)
    assert call("--endpoint", server.endpoint, *words, *load) == 0
    server.http.shutdown()
    assert json.loads(bench.manifest_path(out).read_text())["model"] == name


def test_rows_are_dealt_in_turn_and_repeats_are_counted():
    deck = bench.Deck(list(synthetic_rows(5, 1)), TASK)
    ids = deck.take(3)[0] + deck.take(4)[0]
    assert len(set(ids[:5])) == 5 and ids[5:] == ids[:2] and deck.n_repeated == 2


def test_a_text_is_valid_where_its_task_says_so(monkeypatch):
    notes = small_tasks.loaded(monkeypatch, "notes")
    found = summed([record(0.1, text="Water the plants."), record(0.1, text=" ")], task=notes)
    assert found["json_valid_pct"] == found["json_valid_raw_pct"] == 50


def test_verdicts_are_not_asked_of_a_task_without_one(monkeypatch, tmp_path, capsys):
    small_tasks.loaded(monkeypatch, "notes")
    assert call("--model_path", "m", "--out", tmp_path / "x.csv", "--task", "notes", "--verdicts") == 2
    assert "--verdicts: the answers of task notes hold no verdict" in capsys.readouterr().err


def test_a_cpu_without_bfloat16_arithmetic_is_measured_in_float32_alone(monkeypatch):
    import torch

    multiplied = []

    def measured(side, kind, device, seconds=None):
        multiplied.append((side, kind))
        return 1e9 if kind == torch.bfloat16 else 40e9

    monkeypatch.setattr(roofline, "flop_per_s", measured)
    assert roofline.cpu_flop_per_s() == 40e9
    assert (roofline.MATRIX_ON_CPU, torch.bfloat16) not in multiplied
    monkeypatch.setattr(roofline, "flop_per_s", lambda side, kind, *_: 90e9 if kind == torch.bfloat16 else 40e9)
    assert roofline.cpu_flop_per_s() == 90e9


def test_settings_of_a_server_whose_model_is_not_here_are_the_plans():
    args = SimpleNamespace(endpoint="http://x/v1", config=None, model_path=None, task="crm")
    assert vars(bench.settings(args).gen) == {"max_new_tokens": 64, "temperature": 0.1, "top_p": 0.9}
    with pytest.raises(UserError, match="no such model folder"):
        bench.settings(SimpleNamespace(endpoint=None, config=None, model_path="nowhere", task="crm"))
