"""The report's figures as SVG and table strings: no drawing library, colours from the page's style sheet, numbers
beside each figure.
"""

import math
from html import escape

LEFT = 56
PLOT_W = 290
TOP = 12
PLOT_H = 210
WIDTH = LEFT + PLOT_W + 18
FLOOR = TOP + PLOT_H
STRIP_H = 44
N_SERIES_STYLES = 7
RISK_TOPS = (0.05, 0.1, 0.2, 0.5, 1.0)
# One fewer than the colours, so that a colour meets another mark when it comes again.
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.8L4.6 3.6H-4.6z",
    "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L4.6-3.6H-4.6z",
    "M-1.7-4.7h3.4v3h3v3.4h-3v3h-3.4v-3h-3v-3.4h3z",
)
MOST_TICKS_ACROSS = 8
MOST_TICKS_UP = 12
NO_PROBABILITIES = '<p class="none">Not available: these predictions carry no probabilities.</p>'
SLICE_TITLES = {"macro_f1": "macro-F1"}


def of_one(title, metrics):
    """The figures of one model: those of its verdicts where its task has one, and its slices where it has any."""
    slices = metrics["slices"]
    by_slice = [figure("Slices", slice_bars(slices), "Whiskers are 95 % intervals.")] if slices else []
    if "confusion" not in metrics:
        return figures(*by_slice) if by_slice else ""
    matrix = confusion_table(metrics["confusion"])
    below = "Below the curve: the number of cases in each bin of confidence."
    least_sure = "How many verdicts are wrong if a person takes the least sure cases."
    return figures(
        figure("Confusion matrix", matrix, "Rows are gold verdicts; right ones are outlined."),
        *by_slice,
        figure("Calibration", calibration_of_one(title, metrics["calibration"]) or NO_PROBABILITIES, below),
        figure("Risk and coverage", risk_of_one(title, metrics["risk_coverage"]) or NO_PROBABILITIES, least_sure),
    )


def calibration_of_one(title, bins):
    """The curve and its numbers; empty where the predictions carry no probabilities."""
    if not bins:
        return ""
    rows = [
        (f"{b['from']:.1f} to {b['to']:.1f}", b["n"], f"{b['confidence']:.3f}", f"{b['accuracy']:.3f}") for b in bins
    ]
    return calibration([(title, bins)]) + numbers(
        "Numbers", ("confidence", "n", "mean confidence", "share right"), rows
    )


def risk_of_one(title, points):
    if not points:
        return ""
    rows = [(share(point["coverage"]), share(point["risk"])) for point in points]
    return risk_coverage([(title, points)]) + numbers("Numbers", ("decided", "wrong"), rows)


def of_all(models):
    """Calibration and risk of all models over one another, where there are at least two to compare."""
    calibrated = [(title, metrics["calibration"]) for title, metrics in models if metrics.get("calibration")]
    covered = [(title, metrics["risk_coverage"]) for title, metrics in models if metrics.get("risk_coverage")]
    if min(len(calibrated), len(covered)) < 2:
        return ""
    both = figures(figure("Calibration", calibration(calibrated)), figure("Risk and coverage", risk_coverage(covered)))
    return f'<section aria-labelledby="together"><h2 id="together">All models together</h2>{both}</section>'


def of_benchmark(found):
    """The curves over concurrency side by side under one legend; nothing where no run has any."""
    drawn = [
        figure(title, over_concurrency(title, axis, unit, series))
        for title, axis, unit, series in found
        if any(points for _, points, _ in series)
    ]
    if not drawn:
        return ""
    limited = any(floor for *_, series in found for _, _, floor in series)
    dashed = (
        " A dashed line without marks is what the hardware allows the run of its colour, one token a step."
        if limited
        else ""
    )
    return (
        '<p class="muted">Closed loops; all axes are '
        f"logarithmic.{dashed}</p>{legend([name for name, *_ in found[0][-1]], 'mark', least=1)}"
        + figures(*drawn, style="figures three")
    )


def figures(*found, style="figures"):
    return f'<div class="{style}">{"".join(found)}</div>'


def figure(title, body, note=""):
    return f"<figure><figcaption><strong>{title}</strong> <span>{note}</span></figcaption>{body}</figure>"


