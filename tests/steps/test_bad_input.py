"""Whatever is wrong with a row, a config or a call: one message that says where, what and what next, and nothing
half-written.
"""

import http.server
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common import UserError
from language_model.hub import hub_errors_explained
from tasks.crm import synthetic

ROOT = Path(__file__).resolve().parents[2]
FIX = "Fix these lines"
CONFIG = (ROOT / "configs" / "llama3_2_3b.yaml").read_text(encoding="utf-8")
PREPARE = "prepare_splits.py --in in.jsonl --out out"
TRAIN = "sft_train.py --config c.yaml --train prompts.jsonl --val prompts.jsonl --out out"
PREDICT = "predict.py --model_path model --data test.jsonl --out out/p.jsonl"


def good_rows(n):
    rows = list(synthetic.rows(n, seed=11))
    return [{"input": row["input"], "output": row["output"]} for row in rows]


def line(row):
    return json.dumps(row, ensure_ascii=False)


ROWS = good_rows(12)
GOOD = "".join(line(row) + "\n" for row in ROWS)
PROMPTS = (
    line(
        {
            "id": "a",
            "prompt": [{"role": "user", "content": "x"}],
            "completion": [{"role": "assistant", "content": "{}"}],
        }
    )
    + "\n"
)
FEW = {"c.yaml": CONFIG, "prompts.jsonl": PROMPTS, "test.jsonl": GOOD}


@dataclass
class Case:
    name: str
    command: str
    words: tuple
    files: dict = field(default_factory=dict)


def with_third(text):
    """Twelve good rows with one line in the third one's place, as a file."""
    lines = GOOD.splitlines()
    before = "\n".join(lines[:2]) + "\n"
    after = "\n" + "\n".join(lines[3:]) + "\n"
    return before.encode() + (text if isinstance(text, bytes) else text.encode()) + after.encode()


def row_case(name, text, *words):
    return Case(name, PREPARE, ("in.jsonl:3: ", FIX, *words), {"in.jsonl": with_third(text)})


def record_case(name, record, *words):
    return row_case(
        name,
        line({"input": {"record1": {"a": "x"}, "record2": {"a": 1}}, "output": ROWS[0]["output"]}).replace(
            "1}", record + "}"
        ),
        *words,
    )


def output_case(name, output, *words):
    return row_case(name, line({"input": ROWS[2]["input"], "output": output}), *words)


def config_case(name, old, new, *words):
    assert old in CONFIG, old
    return Case(name, TRAIN, ("c.yaml", *words), FEW | {"c.yaml": CONFIG.replace(old, new)})


def swapped(case):
    return {"record1": dict(reversed(case["record2"].items())), "record2": dict(reversed(case["record1"].items()))}


def relabelled(row, case):
    other = "NO_MATCH" if row["output"]["result"] != "NO_MATCH" else "DUPLICATE"
    return line({"input": case, "output": {"result": other, "reasoning": "x"}}) + "\n"


