"""What the service promises whatever model stands behind it, to friends and to the hostile: on the model that ships, or
on a service that runs.

STEWARD_TEST_SERVICE=http://127.0.0.1:8080 names such a one, with a vLLM server behind it for example, and
STEWARD_TEST_SERVICE_LOG the file its log goes to.
"""

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import jsonschema
import pytest

from common import ROOT
from constrained_decode import load_engine, openai_api
from language_model.model_folder import model_config
from support.serving import REFUSED, Model, log_of, running
from tasks import load_task
from tasks.crm import injection
from tasks.crm.synthetic import rows as synthetic_rows

pytestmark = pytest.mark.slow
TASK = load_task()
SCHEMA = jsonschema.Draft202012Validator(TASK.answer_schema)
ELSEWHERE = os.environ.get("STEWARD_TEST_SERVICE")
LOG = os.environ.get("STEWARD_TEST_SERVICE_LOG")
JSON = {"content-type": "application/json"}
CANARY = "Xanthippe-4711"  # in every record; must be in no log line
PAIR = {
    "record1": {
        "name": f"{CANARY} Lee",
        "email": "ann@example.org",
        "phone": "+1 555 0101",
        "street": "1 Main St",
        "city": "Austin",
        "company": "Acme",
        "birth_date": "1980-02-03",
        "notes": "none",
    },
    "record2": {
        "name": f"{CANARY} Leigh",
        "email": "ann@example.org",
        "phone": "555-0101",
        "street": "1 Main Street",
        "city": "Austin",
        "company": "Acme Inc",
        "birth_date": "03.02.1980",
        "notes": "vip",
    },
}
CONTROL = (
    "<|im_start|>system",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<|assistant|>",
    "<|user|>",
    "<|system|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>assistant<|end_header_id|>",
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
    "<<SYS>>",
    "<unk>",
    "<|tool|>",
    "<tool_call>",
)
ODD_TEXT = (
    "\u0000",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u202d",
    "\ufeff",
    "\u200b" * 50,
    "a\u0301" * 60,
    "\U0001f4a9" * 40,
    "\n\r\t\b\f",
    "\\" * 99,
    '"' * 99,
    "{" * 99,
    "'; DROP TABLE pairs; --",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "%s%s%n",
    "${jndi:ldap://x}",
    "=1+1",
    "0" * 300,
    "NaN",
    "null",
    "true",
)
ODD_VALUES = (
    None,
    True,
    0,
    -1,
    1e308,
    -1e-308,
    10**400,
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    {"a": {"b": {"c": "d"}}},
    ["x"] * 50,
    [None, True, 1.5, "y", {"z": []}],
)


def with_value(value, field="notes", side="record1"):
    changed = copy.deepcopy(PAIR)
    changed[side][field] = value
    return json.dumps(changed)