def calibration(series):
    """How sure against how often right; one model also gets the number of cases in each bin."""
    points = [
        (
            title,
            [
                (b["confidence"], b["accuracy"], f"{b['n']:,} cases, confidence {b['from']:.1f} to {b['to']:.1f}")
                for b in bins
            ],
        )
        for title, bins in series
    ]
    body = axes("confidence", "share right", 1.0, shown_share, STRIP_H if len(series) == 1 else 0)
    body += f'<line class="diagonal" x1="{x_at(0)}" y1="{y_at(0, 1)}" x2="{x_at(1)}" y2="{y_at(1, 1)}"/>' + lines(
        points, 1.0
    )
    if len(series) == 1:
        body += count_strip(series[0][1])
    label = "Calibration curve. The diagonal is a model that is right as often as it is sure. " + "; ".join(
        f"{title}: " + ", ".join(f"{share(x)} sure, {share(y)} right" for x, y, _ in found) for title, found in points
    )
    return svg(FLOOR + 42 + (STRIP_H if len(series) == 1 else 0), label, body) + legend([title for title, _ in series])


def risk_coverage(series):
    """Share of wrong verdicts if only the surest share of cases is decided."""
    points = [(title, [(point["coverage"], point["risk"], "") for point in found]) for title, found in series]
    worst = max((y for _, found in points for _, y, _ in found), default=1.0)
    top = next(top for top in RISK_TOPS if worst <= top)
    body = axes("share of cases decided, surest first", "share wrong", top, shown_share) + lines(
        points, top, marks=False
    )
    label = "Risk-coverage curve. " + "; ".join(
        f"{title}: {share(at(found, 0.5)[1])} wrong among the surest half, {share(found[-1][1])} among all"
        for title, found in points
        if found
    )
    return svg(FLOOR + 42, label, body) + legend([title for title, _ in series])


def over_concurrency(title, axis, unit, series):
    """One line a run and, dashed in its colour, the floor under a time or the ceiling over a rate."""
    placed = [point for _, points, floor in series for point in points + floor]
    across = doublings([x for x, _ in placed])
    up = decimal_ticks([y for _, y in placed])
    body = log_axes("requests open at once", axis, across, up)
    for index, (name, points, floor) in enumerate(series):
        body += (
            f'<polyline class="floor s{index % N_SERIES_STYLES}" points="{log_path(floor, across, up)}"/>'
            if floor
            else ""
        )
        body += marked_line(index, name, unit, points, across, up)
    described = [
        f"{name}: {spoken_points(points, unit)}" + (f" (floor: {spoken_points(floor, unit)})" if floor else "")
        for name, points, floor in series
    ]
    return svg(FLOOR + 42, f"{title} over concurrency. " + "; ".join(described), body)


def marked_line(index, name, unit, points, across, up):
    """A run's line: solid, recognisable by colour and by the shape of its marks."""
    style = index % N_SERIES_STYLES
    mark = MARKS[index % len(MARKS)]
    body = f'<polyline class="line run s{style}" points="{log_path(points, across, up)}"/>'
    for x, y in points:
        words = f"{name}: {shown_number(y)} {unit} at concurrency {x:,}"
        left, top = log_place(x, y, across, up)
        body += f'<path class="dot s{style}" d="{mark}" transform="translate({left} {top})">'
        body += f"<title>{escape(words)}</title></path>"
    return body


def log_axes(x_title, y_title, across, up):
    """Grid, ticks and titles of a plot with two logarithmic axes."""
    body = ""
    for tick in up:
        _, y = log_place(across[0], tick, across, up)
        body += f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{LEFT + PLOT_W}" y2="{y}"/>'
        body += f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:,.10g}</text>'
    for tick in across[:: math.ceil(len(across) / MOST_TICKS_ACROSS)]:
        x, _ = log_place(tick, up[0], across, up)
        body += f'<text class="tick" x="{x}" y="{FLOOR + 16}" text-anchor="middle">{compact(tick)}</text>'
    return body + axis_titles(x_title, y_title)


def doublings(values):
    """Powers of two from the one at or below all values to the one at or above them, two at least."""
    low = math.floor(math.log2(min(values)))
    high = math.ceil(math.log2(max(values)))
    return [2**power for power in range(low, max(high, low + 1) + 1)]


def decimal_ticks(values, steps=(1, 2, 5)):
    """1, 2, 5, 10, 20 and so on around all values; powers of ten alone where those would be too many."""
    low = min(values)
    high = max(values)
    found = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for step in steps
    ]
    first = max(tick for tick in found if tick <= low)
    last = min(tick for tick in found if tick > high)
    ticks = [tick for tick in found if first <= tick <= last]
    return ticks if len(ticks) <= MOST_TICKS_UP or len(steps) == 1 else decimal_ticks(values, steps[:1])


