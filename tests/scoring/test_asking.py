"""What a model answered is kept at once; what it could not answer stops nobody, and a server is asked for it again."""

import pytest

from common import UserError
from constrained_decode import Answer
from scoring import asking

GOOD = '{"result":"NO_MATCH","reasoning":"x"}'


class Model:
    """Answers from the last conversation to the first, in batches of two; some it cannot read, some it fails on."""

    def __init__(self, failing=(), stops_before=None):
        self.failing = failing
        self.stops_before = stops_before
        self.asked = []

    def check_prompt(self, messages):
        if messages == "too long":
            raise UserError("too long: the prompt takes 9 tokens")

    def answers(self, conversations, done=()):
        places = range(len(conversations))[::-1]
        for at in range(0, len(places), 2):
            batch = places[at : at + 2]
            if all(place in done for place in batch):
                continue
            for place in batch:
                if conversations[place] == self.stops_before:
                    raise KeyboardInterrupt
                self.asked.append(conversations[place])
                reason = "failed: not reachable" if conversations[place] in self.failing else "stop"
                yield place, Answer(GOOD, reason, 1, 1, None, 0.1)


def answered(model, conversations, out):
    with asking.journal_of(out, "the work") as journal:
        return asking.answers(model, conversations, journal)


def test_an_interrupted_run_asks_whole_batches_and_only_those_that_are_not_done(tmp_path):
    conversations = ["a", "too long", "b", "c", "d"]
    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answered(Model(stops_before="a"), conversations, out)
    model = Model()
    found = answered(model, conversations, out)
    assert model.asked == ["b", "a"], "d and c were done; of the cut batch both are asked"
    assert [one.words if isinstance(one, asking.Refusal) else one.text for one in found] == [
        GOOD,
        "too long: the prompt takes 9 tokens",
        GOOD,
        GOOD,
        GOOD,
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_could_not_answer_is_asked_again_and_the_rest_is_not(tmp_path):
    conversations = ["a", "b", "c", "d"]
    out = tmp_path / "answers.jsonl"
    found = answered(Model(failing=("b",)), conversations, out)
    assert found[1] == asking.Refusal("not reachable", again=True)
    assert asking.n_to_ask_again(found) == 1
    model = Model()
    assert all(isinstance(one, Answer) for one in answered(model, conversations, out))
    assert model.asked == ["b", "a"]
    assert list(tmp_path.iterdir()) == []
