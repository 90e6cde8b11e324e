"""What the service is started with, and the one table of its bounds. Worker processes read it from their environment,
as JSON.
"""

import dataclasses
import hashlib
import json
import math
import os

from common import UserError, existing_file
from language_model.model_folder import model_config, served_config

VARIABLE = "STEWARD_SERVICE"
KEYS = "STEWARD_API_KEYS"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CUT = "cut"  # instead of a status: the connection is closed without an answer
A_DAY_S = 86_400.0


def bound(default, least, most, status, words, option=None):
    """A number of the table: its range, what is answered beyond it, and in words what it counts."""
    facts = {"least": least, "most": most, "status": status, "words": words, "option": option}
    return dataclasses.field(default=default, metadata=facts)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Every bound on what comes from outside. Its variable is STEWARD_ and its name in capitals."""

    most_connections: int = bound(2_048, 1, 65_536, 503, "connections of a process")
    most_head_bytes: int = bound(16_384, 256, 1_048_576, 431, "bytes of a request's first line and headers")
    head_within_s: float = bound(10.0, 0.1, A_DAY_S, 408, "seconds for them to come")
    most_body_bytes: int = bound(65_536, 64, 16_777_216, 413, "bytes of a body, and of one case in a batch")
    body_within_s: float = bound(30.0, 0.1, A_DAY_S, 408, "seconds for a body to come")
    most_batch_bytes: int = bound(16_777_216, 64, 1_073_741_824, 413, "bytes of a batch")
    batch_within_s: float = bound(120.0, 0.1, A_DAY_S, 408, "seconds for a batch to come")
    most_batches: int = bound(3, 1, 1_024, 429, "batches at a time; their cases leave room for single requests")
    most_cases: int = bound(10_000, 1, 1_000_000, 413, "cases of a batch")
    most_fields: int = bound(200, 1, 100_000, 422, "fields of a case, of a record in CRM")
    most_levels: int = bound(4, 1, 64, 422, "levels that it is nested")
    most_waiting: int = bound(256, 1, 1_000_000, 429, "requests in the queue", "--queue")
    timeout_s: float = bound(30.0, 0.1, A_DAY_S, 504, "seconds from the queue to the answer", "--timeout")
    stalled_s: float = bound(10.0, 0.1, A_DAY_S, CUT, "seconds in which a client takes nothing of its answer")
    paused_s: float = bound(10.0, 0.1, A_DAY_S, 408, "seconds in which nothing comes of a body")
    most_drained_bytes: int = bound(
        16_777_216, 0, 1_073_741_824, CUT, "bytes that are read and forgotten behind a refusal, so that it arrives"
    )
    drained_within_s: float = bound(10.0, 0.1, A_DAY_S, CUT, "seconds for that")
    most_leases: int = bound(
        1, 1, 1_000, None, "cases that one reviewer keeps from the others; the earliest is given up for the next"
    )
    lock_s: float = bound(5.0, 0.1, A_DAY_S, 503, "seconds for another process to let go of the decisions")


BOUNDS = dataclasses.fields(Limits)


def variable_of(field):
    return f"STEWARD_{field.name.upper()}"


def limits_of(options):
    """Each bound from its option ({name: text or None}), else from its variable, else as the table has it."""
    found = {}
    for field in BOUNDS:
        facts = field.metadata
        given = [(facts["option"], options.get(field.name)), (variable_of(field), os.environ.get(variable_of(field)))]
        for name, text in given:
            if text not in (None, ""):
                found[field.name] = number(name, text, field.type, facts["least"], facts["most"])
                break
    return Limits(**found)


def number(name, text, kind, least, most):
    """What an option or a variable says, or a UserError that names it and its range."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    # Written so that NaN is refused too.
    if not least <= value <= most:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} {text}: {words} from {least:,} to {most:,} is wanted")
    return value


@dataclasses.dataclass(frozen=True)
class Settings:
    model_path: str
    task: str
    backend: str = "hf"
    upstream: str | None = None  # address of an OpenAI-compatible server that answers instead
    config: str | None = None
    engine_args: str = ""  # more arguments for a backend that is a server of its own
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    batch_size: int | None = None
    key_hashes: tuple = ()  # SHA-256 of each key that may ask
    log_records: bool = False
    review_folder: str | None = None
    review_cases: str | None = None  # file of cases to review
    keep_traffic: bool = False  # answered requests are offered for review
    limits: Limits = dataclasses.field(default_factory=Limits)

    def store(self):
        os.environ[VARIABLE] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def stored(cls):
        facts = json.loads(os.environ[VARIABLE])
        return cls(**facts | {"limits": Limits(**facts["limits"]), "key_hashes": tuple(facts["key_hashes"])})


def key_hashes(path):
    """Of the keys in a file, one a line, and of those in the environment."""
    found = [(KEYS, os.environ.get(KEYS, "").split(","))]
    if path:
        try:
            found.append((path, existing_file(path, "one key a line").read_text(encoding="utf-8").splitlines()))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    hashes = []
    for source, lines in found:
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        short = [at for at, key in enumerate(keys, 1) if len(key) < 16]
        if short:
            raise UserError(
                f"key {short[0]} of {source} is shorter than 16 characters; python -c 'import secrets; "
                "print(secrets.token_urlsafe())' makes one"
            )
        if source == path and not keys:
            raise UserError(f"{path}: no key in it, one a line")
        hashes += map(hash_of_key, keys)
    return tuple(hashes)


def hash_of_key(key):
    return hashlib.sha256(key.encode()).hexdigest()


def model_settings(settings, task):
    return served_config(settings, task) if settings.upstream else model_config(settings, task)
