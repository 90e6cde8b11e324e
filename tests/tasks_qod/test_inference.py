"""From a sentence to a checked call, step by step: what leaves has passed the strict check, or says why not."""

import os
import subprocess

import pytest

import ask
from common import ROOT
from constrained_decode import Answer
from support.qod_answers import CALL, REFUSAL, changed, text
from tasks import load_task
from tasks.qod import checks, data, inference

TASK = load_task("qod")
SENTENCE = "Video consultation for +49 151 23456789 to 198.51.100.7, ninety minutes"


class Writer:
    """A model that writes the same whatever it is asked."""

    def __init__(self, written):
        self.written = written
        self.asked = []

    def __call__(self, messages):
        self.asked.append(messages)
        return self.written


def test_the_sentence_reaches_the_model_in_the_tasks_own_template():
    write = Writer(text(CALL))
    assert inference.call_for(SENTENCE, write) == CALL
    assert write.asked == [TASK.messages({"request": SENTENCE})]


@pytest.mark.parametrize("request_text", ["", " \n", "x" * (data.MOST_CHARACTERS + 1), "half \ud83d", 7])
def test_what_is_no_request_never_reaches_the_model(request_text):
    write = Writer(text(CALL))
    found = inference.call_for(request_text, write)
    assert [one["check"] for one in found["error"]["failed"]] == ["request"] and write.asked == []


@pytest.mark.parametrize(
    "written",
    [
        text(CALL),
        f"\n {text(CALL)} \n",
        f"Sure! Here is the call:\n{text(CALL)}\nLet me know.",
        f"```json\n{text(CALL)}\n```",
        f"The set {{device, server}} is complete: {text(CALL)}",
        f"{text(CALL)}\n\nThat is: {text(CALL)}",
    ],
)
def test_the_json_is_taken_out_of_what_stands_around_it(written):
    assert inference.call_for(SENTENCE, Writer(written)) == CALL


@pytest.mark.parametrize(
    "written",
    [
        "",
        "I cannot do that.",
        text(CALL)[:-1],
        f'{{"call": {text(CALL)}',
        f"{text(CALL)} or {text(changed(('duration',), 60))}",
        f"[{text(CALL)[:-4]}",
        '{"device": ' * 300 + "{}" + "}" * 300,
        '{"device": ' * 3_000,
    ],
)
def test_a_text_without_one_whole_object_gives_no_call(written):
    found = inference.call_for(SENTENCE, Writer(written))
    assert [one["check"] for one in found["error"]["failed"]] == ["json"]
    assert inference.outcome(written).answer is None and inference.outcome(written).reasons == ()


def test_a_call_that_fails_a_check_does_not_leave():
    bad = changed(("device", "ipv4Address", "publicAddress"), "203.0.113.300")
    found = inference.call_for(SENTENCE, Writer(text(bad)))
    [failed] = found["error"]["failed"]
    assert failed["check"] == "official.format" and failed["path"] == "$.device.ipv4Address.publicAddress"
    outcome = inference.outcome(text(bad))
    assert outcome.answer is None and "publicAddress must be one IPv4 address" in outcome.reasons[0]


def test_a_sentence_is_said_once():
    [reason] = inference.outcome(text(changed(("sink",), "http://a b"))).reasons
    assert reason.count("https://") == 1


def test_a_refusal_leaves_with_a_sentence_for_each_name():
    assert inference.call_for(SENTENCE, Writer(text(REFUSAL))) == REFUSAL
    outcome = inference.outcome(text(REFUSAL))
    assert outcome.answer == REFUSAL and len(outcome.reasons) == 3
    assert outcome.reasons[1] == "the duration is missing" and "several values" in outcome.reasons[2]


def test_a_refusal_in_a_wrong_form_does_not_leave():
    outcome = inference.outcome(text({"error": {"missing": [], "conflicting": [], "invalid": []}}))
    assert outcome.answer is None and len(outcome.reasons) == 1


def test_every_name_of_a_refusal_has_its_words():
    assert tuple(inference.WORDS) == checks.NAMES and tuple(inference.SENTENCES) == checks.LISTS


class Engine:
    """Writes one text after another."""

    def __init__(self, *written):
        self.written = written

    def check_prompt(self, messages):
        pass

    def answers(self, conversations, done=()):
        yield from ((at, Answer(one, "stop", 9, 9, None, 0.1)) for at, one in enumerate(self.written))


def test_asked_on_the_command_line_only_a_checked_call_or_a_refusal_is_an_answer():
    bad = text(changed(("duration",), 90_000))
    written = (text(CALL), text(REFUSAL), bad, "I cannot do that.")
    found = ask.answered(Engine(*written), TASK, [TASK.messages({"request": SENTENCE})] * len(written))
    assert found[:2] == [CALL, REFUSAL]
    reason = "the answer that the model wrote fails the checks: $.duration must be a whole number of seconds"
    assert found[2].keys() == {"error"} and found[2]["error"].startswith(reason)
    assert found[3]["raw"] == "I cannot do that."
    # A refusal is the right answer to some requests: it ends no run with exit code 1.
    assert [isinstance(one, ask.Unanswered) for one in found] == [False, False, True, True]


def asked_by_make(*words):
    """The words that `make ask` hands to src/ask.py; in the place of Python stands a command that shows them."""
    command = ["make", "--silent", "ask", "TASK=qod", "PYTHON=printf '%s|'", "PY=true", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    return result.stdout.split("|")[:-1]


@pytest.mark.parametrize("words", ['it\'s "q" -x; `id` $5 $(shell id) $$', "--out x", "Gaming, \\n two hours"])
def test_make_hands_a_request_on_as_it_was_typed(words):
    asked = asked_by_make(f"REQUEST={words}")
    assert asked[0] == "src/ask.py" and asked[-2:] == ["--", words]


def test_make_asks_about_a_file_where_there_is_no_request():
    assert asked_by_make("PAIRS=mine.jsonl")[-2:] == ["--pairs", "mine.jsonl"]
    assert asked_by_make("REQUEST=two\nlines")[-1] == "two lines"
