"""vLLM's worker played by the test: rows come, are read in pieces, move, swap, leave and come back, and every answer is
valid. Where vLLM itself is installed its own classes and argument parser are used.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import subprocess
import sys
import types
from enum import Enum, auto
from types import SimpleNamespace

import jsonschema
import pytest
import torch

import make_standin
from common import UserError, parse_json, parsed_answer
from constrained_decode import vllm
from language_model import model_server
from support import families
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
BUDGET = 64
PLACEHOLDER = -1  # what asynchronous scheduling writes where the host does not know a token yet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm") / "standin"
    texts = [message["content"] for row in synthetic_rows(40, 1) for message in TASK.messages(row["input"])]
    tokenizer, model = make_standin.make(
        [*texts, TASK.completion({"result": "DUPLICATE", "reasoning": "Same person."})], seed=1
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    return vllm.Reader(folder, TASK, families.load_config("configs/standin.yaml", [f"model_id={folder}"]), True)


@pytest.fixture(scope="module")
def processors():
    """The module that vLLM would load, on vLLM's own base class where it is installed."""
    try:
        import vllm.v1.sample.logits_processor  # noqa: F401
    except ImportError:

        class Direction(Enum):
            UNIDIRECTIONAL = auto()
            SWAP = auto()

        stub = types.ModuleType("vllm.v1.sample.logits_processor")
        stub.LogitsProcessor = object
        stub.MoveDirectionality = Direction
        for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules[stub.__name__] = stub
    from constrained_decode import _vllm_guarantee

    yield _vllm_guarantee
    for name in [
        name
        for name, module in sys.modules.items()
        if type(module) is types.ModuleType
        and name.partition(".")[0] == "vllm"
        and not getattr(module, "__file__", None)
    ]:
        sys.modules.pop(name)


class Worker:
    """vLLM's persistent batch: dense rows, the last one moved into a hole, two swapped now and then."""

    def __init__(self, processors, folder, reader, n_rows, temperature):
        options = {"grammar": reader.grammar, "end_id": reader.end_id, "temperature": temperature, "top_p": 0.95}
        model = SimpleNamespace(
            tokenizer=str(folder), get_vocab_size=lambda: len(reader.chat.tokenizer), max_model_len=4096
        )
        config = SimpleNamespace(
            additional_config={"guarantee": options},
            model_config=model,
            scheduler_config=SimpleNamespace(max_num_seqs=n_rows),
        )
        self.processor = processors.Guaranteed(config, torch.device("cpu"), False)
        self.directions = processors.MoveDirectionality
        self.n_rows = n_rows
        self.rows = []
        self.rng = random.Random(3)
        self.end = reader.end_id
        self.noise = torch.Generator().manual_seed(1)
        self.n_tokens = len(reader.chat.tokenizer)
        self.n_preempted = 0
        self.spoilt = lambda logits: logits

    def step(self, waiting):
        """One scheduler step; the finished requests leave."""
        removed = []
        added = []
        moved = []
        for at in reversed(range(len(self.rows))):
            request = self.rows[at]
            preempted = request["tokens"] and self.rng.random() < 0.02
            if request["done"] or preempted:
                removed.append(at)
                if preempted and not request["done"]:
                    self.n_preempted += 1
                    request["written"] = list(request["tokens"])  # by then the host knows them all
                    waiting.append(request)
                if at != len(self.rows) - 1:
                    self.rows[at] = self.rows[-1]
                    moved.append((len(self.rows) - 1, at, self.directions.UNIDIRECTIONAL))
                self.rows.pop()
        # vLLM fills holes with new requests before it moves any; here they come behind.
        if moved and added:
            raise AssertionError("unreachable")
        if len(self.rows) > 3 and self.rng.random() < 0.2:
            self.rows[0], self.rows[2] = self.rows[2], self.rows[0]
            moved.append((0, 2, self.directions.SWAP))
        self.update(removed, [], moved)
        while waiting and len(self.rows) < self.n_rows and self.rng.random() < 0.8:
            request = waiting.pop(0)
            request["unread"] = self.rng.choice([0, 1, 2])
            self.rows.append(request)
            added.append((len(self.rows) - 1, request["params"], request["prompt"], request["written"]))
        self.update([], added, [])
        if self.rows:
            self.sample()

    def update(self, removed, added, moved):
        changed = removed or added or moved
        self.processor.update_state(
            SimpleNamespace(batch_size=len(self.rows), removed=removed, added=added, moved=moved) if changed else None
        )

    def sample(self):
        logits = self.spoilt(4 * torch.randn(len(self.rows), self.n_tokens, generator=self.noise))
        chosen = self.processor.apply(logits.clone()).argmax(-1).tolist()
        for at, request in enumerate(self.rows):
            if not request["params"].extra_args:
                assert chosen[at] == int(logits[at].argmax()), "a request without the argument is left alone"
            if request["unread"]:
                request["unread"] -= 1  # the prompt is not read to its end: the token is thrown away
                continue
            request["tokens"].append(chosen[at])
            request["written"].append(PLACEHOLDER)
            request["done"] = chosen[at] == self.end or len(request["tokens"]) == request["params"].max_tokens


