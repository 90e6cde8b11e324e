"""The phases of training as jobs: what needs what, which commands they are, and how they run beside one another."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from common import ROOT, read_json, read_jsonl, sha256_file
from manifest import SRC
from measurements import _phase_jobs, _phases_table, phases
from measurements._phase_jobs import Job
from support.pipeline import exit_code
from tasks.qod import measuring

PLAN = _phase_jobs.Plan(
    task="qod",
    config=Path("configs/smollm2_135m.yaml"),
    model_id="some/base",
    out=Path("out"),
    seeds=(1, 2),
    n_rows=60,
    fine=("train.lr=1e-3",),
    dpo=("dpo.lr=1e-5",),
    **measuring.PHASES,
)
JOBS = {job.name: job for job in _phase_jobs.table(PLAN)}
METRICS = [path for job in JOBS.values() for path in job.outputs if path.name.endswith("_metrics.json")]
OPTIONS = ("--task", "qod", "--config", "configs/smollm2_135m.yaml")


def command_of(name):
    [command] = JOBS[name].commands
    return " ".join(command[1:]).replace(f"{SRC}/", "").replace(f"{ROOT}/", "")


# ---- the table


def test_a_job_stands_behind_what_it_needs_and_reads_what_that_leaves():
    made = set()
    names = set()
    for job in _phase_jobs.table(PLAN):
        assert names.issuperset(job.needs) and job.name not in names, job.name
        names.add(job.name)
        files = [str(path) for path in job.outputs]
        made |= {*files, *(str(path.parent) for path in job.outputs), *(str(target) for _, target, _ in job.cuts)}
        words = [word.removeprefix("peft.start_from=") for command in job.commands for word in command]
        places = [word for word, before in zip(words[1:], words, strict=False) if before != "--out"]
        read = [place for place in places if place.startswith("out/")]
        assert made.issuperset([*read, *(str(source) for source, _, _ in job.cuts)]), job.name


def test_every_file_has_one_maker():
    files = Counter(path for job in JOBS.values() for path in job.outputs)
    assert [path for path, n in files.items() if n > 1] == [] and len(files) > 80


def test_every_metrics_file_is_one_that_the_tables_read():
    names = {}
    for path in METRICS:
        named = _phases_table.NAME.fullmatch(path.name)
        assert named and named["rows"] in _phases_table.ROWS
        names.setdefault(path.parent.name, set()).add(named["name"])
    assert names["answers"] == _phases_table.PHASES.keys() - {"shipped"}
    tried = {f"rows_{n}" for n in _phase_jobs.ROWS_TRIED}
    assert names["ablations"] == {*tried, *_phase_jobs.DPO_TRIED, "constructed", "on_policy"}
    # The base and the literal recipe once, three phases for each seed; the ablations without a grammar alone.
    assert len(METRICS) == (3 + 3 * 2) * 4 + 12 * 2


def test_the_commands_of_a_seed():
    assert command_of("rows/train") == (
        "synthesize.py --task qod --rows 60 --pool train --seed 11 --out out/rows/train.jsonl"
    )
    prompts = "--train out/rows/processed/train.jsonl --val out/rows/processed/val.jsonl"
    model = "--config configs/smollm2_135m.yaml --task qod"
    assert command_of("sft_seed2") == (
        f"sft_train.py {model} {prompts} --out out/models/sft_seed2 --set train.lr=1e-3 train.seed=2"
    )
    sft = "out/models/sft_seed2/smollm2_135m-lora"
    assert f"--set train.lr=1e-3 peft.start_from={sft} train.lr=2e-4" in command_of("longer_seed2")
    pairs = "out/models/sft_seed2/pairs"
    assert command_of("dpo_seed2") == (
        f"dpo_train.py {model} --adapter {sft} --train {pairs}/preferences.jsonl --val {pairs}/preferences_val.jsonl "
        "--prompts out/rows/processed/val.jsonl --out out/models/dpo_seed2 --set dpo.lr=1e-5 dpo.seed=2"
    )
    test = "--test out/rows/test.jsonl src/tasks/qod/by_hand.jsonl --predictions out/models/sft_seed2/sampled.jsonl"
    assert test.replace("src/", "") in command_of("pairs_seed2")
    assert command_of("answers/dpo_seed2_hand_grammar") == (
        "evaluate_kpis.py --task qod --model_path out/models/dpo_seed2/smollm2_135m-dpo --data "
        "tasks/qod/by_hand.jsonl --batch_size 128 --out out/answers/dpo_seed2_hand_grammar_metrics.json"
    )
    assert "--unconstrained" in command_of("answers/dpo_seed2_hand_raw")
    assert "--model_path some/base --config" in command_of("answers/base_test_raw")


def test_the_literal_recipe_has_the_settings_of_the_task_alone():
    assert command_of("literal_sft").endswith("--set chat.template=alpaca")
    assert "--set" not in command_of("literal_dpo") and "--n_pairs 33" in command_of("pairs_literal")
    assert [n for _, _, n in JOBS["rows/literal"].cuts] == [50, 50, 20]


def test_an_ablation_changes_the_first_seeds_run():
    assert command_of("beta_0.5").endswith("--set dpo.lr=1e-5 dpo.seed=1 dpo.beta=0.5")
    assert "--adapter out/models/sft_seed1/smollm2_135m-lora" in command_of("lr_1e-5")
    assert "--predictions" not in command_of("pairs_constructed")
    assert "--on_policy_share 1" in command_of("pairs_on_policy")
    assert "train.epochs=20 train.seed=1" in command_of("rows_50")


def test_every_step_knows_the_options_that_it_is_given():
    seen = {}
    for job in JOBS.values():
        for _, script, *words in job.commands:
            seen.setdefault(Path(script), set()).update(word for word in words if word.startswith("--"))
    assert len(seen) == 8
    predictions = (SRC / "scoring/predictions.py").read_text(encoding="utf-8")
    for script, options in seen.items():
        text = script.read_text(encoding="utf-8")
        text += predictions if "add_arguments(parser" in text else ""
        assert options <= set(re.findall(r'add_argument\(\s*"(--\w+)"', text)), script


def test_the_words_that_say_that_only_the_merge_is_left_are_those_of_the_merge():
    assert 'print(f"merging {lora}", flush=True)' in (SRC / "training/merge_adapter.py").read_text(encoding="utf-8")


# ---- what is there already


def test_rows_are_made_once(tmp_path):
    path = tmp_path / "train.jsonl"
    plan = _phase_jobs.Plan(**vars(PLAN) | {"out": tmp_path})
    job = _phase_jobs.synthesized(plan, "train", path, 5, "train", 3)
    assert not job.is_there()
    assert subprocess.run(job.commands[0], capture_output=True).returncode == 0
    assert job.is_there() and len(read_jsonl(path)) == 5
    for words in ((6, "train", 3), (5, "validation", 3), (5, "train", 4)):
        assert not _phase_jobs.synthesized(plan, "train", path, *words).is_there()
    path.write_text("changed\n", encoding="utf-8")
    assert not job.is_there()


def test_pairs_are_made_again_when_a_file_of_theirs_has_changed(tmp_path):
    source = tmp_path / "rows.jsonl"
    for path in (source, tmp_path / "preferences.jsonl"):
        path.write_text("x\n", encoding="utf-8")
    asked = (tmp_path, source, [source], [], 4)
    assert not _phase_jobs.has_pairs(*asked)
    sha256 = sha256_file(source)
    facts = {"n_pairs": 4, "source_sha256": sha256, "test_sha256": [sha256], "predictions_sha256": []}
    phases.write_manifest(
        tmp_path / "preferences.manifest.json", phases.Clock(), **facts, sha256={"preferences.jsonl": sha256}
    )
    assert _phase_jobs.has_pairs(*asked)
    assert not _phase_jobs.has_pairs(tmp_path, source, [source], [source], 4)
    source.write_text("y\n", encoding="utf-8")
    assert not _phase_jobs.has_pairs(*asked)


def test_the_first_rows_of_a_file(tmp_path):
    source = tmp_path / "all.jsonl"
    source.write_text('{"a": "\u2028"}\n{"a": 2}\n{"a": 3}\n', encoding="utf-8")
    target = tmp_path / "below" / "few.jsonl"
    phases.first_rows(source, target, 2)
    assert target.read_text(encoding="utf-8") == '{"a": "\u2028"}\n{"a": 2}\n'
    os.utime(target, (1, 1))
    phases.first_rows(source, target, 2)
    assert target.stat().st_mtime == 1, "the same rows are left alone"
    phases.first_rows(source, target, None)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(phases.WorkFailed, match="3 rows, and 4 are wanted"):
        phases.first_rows(source, target, 4)


# ---- the run


def fake(name, code="pass", needs=(), **facts):
    return Job(name, needs, commands=((sys.executable, "-c", code),), **facts)


def run_all(jobs, tmp_path, free=None):
    found = {}
    phases.run_all(jobs, free or {"": 1}, tmp_path / "logs", found)
    return found


def test_jobs_begin_in_the_order_of_the_table_as_soon_as_they_may(tmp_path, capsys):
    jobs = [fake("b"), fake("a", "print('hello')", ("b",)), fake("deep/c")]
    found = run_all(jobs, tmp_path)
    assert {facts["outcome"] for facts in found.values()} == {"done"}
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s", "N s", line) for line in lines] == [
        "begun: b",
        "done: b, N s",
        "begun: a",
        "done: a, N s",
        "begun: deep/c",
        "done: deep/c, N s",
    ]
    log = (tmp_path / "logs/a.log").read_text(encoding="utf-8").splitlines()
    assert log[0].startswith("$ ") and log[1:] == ["hello"]
    assert (tmp_path / "logs/deep/c.log").is_file()


def test_jobs_are_spread_over_the_gpus(tmp_path, capsys):
    meeting = f"""
