"""Markdown that is generated, and its place inside a file that people write: what stands between `<!-- name:begin -->`
and `<!-- name:end -->` is ours.
"""

import re

from common import UserError, existing_file, write_text


def put(path, name, text):
    """Replace the marked part of a file; what stands around it is kept byte for byte."""
    before, after = around(path, name)
    write_text(path, before + block(name, text) + after)
    print(f"the table is in {path}")


def show(text, into, name):
    """Put a table into its place in a file, or print it where no file is named."""
    if into:
        put(into, name, text)
    else:
        print(f"\n{text}\n")


def block(name, text, note=""):
    """The marked part, with both its markers; a note in the first one says what it is."""
    begin = marker(name, "begin").replace(" -->", f" ({note}) -->") if note else marker(name, "begin")
    return f"{begin}\n\n{text}\n\n{marker(name, 'end')}"


def around(path, name, appended=False):
    """What stands before and after the marked part; without markers an error, or with `appended` the file's end."""
    pair = f"{marker(name, 'begin')} and {marker(name, 'end')}"
    try:
        # Bytes: reading as text would turn the line ends of another system into ours.
        text = existing_file(path, f"name a file that holds {pair}").read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8, then run again"
        ) from error
    if appended and f"{name}:begin" not in text and f"{name}:end" not in text:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}\n", "\n"
    found = list(re.finditer(rf"<!--\s*{name}:(begin|end)\b.*?-->", text, re.S))
    if [match.group(1) for match in found] != ["begin", "end"]:
        wanted = pair.replace(" and ", " and then one ")
        fix = "restore the pair, or delete both for a new one at the end" if appended else "put the pair in its place"
        raise UserError(f"{path}: {len(found)} marker comment(s) found, expected one {wanted}; {fix}")
    return text[: found[0].start()], text[found[1].end() :]


def marker(name, end):
    return f"<!-- {name}:{end} -->"


def md(text):
    """Text that cannot leave its table cell or open a comment."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def md_table(head, rows, n_text=2):
    """A table whose first n_text columns are words and the others numbers."""
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [head, ["---"] * n_text + ["---:"] * (len(head) - n_text), *rows]
    )
