"""The tables of phases and of single settings, from metrics files that are made here."""

import json

import pytest

from common import UserError
from measurements import _phases_table as phases
from measurements import tables


def put(folder, name, **values):
    folder.mkdir(exist_ok=True)
    kpis = {
        kpi: {"value": values.get(kpi, 50.0), "ci95": [values.get(kpi, 50.0) - 2, values.get(kpi, 50.0) + 1], "n": 40}
        for kpi in phases.KPIS.values()
    }
    kpis["recognised_pct"]["n"] = values.get("lacking", 8)
    (folder / f"{name}_metrics.json").write_text(json.dumps({"kpis": kpis}), encoding="utf-8")


def test_seeds_are_averaged_and_phases_stand_in_their_order(tmp_path):
    folder = tmp_path / "answers"
    put(folder, "dpo_seed1_test_raw", values_exact_pct=90.0)
    put(folder, "dpo_seed2_test_raw", values_exact_pct=94.0)
    put(folder, "base_test_raw", values_exact_pct=0.0, lacking=0)
    put(folder, "dpo_seed1_hand_grammar", values_exact_pct=80.0)
    lines = phases.phases_table(folder).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| as it comes", *["| fine-tuned, then DPO"] * 2]
    base, dpo, by_hand = lines[2:5]
    assert "| generated | none | 2 |" in dpo and "| 92.0 (88.0 to 95.0) |" in dpo
    assert "| by hand | held to it | 1 |" in by_hand and "| 80.0 (78.0 to 81.0) |" in by_hand
    assert "| - | 50.0 (48.0 to 51.0) |" in base  # no request of these lacked anything
    assert "generated: 40; by hand: 40" in lines[-1]
    assert tables.qod_tables(tmp_path)["phases"] == phases.phases_table(folder)


def test_a_row_a_setting(tmp_path):
    for name in ("rows_50_test_raw", "beta_0.5_test_raw"):
        put(tmp_path, name)
    lines = phases.ablations_table(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| beta 0.5", "| rows 50"]


def test_nothing_measured_is_no_table_and_a_strange_name_is_told(tmp_path):
    assert phases.phases_table(tmp_path) is None and phases.ablations_table(tmp_path) is None
    put(tmp_path, "dpp_test_raw")
    with pytest.raises(UserError, match="dpp is no phase; there is base, literal_sft"):
        phases.phases_table(tmp_path)
    put(tmp_path, "dpo_test_free")
    with pytest.raises(UserError, match="dpo_test_free_metrics.json: a name such as dpo_seed1_test_raw_metrics.json"):
        phases.ablations_table(tmp_path)
