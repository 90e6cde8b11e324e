"""The guarantee that an answer fits its schema (_automaton.py, _tokens.py, _guarantee.py), and one file an engine. An
engine module has `load(model_path, task, config, batch_size=None, constrained=True)`; what it returns answers messages.
An engine that is a server has beside it `connect(model_path, task_name, config, endpoint, n_clients,
constrained=True)`, whose result answers single messages by `ask`, from many threads, and `serve(...)`, a context that
yields (endpoint, facts) of such a server, where it can start one.

    engine.answers(list of messages)  -> yields (position, Answer), in the engine's own order
    engine.verdicts(list of messages) -> yields (position, {label: probability}), without generating
    engine.facts                      -> what a manifest should say about it
"""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from common import UserError


@dataclass(frozen=True)
class Answer:
    text: str  # exactly what the model wrote, without the end token
    finish_reason: str  # stop, or length when the token budget cut it off
    prompt_tokens: int
    completion_tokens: int
    probabilities: (
        dict[str, float] | None
    )  # of each verdict, read where the verdict is decided; None where an engine does not tell
    seconds: float  # the batch's time over its rows: what one answer cost
    overruled: int | None = (
        0  # steps at which the model's first choice would have broken the schema; None where an engine does not tell
    )
    late: int | None = (
        0  # steps at which it came too late: behind it the answer could not have been ended within the budget
    )
    first_s: float | None = None  # from the call until the first token was known
    n_settled: int = (
        0  # of its tokens those that its opening and its verdict settle: they can be read, at no step of their own
    )


def engine_names():
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load_engine(name):
    if name not in engine_names():
        near = difflib.get_close_matches(name, engine_names(), n=1, cutoff=0.0)
        raise UserError(
            f"--backend {name}: there is no such engine; there is: {', '.join(engine_names())} (nearest: {near[0]})"
        )
    return importlib.import_module(f"constrained_decode.{name}")
