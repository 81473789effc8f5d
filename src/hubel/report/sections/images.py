"""An image on its way: input, feature maps, scores. With labels, one image that it gets right and one it gets wrong."""

from __future__ import annotations

import numpy as np

from hubel.records import Document, Record
from hubel.report.html import Html, tag
from hubel.report.parts import class_name, find, input_image, layers_of, map_image, score_bars, section, softmax
from hubel.report.text import count, number, shape, share

_DEEP_LAYERS = 7  # of more layers so many stand open, evenly spread
_FLOW_LAYERS = 3  # up to so many layers stand beside one another, from the input to the scores


def images(document: Document) -> Html | None:
    record = find(document, "feature_maps")
    if record is None or "input" not in record.arrays:
        return None
    inputs = _shown(record)
    labels = record.arrays["labels"].data if "labels" in record.arrays else None
    layers = list(layers_of(record))
    figures = [
        _figure(document, record, i, None if labels is None else int(labels[i]), layers) for i in range(len(inputs))
    ]
    taps = {params["tap"] for params in record.method["params"]["layers"].values()}
    text = (
        f"Each map is one kernel's answer at every place of the image, taken after {_taps(taps)}. "
        "Orange is positive, blue is negative, blank is zero; the maps of one layer share one scale, in both images."
        if len(inputs) > 1
        else f"Each map is one kernel's answer at every place of the image, taken after {_taps(taps)}. "
        "Orange is positive, blue is negative, blank is zero; the maps of one layer share one scale."
    )
    title = record.method["params"].get("title") or "From the image to the scores"
    return section("images", title, tag("p", text, class_="lead"), *figures)


def _taps(taps: set[str]) -> str:
    words = {"convolution": "the convolution itself", "pre_add": "the batch norm"}
    return " or ".join(sorted(words.get(tap, tap) for tap in taps))


def _figure(document: Document, record: Record, i: int, label: int | None, layers: list[str]) -> Html:
    scores = record.arrays["scores"].data[i] if "scores" in record.arrays else None
    flow = len(layers) <= _FLOW_LAYERS
    x = _shown(record)[i]
    stages = [
        tag(
            "div", tag("h4", "input"), input_image(x, f"Input image {i + 1}", 168), _size(x.shape), class_="stage input"
        )
    ]
    shown = layers if len(layers) <= _DEEP_LAYERS else [layers[j] for j in _spread(len(layers))]
    stages += [_maps(record, address, i, flow) for address in shown]
    if scores is not None:
        table = score_bars(document, scores, label)
        ends = tag("div", tag("h4", "scores"), table, class_="stage answer")
        stages = [*stages, ends] if flow else [stages[0], ends, *stages[1:]]
    caption = tag("figcaption", *_caption(document, record, i, scores, label))
    rest = None
    if len(shown) < len(layers):
        others = [_maps(record, address, i, flow) for address in layers if address not in shown]
        summary = tag("summary", f"The other {count(len(others), 'layer')}")
        rest = tag("details", summary, tag("div", *others, class_="flow deep"))
    return tag("figure", caption, tag("div", *stages, class_="flow" if flow else "flow deep"), rest, class_="journey")


def _spread(layers: int) -> list[int]:
    """Layers from the first to the last, evenly."""
    return np.unique(np.linspace(0, layers - 1, _DEEP_LAYERS).round().astype(int)).tolist()


def _shown(record: Record) -> np.ndarray:
    """The images as they were before any preprocessing, where the record has them."""
    return record.arrays["image" if "image" in record.arrays else "input"].data


def _size(sizes: tuple[int, ...]) -> Html:
    return tag("p", shape(sizes), class_="size")


def _maps(record: Record, address: str, i: int, flow: bool) -> Html:
    maps = record.arrays[address].data
    kernels = record.arrays[f"{address}:kernels"].data
    params = record.method["params"]["layers"][address]
    limit = float(np.abs(maps).max())
    width = 72 if len(kernels) <= 8 else 48
    tiles = [map_image(f"{address}:{k}", maps[i, j], limit, width) for j, k in enumerate(kernels)]
    total = params["shape"][0]
    chosen = f"the strongest {len(kernels)} of {count(total, 'map')}" if len(kernels) < total else count(total, "map")
    size = tag("p", f"{chosen} of {shape(params['shape'][1:])}; scale to ±{number(limit)}", class_="size")
    grid = tag("div", *tiles, class_="maps" if len(kernels) <= 8 else "maps many")
    return tag("div", tag("h4", address), grid, size, class_="stage")


def _caption(document: Document, record: Record, i: int, scores: np.ndarray | None, label: int | None) -> list[Html]:
    titles = record.method["params"].get("titles")
    if scores is None:
        return [tag("h3", f"Image {i + 1}")]
    best = int(scores.argmax())
    answer = f"It answers {class_name(document, best)} ({share(float(softmax(scores)[best]))} of the softmax)"
    truth = "." if label is None else ", and it is." if label == best else f"; it is {class_name(document, label)}."
    title, remark = titles[i] if titles else (f"Image {i + 1}", "")
    return [tag("h3", title), tag("p", f"{answer}{truth} {remark}".strip())]