LABELS = ("DUPLICATE", "POSSIBLE", "NO_MATCH")
ROW_CASES = [
    row_case("wrong_json", '{"input": {,}', "not valid JSON", "column"),
    row_case("missing_input", line({"output": ROWS[2]["output"]}), "no key 'input'"),
    row_case("missing_output", line({"input": ROWS[2]["input"]}), "no key 'output'"),
    row_case("missing_record2", line({"input": {"record1": {}}, "output": ROWS[2]["output"]}), "'record2'"),
    row_case(
        "unknown_record3", line({"input": ROWS[2]["input"] | {"record3": {}}, "output": ROWS[2]["output"]}), "'record3'"
    ),
    row_case(
        "record_not_an_object",
        line({"input": {"record1": {}, "record2": "Jo"}, "output": ROWS[2]["output"]}),
        "record2",
        "str",
    ),
    row_case("input_not_an_object", line({"input": [1], "output": ROWS[2]["output"]}), "'input'", "list"),
    row_case("output_not_an_object", line({"input": ROWS[2]["input"], "output": "NO_MATCH"}), "output", "'NO_MATCH'"),
    output_case("unknown_verdict", {"result": "MAYBE", "reasoning": "x"}, "'MAYBE'", *LABELS),
    output_case("missing_verdict", {"reasoning": "x"}, "'result'"),
    output_case("reasoning_too_long", {"result": "POSSIBLE", "reasoning": "x" * 321}, "321", "320"),
    output_case("reasoning_not_text", {"result": "POSSIBLE", "reasoning": 7}, "output.reasoning", "7"),
    output_case("extra_key_in_output", {"result": "POSSIBLE", "reasoning": "x", "confidence": 1}, "'confidence'"),
    row_case("unknown_top_level_key", line(ROWS[2] | {"label": 1}), "'label'", "group, id, input, meta, output"),
    row_case("id_is_a_list", line(ROWS[2] | {"id": [1]}), "'id'", "[1]"),
    row_case("array_line", "[1, 2]", "list", "object"),
    row_case("number_line", "17", "int", "object"),
    row_case("not_utf8", line(ROWS[2]).encode("utf-8")[:-1] + b"\xe9}", "not UTF-8", "0xe9", "save the file as UTF-8"),
    record_case("nan", "NaN", "NaN is not JSON"),
    record_case("infinity_by_size", "1e999", "1e999"),
    record_case("key_twice", '1, "a": 2', "'a' appears twice"),
    record_case("deep_nesting", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
    record_case("deeper_than_a_step_can_walk", "[" * 700 + "]" * 700, "nested too deeply", "100"),
    Case(
        "duplicate_id",
        PREPARE,
        ("in.jsonl:2: ", "'seven'", "line 1", FIX),
        {"in.jsonl": line(ROWS[0] | {"id": "seven"}) + "\n" + line(ROWS[1] | {"id": "seven"}) + "\n" + GOOD},
    ),
    Case(
        "contradiction",
        PREPARE,
        ("in.jsonl:13: ", "line 4", ROWS[3]["output"]["result"], "decide which is right", FIX),
        {"in.jsonl": GOOD + relabelled(ROWS[3], ROWS[3]["input"])},
    ),
    Case(
        "contradiction_swapped_and_reordered",
        PREPARE,
        ("in.jsonl:13: ", "line 4", "decide which is right", FIX),
        {"in.jsonl": GOOD + relabelled(ROWS[3], swapped(ROWS[3]["input"]))},
    ),
    Case(
        "several_wrong_lines_are_all_listed",
        PREPARE,
        ("in.jsonl:2: ", "in.jsonl:4: ", "in.jsonl:6: ", "'MAYBE'", "NaN", "3 problems in 3 lines of in.jsonl", FIX),
        {
            "in.jsonl": "\n".join(
                [
                    line(ROWS[0]),
                    "{",
                    line(ROWS[1]),
                    line(ROWS[2] | {"output": {"result": "MAYBE", "reasoning": "x"}}),
                    "",
                    '{"input": NaN}',
                    line(ROWS[3]),
                ]
            )
        },
    ),
    Case("empty_file", PREPARE, ("in.jsonl", "empty", "one labelled pair a line"), {"in.jsonl": ""}),
    Case("only_blank_lines", PREPARE, ("in.jsonl", "0 labelled rows", "at least 3"), {"in.jsonl": "\n  \n\r\n"}),
    Case(
        "too_few_rows",
        PREPARE,
        ("in.jsonl", "2 labelled rows", "at least 3"),
        {"in.jsonl": line(ROWS[0]) + "\n" + line(ROWS[1]) + "\n"},
    ),
    Case("input_is_a_folder", PREPARE, ("in.jsonl", "is a folder", "check the path"), {"in.jsonl/x": ""}),
    Case(
        "out_is_a_file",
        "prepare_splits.py --in in.jsonl --out notes.txt",
        ("notes.txt", "check the path"),
        {"in.jsonl": GOOD, "notes.txt": "mine"},
    ),
    Case(
        "bad_row_in_build_prompts",
        "build_prompts.py --data d --out out",
        ("d/val.jsonl:3: ", "'MAYBE'", FIX),
        {
            "d/train.jsonl": GOOD,
            "d/val.jsonl": with_third(line(ROWS[2] | {"output": {"result": "MAYBE", "reasoning": "x"}})),
        },
    ),
    Case(
        "train_split_missing",
        "build_prompts.py --data d",
        ("d/train.jsonl", "no such file", "make prep"),
        {"d/val.jsonl": GOOD},
    ),
    Case(
        "train_split_empty",
        "build_prompts.py --data d --out out",
        ("d/train.jsonl", "no row", "prepare_splits.py"),
        {"d/train.jsonl": "", "d/val.jsonl": GOOD},
    ),
]
CONFIG_CASES = [
    config_case("unknown_key", "  lr: 2e-4", "  learning_rate: 2e-4", "train.learning_rate", "0.0002", "did you mean"),
    config_case("lr_is_text", "lr: 2e-4", 'lr: "fast"', "train.lr", "'fast'", "a number"),
    config_case("lr_negative", "lr: 2e-4", "lr: -2e-4", "train.lr", "-0.0002", "above 0.0"),
    config_case("epochs_infinite", "epochs: 3", "epochs: .inf", "train.epochs", "inf", "a number"),
    config_case("batch_size_fractional", "batch_size: 4", "batch_size: 4.5", "train.batch_size", "4.5", "whole number"),
    config_case("bf16_is_text", "bf16: true", 'bf16: "true"', "train.bf16", "'true'", "true or false"),
    config_case("bad_literal", "method: qlora", "method: qloar", "peft.method", "'qloar'", "did you mean 'qlora'"),
    config_case("yaml_syntax", "  r: 64", "  r: [64", "line", "fix the line named"),
    config_case("yaml_too_deep", "  r: 64", "  r: " + "[" * 5_000, "recursion", "fix the line named"),
    config_case(
        "key_twice_in_yaml",
        "  epochs: 3",
        "  epochs: 3\n  epochs: 4",
        "'epochs' is given twice",
        "line 16",
        "fix the line named",
    ),
    config_case("unknown_section", "gen:", "chat2:", "chat2", "did you mean 'chat'"),
    Case(
        "section_left_out",
        TRAIN,
        ("c.yaml", "missing key 'gen'", "other configs"),
        FEW | {"c.yaml": CONFIG[: CONFIG.index("gen:")]},
    ),
    Case("not_a_mapping", TRAIN, ("c.yaml", "list", "copy the shape"), FEW | {"c.yaml": "- 1\n- 2\n"}),
    Case(
        "config_missing",
        TRAIN.replace("c.yaml", "configs/phi4min.yaml"),
        ("configs/phi4min.yaml", "no such config", "nearest: configs/phi4mini.yaml"),
        FEW,
    ),
    Case("set_without_equals", TRAIN + " --set train.lr", ("--set train.lr", "section.key=value"), FEW),
    Case(
        "set_unknown_key", TRAIN + " --set train.lrate=1", ("train.lrate", "(value 1)", "did you mean 'train.lr'"), FEW
    ),
    Case("set_bad_value", TRAIN + " --set train.lr=fast", ("--set train.lr=fast", "'fast'", "a number"), FEW),
    Case("set_value_as_section", TRAIN + " --set train.lr.x=1", ("--set train.lr.x=1", "'lr'", "not a section"), FEW),
]
CALL_CASES = [
    Case("unknown_task", PREPARE + " --task crmm", ("'crmm'", "nearest: crm"), {"in.jsonl": GOOD}),
    Case("negative_seed", PREPARE + " --seed -1", ("--seed -1", "from 0 on"), {"in.jsonl": GOOD}),
    Case("no_rows_wanted", "synthesize.py --rows 0 --out out/s.jsonl", ("--rows 0", "at least 1")),
    Case("unknown_backend", PREDICT + " --config c.yaml --backend vlm", ("--backend vlm", "no such engine", "hf"), FEW),
    Case("missing_model_folder", PREDICT, ("model", "no such model folder", "make train-<model>"), FEW),
    Case(
        "model_folder_without_manifest",
        PREDICT,
        ("model", "no manifest.json", "--config configs/<model>.yaml"),
        FEW | {"model/config.json": "{}"},
    ),
    Case(
        "model_manifest_broken",
        PREDICT,
        ("model/manifest.json", "not JSON", "make it again"),
        FEW | {"model/manifest.json": '{"config": '},
    ),
    Case(
        "model_folder_without_config_json",
        TRAIN + " --set model_id=model",
        ("model", "no config.json", "train it first"),
        FEW | {"model/x.txt": ""},
    ),
    Case(
        "model_path_that_is_nothing",
        TRAIN + " --set model_id=outputs/nope-merged",
        ("outputs/nope-merged", "no such model folder", "hub name"),
        FEW,
    ),
    Case(
        "train_file_missing",
        TRAIN.replace("--train prompts.jsonl", "--train nope.jsonl"),
        ("nope.jsonl", "no such file", "make prep"),
        FEW,
    ),
    Case(
        "test_file_missing",
        PREDICT.replace("test.jsonl", "nope.jsonl") + " --config c.yaml",
        ("nope.jsonl", "no such file", "make prep"),
        FEW,
    ),
    Case("limit_zero", PREDICT + " --config c.yaml --limit 0", ("--limit 0", "at least 1"), FEW),
    Case("batch_size_negative", PREDICT + " --config c.yaml --batch_size -4", ("--batch_size -4", "at least 1"), FEW),
    Case(
        "schema_differs",
        PREDICT + " --config c.yaml --schema s.json",
        ("s.json", "differs", "configs/decoding.jsonschema"),
        FEW | {"s.json": "{}"},
    ),
    Case("nothing_to_score", "evaluate_kpis.py --out out/x_metrics.json", ("--model_path", "--predictions")),
    Case(
        "predictions_missing",
        "evaluate_kpis.py --predictions p.jsonl --out out/x_metrics.json",
        ("p.manifest.json", "no such file", "check the path"),
    ),
    Case(
        "predictions_of_something_else",
        "evaluate_kpis.py --predictions p.jsonl --out out/x_metrics.json",
        ("p.jsonl:1: ", "not a prediction", "src/predict.py"),
        {"p.jsonl": GOOD, "p.manifest.json": "{}"},
    ),
    Case(
        "metrics_broken",
        "make_report.py --reports reports",
        ("reports/x_metrics.json", "not JSON", "make it again"),
        {"reports/x_metrics.json": '{"kpis": '},
    ),
    Case(
        "metrics_incomplete",
        "make_report.py --reports reports",
        ("reports/x_metrics.json", "'model'", "evaluate_kpis.py"),
        {"reports/x_metrics.json": "{}"},
    ),
]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_step(command, folder, preexec_fn=None, **env):
    script, *arguments = command.split()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=preexec_fn,
        env=clean | {"HF_HOME": str(folder / "hf"), "TQDM_DISABLE": "1"} | env,
    )