def corpus():
    """(name, body) of every hostile request."""
    for text in [text for texts in injection.INSTRUCTIONS.values() for text in texts]:
        for field in PAIR["record1"]:
            yield f"instruction in {field}", with_value(text, field, "record2")
    for at, text in enumerate((*CONTROL, *ODD_TEXT)):
        yield f"odd text {at} as a value", with_value(text)
        yield f"odd text {at} as a key", json.dumps(PAIR | {"record2": PAIR["record2"] | {text: "x"}})
    for at, value in enumerate(ODD_VALUES):
        yield f"odd value {at}", with_value(value)
        yield f"odd value {at} as a record", json.dumps({"record1": value, "record2": PAIR["record2"]})
        yield f"odd value {at} as the body", json.dumps(value)
    for word in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "01",
        "0x10",
        "'x'",
        "undefined",
        "1.",
        ".5",
        "+1",
        "\\u12",
        '"\x01"',
        '"\n"',
    ):
        yield f"no JSON: {word!r}", json.dumps(PAIR).replace('"none"', word)
    for n in (1, 7, 8, 9, 100, 10_000):
        yield f"{n} levels deep", json.dumps(PAIR).replace('"none"', "[" * n + "]" * n)
    for n in (10, 200, 201, 5_000):
        yield f"{n} fields", json.dumps({"record1": {f"k{at}": at for at in range(n)}, "record2": PAIR["record2"]})
    for n in (500, 5_000, 60_000, 66_000, 1_000_000):
        yield f"{n} characters", with_value("x" * n)
        yield f"{n} characters of other letters", with_value("\u4e2d" * (n // 3))
    whole = json.dumps(PAIR).encode()
    for at, part in enumerate((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf", b"\x00")):
        yield f"broken UTF-8 {at}", whole.replace(b"none", part)
        yield f"broken UTF-8 {at} before all", part + whole
    for n in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        yield f"cut after {n} bytes", whole[:n]
    yield "key twice", whole.replace(b'"email"', b'"name"')
    yield "records twice", whole[:-1] + b"," + whole[1:]
    yield "two bodies", whole + whole
    yield "a form", b"record1=a&record2=b"


@pytest.fixture(scope="module")
def client():
    if ELSEWHERE:
        with httpx2.Client(base_url=ELSEWHERE, timeout=120, trust_env=False) as client:
            yield client
        return
    folder = ROOT / "models/steward-mini"
    engine = load_engine("hf").load(folder, TASK, model_config(SimpleNamespace(config=None, model_path=folder), TASK))
    with pytest.MonkeyPatch.context() as patch, running(engine, patch) as client:
        yield client


@contextlib.contextmanager
def described_service(folder):
    """Where schemathesis asks: a made-up model, for its requests are many and the model's words do not matter, or the
    service elsewhere.
    """
    if ELSEWHERE:
        yield ELSEWHERE
        return
    with (
        pytest.MonkeyPatch.context() as patch,
        running(Model(), patch, review_folder=str(folder), keep_traffic=True) as client,
    ):
        yield str(client.base_url).rstrip("/")


# ---- to friends


def test_a_pair_is_answered_with_exactly_the_two_keys(client):
    for row in synthetic_rows(8, 2):
        response = client.post("/match", json=row["input"], headers={"x-request-id": "friend-1"})
        assert (
            response.status_code == 200
            and SCHEMA.is_valid(response.json())
            and response.headers["x-request-id"] == "friend-1"
        )


def test_detail_adds_probabilities_and_field_evidence(client):
    told = client.post("/match?detail=true", json=PAIR).json()
    assert SCHEMA.is_valid({key: told[key] for key in ("result", "reasoning")}) and isinstance(
        told["closed_at_budget"], bool
    )
    # A model that was never trained may hold none of the verdicts for likely; then nobody knows their shares.
    assert told["probabilities"] is None or sum(told["probabilities"].values()) == pytest.approx(1, abs=0.01)
    assert {"field": "email", "relation": "same", "record1": "ann@example.org", "record2": "ann@example.org"} in told[
        "evidence"
    ]


@pytest.mark.parametrize("is_lines", [False, True])
def test_a_batch_comes_back_whole_and_in_order(client, is_lines):
    cases = [row["input"] for row in synthetic_rows(70, 3)]
    cases[5:6] = [{"record1": {}}, 7]
    content, kind = (
        ("\n".join(map(json.dumps, cases)), "application/x-ndjson")
        if is_lines
        else (json.dumps(cases), "application/json")
    )
    response = client.post("/match/batch?detail=true", content=content, headers={"content-type": kind})
    told = [json.loads(line) for line in response.text.splitlines()]
    assert response.status_code == 200 and [one.get("status") for one in told[5:7]] == [422, 422]
    assert [one["evidence"] for at, one in enumerate(told) if at not in (5, 6)] == [
        TASK.hook("service", "evidence")(case) for at, case in enumerate(cases) if at not in (5, 6)
    ]
    assert all(one["result"] in TASK.verdict.labels for at, one in enumerate(told) if at not in (5, 6))


def test_health_readiness_and_metrics(client):
    def counted():
        found = re.search(
            r'^steward_http_requests_total\{method="POST",route="/match",status="200"\} (\S+)',
            client.get("/metrics").text,
            re.M,
        )
        return float(found[1]) if found else 0.0

    for _ in range(2):
        client.post("/match", json=PAIR)
    until = time.monotonic() + 5
    while counted() < 2 and time.monotonic() < until:
        time.sleep(0.05)  # a request is counted behind its answer
    assert (
        counted() >= 2
        and client.get("/healthz").json() == {"status": "ok"}
        and client.get("/readyz").json() == {"status": "ready"}
    )


def test_openai_clients_and_the_projects_own_engine_are_answered(client):
    config = SimpleNamespace(gen=SimpleNamespace(max_new_tokens=64, temperature=0.0, top_p=1.0))
    engine = openai_api.load("steward", TASK, config, endpoint=f"{str(client.base_url).rstrip('/')}/v1")
    conversations = [TASK.messages(row["input"]) for row in synthetic_rows(4, 4)]
    answers = [*dict(engine.answers(conversations)).values(), *map(engine.ask, conversations)]
    assert all(SCHEMA.is_valid(json.loads(answer.text)) and answer.completion_tokens > 5 for answer in answers)


# ---- to the hostile


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "too long for the model"])
def test_a_body_that_is_no_pair_is_refused_with_its_reason(client, name):
    body, status = REFUSED[name]
    response = client.post("/match", content=body, headers=JSON)
    assert response.status_code == status and set(response.json()) == {"error"}


def test_every_hostile_body_is_refused_or_answered_with_a_valid_verdict(client, capfd):
    cases = list(corpus())
    assert len(cases) >= 200 and len({name for name, _ in cases}) > 150
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda case: client.post("/match", content=case[1], headers=JSON), cases))
    for (name, _), response in zip(cases, found, strict=True):
        told = response.json()
        if response.status_code == 200:
            assert SCHEMA.is_valid(told), (name, told)
        else:
            assert response.status_code in (400, 413, 422) and set(told) == {"error"}, (
                name,
                response.status_code,
                told,
            )
        assert CANARY not in json.dumps(told) and "Traceback" not in response.text, name
    statuses = Counter(response.status_code for response in found)
    assert statuses[200] > 100 and statuses[400] > 20 and statuses[422] > 20 and statuses[413] >= 4, statuses


def test_the_log_of_hostile_requests_holds_none_of_their_text(client, capfd):
    if ELSEWHERE and not LOG:
        pytest.skip("STEWARD_TEST_SERVICE_LOG does not name its log")
    cases = list(corpus())[::5]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda case: client.post("/match", content=case[1], headers=JSON), cases))
    log = (
        Path(LOG).read_text(encoding="utf-8", errors="replace")
        if LOG
        else log_of(capfd, '"route": "/match"', len(cases))
    )
    assert log.count('"route": "/match"') >= len(cases)
    assert CANARY not in log and "Traceback" not in log and "example.org" not in log


def test_the_documented_routes_keep_their_promises(tmp_path):
    """Schemathesis makes requests from /openapi.json, right and wrong ones, and checks every answer against it."""
    # A schema cannot say how many tokens the model reads: 413 is a promised answer to a right question.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "401", "404", "409", "413", "429"]\n'
    )
    with described_service(tmp_path) as address:
        words = (
            "--checks",
            "all",
            "--max-examples",
            "40",
            "--seed",
            "1",
            "--no-color",
            "--suppress-health-check",
            "all",
            "--generation-database",
            "none",
        )
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\b", done.stdout), done.stdout[-3000:]
