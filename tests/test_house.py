"""The shape of the house: what a reader may rely on when looking for a step, a model, a task or an engine."""

import ast
import re
import subprocess
from collections import defaultdict

import pytest

import manifest
from common import ROOT
from tasks import load_task

SRC = manifest.SRC
FILES = sorted(SRC.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_FLAT_FILES = 33
LONGEST_FUNCTION = 40
LONGEST_LINE = 120
README_BYTES = 12_000


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    """The folder directly below src, or the file itself."""
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else path.stem


def is_script(path):
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_few_files_lie_flat():
    assert 20 < len(list(SRC.glob("*.py"))) <= MOST_FLAT_FILES


def test_scripts_lie_flat_and_nothing_imports_one():
    scripts = {path for path in FILES if is_script(path)}
    assert len(scripts) > 10
    assert [name_of(path) for path in scripts if path.parent != SRC] == []
    importers = [
        f"{name_of(path)} imports {name_of(found)}" for path in FILES for found in manifest.imported(path) & scripts
    ]
    assert importers == []


def test_no_circle_between_rooms():
    arrows = defaultdict(set)
    for path in FILES:
        arrows[room_of(path)] |= {room_of(found) for found in manifest.imported(path)} - {room_of(path)}
    assert len(arrows) > 10
    left = dict(arrows)
    # Rooms that lean on nothing that is left are taken away; what cannot be taken away is a circle.
    while free := [room for room in left if not left[room] & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


def test_no_circle_between_the_files_of_a_room():
    left = {path: manifest.imported(path) - {path} for path in FILES if path.name != "__init__.py"}
    while free := [path for path in left if not left[path] & left.keys()]:
        for path in free:
            del left[path]
    assert [name_of(path) for path in left] == []


def test_private_names_stay_in_their_room():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                room = node.module.split(".")[0]
                private = "._" in node.module or any(alias.name.startswith("_") for alias in node.names)
                if private and (SRC / room).is_dir() and room != room_of(path):
                    found.append(f"{name_of(path)}:{node.lineno} takes {node.module}")
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path):
    long = [f"{node.name}: {node.end_lineno - node.lineno + 1} lines" for node in functions(path)]
    assert [one for one in long if int(one.split(": ")[1].split()[0]) > LONGEST_FUNCTION] == []


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_one_assignment_a_line_in_narrow_lines(path):
    text = path.read_text(encoding="utf-8")
    assert [at for at, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST_LINE] == []
    several = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
        and not is_exchange(node)
    ]
    assert several == []


def is_exchange(node):
    """Whether a value reads a target of the same assignment, as in `a, b = b, a`: that needs one line."""
    targets = {ast.dump(one).replace("Store()", "Load()") for one in node.targets[0].elts}
    return any(ast.dump(part) in targets for value in node.value.elts for part in ast.walk(value))


def crm_words():
    """What only the folder of the CRM task may name: its records, its labels and its answer's keys."""
    task = load_task("crm")
    case = ("record1", "record2")
    return re.compile(rf"\b({'|'.join((*case, *task.verdict.labels))})\b|[\"'.]({task.verdict.reason})\b[\"']?")


def test_only_its_own_folder_knows_crm():
    words = crm_words()
    own = SRC / "tasks" / "crm"
    places = [path for path in SRC.rglob("*") if path.suffix in (".py", ".js", ".html", ".css", ".md", ".yaml")]
    others = [path for path in [*places, ROOT / "Makefile"] if not path.is_relative_to(own)]
    assert len(others) > 60
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in others
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert found == []


def test_no_test_imports_another():
    found = [
        f"{name_of(path)}: {line}"
        for path in TESTS
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) [\w.]*\btest_\w+", line)
    ]
    assert len(TESTS) > 30
    assert found == []


def test_the_readme_can_be_read_at_once():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_nothing_generated_is_committed():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    generated = re.compile(r"^(demo|outputs|reviews)/|^data/.*\.jsonl$|^reports/.*\.(json|jsonl|csv|html)$|\.part$")
    assert [name for name in listed.stdout.splitlines() if generated.search(name)] == []