def assert_refused(done, words, code=2):
    """The exit code, one message that holds all the words, and no traceback."""
    start = {1: "failed: ", 2: "error: "}[code]
    assert done.returncode == code, done.stderr[-2000:]
    assert done.stderr.startswith(start) and len(re.findall(f"^{start}", done.stderr, re.M)) == 1, done.stderr[:2000]
    assert "Traceback" not in done.stderr and len(done.stderr) < 5_000
    missing = [word for word in words if word not in done.stderr]
    assert not missing, (missing, done.stderr)


def test_table_is_large_enough():
    cases = ROW_CASES + CONFIG_CASES + CALL_CASES
    assert len(cases) >= 60 and len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("case", ROW_CASES + CONFIG_CASES + CALL_CASES, ids=lambda case: case.name)
def test_refused_with_one_message_and_nothing_written(case, tmp_path):
    write(tmp_path, case.files | {"out/train.jsonl": "an older run's\n", "out/manifest.json": "{}"})
    before = tree(tmp_path)
    assert_refused(run_step(case.command, tmp_path), case.words)
    assert tree(tmp_path) == before


def test_a_thousand_problems_are_enough(tmp_path):
    write(tmp_path, {"in.jsonl": "{\n" * 5_000})
    done = run_step(PREPARE, tmp_path)
    assert done.returncode == 2 and done.stderr.count("in.jsonl:") == 1_000 and "the rest was not read" in done.stderr


