"""What the service is started with. Worker processes read it from their environment, as JSON."""

import dataclasses
import hashlib
import json
import os

from common import UserError, existing_file
from language_model.model_folder import model_config, served_config

VARIABLE = "STEWARD_SERVICE"
KEYS = "STEWARD_API_KEYS"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Limits:
    most_body_bytes: int = 65_536
    most_batch_bytes: int = 16_777_216
    most_fields: int = 200
    most_levels: int = 4
    most_waiting: int = 256  # requests in the queue; the next one gets 429
    timeout_s: float = 30.0  # from a request's arrival to its answer
    most_leases: int = 1  # cases that one reviewer keeps from the others; the earliest is given up for the next
    lock_s: float = 5.0  # for another process to let go of the decisions; then 503


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