import os, time
from pathlib import Path
place = Path({str(tmp_path)!r})
(place / ("at_" + os.environ["CUDA_VISIBLE_DEVICES"] + "_" + str(os.getpid()))).touch()
until = time.monotonic() + 30
while len(list(place.glob("at_*"))) < 4:
    assert time.monotonic() < until
    time.sleep(0.02)
"""
    found = run_all([fake(name, meeting) for name in "abcd"], tmp_path, {"0": 2, "GPU-x": 2})
    assert {facts["outcome"] for facts in found.values()} == {"done"}
    assert Counter(path.name.split("_")[1] for path in tmp_path.glob("at_*")) == {"0": 2, "GPU-x": 2}
    assert capsys.readouterr().out.startswith("begun: a on GPU 0\nbegun: b on GPU GPU-x\nbegun: c on GPU 0\n")


def test_a_failed_job_stops_only_those_that_need_it(tmp_path, capsys):
    jobs = [
        fake("bad", "raise SystemExit('no luck\\n')"),
        fake("after", needs=("bad",)),
        fake("behind", needs=("after",)),
        fake("empty", outputs=(tmp_path / "nothing",)),
        fake("good"),
    ]
    found = run_all(jobs, tmp_path)
    assert {name: facts["outcome"] for name, facts in found.items()} == {
        "bad": "failed",
        "after": "left out",
        "behind": "left out",
        "empty": "failed",
        "good": "done",
    }
    assert found["bad"]["why"] == "exit code 1, no luck"
    assert found["empty"]["why"].endswith("left no " + str(tmp_path / "nothing"))
    out = capsys.readouterr().out
    assert f"no luck (the rest is in {tmp_path / 'logs/bad.log'})" in out
    assert "left out: behind, for it needs after" in out
    with pytest.raises(phases.WorkFailed, match="2 failed, 2 left out, 1 done; bad: exit code 1, no luck; empty: "):
        phases.finish(found, PLAN)


@pytest.mark.parametrize(("words", "expected"), [("merging {}", "done"), ("nothing of it", "failed")])
def test_an_adapter_is_enough_where_only_its_merge_failed(tmp_path, capsys, words, expected):
    adapter = tmp_path / "m-lora"
    adapter.mkdir()
    (adapter / "manifest.json").touch()
    code = f"print({words.format(adapter)!r}); raise SystemExit(1)"
    found = run_all([fake("sft", code, adapter=adapter)], tmp_path)
    assert found["sft"]["outcome"] == expected
    assert ("its merge failed" in capsys.readouterr().out) == (expected == "done")
    # What an earlier run wrote into the same log does not count.
    assert run_all([fake("sft", "raise SystemExit(1)", adapter=adapter)], tmp_path)["sft"]["outcome"] == "failed"


def test_what_is_there_is_not_made_again(tmp_path, capsys):
    made = tmp_path / "made"
    code = f"from pathlib import Path; Path({str(made)!r}).touch(exist_ok=False)"
    jobs = [fake("rows", code, outputs=(made,), is_there=made.is_file), fake("next", needs=("rows",))]
    assert run_all(jobs, tmp_path)["rows"]["outcome"] == "done"
    assert run_all(jobs, tmp_path)["rows"]["outcome"] == "up to date"
    assert "up to date: rows, 0 s\nbegun: next" in capsys.readouterr().out


def test_only_takes_what_the_named_ones_need():
    jobs = [fake("a"), fake("b", needs=("a",)), fake("c"), fake("b2", needs=("c",))]
    assert [job.name for job in phases.selected(jobs, None)] == ["a", "b", "c", "b2"]
    assert [job.name for job in phases.selected(jobs, ["b2"])] == ["c", "b2"]
    assert [job.name for job in phases.selected(jobs, ["b"])] == ["a", "b", "c", "b2"]
    with pytest.raises(phases.UserError, match=r"--only bb: no job's name begins so \(nearest: b"):
        phases.selected(jobs, ["b2", "bb"])


# ---- the whole measurement


def call(tmp_path, monkeypatch, jobs, *words):
    monkeypatch.setattr(phases, "table", lambda plan: jobs)
    monkeypatch.setattr(phases, "places", lambda at_once: {"": 1})
    return exit_code(phases, *OPTIONS, "--out", tmp_path / "out", *words)


def test_the_manifest_holds_every_job(tmp_path, monkeypatch, capsys):
    jobs = [fake("a", f"import os; os.listdir({str(tmp_path)!r})"), fake("bad", "raise SystemExit(3)")]
    assert call(tmp_path, monkeypatch, jobs) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("failed: 1 done, 1 failed; bad: exit code 3")
    facts = read_json(tmp_path / "out/manifest.json")
    assert facts["failed"] == ["bad"] and facts["seeds"] == [42, 43, 44] and facts["rows"] == 300_000
    assert facts["jobs"]["a"]["commands"][0].startswith("python -c") and facts["jobs"]["a"]["seconds"] >= 0
    assert call(tmp_path, monkeypatch, jobs, "--only", "a") == 0
    assert f"1 done; in {tmp_path / 'out'}" in capsys.readouterr().out
    assert set(read_json(tmp_path / "out/manifest.json")["jobs"]) == {"a"}


def test_a_list_runs_nothing(tmp_path, capsys):
    assert exit_code(phases, *OPTIONS, "--out", tmp_path / "out", "--list", "--only", "sft_seed42") == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == ["rows/train", "rows/val", "rows/prompts", "base", "sft_seed42"]
    assert lines[1] == (
        "  python src/synthesize.py --task qod --rows 300000 --pool train --seed 11 "
        f"--out {tmp_path}/out/rows/train.jsonl"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rows", 0], "--rows 0: at least 1"),
        (["--at_once", 0], "--at_once 0: at least 1"),
        (["--seeds", 1, 1], "--seeds 1 1: each once"),
        (["--fine", "train.rl=1"], "train.rl"),
        (["--only", "stf"], "--only stf: no job's name begins so"),
        (["--task", "crm"], "src/tasks/crm/measuring.py has no PHASES"),
    ],
)
def test_wrong_words_are_named(tmp_path, words, named, capsys):
    assert exit_code(phases, *OPTIONS, "--out", tmp_path / "out", *words) == 2
    assert named in capsys.readouterr().err


STOPPED = """
import sys
from pathlib import Path
import common
from measurements import phases
from measurements._phase_jobs import Job

place = Path(sys.argv.pop())
sleeping = f"import os, time; open({str(place / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
first = Job("first", commands=((sys.executable, "-c", "pass"),))
long = Job("long", ("first",), commands=((sys.executable, "-c", sleeping),))
phases.table = lambda plan: [first, long]
phases.places = lambda at_once: {"": 1}
common.run(phases.main)
"""


def test_a_stop_ends_the_children_and_says_what_is_done(tmp_path):
    words = (*OPTIONS, "--out", str(tmp_path / "out"), str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = child_of(process, tmp_path / "pid")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM: 1 job done in {tmp_path / 'out'}; go on with: " in err
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "out/manifest.json").exists()


def child_of(process, path):
    """The process number that a child writes as soon as it runs."""
    until = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return int(path.read_text())