# ---- no space on the disk: a file-size limit makes the write fail as a full disk does, with another number

BIG = "".join(line(row) + "\n" for row in good_rows(400))
SPACE = ("no space left to write", "free some space", "--out")


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize(
    "command", [PREPARE, "build_prompts.py --data d --out out", "synthesize.py --rows 200 --out out/s.jsonl"]
)
def test_no_space_leaves_the_older_files_whole(command, tmp_path):
    write(
        tmp_path,
        {
            "in.jsonl": BIG,
            "d/train.jsonl": BIG,
            "d/val.jsonl": BIG,
            "out/train.jsonl": "an older run's\n",
            "out/manifest.json": "{}",
        },
    )
    before = tree(tmp_path)
    assert_refused(run_step(command, tmp_path, small_files), SPACE, code=1)
    assert tree(tmp_path) == before


TABLE = "id,customer,name_1,name_2,label\n" + "".join(
    f"{at},{at // 2},{'Ann Lee ' * 40}{at // 2},Ann Lea {at},{at % 2}\n" for at in range(400)
)
WRITERS = (
    "prepare_splits.py --in in.jsonl --out disk/out",
    "prepare_splits.py --in in.csv --drop customer --out disk/out",
    "import_rows.py --format clusters --in in.csv --cluster_column customer --out disk/out.jsonl",
)


