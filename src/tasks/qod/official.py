"""The schema of createSession (create_session.schema.json), its formats, and what of an answer it does not allow."""

import ipaddress
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema

from common import read_json
from tasks.case_limits import kind_of
from tasks.qod.reading import Violation, inside, read

URI_PART = r"(?:[\w.~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
URI = re.compile(
    rf"[A-Za-z][\w+.-]*://(?:\[[0-9A-Fa-f:.]+\](?::[0-9]+)?|{URI_PART}+)(?:/{URI_PART}*)*"
    rf"(?:\?(?:{URI_PART}|[/?])*)?(?:#(?:{URI_PART}|[/?])*)?",
    re.ASCII,
)


@cache
def official_schema():
    return read_json(Path(__file__).parent / "create_session.schema.json")


def is_address(kind):
    """A check of the format: whether a text is one address, of an IPv6 one without a zone."""
    return lambda value: not isinstance(value, str) or ("%" not in value and bool(kind(value)))


def is_uri(value):
    if not isinstance(value, str):
        return True
    parts = urlsplit(value)
    # What is no port raises a ValueError.
    return bool(URI.fullmatch(value) and parts.hostname) and (parts.port is None or parts.port >= 0)


FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("ipv4", ValueError)(is_address(ipaddress.IPv4Address))
FORMATS.checks("ipv6", ValueError)(is_address(ipaddress.IPv6Address))
FORMATS.checks("uri", ValueError)(is_uri)


@cache
def official_checker():
    return jsonschema.Draft202012Validator(official_schema(), format_checker=FORMATS)


def official_violations(written):
    """What the schema of createSession does not allow; unknown fields and unknown profiles it allows."""
    value, unread = read(written)
    if unread:
        return [unread]
    return [of_schema(error) for error in sorted(official_checker().iter_errors(value), key=lambda one: one.json_path)]


def of_schema(error):
    """An error of jsonschema as a violation whose name says which keyword was broken."""
    path = "$"
    for key in error.absolute_path:
        path = inside(path, key)
    limit = error.validator_value
    meant = f"must be {error.schema.get('description')}"
    if error.validator == "required":
        # One error a name; the library says which one only in its sentence.
        missing = next(name for name in limit if error.message.startswith(repr(name)))
        return Violation("official.required", inside(path, missing), "is missing")
    words = {
        "type": f"must be of the type {limit}, found {kind_of(error.instance)}",
        "minimum": f"must be at least {limit}",
        "maximum": f"must be at most {limit}",
        "minProperties": "must not be empty",
        "minItems": "must not be empty",
        "minLength": f"must have at least {limit} characters",
        "maxLength": f"must have at most {limit} characters",
        "pattern": meant,
        "format": meant,
        "anyOf": meant,
        "enum": "is none of the words that it may be",
    }
    return Violation(f"official.{error.validator}", path, words[error.validator])
