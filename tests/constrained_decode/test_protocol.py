"""Every engine in the folder keeps the written protocol, whatever the task; a new file there is covered as it is."""

import dataclasses
import inspect
import json
import pickle
import re

import pytest

import constrained_decode
import make_standin
from common import ROOT, UserError
from config import load_config
from constrained_decode import Answer, engine_names, load_engine
from support import small_tasks
from support.endpoint import Server
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASKS = ("crm", *small_tasks.NAMES)
NOT_HERE = re.compile("not installed here|is not installed")  # in the words of an engine whose library is missing
LOAD = {"model_path": inspect.Parameter.empty, "task": inspect.Parameter.empty, "config": inspect.Parameter.empty}
CONNECT = [*LOAD, "endpoint", "n_clients", "constrained"]
SERVE = [*LOAD, "n_rows", "more", "log", "constrained"]
TOO_LONG = [{"role": "user", "content": "long " * 9_000}]


def parameters(function):
    return inspect.signature(function).parameters


def classes_of(module):
    return [
        one
        for one in vars(module).values()
        if inspect.isclass(one) and one.__module__ == module.__name__ and "answers" in dir(one)
    ]


def rows_of(task):
    if task.name == "crm":
        return list(synthetic_rows(5, 3))
    return [json.loads(line) for line in (task.folder / "sample.jsonl").read_text(encoding="utf-8").splitlines()][:5]


@pytest.mark.parametrize("name", engine_names())
def test_a_module_has_what_steps_ask_of_it(name):
    module = load_engine(name)
    found = parameters(module.load)
    expected = LOAD | {"batch_size": None, "constrained": True}
    assert {key: found[key].default for key in list(found)[:5]} == expected
    assert all(one.default is not inspect.Parameter.empty for one in list(found.values())[5:])
    assert list(parameters(module.identity)) == ["model_path"]
    for constant in (module.STARTS_SERVER, module.NEEDS_ENDPOINT, module.RANDOM_WEIGHTS):
        assert isinstance(constant, bool)
    if module.NEEDS_ENDPOINT:
        assert {"endpoint", "timeout_s"} <= found.keys()
    if module.STARTS_SERVER or module.NEEDS_ENDPOINT:
        assert list(parameters(module.connect)) == CONNECT
    if module.STARTS_SERVER:
        assert list(parameters(module.serve))[: len(SERVE)] == SERVE
    starts = module.serve if module.STARTS_SERVER else module.load
    assert ("random_weights" in parameters(starts)) == module.RANDOM_WEIGHTS


@pytest.mark.parametrize("name", engine_names())
def test_what_a_module_makes_is_an_engine_with_the_written_methods(name):
    base = constrained_decode.Engine
    for made in classes_of(load_engine(name)):
        assert issubclass(made, base)
        for method, written in vars(base).items():
            if inspect.isfunction(written):
                assert parameters(vars(made).get(method, written)).keys() == parameters(written).keys(), method


def test_nobody_finds_out_by_looking_what_an_engine_has():
    asked = re.compile(r"(has|get)attr\((self\.)?(engine|load_engine\(.*?\)), ")
    files = [path for path in (ROOT / "src").rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]
    assert files == []