def test_a_really_full_disk_and_one_that_can_only_be_read(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("a small file system can only be mounted by root, with the right to mount")
    try:
        write(tmp_path, {"in.jsonl": BIG, "in.csv": TABLE})
        for command in WRITERS:
            assert_refused(run_step(command, tmp_path), SPACE, code=1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for command in WRITERS:
            assert_refused(run_step(command, tmp_path), ("disk", "Read-only file system"), code=1)
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        assert (tmp_path / "in.csv").read_text() == TABLE and (tmp_path / "in.jsonl").read_text() == BIG
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- the hub says no


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every request as the hub does for a gated or a missing repository."""

    status = 403
    code = "GatedRepo"
    words = "Access to model is restricted"

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("X-Error-Message", self.words)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        """Keep the test's output clean."""


@pytest.fixture
def hub(request):
    handler = type("Answer", (Hub,), dict(zip(("status", "code", "words"), request.param, strict=True)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CHECK = f"check_model.py --config {ROOT}/configs/llama3_2_3b.yaml --train prompts.jsonl"
MODEL = "meta-llama/Llama-3.2-3B-Instruct"


def check_against_hub(folder, **env):
    write(folder, {"prompts.jsonl": PROMPTS})
    return run_step(CHECK, folder, HF_HUB_DISABLE_IMPLICIT_TOKEN="1", **env)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hub, words",
    [
        (
            (403, "GatedRepo", "Access to model is restricted"),
            (MODEL, "gated", f"accept its licence at https://huggingface.co/{MODEL}", "hf auth login"),
        ),
        ((404, "RepoNotFound", "Repository not found"), (MODEL, "no such model on the hub", "check model_id")),
    ],
    indirect=["hub"],
    ids=["gated", "not_found"],
)
def test_hub_refuses(hub, words, tmp_path):
    assert_refused(check_against_hub(tmp_path, HF_ENDPOINT=hub), words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "env, words",
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, (MODEL, "the hub cannot be reached", "check the network")),
        ({"HF_HUB_OFFLINE": "1"}, (MODEL, "HF_HUB_OFFLINE is set", "local folder as model_id")),
    ],
    ids=["closed_port", "offline"],
)
def test_hub_out_of_reach_is_said_soon(env, words, tmp_path):
    start = time.monotonic()
    assert_refused(check_against_hub(tmp_path, **env), words)
    assert time.monotonic() - start < 45


@pytest.mark.parametrize(
    "error, words",
    [
        (socket.gaierror(-2, "Name or service not known"), "the hub cannot be reached"),
        (TimeoutError("timed out"), "the hub cannot be reached"),
        (ValueError(""), "could not be loaded"),
        (KeyError("added_tokens"), "KeyError: 'added_tokens'"),
    ],
)
def test_loading_errors_become_one_sentence(error, words):
    with pytest.raises(UserError, match=words) as found, hub_errors_explained("some/model"):
        raise error
    assert "\n" not in str(found.value) and "some/model" in str(found.value)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("CUDA out of memory"), UserError("said already")]
)
def test_loading_errors_that_are_no_fault_of_the_model_pass(error):
    with pytest.raises(type(error), match=str(error.args[-1])), hub_errors_explained("some/model"):
        raise error
