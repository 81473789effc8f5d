"""How it learned and how well: the curves, the confusion matrix, precision and recall of each class."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record
from hubel.report.html import Html, tag
from hubel.report.parts import class_name, find, scroller, section
from hubel.report.text import fixed, number, percent, point


def learning(document: Document) -> Html | None:
    curves, classes = find(document, "curves"), find(document, "classes")
    body: list[Html | None] = []
    if curves is not None and len(curves.rows) > 1:
        body.append(_curves(curves))
    if classes is not None and "confusion" in classes.arrays:
        body.append(_confusion(document, classes.arrays["confusion"].data))
    if not body:
        return None
    title = "How it learned, and how well" if curves is not None else "How well it does"
    return section("learning", title, tag("div", *body, class_="two"), _classes(document))


def _curves(history: Record) -> Html:
    """Loss of the training and validation images by epoch, on one axis from zero; epoch 0 is before the first step."""
    names = [n for n in ("train_loss", "val_loss") if any(row.get(n) is not None for row in history.rows)]
    series = {n: [point(row.get(n)) for row in history.rows] for n in names}
    top = max([v for values in series.values() for v in values if v is not None], default=1.0) or 1.0
    lines = []
    for n, values in series.items():
        steps = max(len(values) - 1, 1)
        points = " ".join(
            f"{100 * i / steps:.2f},{60 - 60 * v / top:.2f}" for i, v in enumerate(values) if v is not None
        )
        lines.append(tag("polyline", points=points, class_=f"line {n}"))
    words = {"train_loss": "training images", "val_loss": "validation images"}
    spoken = "; ".join(
        f"{words[n]}: {', '.join(fixed(v, 3) for v in values if v is not None)}" for n, values in series.items()
    )
    plot = tag(
        "svg",
        *lines,
        viewBox="0 0 100 60",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Loss by epoch. {spoken}",
    )
    keys = tag(
        "p",
        *[
            tag(
                "span", tag("i", class_=f"key {n}"), f"{words[n]}, last {number(point(history.rows[-1].get(n)) or 0.0)}"
            )
            for n in names
        ],
        class_="size keys",
    )
    axis = tag("div", tag("span", number(top, 2)), tag("span", "0"), class_="axis", aria_hidden="true")
    feet = tag(
        "div",
        tag("span", history.rows[0]["target"]),
        tag("span", history.rows[-1]["target"]),
        class_="feet",
        aria_hidden="true",
    )
    return tag("figure", tag("h3", "Loss, cross-entropy"), keys, tag("div", axis, plot, class_="plot"), feet)


def _confusion(document: Document, matrix: np.ndarray) -> Html:
    """Rows: the truth; columns: its answer; a cell's ink is its share of the row."""
    K = len(matrix)
    if K > 20:
        return tag("p", f"The confusion matrix of {K} classes is in the run's arrays.")
    head = tag(
        "tr",
        tag("th", tag("span", "truth ↓ answer →"), scope="col"),
        *[tag("th", class_name(document, k), scope="col") for k in range(K)],
    )
    rows = []
    for k in range(K):
        cells = []
        for j in range(K):
            n, share = int(matrix[k, j]), matrix[k, j] / max(matrix[k].sum(), 1)
            hue = "var(--right)" if k == j else "var(--wrong)"
            strength = 100 * (0.12 + 0.45 * share if k == j else min(1.0, 0.18 + 6 * share)) if n else 0
            style = f"background:color-mix(in srgb,{hue} {strength:.0f}%,transparent)" if n else None
            cells.append(
                tag("td", n if n else tag("span", "·", aria_label="0"), style=style, class_="hit" if k == j else None)
            )
        rows.append(tag("tr", tag("th", class_name(document, k), scope="row"), *cells))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="confusion")
    return tag("figure", tag("h3", "Which it takes for which"), scroller(table, "Confusion matrix"))


def _classes(document: Document) -> Html | None:
    record = find(document, "classes")
    if record is None or not record.rows:
        return None
    names = [c["name"] for c in record.columns]
    lines = []
    for row in record.rows:
        cells = [_cell(name, row.get(name)) for name in names]
        lines.append(tag("tr", tag("th", row["target"], scope="row"), *[tag("td", c, class_="num") for c in cells]))
    head = tag("tr", tag("th", "class", scope="col"), *[tag("th", n.replace("_", " "), scope="col") for n in names])
    table = tag("table", tag("thead", head), tag("tbody", *lines), class_="plain")
    return tag(
        "details", tag("summary", "Precision, recall and F1 of each class"), scroller(table, "Precision, recall and F1")
    )


def _cell(name: str, value) -> str:
    middle = point(value)
    if middle is None:
        return "–"
    return percent(middle) if name in ("precision", "recall", "f1", "accuracy") else number(middle)
