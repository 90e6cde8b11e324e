"""Callers of the benchmark that need no model."""

import os

from common import UserError
from constrained_decode import Answer
from support.endpoint import GOOD


def answer(text=GOOD, **facts):
    return Answer(
        text,
        **{
            "finish_reason": "stop",
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "probabilities": None,
            "seconds": 0.01,
        }
        | facts,
    )


class Failing:
    """Answers, fails or dies, as a conversation says."""

    def __init__(self, how):
        if how == "dies at once":
            os._exit(3)
        if how == "fails at once":
            raise UserError("no server here")

    def ask(self, messages):
        if messages == "die":
            os._exit(3)
        if messages == "fail":
            raise UserError("wrong in an answer")
        return answer()
