"""The table of one or several runs of src/measure.py transfer."""

from statistics import mean, stdev

from common import UserError
from measurements import _reports
from measurements._match_metrics import measured
from report.marked_text import md, md_table

TITLES = {
    "jaro_winkler": "Mean Jaro-Winkler",
    "boosting": "Gradient boosting",
    "splink": "Splink",
    "model": "Model",
    "blend": "Model and boosting",
}
LEFT_OUT = "left out of this run"
MARK = "transfer"


def transfer_table(paths):
    """Markdown of one run, or of several as mean ± standard deviation; every number comes from the reports."""
    reports = [read_report(path) for path in paths]
    check_same_rows(reports, paths)
    return table_of(reports)


def read_report(path):
    return _reports.read_report(path, "transfer", table_of)


def table_of(reports):
    names = [
        name
        for name in TITLES
        if any(name in facts["scorers"] for report in reports for facts in report["sets"].values())
    ]
    sets = list(dict.fromkeys(set_name for report in reports for set_name in report["sets"]))
    table = Table(reports, names, sets)
    return "\n\n".join(part for part in (table.scores(), table.steadiness(), table.notes(), table.provenance()) if part)


def check_same_rows(reports, paths):
    """Runs may share a table only where they answered the same rows."""
    seen = {}
    for report, path in zip(reports, paths, strict=True):
        for set_name, facts in report["sets"].items():
            rows = (facts["sha256"], report.get("limit"), report.get("seed") if report.get("limit") else None)
            if seen.setdefault(set_name, (rows, path))[0] != rows:
                raise UserError(
                    f"{path}: its rows of {set_name} are not those of {seen[set_name][1]}; measure both on the same "
                    "rows"
                )


class Table:
    """The reports' cells side by side: a row a set, a column a scorer."""

    def __init__(self, reports, names, sets):
        self.reports = reports
        self.names = names
        self.sets = sets
        self.reasons = []

    def cells(self, set_name, name):
        """The measured cells of all runs, and why the others are missing."""
        found = [
            report["sets"].get(set_name, {}).get("scorers", {}).get(name, {"reason": LEFT_OUT})
            for report in self.reports
        ]
        return [each for each in found if measured(each)], [each["reason"] for each in found if not measured(each)]

    def scores(self):
        """Average precision / F1 at the default threshold / F1 at the best one."""
        head = ["Set", "pairs", "matches", *(TITLES[name] for name in self.names)]
        rows = [
            self.mean_row(),
            *(
                [set_name, *self.counts(set_name), *(self.score_cell(set_name, name) for name in self.names)]
                for set_name in self.sets
            ),
        ]
        return "Average precision / F1 at the default threshold / F1 at the best threshold:\n\n" + md_table(
            head, rows, n_text=1
        )

    def counts(self, set_name):
        facts = next(report["sets"][set_name] for report in self.reports if set_name in report["sets"])
        return [f"{facts[key]:,}" if key in facts else "-" for key in ("n", "n_positive")]

    def score_cell(self, set_name, name):
        found, reasons = self.cells(set_name, name)
        if not found:
            return f"not run [{self.note(f'{TITLES[name]}, {set_name}: {reasons[0]}')}]"
        text = " / ".join(
            spread([each["metrics"][metric]["value"] for each in found])
            for metric in ("average_precision", "f1", "best_f1")
        )
        failed = [reason for reason in reasons if reason != LEFT_OUT]
        return (
            f"{text} [{self.note(f'{TITLES[name]}, {set_name}: {len(failed)} of the runs: {failed[0]}')}]"
            if failed
            else text
        )

    def note(self, reason):
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1

    def mean_row(self):
        """Mean average precision over the sets that all scorers answered: means over different sets say nothing beside
        each other.
        """
        answered = {name: [set_name for set_name in self.sets if self.cells(set_name, name)[0]] for name in self.names}
        common = [set_name for set_name in self.sets if all(set_name in those for those in answered.values() if those)]
        means = {
            name: [mean_of_sets(report, name, common) for report in self.reports] if those else []
            for name, those in answered.items()
        }
        return [
            f"**mean AP of {len(common)} set{'' if len(common) == 1 else 's'}**",
            "",
            "",
            *(f"**{spread(means[name])}**" for name in self.names),
        ]

    def steadiness(self):
        """Calibration, and the verdicts that harmless changes change."""
        rows = []
        for set_name in self.sets:
            for name in self.names:
                found = [each for each in self.cells(set_name, name)[0] if each.get("robustness")]
                if found:
                    rows.append(
                        [
                            set_name,
                            TITLES[name],
                            *(spread(values, digits) for values, digits in steadiness_values(found)),
                        ]
                    )
        head = [
            "Set",
            "Scorer",
            "ECE",
            "for review %",
            "swapped: changed %",
            "flipped %",
            "keys shuffled: changed %",
            "flipped %",
            "match lost with a field %",
        ]
        return (
            "Calibration, and verdicts that change when the question does not:\n\n" + md_table(head, rows, n_text=2)
            if rows
            else ""
        )

    def notes(self):
        return "\n".join(f"- [{number}] {md(reason)}" for number, reason in enumerate(self.reasons, 1))

    def provenance(self):
        return "\n".join(f"- {md(run_line(report))}" for report in self.reports)


def mean_of_sets(report, name, sets):
    """Mean average precision of one run; None where it lacks one of the sets."""
    cells = [report["sets"].get(set_name, {}).get("scorers", {}).get(name, {"reason": ""}) for set_name in sets]
    values = [each["metrics"]["average_precision"]["value"] for each in cells if measured(each)]
    return sum(values) / len(values) if values and len(values) == len(sets) else None


def steadiness_values(cells):
    """(values of all runs, digits) for each column of the steadiness table."""
    columns = [([each["metrics"]["ece_mass"]["value"] for each in cells], 3), ([review_pct(each) for each in cells], 1)]
    for change, share in (
        ("swapped", "changed_pct"),
        ("swapped", "flipped_pct"),
        ("shuffled", "changed_pct"),
        ("shuffled", "flipped_pct"),
        ("field_removed", "lost_pct"),
    ):
        columns.append(([each["robustness"][change][share] for each in cells], 2))
    return columns


def review_pct(found):
    """Share of pairs whose most likely verdict hands them to a person."""
    return 100 * sum(found["verdicts"]["for_review"].values()) / found["n"]


def spread(values, digits=3):
    """The one value, or mean ± standard deviation over runs; equal values need no deviation."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def run_line(report):
    """Where one run's numbers come from."""
    model = report.get("model")
    synthetic = report.get("synthetic")
    who = f"{model['title']} ({_reports.weights(model)}, {model['backend']})" if model else "baselines only"
    boosted = any("boosting" in facts["scorers"] for facts in report["sets"].values())
    fitted = (
        f"boosting fitted on {synthetic['path']} ({synthetic['sha256'][:12]})"
        if synthetic and boosted
        else "no boosting in this run"
    )
    limit = f"at most {report['limit']:,} rows a set" if report.get("limit") else "all rows"
    return f"{who}; {fitted}; {limit}; seed {report.get('seed')}; {_reports.commit_and_time(report)}"
