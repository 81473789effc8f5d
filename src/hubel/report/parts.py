"""What several sections draw: kernels, maps, images and score bars, each with its text alternative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubel.records import Document, Record
from hubel.report import pictures
from hubel.report.html import Child, Html, tag
from hubel.report.pictures import Picture
from hubel.report.text import count, fixed, number, percent, shape, share

_SPOKEN = 25  # a picture of at most so many cells has all its numbers in its text alternative
_MAP_PIXELS, _IMAGE_PIXELS = 48, 224


def scroller(table: Html, label: str) -> Html:
    """A table that may be wider than the screen: it scrolls, with the keyboard too."""
    return tag("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def layers_of(record: Record | None) -> dict[str, dict[str, Any]]:
    """What the kernels' record, or that of maps, says of each layer; in the network's order, which no file keeps."""
    if record is None:
        return {}
    known = record.method["params"]["layers"]
    order = dict.fromkeys(row["target"].rpartition(":")[0] for row in record.rows)
    return {address: known[address] for address in [*order, *known] if address in known}


def layer_text(info: Mapping[str, Any]) -> str:
    """`Conv2d 64×3×7×7, stride 2×2, 4 groups`, from what the kernels' record knows of a layer."""
    what = f"{info['type']} {shape(info['shape'])}"
    what += f", stride {shape(info['stride'])}" if info["stride"] else ""
    return what + (f", {count(info['groups'], 'group')}" if info["groups"] > 1 else "")


def head_row(*words: str) -> Html:
    """The heads of a table's columns; "" where a column holds pictures that repeat the numbers beside them."""
    return tag("tr", *[tag("th", word, scope="col") if word else tag("td") for word in words])


def find(document: Document, id: str) -> Record | None:
    """The record with this id, if it is there and has something to show."""
    return next((r for r in document.records if r.id == id and r.status == "ok"), None)


def section(id: str, title: str, *children: Child) -> Html:
    """A titled part of the page; `id` is its anchor."""
    return tag("section", tag("h2", title, id=f"{id}-title"), *children, id=id, aria_labelledby=f"{id}-title")


def image(picture: Picture, alt: str, class_: str = "", width: int | None = None) -> Html:
    """An <img>; `width` in CSS pixels, else the picture's own."""
    height = None if width is None else round(width * picture.height / picture.width)
    size = {"width": width or picture.width, "height": height or picture.height}
    return tag("img", src=picture.uri, alt=alt, class_=f"pixels {class_}".strip(), **size)


def spoken(values: np.ndarray) -> str:
    """The numbers of a small array for a text alternative, rows by semicolons; of a large one, its range and mean."""
    values = np.asarray(values, np.float64)
    if values.size <= _SPOKEN and values.ndim >= 2:
        rows = values.reshape(-1, values.shape[-1])
        return "; ".join(" ".join(fixed(v) for v in row) for row in rows)
    return (
        f"{values.size:,} numbers from {number(values.min())} to {number(values.max())}, mean {number(values.mean())}"
    )


def planes_of(kernel: np.ndarray) -> tuple[np.ndarray, int]:
    """How a kernel (slices, *size) is laid out: its planes (P, H, W), and in how many columns they stand.

    2-D: a plane a slice. 1×1: one plane, the slices in rows. 1-D: one plane, a row a slice. 3-D: a column a depth.
    """
    slices, *size = kernel.shape
    if len(size) == 1:
        return kernel[None], 1
    if len(size) == 3:
        return kernel.reshape(-1, *size[1:]), size[0]
    if size == [1, 1]:
        wide = math.ceil(math.sqrt(slices))
        grid = np.full((math.ceil(slices / wide), wide), np.nan)
        grid.flat[:slices] = kernel.ravel()
        return grid[None], 1
    return kernel, 1 if slices <= 3 else math.ceil(math.sqrt(slices))


def kernel_picture(kernel: np.ndarray, limit: float, *, cell: int = 8, columns: int | None = None) -> Picture:
    planes, wide = planes_of(kernel)
    return pictures.signed(planes, limit, cell=cell, columns=columns or wide)


