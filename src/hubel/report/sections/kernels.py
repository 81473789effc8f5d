"""The kernels themselves: before and after training on one scale, or the strongest of each layer of any network."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record
from hubel.report import pictures
from hubel.report.html import Html, tag
from hubel.report.parts import find, image, kernel_alt, kernel_picture, layer_text, legend, scroller, section
from hubel.report.text import count, fixed, number, percent, shape

_MANY_LAYERS = 6  # networks with more convolutions get smaller pictures, and layers that open on demand


def kernels(document: Document) -> Html | None:
    record = find(document, "kernels")
    if record is None or not record.method["params"]["layers"]:
        return None
    trained = any(key.endswith(":before") for key in record.arrays)
    return _before_and_after(record) if trained else _gallery(document, record)


def _before_and_after(record: Record) -> Html:
    layers = [_pairs(record, address) for address in record.method["params"]["layers"]]
    intro = (
        "Left in each pair: the random weights training began with. Right: what it made of them. "
        "Both halves, and all kernels of a layer, share one colour scale; orange is positive, blue with a minus is "
        "negative, blank is zero."
    )
    return section(
        "kernels", "The kernels, before and after training", tag("p", intro, class_="lead"), *layers, _table(record)
    )


def _pairs(record: Record, address: str) -> Html:
    info = record.method["params"]["layers"][address]
    after, before = record.arrays[address].data, record.arrays[f"{address}:before"].data
    cell = 24 if after.shape[1] == 1 else 8
    figures = []
    for j, k in enumerate(record.arrays[f"{address}:kernels"].data):
        row = record.row(f"{address}:{k}")
        columns = 1 if after.shape[1] <= 8 else None
        pair = [
            image(
                kernel_picture(w[j], info["limit"], cell=cell, columns=columns),
                kernel_alt(f"{address}:{k}", w[j], when),
            )
            for w, when in ((before, "before training"), (after, "after training"))
        ]
        note = "" if row.get("moved") is None else f"moved {percent(row['moved'], 0)}"
        caption = tag("figcaption", tag("b", f":{k}"), " ", tag("small", note))
        arrow = tag("span", "→", class_="op", aria_hidden="true") if after.shape[1] == 1 else None
        figures.append(
            tag(
                "figure",
                tag("div", pair[0], arrow, pair[1], class_="pair"),
                caption,
                class_="kernel",
                id=f"{address}:{k}",
            )
        )
    slices = after.shape[1]
    what = f"{count(info['shape'][0], 'kernel')} of {shape(info['shape'][2:])}"
    what += f", each with {count(slices, 'slice')}, one below the other" if slices > 1 else ""
    head = tag(
        "div",
        tag("h3", address),
        tag("p", what + _hidden(record, address), class_="size"),
        legend(info["limit"]),
        class_="layerhead",
    )
    return tag(
        "div",
        head,
        tag("div", *figures, class_="kernels big" if slices == 1 else "kernels pairs"),
        class_="layer",
        id=address,
    )


def _table(record: Record) -> Html:
    """The numbers behind the pictures, for readers of numbers."""
    names = ["norm_before", "norm", "moved", "smoothness_before", "smoothness"]
    heads = ["kernel", "norm before", "after", "moved", "smoothness before", "after"]
    lines = []
    for row in record.rows:
        cells = ["–" if row.get(n) is None else fixed(row[n], 2) for n in names]
        lines.append(tag("tr", tag("th", row["target"], scope="row"), *[tag("td", c, class_="num") for c in cells]))
    table = tag(
        "table",
        tag("thead", tag("tr", *[tag("th", h, scope="col") for h in heads])),
        tag("tbody", *lines),
        class_="plain",
    )
    text = (
        "Norm: the square root of the sum of squared weights. Moved: the norm of the change over the norm before. "
        "Smoothness: the correlation of a weight with its neighbours in the slice; 0 is noise, 1 a smooth patch."
    )
    return tag(
        "details",
        tag("summary", "The numbers of every kernel"),
        tag("p", text, class_="size wide"),
        scroller(table, "The numbers of every kernel"),
    )


def _gallery(document: Document, record: Record) -> Html:
    layers = record.method["params"]["layers"]
    many = len(layers) > _MANY_LAYERS
    blocks = [_strongest(record, address, small=many and i > 0) for i, address in enumerate(layers)]
    total = sum(info["shape"][0] for info in layers.values())
    intro = f"{count(total, 'kernel')} in {count(len(layers), 'convolution')}; one symmetric colour scale a layer. "
    intro += "Orange is positive, blue with a minus is negative, blank is zero."
    if any(_is_rgb(record.arrays[a].data) and i == 0 for i, a in enumerate(layers)):
        intro += " The first layer reads colour, and is drawn in colour: grey is zero."
    if document.model["weights"] == "random":
        intro += " These weights are random: nothing has been learned yet."
    return section("kernels", "The kernels", tag("p", intro, class_="lead"), *blocks, _skipped(record))


def _strongest(record: Record, address: str, small: bool) -> Html:
    info = record.method["params"]["layers"][address]
    shown = record.arrays[address].data
    first = next(iter(record.method["params"]["layers"])) == address
    rgb = first and _is_rgb(shown)
    figures = []
    for j, k in enumerate(record.arrays[f"{address}:kernels"].data):
        alt = kernel_alt(f"{address}:{k}", shown[j])
        if rgb:
            size = shown.shape[-1]
            picture = pictures.colour(shown[j], -info["limit"], info["limit"])
            img = image(picture, alt, "photo", max(2, round(72 / size)) * size)
        else:
            img = image(kernel_picture(shown[j], info["limit"], cell=_cell(shown, small)), alt)
        caption = tag(
            "figcaption", tag("b", f":{k}"), tag("small", f" {number(record.row(f'{address}:{k}')['norm'], 2)}")
        )
        figures.append(tag("figure", img, caption, class_="kernel", id=f"{address}:{k}"))
    head = tag(
        "div",
        tag("h3", address),
        tag("p", layer_text(info) + _hidden(record, address), class_="size"),
        None if rgb else legend(info["limit"]),
        class_="layerhead",
    )
    return tag("div", head, tag("div", *figures, class_="kernels"), class_="layer", id=address)


def _cell(shown: np.ndarray, small: bool) -> int:
    """Pixels a weight: slices about as wide as a fingertip if a kernel is one slice, smaller in a mosaic."""
    if shown.ndim == 3 or shown.shape[2:] == (1, 1):
        return 5
    width = 64 if shown.shape[1] == 1 else 24 if small else 30
    return int(np.clip(width // shown.shape[-1], 1, 16))


def _is_rgb(shown: np.ndarray) -> bool:
    return shown.ndim == 4 and shown.shape[1] == 3 and min(shown.shape[2:]) > 1


def _hidden(record: Record, address: str) -> str:
    """What is not drawn, in words: nothing is left out silently."""
    info, shown = record.method["params"]["layers"][address], record.arrays[address].data
    kernels, slices = info["shape"][:2]
    parts = []
    if len(shown) < kernels:
        parts.append(f"the {len(shown)} strongest kernels of {kernels:,}")
    if shown.shape[1] < slices:
        parts.append(f"the {shown.shape[1]} strongest slices of {slices:,}")
    return f"; shown: {', of each '.join(parts)}" if parts else ""


def _skipped(record: Record) -> Html | None:
    bad = [item for item in record.uncovered if item["target"] not in record.arrays]
    if not bad:
        return None
    return tag("ul", *[tag("li", f"{item['target']} is not drawn: {item['reason']}.") for item in bad], class_="size")