def log_path(points, across, up):
    return " ".join("{},{}".format(*log_place(x, y, across, up)) for x, y in points)


def log_place(x, y, across, up):
    """Where a point stands between the first and the last tick of both axes."""
    return x_at(math.log(x / across[0], across[-1] / across[0])), y_at(math.log(y / up[0], up[-1] / up[0]), 1)


def spoken_points(points, unit):
    return ", ".join(f"{shown_number(y)} {unit} at {x:,}" for x, y in points) or "no value"


def at(points, coverage):
    """The first point at or beyond a coverage, or the last one."""
    return next((point for point in points if point[0] >= coverage), points[-1])


def slice_bars(slices):
    """The KPIs of every slice, as bars with 95 % whiskers."""
    body = ""
    y = 14
    titles = []
    described = []
    for dimension, values in slices.items():
        for value, kpis in values.items():
            name = f"{dimension}: {value}"
            n = max(kpi["n"] for kpi in kpis.values())
            titles = [slice_title(key) for key in kpis]
            body += f'<text class="slice" x="0" y="{y}"><title>{escape(name)}</title>{escape(clipped(name))}</text>'
            body += f'<text class="tick" x="{WIDTH}" y="{y}" text-anchor="end">n = {n:,}</text>'
            for index, (key, kpi) in enumerate(kpis.items()):
                title = f"{name}, {titles[index]}"
                body += slice_bar(key, kpi, title, index, y + 6 + 15 * index)
                described.append(f"{title} {spoken(key, kpi)}")
            y += 54
        y += 6
    return svg(y, "Results by slice. " + "; ".join(described), body) + legend(titles, "box")


def slice_title(kpi_name):
    return SLICE_TITLES.get(kpi_name) or kpi_name.removesuffix("_pct").replace("_", " ")


def slice_bar(kpi_name, kpi, title, index, y):
    scale = WIDTH - 48
    track = f'<rect class="track" x="0" y="{y}" width="{scale}" height="11" rx="2"/>'
    if kpi["value"] is None:
        return track + f'<text class="tick" x="{WIDTH}" y="{y + 9}" text-anchor="end">no value</text>'
    whole = 100 if kpi_name.endswith("_pct") else 1
    low, high = (scale * bound / whole for bound in kpi["ci95"])
    return (
        f"<g><title>{escape(title)}: {escape(spoken(kpi_name, kpi))}</title>{track}"
        f'<rect class="fill s{index}" x="0" y="{y}" width="{scale * kpi["value"] / whole:.1f}" height="11" rx="2"/>'
        f'<path class="whisker" d="M{low:.1f} {y + 5.5}H{high:.1f}M{low:.1f} {y + 2}v7M{high:.1f} {y + 2}v7"/>'
        f'<text class="tick" x="{WIDTH}" y="{y + 9}" text-anchor="end">{shown_value(kpi_name, kpi["value"])}</text></g>'
    )


def confusion_table(confusion):
    """Gold verdicts down, predicted verdicts across: counts, row percents, and the shade that the percent gives."""
    predicted = confusion["said"]
    counts = confusion["counts"]
    shown = [s for s in range(len(predicted)) if s < len(confusion["labels"]) or any(row[s] for row in counts)]
    head = "".join(f'<th scope="col">{escape(predicted[s])}</th>' for s in shown)
    body = ""
    for g, gold in enumerate(confusion["labels"]):
        n = sum(counts[g])
        cells = "".join(confusion_cell(counts[g][s], n, g == s) for s in shown)
        body += f'<tr><th scope="row">{escape(gold)} <span class="small">n = {n:,}</span></th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion"><thead>'
        f'<tr><th scope="col">gold \\ predicted</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def confusion_cell(count, n, right):
    part = count / n if n else 0.0
    return (
        f'<td class="{"right" if right else "wrong"}" style="--share:{part:.3f}">{count:,}'
        f'<span class="small">{share(part) if n else "no cases"}</span></td>'
    )


def kpi_table(kpis):
    rows = [
        (
            name,
            "n/a" if kpi["value"] is None else shown_value(name, kpi["value"]),
            "" if kpi["value"] is None else " to ".join(shown_value(name, bound) for bound in kpi["ci95"]),
            f"{kpi['n']:,}",
            kpi.get("what", ""),
        )
        for name, kpi in kpis.items()
    ]
    return numbers("All KPIs", ("KPI", "value", "95 % interval", "n", "meaning"), rows)


