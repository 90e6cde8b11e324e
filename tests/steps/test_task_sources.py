"""A task that has no generator, no raw sources or nothing to pretrain on says so in one sentence."""

import pytest

import import_rows
import pretrain
import synthesize
from support import small_tasks
from support.pipeline import exit_code

CALLS = {
    "synthesize": (
        synthesize,
        ("--rows", 3, "--out", "rows.jsonl"),
        "has no generator (src/tasks/{task}/synthetic.py)",
    ),
    "import_rows": (import_rows, ("--set", "x", "--out", "rows.jsonl"), "imports nothing"),
    "pretrain": (pretrain, ("--out", "model"), "no model can be trained from nothing for it, it has no verdict"),
}


@pytest.mark.parametrize("name", small_tasks.NAMES)
@pytest.mark.parametrize("step", CALLS)
def test_a_task_without_the_part_says_so(monkeypatch, tmp_path, capsys, name, step):
    monkeypatch.chdir(tmp_path)
    small_tasks.loaded(monkeypatch, name)
    script, words, says = CALLS[step]
    assert exit_code(script, "--task", name, *words) == 2
    error = capsys.readouterr().err
    assert f"--task {name}" in error and says.format(task=name) in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_crm_imports_with_its_name_given(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "people.csv"
    table.write_text(
        "id,customer,name,city\n1,a,Ann Lee,Oslo\n2,a,Ann Lea,Oslo\n3,b,Bob Stone,Rome\n4,c,Eva Braun,Rome\n"
    )
    words = (
        "--task",
        "crm",
        "--format",
        "clusters",
        "--in",
        table,
        "--id_column",
        "id",
        "--cluster_column",
        "customer",
    )
    assert exit_code(import_rows, *words, "--out", "rows.jsonl") == 0, capsys.readouterr().err
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) >= 2
