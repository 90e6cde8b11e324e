"""The measurement of the service on a task that refuses requests: a refusal is an answer, a failed check is none."""

import pytest

from measurements import service as measured_service
from support import small_tasks
from support.pipeline import exit_code
from support.qod_answers import CALL, REFUSAL, changed, text
from support.serving import Model, running
from tasks import load_task

TASK = load_task("qod")


@pytest.mark.parametrize(
    ("written", "valid"),
    [(text(CALL), True), (text(REFUSAL), True), (text(changed(("duration",), 90_000)), False)],
    ids=["call", "refusal", "failed check"],
)
def test_what_the_service_answers_is_counted_as_the_model_wrote_it(monkeypatch, written, valid):
    with running(Model(written, shares=None), monkeypatch, task="qod") as client:
        caller = measured_service.Caller(str(client.base_url), TASK)
        answer = caller.ask({"request": "a voice call"})
        assert answer.failure is None
        assert TASK.parsed(answer.text) == (TASK.parsed(written) if valid else None)
        # Without the hook a task's 422 is a body that the service could not read.
        caller.may_refuse = False
        assert (caller.ask({"request": "a voice call"}).failure is None) == (written == text(CALL))


def test_a_task_without_a_model_that_ships_needs_one(monkeypatch, tmp_path, capsys):
    task = small_tasks.loaded(monkeypatch, "notes")
    words = ("--task", "notes", "--pairs", task.folder / "sample.jsonl", "--out", tmp_path / "o.json")
    assert exit_code(measured_service, *words) == 2
    assert "no model ships with the project for it; name one with --model_path" in capsys.readouterr().err
