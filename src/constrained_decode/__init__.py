"""The guarantee that an answer fits its schema (_automaton.py, _tokens.py, _guarantee.py), and one file an engine.

A module of an engine has
    load(model_path, task, config, batch_size=None, constrained=True) -> Engine, maybe with more options
    identity(model_path)   what it reads beside the model's own folder, for fingerprints; None where that is nothing
    STARTS_SERVER          it is a server of its own, which runs in a `with serve(...)` and is reached by `connect`
    NEEDS_ENDPOINT         it asks a server that runs already: load takes endpoint=, and there is a `connect`
    RANDOM_WEIGHTS         load, or serve, takes random_weights=True: the model's shape, for measurements of speed

A module with one of the first two constants has
    connect(model_path, task, config, endpoint, n_clients, constrained=True) -> Engine for many threads, not checked
and one that starts a server
    serve(model_path, task, config, n_rows, more, log, constrained=True) -> context of (endpoint, facts)
"""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from common import UserError

FAILED = "failed: "  # a finish_reason of a request that came to nothing begins so


@dataclass(frozen=True)
class Answer:
    text: str  # exactly what the model wrote, without the end token
    finish_reason: str  # stop, length when the token budget cut it off, or "failed: why" of a server's answer
    prompt_tokens: int
    completion_tokens: int
    # of each verdict, read where the verdict is decided; None where the task has none or the engine does not know
    probabilities: dict[str, float] | None
    seconds: float  # the batch's time over its rows: what one answer cost
    # steps at which the model's first choice would have broken the schema; None where the engine does not know
    overruled: int | None = 0
    # steps at which it came too late: behind it the answer could not have been ended within the budget
    late: int | None = 0
    first_s: float | None = None  # from the call until the first token was known
    # of its tokens those that its opening and its verdict settle: they can be read, at no step of their own
    n_settled: int = 0

    @property
    def failure(self):
        """Why a server gave no answer; None where it gave one."""
        return self.finish_reason.removeprefix(FAILED) if self.finish_reason.startswith(FAILED) else None


class Engine:
    """What a step may ask of any engine; a file of this folder fills in what its engine does otherwise.

    How far an answer is held depends on the task: to its schema (verdict, json), to the wrapper and the schema of a
    call (tool_call), or to the token budget alone (text, and calls whose tools no schema names).
    """

    facts: dict  # what a manifest should say about it
    batch_size: int  # conversations that it takes at once
    chat = None  # how it renders a conversation (language_model.chat_template); None where a server does
    is_elsewhere = False  # a server, asked by `ask` from many threads; else it wants whole batches by `answers`
    tells_probabilities = True  # whether an answer says its verdict's probabilities; may be set, for they cost time

    def answers(self, conversations, done=()):
        """Yields (position, Answer) in the engine's own order; a conversation that comes again is drawn anew.

        `done` holds the answers that an interrupted run has kept, by position. Batches stay those of all
        conversations, for a row's numbers depend in their last bits on what stands beside it: a batch of which a part
        is done is answered again as a whole.
        """
        raise NotImplementedError

    def verdicts(self, conversations, done=()):
        """Yields (position, {label: probability}) without generating; only for a task with a verdict."""
        raise NotImplementedError

    def ask(self, messages, with_shares=None, streams=False):
        """One Answer; with_shares says whether it needs its probabilities, streams that first_s should be known."""
        [(_, answer)] = self.answers([messages])
        return answer

    def check_prompt(self, messages):
        """The prompt's tokens, None where a server alone knows; a UserError where the model cannot read so much."""

    def is_up(self):
        """Whether it would answer at all."""
        return True

    def prepare(self, conversations):
        """Make once what batches of such conversations need, so that no answer's time holds it."""

    def check(self):
        """A UserError where it does not do what it promises."""


def nothing_but_the_folder(model_path):
    """The `identity` of an engine that reads the model's folder alone."""


def engine_names():
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load_engine(name):
    if name not in engine_names():
        near = difflib.get_close_matches(name, engine_names(), n=1, cutoff=0.0)
        raise UserError(
            f"--backend {name}: there is no such engine; there is: {', '.join(engine_names())} (nearest: {near[0]})"
        )
    return importlib.import_module(f"constrained_decode.{name}")
