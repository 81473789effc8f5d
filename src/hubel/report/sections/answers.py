"""Why this answer: which pixels it rests on, and which kernels pushed it, image by image."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record, Value
from hubel.report import pictures
from hubel.report.html import Html, tag
from hubel.report.parts import class_name, find, head_row, image, input_image, scroller, section
from hubel.report.text import fixed, interval, number, percent

_WIDTH, _PIXELS, _KERNELS = 168, 96, 8


def answers(document: Document) -> Html | None:
    """For each pictured image: Grad-CAM and integrated gradients, where Captum made them, and contributions."""
    maps, pushes = find(document, "attribution"), find(document, "contributions")
    pictured = find(document, "feature_maps")
    if pictured is None or (maps is None and pushes is None):
        return None
    shown = pictured.arrays["image" if "image" in pictured.arrays else "input"].data
    count = min(len(shown), max(_images(maps), _images(pushes)))
    figures = [_figure(document, shown[i], maps, pushes, i) for i in range(count)]
    text = (
        "Orange speaks for the answer, blue against it. The pictures say where in the image; the list says through "
        "which kernels: how far each lies from its mean over all images, times the slope of the margin over the "
        "runner-up. A ranking, not shares: the agreement with really removing kernels stands below each list."
    )
    return section("answers", "Why this answer", tag("p", text, class_="lead"), *figures)


def _images(record: Record | None) -> int:
    return 0 if record is None else len(record.method["params"].get("pictured", ()))


def _figure(document: Document, x: np.ndarray, maps: Record | None, pushes: Record | None, i: int) -> Html:
    stages = [tag("div", tag("h4", "input"), input_image(x, f"Input image {i + 1}", _WIDTH), class_="stage")]
    title = f"Image {i + 1}"
    if maps is not None and i < len(maps.rows):
        row = maps.rows[i]
        title = f"Image {i + 1}: {class_name(document, row['answer'])}"
        if "grad_cam" in maps.arrays:
            layer = maps.method["params"]["layer"]
            stages.append(_map("Grad-CAM", maps.arrays["grad_cam"].data[i], f"of {layer}; only what speaks for it"))
        whole = maps.arrays["integrated"].data[i].sum(0)
        off = f"of every pixel; they miss the score's difference by {percent(row['difference'])}"
        stages.append(_map("integrated gradients", whole, off))
    if pushes is not None:
        stages.append(_pushes(document, pushes, i))
    caption = tag("figcaption", tag("h3", title))
    return tag("figure", caption, tag("div", *stages, class_="flow deep"), class_="journey")


def _map(name: str, values: np.ndarray, note: str) -> Html:
    small = pictures.shrink(values, _PIXELS)
    limit = float(np.abs(small).max())
    row, column = np.unravel_index(int(np.abs(small).argmax()), small.shape)
    scale = values.shape[0] / small.shape[0]
    peak = number(float(small[row, column]))
    alt = f"{name}: strongest about row {int(row * scale)}, column {int(column * scale)}, there {peak}"
    picture = image(pictures.signed(small, limit, cell=1, marks=False), alt, "map", _WIDTH)
    return tag("div", tag("h4", name), picture, tag("p", note, class_="size"), class_="stage")


def _pushes(document: Document, record: Record, i: int) -> Html:
    """The kernels with the largest contributions to this image's margin, and how far the ranking can be trusted."""
    found = [
        (f"{address}:{k}", float(array.data[i, k]))
        for address, array in record.arrays.items()
        if array.unit == "margin" and not address.startswith("sampled")
        for k in np.argsort(-np.abs(array.data[i]))[:_KERNELS]
    ]
    found.sort(key=lambda item: -abs(item[1]))
    most = max((abs(v) for _, v in found), default=1.0) or 1.0
    rows = []
    for target, value in found[:_KERNELS]:
        bar = tag("span", class_="bar", style=f"--share:{100 * abs(value) / most:.1f}%", aria_hidden="true")
        link = tag("th", tag("a", target, href=f"#{target}"), scope="row")
        rows.append(tag("tr", link, tag("td", bar, class_="track"), tag("td", fixed(value, plus=True), class_="num")))
    best, second = (class_name(document, int(record.arrays[key].data[i])) for key in ("answer", "runner_up"))
    head = head_row("kernel", "", f"{best} over {second}")
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="scores pushes")
    agreements = [row["agreement"] for row in record.rows if row["target"].startswith("(image")]
    note = _agreement(agreements[i]) if i < len(agreements) else None
    return tag(
        "div",
        tag("h4", "contributions"),
        scroller(table, f"Contributions, image {i + 1}"),
        tag("p", note, class_="size") if note else None,
        class_="stage",
    )


def _agreement(value: object) -> str | None:
    """How well the ranking agrees with really removing kernels, in words."""
    if not isinstance(value, Value) or value.value is None:
        return None
    bounds = ""
    if value.lo is not None and value.hi is not None:
        bounds = f" ({interval(value.lo, value.hi, fixed)})"
    drawn = f"{value.n} kernels drawn at random"
    return f"Agreement with removing {drawn}: rank correlation {fixed(value.value)}{bounds}."
