"""What each phase of a training gives, and what one setting changes: tables from the metrics files of evaluate_kpis.py.

A file is <name>[_seed<n>]_<rows>_<raw or grammar>_metrics.json: raw is without a grammar. In answers/ lie the phases,
in ablations/ one run a setting, whose name says it: beta_0.5, rows_1000.
"""

import re
from statistics import mean

from common import UserError, read_json
from report.marked_text import md, md_table

NAME = re.compile(r"(?P<name>.+?)(_seed\d+)?_(?P<rows>[a-z]+)_(?P<how>raw|grammar)_metrics\.json")
PHASES = {
    "base": "as it comes",
    "literal_sft": "the specification's recipe: 50 rows",
    "literal_dpo": "the same, then 30 pairs",
    "sft": "fine-tuned",
    "longer": "fine-tuned for longer, at the cost of both phases",
    "dpo": "fine-tuned, then DPO",
    "shipped": "the adapter that ships",
}
ROWS = {"test": "generated", "hand": "by hand"}
HOW = {"raw": "none", "grammar": "held to it"}
KPIS = {
    "JSON": "json_pct",
    "seven checks": "seven_checks_pct",
    "strict": "strict_pct",
    "unknown fields": "unknown_fields_pct",
    "profile": "profile_pct",
    "all values": "values_exact_pct",
    "lack recognised": "recognised_pct",
    "complete but refused": "refused_pct",
}


def phases_table(folder):
    """The phases in their order; None where nothing was measured."""
    return table_of(folder, PHASES)


def ablations_table(folder):
    """A row a setting, in the order of their names; None where nothing was measured."""
    found = runs(folder)
    return table_of(folder, {name: name.replace("_", " ") for name in sorted({key[0] for key in found}, key=by_number)})


def by_number(name):
    """rows_200 before rows_1000."""
    words, _, last = name.rpartition("_")
    try:
        return words, float(last), ""
    except ValueError:
        return name, 0.0, last


def table_of(folder, titles):
    found = runs(folder)
    if not found:
        return None
    if strange := sorted({key[0] for key in found} - titles.keys()):
        raise UserError(f"{folder}: {strange[0]} is no phase; there is {', '.join(titles)}")
    lines = [
        [md(title), ROWS[rows], HOW[how], str(len(files)), *(cell(files, kpi) for kpi in KPIS.values())]
        for name, title in titles.items()
        for rows in ROWS
        for how in HOW
        if (files := found.get((name, rows, how)))
    ]
    return "\n\n".join((md_table(["", "requests", "grammar", "seeds", *KPIS], lines, n_text=3), sizes(found)))


def runs(folder):
    """{(name, rows, how): the KPIs of every seed}."""
    found = {}
    for path in sorted(folder.glob("*_metrics.json")):
        if not (named := NAME.fullmatch(path.name)) or named["rows"] not in ROWS:
            raise UserError(f"{path}: a name such as dpo_seed1_test_raw_metrics.json is wanted, with test or hand")
        found.setdefault((named["name"], named["rows"], named["how"]), []).append(read_json(path)["kpis"])
    return found


def cell(files, kpi):
    """The mean over the seeds, and from the lowest to the highest end of their intervals."""
    of_seeds = [kpis[kpi] for kpis in files]
    if not all(one["n"] for one in of_seeds):
        return "-"
    low = min(one["ci95"][0] for one in of_seeds)
    high = max(one["ci95"][1] for one in of_seeds)
    return f"{mean(one['value'] for one in of_seeds):.1f} ({low:.1f} to {high:.1f})"


def sizes(found):
    counts = {}
    for (_, rows, _), files in found.items():
        counts.setdefault(ROWS[rows], set()).update(kpis["json_pct"]["n"] for kpis in files)
    words = "; ".join(f"{name}: {' or '.join(f'{n:,}' for n in sorted(some))}" for name, some in counts.items())
    return (
        f"Per cent of the requests ({words}). A figure is the mean over the seeds; in brackets the lowest and the "
        "highest end of their 95 % intervals."
    )