def request(reader, messages, held=True):
    n = len(reader.opening)
    return {
        "params": SimpleNamespace(extra_args={"answer_tokens": n} if held else None, max_tokens=BUDGET - n),
        "prompt": reader.prompt_ids(messages),
        "tokens": [],
        "written": [],
        "done": False,
        "unread": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_is_valid_however_rows_come_and_go(processors, folder, reader, temperature):
    worker = Worker(processors, folder, reader, 7, temperature)
    everyone = [
        request(reader, TASK.messages(row["input"]), held=at % 9 != 4) for at, row in enumerate(synthetic_rows(60, 2))
    ]
    waiting = list(everyone)
    n_steps = 0
    while (waiting or worker.rows) and n_steps < 5_000:
        worker.step(waiting)
        n_steps += 1
    assert all(one["done"] for one in everyone) and worker.n_preempted > 3
    check = jsonschema.Draft202012Validator(TASK.answer_schema)
    n_broken = 0
    for one in everyone:
        text = reader.text(reader.opening + one["tokens"])
        if one["params"].extra_args:
            assert one["tokens"][-1] == reader.end_id and check.is_valid(parse_json(text)), text
        else:
            n_broken += parsed_answer(text, check) is None
    assert n_broken == sum(not one["params"].extra_args for one in everyone) > 5, (
        "a model of random weights writes no JSON by itself"
    )


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("value", [float("-inf"), float("nan"), float("inf")])
def test_logits_without_a_chance_or_a_number_break_no_answer(processors, folder, reader, value, temperature):
    worker = Worker(processors, folder, reader, 4, temperature)
    worker.spoilt = lambda logits: logits.fill_(value).index_fill_(1, torch.tensor([reader.chat.pad_id]), 5.0)
    everyone = [request(reader, TASK.messages(row["input"])) for row in synthetic_rows(6, 2)]
    waiting = list(everyone)
    while waiting or worker.rows:
        worker.step(waiting)
    check = jsonschema.Draft202012Validator(TASK.answer_schema)
    for one in everyone:
        assert parsed_answer(reader.text(reader.opening + one["tokens"]), check) is not None


def test_an_argument_that_is_no_count_is_refused_at_admission(processors):
    for wrong in ("x", True, -1):
        with pytest.raises(ValueError, match="answer_tokens"):
            processors.Guaranteed.validate_params(SimpleNamespace(extra_args={"answer_tokens": wrong}))
    processors.Guaranteed.validate_params(SimpleNamespace(extra_args=None))


def test_prompts_are_ours_with_the_opening_behind_them(reader):
    messages = TASK.messages(next(iter(synthetic_rows(1, 1)))["input"])
    ids = reader.prompt_ids(messages)
    assert (
        ids == reader.chat.prompt_ids(messages) + reader.branch.opening and reader.text(reader.opening) == '{"result":"'
    )
    label = TASK.verdict.labels[1]
    assert (
        reader.text(reader.opening + reader.settled(reader.branch.token_of[label]))
        == f'{{"result":"{label}","reasoning":"'
    )


def test_probabilities_are_of_the_verdicts_alone_and_calibrated(reader):
    import math

    first, second, third = (reader.branch.token_of[label] for label in TASK.verdict.labels)
    shares = reader.shares({first: math.log(0.6), second: math.log(0.2), 7: math.log(0.1)}, 1.0)
    assert list(shares.values()) == pytest.approx([0.75, 0.25, 0.0])
    assert reader.shares({first: math.log(0.6), second: math.log(0.2)}, 2.0)[TASK.verdict.labels[0]] == pytest.approx(
        3**0.5 / (1 + 3**0.5)
    )
    assert reader.shares({7: -1.0}, 1.0) is None and third not in {first, second}


def test_the_client_asks_with_token_ids_and_puts_the_opening_before_what_comes(reader):
    gen = SimpleNamespace(max_new_tokens=BUDGET, temperature=0.1, top_p=0.9)
    client = vllm.Client(reader, TASK, gen, 2, "http://127.0.0.1:9/v1")
    messages = TASK.messages(next(iter(synthetic_rows(1, 1)))["input"])
    body = client._body(messages, BUDGET)
    assert (
        body["prompt"] == reader.prompt_ids(messages)
        and body["max_tokens"] == BUDGET - len(reader.opening)
        and "response_format" not in body
    )
    assert body["vllm_xargs"] == {"answer_tokens": len(reader.opening)} and body["stop_token_ids"] == [reader.end_id]
    with pytest.raises(UserError, match="not reachable"):
        client.check()


def test_the_clients_verdicts_are_read_by_token_id_and_its_answers_count_the_opening(reader):
    import math

    from support.endpoint import Server

    labels = reader.branch.token_of
    shares = dict(zip(TASK.verdict.labels, (0.6, 0.3, 0.1), strict=True))

    def behave(server, handler, body):
        assert isinstance(body["prompt"], list) and all(isinstance(token, int) for token in body["prompt"])
        told = {f"token_id:{labels[label]}": math.log(share / 2) for label, share in shares.items()} | {
            "token_id:7": -0.7
        }
        logprobs = {"logprobs": {"top_logprobs": [told]}} if body.get("logprobs") else {}
        choice = {"text": 'POSSIBLE","reasoning":"Name matches."}', "finish_reason": "stop", **logprobs}
        server.send(handler, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 90, "completion_tokens": 11}}))

    server = Server(behave)
    client = vllm.Client(
        reader, TASK, SimpleNamespace(max_new_tokens=BUDGET, temperature=0.1, top_p=0.9), 2, server.endpoint
    )
    client.check()
    messages = TASK.messages(next(iter(synthetic_rows(1, 1)))["input"])
    answer = client.ask(messages)
    server.http.shutdown()
    n = len(reader.opening)
    assert parse_json(answer.text)["result"] == "POSSIBLE" and (answer.prompt_tokens, answer.completion_tokens) == (
        90 - n,
        11 + n,
    )
    assert answer.n_settled == n + 1 + len(reader.branch.rest_of["POSSIBLE"])
    assert answer.overruled is answer.late is None
    client = vllm.Client(reader, TASK, client.gen, 2, Server(behave).endpoint)
    assert dict(client.verdicts([messages]))[0] == pytest.approx(shares)


