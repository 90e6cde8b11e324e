"""F1 over the number of labelled pairs that a model was adapted with, beside boosting: a table and a plot.

Each file is one run of `measure.py adaptation`: one model, one number of pairs, one seed.
"""

from collections import defaultdict
from html import escape
from statistics import mean

from common import UserError, read_json
from measurements._match_metrics import measured
from measurements._transfer_table import spread
from report.marked_text import md_table

BOOSTING = "Gradient boosting"
COLOURS = ("#0b62a4", "#c2410c", "#3f3f46", "#047857")
PANEL_W = 330
PANEL_H = 230
LEFT = 56
TOP = 62
GAP = 40
BELOW = 52
LEAST_F1 = 0.7  # the plot's floor, lowered where a value lies below it


class Curves:
    """{set: {scorer: {pairs: F1 of every seed}}}, scorers and sizes in one order for all sets."""

    def __init__(self, folder):
        self.values = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
        for path in sorted(folder.glob("*.json")):
            report = read_json(path)
            for name, facts in report["sets"].items():
                if measured(facts):
                    self.add(self.values[name], report, facts["scorers"])
        if not self.values:
            raise UserError(f"{folder}: no report of src/measure.py adaptation in it")
        found = [scorer for by_scorer in self.values.values() for scorer in by_scorer]
        self.scorers = [*sorted(set(found) - {BOOSTING}), BOOSTING]
        self.sizes = sorted({n for by in self.values.values() for sizes in by.values() for n in sizes})

    @staticmethod
    def add(by_scorer, report, scorers):
        seed = report["seed"]
        title = report["model"]["title"]
        by_scorer[title][0][seed] = f1(scorers["before"])
        by_scorer[title][report["pairs"]][seed] = f1(scorers["after"])
        by_scorer[BOOSTING][report["pairs"]][seed] = f1(scorers["boosting"])

    def of(self, name, scorer, size):
        return list(self.values[name][scorer].get(size, {}).values())


def f1(found):
    return found["metrics"]["f1"]["value"]


def curve_table(folder):
    """One row a set and size: mean ± standard deviation over seeds, and how many there were."""
    curves = Curves(folder)
    rows = [
        [name.replace("_", " "), f"{size:,}", *(cell(curves.of(name, scorer, size)) for scorer in curves.scorers)]
        for name in sorted(curves.values)
        for size in curves.sizes
    ]
    return md_table(["set", "labelled pairs", *curves.scorers], rows, n_text=1)


def cell(values):
    return f"{spread(values)} (n = {len(values)})" if values else "not run"


def curve_plot(folder):
    """An SVG with a panel a set; sizes stand evenly, whiskers are the seeds' range."""
    curves = Curves(folder)
    names = sorted(curves.values)
    lowest = min(
        mean(curves.of(n, s, x)) for n in names for s in curves.scorers for x in curves.sizes if curves.of(n, s, x)
    )
    floor = min(LEAST_F1, int(lowest * 10) / 10)
    width = len(names) * (LEFT + PANEL_W) + (len(names) - 1) * GAP + 20
    height = TOP + PANEL_H + BELOW
    panels = [panel(curves, name, LEFT + at * (LEFT + PANEL_W + GAP), floor) for at, name in enumerate(names)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="F1 over labelled pairs">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{legend(curves.scorers)}{"".join(panels)}</svg>\n'
    )


def legend(scorers):
    return "".join(
        f'<g transform="translate({LEFT + 190 * at},16)"><line x2="22" stroke="{colour}" stroke-width="2.5"/>'
        f'<circle cx="11" r="4" fill="{colour}"/><text x="28" y="4" fill="#18181b">{escape(scorer)}</text></g>'
        for at, (scorer, colour) in enumerate(zip(scorers, COLOURS, strict=False))
    )


def panel(curves, name, left, floor):
    def x_of(size):
        return left + (curves.sizes.index(size) + 0.5) * PANEL_W / len(curves.sizes)

    def y_of(value):
        return TOP + (1 - value) / (1 - floor) * PANEL_H

    parts = [
        f'<text x="{left}" y="{TOP - 14}" font-weight="600" fill="#18181b">F1, {escape(name.replace("_", " "))}</text>'
    ]
    n_lines = round((1 - floor) * 10)
    for line in range(n_lines + 1):
        value = floor + line / 10
        parts.append(
            f'<line x1="{left}" x2="{left + PANEL_W}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}" stroke="#e4e4e7"/>'
            f'<text x="{left - 8}" y="{y_of(value) + 4:.1f}" text-anchor="end" fill="#52525b">{value:.1f}</text>'
        )
    for size in curves.sizes:
        parts.append(
            f'<text x="{x_of(size):.1f}" y="{TOP + PANEL_H + 20}" text-anchor="middle" fill="#52525b">{size:,}</text>'
        )
    middle = left + PANEL_W / 2
    below = TOP + PANEL_H + 42
    parts.append(f'<text x="{middle}" y="{below}" text-anchor="middle" fill="#52525b">labelled pairs</text>')
    for scorer, colour in zip(curves.scorers, COLOURS, strict=False):
        parts.append(line_of(curves, name, scorer, colour, x_of, y_of))
    return "".join(parts)


def line_of(curves, name, scorer, colour, x_of, y_of):
    found = [(size, values) for size in curves.sizes if (values := curves.of(name, scorer, size))]
    points = " ".join(f"{x_of(size):.1f},{y_of(mean(values)):.1f}" for size, values in found)
    marks = "".join(
        f'<line x1="{x_of(size):.1f}" x2="{x_of(size):.1f}" y1="{y_of(min(values)):.1f}" y2="{y_of(max(values)):.1f}" '
        f'stroke="{colour}" stroke-width="1.5"/><circle cx="{x_of(size):.1f}" cy="{y_of(mean(values)):.1f}" r="4" '
        f'fill="{colour}"/>'
        for size, values in found
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>{marks}'