def numbers(title, head, rows):
    """A figure's numbers as a table that opens on demand: the text alternative in full."""
    cells = "".join("<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<details class="numbers"><summary>{escape(title)}</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(title)}"><table><thead><tr>{titles}</tr></thead><tbody>{cells}</tbody></table>'
        "</div></details>"
    )


def axes(x_title, y_title, top, shown, gap=0):
    """Grid, ticks and titles of a unit-wide plot; `gap` leaves room below for the count strip."""
    body = ""
    for step in range(6):
        x = x_at(step / 5)
        y = y_at(top * step / 5, top)
        body += f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{LEFT + PLOT_W}" y2="{y}"/>'
        body += f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{shown(top * step / 5)}</text>'
        body += f'<text class="tick" x="{x}" y="{FLOOR + gap + 16}" text-anchor="middle">{shown_share(step / 5)}</text>'
    return body + axis_titles(x_title, y_title, gap)


def axis_titles(x_title, y_title, gap=0):
    middle = TOP + PLOT_H / 2
    across = f'<text class="axis" x="{LEFT + PLOT_W / 2}" y="{FLOOR + gap + 35}" text-anchor="middle">{x_title}</text>'
    return (
        across + f'<text class="axis" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 '
        f'{middle})">{y_title}</text>'
    )


def lines(series, top, marks=True):
    body = ""
    kind = "dot" if marks else "touch"
    for index, (title, points) in enumerate(series):
        style = index % N_SERIES_STYLES
        path = " ".join(f"{x_at(x)},{y_at(y, top)}" for x, y, _ in points)
        body += f'<polyline class="line s{style}" points="{path}"/>'
        for x, y, note in points:
            words = f"{title}: {share(x)}, {share(y)}" + (f" ({note})" if note else "")
            body += f'<circle class="{kind} s{style}" cx="{x_at(x)}" cy="{y_at(y, top)}" r="4">'
            body += f"<title>{escape(words)}</title></circle>"
    return body


def count_strip(bins):
    """Cases per confidence bin, under the calibration curve's own x axis."""
    most = max((b["n"] for b in bins), default=1)
    body = ""
    for b in bins:
        height = round((STRIP_H - 20) * b["n"] / most, 1)
        x = x_at(b["from"])
        y = FLOOR + STRIP_H - height
        width = PLOT_W * (b["to"] - b["from"])
        body += f'<rect class="count" x="{x + 2}" y="{y}" width="{width - 4:.1f}" height="{height}"/>'
        body += (
            f'<text class="count-n" x="{x + width / 2:.1f}" y="{y - 3}" text-anchor="middle">{compact(b["n"])}</text>'
        )
    return body


def legend(titles, shape="stroke", least=2):
    if len(titles) < least:
        return ""
    key = {
        "stroke": '<line class="line s{0}" x1="0" y1="6" x2="26" y2="6"/>',
        "box": '<rect class="fill s{0}" x="0" y="1" width="26" height="10" rx="2"/>',
        "mark": '<line class="line run s{0}" x1="0" y1="6" x2="26" y2="6"/><path class="dot s{0}" d="{1}" '
        'transform="translate(13 6)"/>',
    }[shape]
    keys = [key.format(i % N_SERIES_STYLES, MARKS[i % len(MARKS)]) for i in range(len(titles))]
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 26 12" aria-hidden="true">{keys[i]}</svg><span>{escape(title)}</span></li>'
        for i, title in enumerate(titles)
    )
    return f'<ul class="legend">{items}</ul>'


def svg(height, label, body):
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def x_at(value):
    return round(LEFT + PLOT_W * value, 1)


def y_at(value, top):
    return round(FLOOR - PLOT_H * value / top, 1)


def shown_value(kpi_name, value):
    return f"{value:.{digits(kpi_name)}f}"


def digits(kpi_name):
    return 1 if kpi_name.endswith("_pct") else 3


def shown_number(value):
    """A duration or a rate with three figures or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value):
    return f"{100 * value:.1f} %"


def shown_share(value):
    return f"{100 * value:.0f}%"


def compact(n):
    return f"{n:,}" if n < 10_000 else f"{n / 1000:.0f}k"


def clipped(text, most=44):
    return text if len(text) <= most else text[: most - 1] + "…"


def spoken(kpi_name, kpi):
    if kpi["value"] is None:
        return "has no value"
    value, low, high = (shown_value(kpi_name, each) for each in (kpi["value"], *kpi["ci95"]))
    return f"{value} (95 %: {low} to {high}, n = {kpi['n']:,})"