def test_vllms_own_parser_takes_our_arguments(reader):
    arguments = pytest.importorskip(
        "vllm.engine.arg_utils", reason="vLLM needs a GPU host; LOG.md says which versions this was run with"
    )
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if not current_platform.device_type:
        current_platform.device_type = "cuda"
    parser = FlexibleArgumentParser()
    arguments.AsyncEngineArgs.add_cli_args(parser)
    options = vllm.engine_options(
        reader, TASK, families.load_config("configs/standin.yaml"), 64, random_weights=True
    ) | {"stream_interval": 64}
    given = parser.parse_args(vllm.arguments(options))
    assert (
        given.logits_processors == [vllm.PROCESSOR]
        and given.additional_config["guarantee"]["grammar"]["schema"] == TASK.answer_schema
    )
    assert (given.max_num_seqs, given.load_format, given.generation_config, given.stream_interval) == (
        64,
        "dummy",
        "vllm",
        64,
    )


def test_without_the_guarantee_vllm_is_started_as_it_comes(folder, monkeypatch, tmp_path):
    """Its own runner and no processor: what the guarantee costs is measured against vLLM itself."""
    started = []

    @contextlib.contextmanager
    def running(command, health, log, environment=()):
        started.append((command, dict(environment)))
        yield

    monkeypatch.setattr(vllm, "check_installed", lambda: None)
    monkeypatch.setattr(model_server, "running", running)
    config = families.load_config("configs/standin.yaml", [f"model_id={folder}"])
    for held in (True, False):
        with vllm.serve(folder, TASK, config, 4, "--dtype half", tmp_path / "log", constrained=held):
            command, environment = started[-1]
            assert ("--logits-processors" in command) == ("--additional-config" in command) == bool(environment) == held
            assert command[-2:] == ["--dtype", "half"] and "--max-num-seqs" in command
    assert started[0][1]["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_a_missing_vllm_is_told_with_what_to_do(folder, monkeypatch):
    def not_here(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_here)
    with pytest.raises(UserError, match=r"not installed here.*requirements-gpu.txt"):
        vllm.load(folder, TASK, families.load_config("configs/standin.yaml", [f"model_id={folder}"]))


# ---- a server that is started and stopped

SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print("hello from the server", flush=True)
if sys.argv[2] == "dies": sys.exit("out of memory")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_runs_while_the_block_does(tmp_path):
    port = model_server.free_port()
    log = tmp_path / "logs" / "server.log"
    with model_server.running(
        [sys.executable, "-c", SERVER, str(port), "lives"], f"http://127.0.0.1:{port}/health", log
    ) as server:
        assert server.poll() is None and "hello from the server" in log.read_text()
    assert server.poll() is not None


def test_a_servers_flags_are_told_without_this_machines_paths():
    told = model_server.facts(
        "no-such-package", [sys.executable, "-m", "server", "--model", "/somewhere/else/model", "--port", "1"]
    )
    assert told == {"no-such-package": {"flags": "--model model --port 1"}}


def test_a_server_that_dies_is_told_with_its_last_words(tmp_path):
    port = model_server.free_port()
    with (
        pytest.raises(
            model_server.WorkFailed,
            match=r"(?s)ended with code 1 before it was ready.*hello from the server.*out of memory",
        ),
        model_server.running(
            [sys.executable, "-c", SERVER, str(port), "dies"],
            f"http://127.0.0.1:{port}/health",
            tmp_path / "server.log",
        ),
    ):
        raise AssertionError("never ready")


def test_whoever_is_ended_from_outside_still_stops_its_server(tmp_path):
    port = model_server.free_port()
    log = tmp_path / "server.log"
    script = (
        "import sys, time, pathlib; sys.path.insert(0, "
        f"{str(model_server.__file__.rpartition('/language_model')[0])!r})\n"
        "from common import run; from language_model import model_server\n"
        f"command, log = [sys.executable, '-c', {SERVER!r}, '{port}', 'lives'], pathlib.Path({str(log)!r})\n"
        "def main():\n"
        f"    with model_server.running(command, 'http://127.0.0.1:{port}/health', log) as s:\n"
        "        print('pid', s.pid, flush=True); time.sleep(60)\n"
        "run(main)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as outer:
        pid = next(int(line.split()[1]) for line in outer.stdout if line.startswith("pid"))
        outer.terminate()
        assert outer.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_a_server_that_is_not_ready_in_time_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(model_server, "READY_WITHIN_S", 1.0)
    with (
        pytest.raises(model_server.WorkFailed, match="was not ready within"),
        model_server.running(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            f"http://127.0.0.1:{model_server.free_port()}/",
            tmp_path / "server.log",
        ),
    ):
        raise AssertionError("never ready")


def test_sglang_is_started_with_what_it_knows_and_its_own_interpreter(monkeypatch):
    from constrained_decode import sglang

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command = sglang.command("outputs/x", 8123, random_weights=True)
    assert (
        command[:3] == [sys.executable, "-m", "sglang.launch_server"]
        and "llguidance" in command
        and json.dumps(command)
    )
    monkeypatch.setenv(sglang.INTERPRETER, "/nowhere/python")
    with pytest.raises(UserError, match="no such interpreter"):
        sglang.command("outputs/x", 8123)
    monkeypatch.delenv(sglang.INTERPRETER)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--backend sglang: SGLang is not installed here.*STEWARD_SGLANG_PYTHON"):
        sglang.command("outputs/x", 8123)
