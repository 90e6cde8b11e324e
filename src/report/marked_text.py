"""Markdown that is generated, and its place inside a file that people write: what stands between `<!-- name:begin -->`
and `<!-- name:end -->` is ours.
"""

import re

from common import UserError, existing_file, write_text


def put(path, name, text):
    """Replace the marked part of a file; what stands around it is kept byte for byte."""
    before, after = around(path, name)
    write_text(path, f"{before}{marker(name, 'begin')}\n\n{text}\n\n{marker(name, 'end')}{after}")
    print(f"the table is in {path}")


def around(path, name):
    """What stands before and after the marked part; an error where there is no such part."""
    pair = f"{marker(name, 'begin')} and {marker(name, 'end')}"
    try:
        # Bytes: reading as text would turn the line ends of another system into ours.
        text = existing_file(path, f"--into names a file that holds {pair}").read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8, then run again"
        ) from error
    found = list(re.finditer(rf"<!--\s*{name}:(begin|end)\b.*?-->", text, re.S))
    if [match.group(1) for match in found] != ["begin", "end"]:
        wanted = pair.replace(" and ", " and then one ")
        raise UserError(
            f"{path}: {len(found)} marker comment(s) found, expected one {wanted}; put the pair where the table belongs"
        )
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