@pytest.mark.parametrize("name", [name for name in engine_names() if "connect" in dir(load_engine(name))])
def test_a_client_process_can_be_told_whom_to_ask(name):
    task = load_task()
    assert task.schema_checker and task.system_text
    made = pickle.loads(pickle.dumps((load_engine(name).connect, (task, load_config("configs/standin.yaml")))))
    assert made[1][0] == task and made[1][0].answer_schema == task.answer_schema


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model of random weights for all four tasks."""
    folder = tmp_path_factory.mktemp("protocol") / "standin"
    texts = []
    with pytest.MonkeyPatch.context() as patch:
        for name in TASKS:
            task = load_task(name) if name == "crm" else small_tasks.loaded(patch, name)
            for row in rows_of(task):
                texts += [message["content"] for message in task.messages(row["input"])]
                texts.append(task.completion(row["output"]))
    tokenizer, model = make_standin.make(texts, seed=1)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def made(folder, request, monkeypatch):
    """An engine of that name for a task of that name, and the task; skipped where its library is not installed."""
    servers = []

    def make(name, task_name, temperature=0.0):
        task = load_task() if task_name == "crm" else small_tasks.loaded(monkeypatch, task_name)
        config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={folder}"], task.overlay)
        config = dataclasses.replace(config, gen=dataclasses.replace(config.gen, temperature=temperature))
        module = load_engine(name)
        options = {}
        if module.NEEDS_ENDPOINT:
            gold = {row_key(task, row): task.completion(row["output"]) for row in rows_of(task)}
            servers.append(
                Server(
                    lambda server, handler, body: server.say(
                        handler, gold.get(body["messages"][-1]["content"], "Hello.")
                    )
                )
            )
            options = {"endpoint": servers[-1].endpoint}
        try:
            return module.load(folder, task, config, batch_size=2, **options), task
        except UserError as error:
            if NOT_HERE.search(str(error)):
                pytest.skip(str(error))
            raise

    yield make
    for server in servers:
        server.http.shutdown()


def row_key(task, row):
    return task.messages(row["input"])[-1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("name", engine_names())
def test_any_engine_answers_any_task(name, task_name, made):
    engine, task = made(name, task_name)
    conversations = [task.messages(row["input"]) for row in rows_of(task)]
    engine.check()
    engine.prepare(conversations)
    assert engine.is_up() and engine.batch_size == 2 and json.dumps(engine.facts)
    answers = dict(engine.answers(conversations))
    assert sorted(answers) == list(range(len(conversations)))
    for answer in answers.values():
        assert isinstance(answer, Answer) and answer.seconds > 0
        assert task.parsed(answer.text) is not None, answer.text
        has_shares = task.verdict is not None and not load_engine(name).NEEDS_ENDPOINT
        assert (answer.probabilities is not None) == has_shares
    assert engine.ask(conversations[0], with_shares=False).text == answers[0].text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in engine_names() if not load_engine(name).NEEDS_ENDPOINT])
def test_an_engine_that_renders_prompts_tells_a_verdict_and_refuses_what_it_cannot_read(name, made):
    engine, task = made(name, "crm")
    conversations = [task.messages(row["input"]) for row in rows_of(task)]
    shares = dict(engine.verdicts(conversations))
    assert sorted(shares) == list(range(len(conversations)))
    assert all(list(one) == list(task.verdict.labels) for one in shares.values())
    assert all(sum(one.values()) == pytest.approx(1, abs=1e-5) for one in shares.values())
    assert engine.chat.prompt_ids(conversations[0])
    engine.check_prompt(conversations[0])
    with pytest.raises(UserError, match="too long"):
        engine.check_prompt(TOO_LONG)


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["booking", "switches"])
@pytest.mark.parametrize("rewinds", [True, False])
def test_drawn_tokens_keep_schema_wrapper_and_budget_without_a_verdict(task_name, rewinds, made):
    """Guessed ahead, or token by token as for models whose memory can drop nothing."""
    engine, task = made("hf", task_name, temperature=1.5)
    engine.rewinds = rewinds
    conversations = [task.messages(row["input"]) for row in rows_of(task)]
    found = dict(engine.answers(conversations * 3))
    assert all(task.parsed(answer.text) is not None for answer in found.values())
    assert all(answer.completion_tokens <= engine.gen.max_new_tokens for answer in found.values())
    assert len({answer.text for answer in found.values()}) > 3
    assert sum(answer.overruled for answer in found.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in engine_names() if not load_engine(name).NEEDS_ENDPOINT])
def test_a_conversation_that_comes_again_is_drawn_anew(name, made):
    engine, task = made(name, "booking", temperature=1.5)
    found = dict(engine.answers([task.messages(rows_of(task)[0]["input"])] * 4))
    assert len({answer.text for answer in found.values()}) > 2, "two rows a batch: neither rows nor batches are alike"


@pytest.mark.slow
def test_guessing_changes_no_text_without_a_verdict(made):
    for task_name in ("booking", "switches"):
        engine, task = made("hf", task_name)
        conversations = [task.messages(row["input"]) for row in rows_of(task)]
        first = {at: answer.text for at, answer in engine.answers(conversations)}
        assert {at: answer.text for at, answer in engine.answers(conversations)} == first
        engine.rewinds = False
        assert {at: answer.text for at, answer in engine.answers(conversations)} == first


@pytest.mark.slow
def test_a_budget_too_small_for_any_answer_is_refused(folder, monkeypatch):
    task = small_tasks.loaded(monkeypatch, "booking")
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={folder}", "gen.max_new_tokens=3"])
    with pytest.raises(UserError, match="max_new_tokens is 3"):
        load_engine("hf").load(folder, task, config)
