"""A model asked about many cases: every answer is kept at once, and a row that cannot be answered stops no other."""

import contextlib
import dataclasses

from common import UserError, progress
from constrained_decode import Answer
from interruption import Journal


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a row has no result."""

    words: str
    again: bool = False  # whether another try may end otherwise


def journal_of(out, name):
    """Where results are kept until all are there; nowhere, if no file is to be written."""
    return Journal(out, name, "answers") if out else contextlib.nullcontext()


def answers(engine, conversations, journal=None, unit="rows"):
    """An Answer or a Refusal for each conversation, in order."""
    kept = {at: Answer(**facts) for at, facts in entries(journal, "answers")}
    found = asked(engine.answers, engine, conversations, kept, journal, (unit, "answers"))
    found = [refused_by_server(one) or one for one in found]
    if journal and n_to_ask_again(found):
        journal.is_whole = False
    return found


def verdicts(engine, conversations, journal=None, unit="rows", title="verdicts"):
    """{label: share} or a Refusal for each conversation, in order."""
    kept = dict(entries(journal, title))
    return asked(engine.verdicts, engine, conversations, kept, journal, (unit, title))


def in_order(numbered, n, title):
    """What an engine yields by position, back in the rows' order; nothing of it is kept."""
    found = [None] * n
    with progress(n, "rows", title) as bar:
        for position, value in numbered:
            found[position] = value
            bar.update(1)
    return found


def asked(ask, engine, conversations, found, journal, words):
    """The result of `ask` for every conversation that is not in `found`; what comes is kept at once."""
    unit, title = words
    refusals = dict(unreadable(engine, conversations))
    positions = [at for at in range(len(conversations)) if at not in refusals]
    done = {place: found[at] for place, at in enumerate(positions) if at in found}
    with progress(len(positions), unit, title) as bar:
        bar.skip(len(done))
        if len(done) < len(positions):
            for place, result in ask([conversations[at] for at in positions], done=done):
                # A batch that was cut in the middle is answered again as a whole.
                if place not in done:
                    found[positions[place]] = result
                    keep(journal, title, positions[place], result)
                    bar.update(1)
    found |= refusals
    return [found[at] for at in range(len(conversations))]


def keep(journal, title, at, result):
    """What a server could not answer now it is asked again next time."""
    if journal and not refused_by_server(result):
        journal.add([title, at, dataclasses.asdict(result) if isinstance(result, Answer) else result])


def entries(journal, title):
    """(position, facts) of what an interrupted run was given."""
    return [(at, facts) for kind, at, facts in (journal.entries if journal else ()) if kind == title]


def unreadable(engine, conversations):
    """(position, Refusal) of each conversation that is too long for the model."""
    for at, messages in enumerate(conversations):
        try:
            engine.check_prompt(messages)
        except UserError as error:
            yield at, Refusal(str(error))


def refused_by_server(result):
    """The Refusal in an Answer that says that the request came to nothing; None where it is an answer."""
    is_refused = isinstance(result, Answer) and result.failure
    return Refusal(result.failure, again=True) if is_refused else None


def n_to_ask_again(results):
    return sum(isinstance(one, Refusal) and one.again for one in results)
