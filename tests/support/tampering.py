"""What somebody may do to a file of decisions, and the line by which the check must report it."""

import json

from service.review import chain
from support.reviewing import decision


def changed(lines, at):
    lines[at] = lines[at].replace(b'"reviewer":"', b'"reviewer":"not ', 1)
    return at + 1


def removed(lines, at):
    del lines[at]
    return at + 1


def swapped(lines, at):
    lines[at - 1], lines[at] = lines[at], lines[at - 1]
    return at


def inserted(lines, at):
    lines.insert(at, chain.line_of(chain.chained(decision(9), json.loads(lines[at - 1]))))
    return at + 2


def rehashed(lines, at):
    """Changed by somebody who knows how the hash is made, but not the lines behind it."""
    entry = json.loads(lines[at]) | {"reviewer": "lee"}
    lines[at] = chain.line_of(entry | {"hash": chain.hash_of(entry)})
    return at + 2


def forged(lines, at):
    """A value before the real one: a reader that takes the last of two keys does not see it."""
    lines[at] = lines[at].replace(b"{", b'{"result":"FORGED",', 1)
    return at + 1


def spaced(lines, at):
    """Other bytes, the same values."""
    lines[at] = lines[at].replace(b'"pair":', b'"pair": ', 1)
    return at + 1


def emptied(lines, at):
    lines[at] = b"null\n"
    return at + 1


def cut(lines, at):
    """Lines are cut off at the end."""
    del lines[at:]
    return at + 1


def torn(lines, at):
    """The end is cut in the middle of a line."""
    lines[at:] = [lines[at][:40]]
    return at + 1


HARMS = [changed, removed, swapped, inserted, rehashed, forged, spaced, emptied, cut, torn]


def tamper(path, harm, at):
    """Do it to the decision at this place, counted from 0; returns the line that must be reported."""
    lines = path.read_bytes().splitlines(keepends=True)
    line = harm(lines, at)
    path.write_bytes(b"".join(lines))
    return line
