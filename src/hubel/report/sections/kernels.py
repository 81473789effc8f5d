"""The kernels themselves: before and after training on one scale, or the strongest of each layer of any network."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record
from hubel.report import pictures
from hubel.report.html import Html, tag
from hubel.report.parts import find, image, kernel_alt, kernel_picture, layer_text, layers_of, legend, scroller, section
from hubel.report.text import count, fixed, number, percent, shape

_MOST_PAIRS = 128  # of more kernels each has both of its states on its own page
_MOST = 64  # kernels of the first layer that stand on the overview


def kernels(document: Document) -> Html | None:
    record = find(document, "kernels")
    if record is None or not record.method["params"]["layers"]:
        return None
    pairs = sum(len(array.data) for key, array in record.arrays.items() if key.endswith(":before"))
    return _before_and_after(record) if 0 < pairs <= _MOST_PAIRS else _gallery(document, record)


def _before_and_after(record: Record) -> Html:
    layers = [_pairs(record, address) for address in layers_of(record)]
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
        tag("p", what + _hidden(info, after), class_="size"),
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
    """The first layer, which reads the image itself; every other has a page of its own, drawn when it is asked for."""
    layers = layers_of(record)
    first = next(iter(layers))
    total = sum(info["shape"][0] for info in layers.values())
    intro = f"{count(total, 'kernel')} in {count(len(layers), 'convolution')}; one symmetric colour scale a layer. "
    intro += "Orange is positive, blue with a minus is negative, blank is zero."
    if _is_rgb(record.arrays[first].data):
        intro += " The first layer reads colour, and is drawn in colour: grey is zero."
    if document.model["weights"] == "random":
        intro += " These weights are random: nothing has been learned yet."
    lead = tag("p", intro, class_="lead")
    return section("kernels", "The kernels", lead, _strongest(record, first), _others(layers), _skipped(record))


def _others(layers: dict[str, dict]) -> Html | None:
    """Every layer with the address of its page, in words: what the strip of the network shows as bars."""
    if len(layers) < 2:
        return None
    items = [tag("li", tag("a", a, href=f"#{a}"), " ", tag("small", layer_text(info))) for a, info in layers.items()]
    return tag(
        "details",
        tag("summary", f"All {count(len(layers), 'layer')}, each with a page of its own"),
        tag("ol", *items, class_="contents"),
    )


def _strongest(record: Record, address: str) -> Html:
    info = record.method["params"]["layers"][address]
    kept, indices = record.arrays[address].data, record.arrays[f"{address}:kernels"].data
    norms = [record.row(f"{address}:{k}")["norm"] for k in indices]
    order = sorted(sorted(range(len(kept)), key=lambda j: -norms[j])[:_MOST])
    shown = kept[order]
    rgb = _is_rgb(shown)
    figures = []
    for w, k, norm in zip(shown, indices[order], (norms[j] for j in order), strict=True):
        alt = kernel_alt(f"{address}:{k}", w)
        if rgb:
            size = shown.shape[-1]
            picture = pictures.colour(w, -info["limit"], info["limit"])
            img = image(picture, alt, "photo", max(2, round(72 / size)) * size)
        else:
            img = image(kernel_picture(w, info["limit"], cell=_cell(shown)), alt)
        name = tag("a", f":{k}", href=f"#{address}:{k}")
        caption = tag("figcaption", tag("b", name), tag("small", f" {number(norm, 2)}"))
        figures.append(tag("figure", img, caption, class_="kernel"))
    head = tag(
        "div",
        tag("h3", tag("a", address, href=f"#{address}")),
        tag("p", layer_text(info) + _hidden(info, shown), class_="size"),
        None if rgb else legend(info["limit"]),
        class_="layerhead",
    )
    return tag("div", head, tag("div", *figures, class_="kernels"), class_="layer")


def _cell(shown: np.ndarray) -> int:
    """Pixels a weight: slices about as wide as a fingertip if a kernel is one slice, smaller in a mosaic."""
    if shown.ndim == 3 or shown.shape[2:] == (1, 1):
        return 5
    width = 64 if shown.shape[1] == 1 else 30
    return int(np.clip(width // shown.shape[-1], 1, 16))


def _is_rgb(shown: np.ndarray) -> bool:
    return shown.ndim == 4 and shown.shape[1] == 3 and min(shown.shape[2:]) > 1


def _hidden(info: dict, shown: np.ndarray) -> str:
    """What is not drawn, in words: nothing is left out silently."""
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
