"""Kernels as training changed them: how far each layer drifted, and the first layer at some of the steps."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record
from hubel.report.html import Html, tag
from hubel.report.parts import find, image, kernel_alt, kernel_picture, legend, section
from hubel.report.text import number

_STEPS, _KERNELS = 6, 12


def history(document: Document) -> Html | None:
    record = find(document, "training_history")
    if record is None or len(record.arrays["steps"].data) < 2:
        return None
    text = "How far the weights of each layer lie from those that training began with, and the first layer on its way."
    body = [tag("p", text, class_="lead"), _drift(record), _first(record)]
    return section("history", "While it was trained", *body)


def _drift(record: Record) -> Html:
    steps = record.arrays["steps"].data.astype(float)
    curves = {key.removesuffix(":drift"): a.data for key, a in record.arrays.items() if key.endswith(":drift")}
    top, last = max((float(c.max()) for c in curves.values()), default=1.0) or 1.0, float(steps[-1]) or 1.0
    lines = []
    for i, curve in enumerate(curves.values()):
        points = " ".join(f"{100 * s / last:.2f},{60 - 60 * d / top:.2f}" for s, d in zip(steps, curve, strict=True))
        fade = 0.35 + 0.65 * i / max(len(curves) - 1, 1)
        lines.append(tag("polyline", points=points, class_="line", style=f"opacity:{fade:.2f}"))
    ends = "; ".join(f"{address} {number(float(curve[-1]), 2)}" for address, curve in curves.items())
    label = f"Drift of the weights by step. At the end: {ends}"
    plot = tag("svg", *lines, viewBox="0 0 100 60", preserveAspectRatio="none", role="img", aria_label=label)
    axis = tag("div", tag("span", number(top, 2)), tag("span", "0"), class_="axis", aria_hidden="true")
    feet = tag("div", tag("span", "step 0"), tag("span", f"step {number(last)}"), class_="feet", aria_hidden="true")
    note = "A line a layer, the first faint, the last strong: ‖w − w₀‖ ∕ ‖w₀‖."
    body = [tag("h3", "Drift"), tag("p", note, class_="size"), tag("div", axis, plot, class_="plot"), feet]
    return tag("figure", *body)


def _first(record: Record) -> Html:
    """The first kernels of the first layer, a row a step, all on one scale."""
    stack, steps = record.arrays["kernels"].data, record.arrays["steps"].data
    at = np.unique(np.linspace(0, len(steps) - 1, _STEPS).astype(int))
    limit, first = float(np.abs(stack[:, :_KERNELS]).max()), record.method["params"]["first"]
    rows = []
    for i in at:
        tiles = [
            image(kernel_picture(w, limit, cell=6), kernel_alt(f"{first}:{k}", w, f"at step {steps[i]}"))
            for k, w in enumerate(stack[i, :_KERNELS])
        ]
        rows.append(tag("div", tag("p", f"step {steps[i]}", class_="name"), tag("div", *tiles, class_="thumbs")))
    return tag("figure", tag("h3", f"{first}, its first kernels"), legend(limit), *rows)
