"""README and docs/ keep what they promise: short, in step with the code, every command in a fence that a test runs."""

import re
import statistics

import pytest

from common import ROOT
from measurements.tables import worth_table
from report import marked_text

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "src/README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"^\s*(?:make|python3?|pip|conda|accelerate|curl|docker|vllm|git|cp|mkdir) ", re.M)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`(\"])")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(text):
    """Paragraphs and list items; fences, tables, comments and headings left out."""
    text = re.sub(r"<!--.*?-->", "\n\n", FENCE.sub("\n\n", text), flags=re.S)
    kept = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#"))]
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", "\n".join(kept))
    return [re.sub(r"`[^`]*`", "code", part) for part in parts if part.strip()]


def sentence_lengths(text):
    sentences = [sentence for part in prose(text) for sentence in SENTENCE_END.split(part)]
    return [n for sentence in sentences if (n := len(re.findall(r"\w[\w'%.,-]*", sentence)))]


def test_the_readme_is_short_and_shows_six_rows():
    path = ROOT / "README.md"
    assert len(path.read_bytes()) <= 12_000
    before, after = marked_text.around(path, "worth")
    shown = path.read_text(encoding="utf-8")[len(before) : -len(after)]
    table = worth_table(ROOT / "docs/measured")
    assert table in shown and len(table.splitlines()) == 2 + 6


def test_sentences_are_short():
    lengths = [n for page in PAGES for n in sentence_lengths(page.read_text(encoding="utf-8"))]
    assert len(lengths) > 300 and statistics.median(lengths) <= 15


@each_page
def test_commands_stand_in_fences_that_a_test_runs(page):
    others = [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind != "bash"]
    assert [body for body in others if COMMAND.search(body)] == []


@each_page
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    if page.stem == "commands":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)  # the plans' own names
    paths = re.findall(r"(?<![\w/])(?:src|docs|tests|configs|models)/[\w./-]+\.(?:py|md|yaml|jsonschema|json)\b", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for target, _, anchor in re.findall(r"\]\((?!http)([^)#]*)(#([\w-]+))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


def test_every_hook_of_a_task_is_described():
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    hooks = {hook for source in sources for hook in re.findall(r'hook\("(\w+)", "(\w+)"', source)}
    hooks |= {part for source in sources for part in re.findall(r'task_part\(task, "(\w+)", "(\w+)"', source)}
    hooks |= {("service", hook) for source in sources for hook in re.findall(r'self\._own\("(\w+)"', source)}
    assert len(hooks) >= 18
    assert [f"{module}.{name}" for module, name in sorted(hooks) if f"`{name}" not in text] == []
    assert [module for module, _ in sorted(hooks) if f"{module}.py" not in text] == []


def test_every_command_that_we_set_beside_a_plans_exists():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    ours = [code for row in re.findall(r"^\|.*\|(.*)\|$", text, re.M) for code in re.findall(r"`([^`]+)`", row)]
    targets = [name.removesuffix("-phi4mini") for code in ours for name in re.findall(r"^make ([\w-]+)", code)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    configs = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for target in targets:
        kind, _, model = target.partition("-")
        is_model = model.removesuffix("-dpo") in configs
        known = [f"## make {target} ", f"## make {target}-<model>", *([f"## make {kind}-<model>"] * is_model)]
        assert any(start in makefile for start in known), target
    scripts = [script for code in ours for script in re.findall(r"src/\w+\.py", code)]
    assert targets and scripts and [script for script in scripts if not (ROOT / script).is_file()] == []
