"""What the project publishes about itself, measured:

    python src/measure.py transfer --sets data/transfer --out reports/transfer.json

The first word names a module of src/measurements; the other words are its own, and --help behind the name lists them.
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from common import UserError, run

FOLDER = Path(__file__).parent / "measurements"


def main():
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, names))
        lines = [f"  {name:<{width}} {subject(name)}" for name in names]
        print(f"{__doc__.strip()}\n\nmeasurements:\n" + "\n".join(lines))
        return
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise UserError(f"{name}: no such measurement; there is: {', '.join(names)} (nearest: {near[0]})")
    # Its own help and its manifest name the command as it was typed.
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    importlib.import_module(f"measurements.{name}").main()


def subject(name):
    """What a measurement measures, from its first line; reading it imports nothing heavy."""
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    return " ".join(text.split("\n\n")[0].split()).partition(": python")[0].rstrip(".")


if __name__ == "__main__":
    run(main)
