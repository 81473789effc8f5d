"""How long a training step takes under Hubel and under PyTorch, round by round."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Value
from hubel.report.html import Html, tag
from hubel.report.parts import find, scroller, section
from hubel.report.text import count, fixed, interval, number, percent, point


def speed(document: Document) -> Html | None:
    record = find(document, "step")
    if record is None:
        return None
    params = record.method["params"]
    head = tag(
        "tr", *[tag("th", word, scope="col") for word in ("engine", "median", "95 % interval", "90 % of the steps")]
    )
    lines = []
    for row in record.rows:
        middle = row["ms"]
        low, high = (None, None) if not isinstance(middle, Value) else (middle.lo, middle.hi)
        bounds = "" if low is None or high is None else interval(low, high)
        cells = [f"{number(point(middle) or 0.0)} ms", bounds, interval(row["p5 ms"], row["p95 ms"])]
        lines.append(tag("tr", tag("th", row["target"], scope="row"), *[tag("td", c, class_="num") for c in cells]))
    text = (
        f"The same training step (forward, loss, backward, optimizer), {count(params['rounds'], 'round')}, in one "
        "process, every engine once a round in an order drawn anew. Every round counts; what else the machine did "
        "is in there too."
    )
    table = tag("table", tag("thead", head), tag("tbody", *lines), class_="plain")
    strip = None
    if "ratios" in record.arrays:
        strip = tag(
            "figure",
            strip_plot(record.arrays["ratios"].data),
            tag(
                "figcaption", "Each dot is one round: PyTorch's step over Hubel's. Left of 1, Hubel was the slower one."
            ),
        )
    return section(
        "speed", "The training step, timed", tag("p", text, class_="lead"), strip, scroller(table, "Times by engine")
    )


def strip_plot(ratios: np.ndarray, small: bool = False) -> Html:
    """A dot a round on an axis of ratios, 1 marked; crowded dots are stacked."""
    ratios = np.asarray(ratios, np.float64)
    lo, hi = min(0.9, float(ratios.min()) * 0.97), max(1.1, float(ratios.max()) * 1.03)
    bins = 60 if not small else 34
    heights: dict[int, int] = {}
    dots = []
    for r in np.sort(ratios):
        column = int((r - lo) / (hi - lo) * bins)
        level = heights[column] = heights.get(column, -1) + 1
        kind = "slow" if r < 1 else "fast"
        dots.append(tag("i", class_=kind, style=f"left:{100 * (column + 0.5) / bins:.2f}%;--level:{level}"))
    middle = float(np.median(ratios))
    marks = [(1.0, "1×"), (middle, f"{fixed(middle, 2)}×")]
    ticks = [
        tag("b", word, style=f"left:{100 * (at - lo) / (hi - lo):.2f}%")
        for at, word in marks
        if abs(at - 1) > 0.12 * (hi - lo) or at == 1.0
    ]
    line = tag("i", class_="one", style=f"left:{100 * (1 - lo) / (hi - lo):.2f}%")
    slower = ratios < 1
    alt = (
        f"{count(len(ratios), 'round')}: PyTorch's step took {interval(ratios.min(), ratios.max(), fixed)} times as "
        f"long as Hubel's, median {fixed(middle)}; Hubel's was slower in {slower.sum()} ({percent(slower.mean(), 0)})"
    )
    tallest = max(heights.values(), default=0) + 1
    style = f"--tallest:{tallest}"
    return tag(
        "div", line, *dots, *ticks, class_="strip small" if small else "strip", role="img", aria_label=alt, style=style
    )