def kernel_alt(address: str, kernel: np.ndarray, when: str = "") -> str:
    """`kernel conv1:3 after training, L2 norm 1.2: …`, with the numbers themselves where they are few."""
    norm = float(np.linalg.norm(kernel.astype(np.float64)))
    what = (
        f"{shape(kernel.shape[1:])}"
        if len(kernel) == 1
        else f"{count(len(kernel), 'slice')} of {shape(kernel.shape[1:])}"
    )
    return f"Kernel {address}{' ' + when if when else ''}, {what}, L2 norm {number(norm)}: {spoken(kernel)}"


def map_image(address: str, plane: np.ndarray, limit: float, width: int) -> Html:
    """One feature map (H, W); higher dimensions are reduced to their first plane, and vectors are one row."""
    plane = plane[None] if plane.ndim == 1 else plane
    while plane.ndim > 2:
        plane = plane[0]
    row, column = np.unravel_index(int(plane.argmax()), plane.shape)
    alt = (
        f"Feature map {address}, {shape(plane.shape)}: mean {number(float(plane.mean()))}, "
        f"largest {number(float(plane.max()))} at row {row}, column {column}, "
        f"smallest {number(float(plane.min()))}, above zero at {percent(float((plane > 0).mean()), 0)} of positions"
    )
    picture = pictures.signed(pictures.shrink(plane, _MAP_PIXELS), limit, cell=1, marks=False)
    return tag(
        "span",
        image(picture, alt, "map", width),
        tag("span", f":{address.rpartition(':')[2]}", aria_hidden="true"),
        class_="tile",
    )


def input_image(x: np.ndarray, name: str, width: int) -> Html:
    """What the network was given, (C, H, W): one channel as ink, three as colour, else the mean of the channels."""
    lo, hi = float(x.min()), float(x.max())
    alt = f"{name}: {shape(x.shape)} numbers from {number(lo)} to {number(hi)}, mean {number(float(x.mean()))}"
    x = pictures.shrink(x, _IMAGE_PIXELS)
    if len(x) == 3:
        return image(pictures.photo(x, lo, hi), alt, "photo", width)
    return image(pictures.ink(x.mean(0), lo, hi), alt, "ink", width)


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def class_name(document: Document, k: int) -> str:
    classes = document.model["classes"]
    return classes[k] if classes and k < len(classes) else str(k)


def score_bars(document: Document, scores: np.ndarray, label: int | None) -> Html:
    """The scores of one image as a table of bars: all of ten, else the five highest and the true class."""
    shares = softmax(scores)
    order = list(range(len(scores))) if len(scores) <= 10 else list(np.argsort(-scores)[:5])
    if label is not None and label not in order:
        order.append(label)
    best = int(scores.argmax())
    rows = []
    for k in order:
        mark = (
            "its answer, right"
            if k == best == label
            else "its answer"
            if k == best
            else "the truth"
            if k == label
            else None
        )
        kind = "best" if k == best else "truth" if k == label else ""
        bar = tag("span", class_="bar", style=f"--share:{100 * shares[k]:.1f}%", aria_hidden="true")
        cells = [
            tag("th", class_name(document, k), scope="row"),
            tag("td", bar, tag("small", mark) if mark else None, class_="track"),
            tag("td", share(float(shares[k])), class_="num"),
            tag("td", fixed(float(scores[k]), 1), class_="num faint"),
        ]
        rows.append(tag("tr", *cells, class_=kind or None))
    return tag("table", tag("thead", head_row("class", "", "softmax", "score")), tag("tbody", *rows), class_="scores")


def legend(limit: float, unit: str = "") -> Html:
    """The shared colour scale of a group of pictures."""
    ends = [f"{fixed(-limit)}", "0", f"+{fixed(limit)}{' ' + unit if unit else ''}"]
    ramp = pictures.signed(np.linspace(-limit, limit, 15)[None], limit, cell=10)
    alt = f"Colour scale from {ends[0]}, blue with a minus, over 0, blank, to {ends[2]}, orange"
    return tag("p", tag("span", ends[0]), image(ramp, alt, "ramp"), tag("span", ends[2]), class_="legend")
