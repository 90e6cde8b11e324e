"""A new user's first hour: 300 pairs that a CRM exported, without sentences, become a trained and scored model."""

import csv
import json
import os
import subprocess

import pytest

from support.pipeline import ROOT, copy_of_the_repo
from support.warm_python import QUIET, warm_python
from tasks.crm import synthetic
from tasks.crm.fields import by_kind

COMMANDS = (
    "make prep IN=pairs.csv",
    "make train-steward_mini",
    "make kpi-steward_mini",
    "make report",
)
FIELDS = ("name", "email", "phone", "street", "postal_code", "birth_date")
WORDS = {"DUPLICATE": "yes", "POSSIBLE": "Maybe", "NO_MATCH": "NO"}


def cells(record):
    """A record as a flat export has it: one name, six columns, many of them empty."""
    values = by_kind(record)
    name = values.get("name") or " ".join(values[part] for part in ("first_name", "last_name") if part in values)
    return {field: values.get(field, "") for field in FIELDS} | {"name": name or values.get("company", "")}


def export(path, n_rows):
    """Separated by semicolons, with a byte order mark and Windows' line ends; values hold semicolons, quotes, zeros."""
    found = []
    for at, row in enumerate(synthetic.rows(3 * n_rows, seed=9)):
        left, right = (cells(record) for record in row["input"].values())
        if not any(left.values()) and not any(right.values()):
            continue
        if at % 7 == 0:
            left |= {"postal_code": f"0{at:04}", "street": f'{left["street"]}; "rear"'}
        sides = {f"{field}_{side}": one[field] for side, one in ((1, left), (2, right)) for field in FIELDS}
        found.append({"pair_id": f"{at:05}", **sides, "is_duplicate": WORDS[row["output"]["result"]]})
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), delimiter=";", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(found[:n_rows])


@pytest.mark.slow
def test_four_commands_from_an_export_to_a_scored_model(tmp_path):
    project = copy_of_the_repo(tmp_path)
    # A short training: the commands are what is tested here.
    config = project / "configs" / "steward_mini.yaml"
    config.write_text(config.read_text().replace("epochs: 3", "epochs: 0.1"))
    export(project / "pairs.csv", 300)
    before = (project / "pairs.csv").read_bytes()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "STEWARD_"))} | QUIET
    environment["PY"] = warm_python()
    said = {}
    for command in COMMANDS:
        result = subprocess.run(command.split(), cwd=project, env=environment, capture_output=True, text=True)
        said[command] = result.stdout + result.stderr
        assert result.returncode == 0, said[command][-4000:]
    assert all(command in (ROOT / "README.md").read_text() for command in COMMANDS)
    assert (project / "pairs.csv").read_bytes() == before
    prepared = said[COMMANDS[0]]
    assert "pairs.csv (separated by semicolons, UTF-8): 300 pairs" in prepared
    assert "'yes' is DUPLICATE" in prepared and "'Maybe' is POSSIBLE" in prepared and "'NO' is NO_MATCH" in prepared
    assert "the reasoning of 300 of 300 rows was made" in prepared
    rows = [json.loads(line) for line in (project / "data" / "imported.jsonl").read_text().splitlines()]
    odd = next(row["input"]["record1"] for row in rows if "rear" in row["input"]["record1"].get("street", ""))
    assert odd["postal_code"].startswith("0") and odd["street"].endswith('; "rear"')
    assert all("reasoning" not in row["output"] for row in rows), "made for the splits, not written into your rows"
    kpis = json.loads((project / "reports" / "steward_mini_metrics.json").read_text())["kpis"]
    assert 28 <= kpis["accuracy"]["n"] <= 32 and kpis["json_valid_pct"]["value"] == 100
    assert "Steward mini" in (project / "reports" / "model_comparison.md").read_text()
