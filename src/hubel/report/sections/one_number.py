"""How one number is made: a patch times the kernel, summed, plus the bias, is the value in the map."""

from __future__ import annotations

import base64

import numpy as np

from hubel.records import Document, Record
from hubel.report import pictures
from hubel.report.html import Html, json_script, tag
from hubel.report.parts import find, section
from hubel.report.text import count, fixed, number, shape

_MOST_CELLS = 9 * 9  # a slice with more cells than this is not printed number by number
_MOST_SLICES = 3
_PLAYABLE = 40_000  # numbers that the page carries so that a reader can choose another place


def one_number(document: Document) -> Html | None:
    record = find(document, "one_number")
    if record is None:
        return None
    row = record.rows[0]
    patch, kernel, products = (record.arrays[key].data for key in ("patch", "kernel", "products"))
    kh, kw = kernel.shape[1:]
    if kh * kw > _MOST_CELLS:
        return None
    strongest = np.sort(np.argsort(-np.abs(products).sum((1, 2)), kind="stable")[:_MOST_SLICES])
    limits = [float(max(np.abs(a).max(), 1e-12)) for a in (patch, kernel, products)]
    lines = []
    for s in strongest:
        grids = [
            _grid("patch", f"slice {s}" if len(patch) > 1 else "patch of the input", patch[s], limits[0]),
            tag("span", "×", class_="op", aria_hidden="true"),
            _grid("kernel", f"kernel {row['target']}", kernel[s], limits[1]),
            tag("span", "=", class_="op", aria_hidden="true"),
            _grid("products", "products", products[s], limits[2]),
        ]
        lines.append(tag("div", *grids, class_="equation"))
    rest = len(products) - len(strongest)
    if rest:
        other = float(products.sum(dtype=np.float64) - products[strongest].sum(dtype=np.float64))
        lines.append(tag("p", f"The other {count(rest, 'slice')} add {fixed(other, 4, plus=True)} in the same way."))
    intro = (
        f"A convolution is this sum, again and again: the kernel is laid on a {kh}×{kw} patch of its input, each pair "
        "of numbers is multiplied, the products are added, and the bias is added last. "
        f"Here at row {row['row']}, column {row['column']} of the map of {row['target']}, before the activation."
    )
    bench = tag("div", _place(record), *lines, _sum(row), class_="workbench")
    return section("one-number", "How one number is made", tag("p", intro, class_="lead"), bench, _data(record))


def _grid(name: str, title: str, values: np.ndarray, limit: float) -> Html:
    """A table of numbers on the page's colour scale: here nothing needs a text alternative, the numbers are there."""
    rows = [tag("tr", *[_cell(float(v), limit) for v in line]) for line in values]
    return tag(
        "table",
        tag("caption", title),
        tag("tbody", *rows),
        class_="numbers",
        data_grid=name,
        style=f"--n:{values.shape[1]}",
    )


def _cell(value: float, limit: float) -> Html:
    share = min(1.0, abs(value) / limit)
    hue = pictures.POSITIVE if value > 0 else pictures.NEGATIVE
    style = f"background:rgba({hue[0]},{hue[1]},{hue[2]},{0.75 * share:.2f})" if share > 0.004 else None
    return tag("td", fixed(value), style=style)


def _sum(row: dict) -> Html:
    difference = row["value"] - row["map"]
    parts = [
        tag("span", tag("b", fixed(row["sum"], 6), data_out="sum"), tag("small", "sum of the products")),
        tag("span", "+", class_="op"),
        tag("span", tag("b", fixed(row["bias"], 6), data_out="bias"), tag("small", "bias")),
        tag("span", "=", class_="op"),
        tag("span", tag("b", fixed(row["value"], 6), data_out="value"), tag("small", "made by hand")),
        tag("span", tag("b", fixed(row["map"], 6), data_out="map"), tag("small", "in the map")),
    ]
    near = "the same number" if abs(difference) <= 1e-5 * max(1.0, abs(row["map"])) else "not the same number"
    note = f"{near}: they differ by {number(abs(difference), 2)}, the rounding of float32."
    if near != "the same number":
        note = f"They differ by {number(abs(difference), 2)}, more than rounding explains."
    note = note[0].upper() + note[1:]
    return tag(
        "div", tag("p", *parts, class_="sum"), tag("p", note, class_="size", data_out="note"), aria_live="polite"
    )


def _place(record: Record) -> Html:
    """Where the patch lies: the padded input with a frame on it, and the map with its pixel marked."""
    row, params = record.rows[0], record.method["params"]
    x, maps = record.arrays["input"].data, record.arrays["maps"].data
    kh, kw = record.arrays["kernel"].data.shape[1:]
    (sh, sw), (dh, dw) = params["stride"], params["dilation"]
    H, W = x.shape[-2:]
    frame = _box(row["column"] * sw, row["row"] * sh, (kw - 1) * dw + 1, (kh - 1) * dh + 1, W, H)
    if len(x) == 3:
        picture = pictures.photo(pictures.shrink(x, 224), float(x.min()), float(x.max()))
    else:
        picture = pictures.ink(pictures.shrink(x.mean(0), 160), float(x.min()), float(x.max()))
    k = params["kernel"]
    answer = pictures.signed(pictures.shrink(maps[k], 160), float(np.abs(maps).max()), cell=1, marks=False)
    spot = _box(row["column"], row["row"], 1, 1, maps.shape[2], maps.shape[1])
    alts = (
        f"The layer's input with its padding, {shape(x.shape)}; a frame marks rows {row['row'] * sh} to "
        f"{row['row'] * sh + (kh - 1) * dh} and columns {row['column'] * sw} to {row['column'] * sw + (kw - 1) * dw}",
        f"The map of {row['target']} before the activation, {shape(maps.shape[1:])}, "
        f"from {number(float(maps[k].min()))} to {number(float(maps[k].max()))}; "
        f"the marked place holds {fixed(row['map'], 4)}",
    )
    ink = "photo" if len(x) == 3 else "ink"
    left = _framed(picture, alts[0], ink, frame, "input", "input, with padding")
    right = _framed(answer, alts[1], "map", spot, "map", f"map of {row['target']}")
    choose = None
    if _playable(record):
        hint = "Click a place in the map, or move with the arrow keys when it has the focus."
        choose = tag("div", _kernels(record), tag("p", hint, class_="hint js"))
    return tag("div", left, tag("span", "→", class_="op", aria_hidden="true"), right, choose, class_="place")


def _framed(picture: pictures.Picture, alt: str, class_: str, frame: Html, name: str, title: str) -> Html:
    img = tag(
        "img",
        src=picture.uri,
        alt=alt,
        class_=f"pixels {class_}",
        width=168,
        height=round(168 * picture.height / picture.width),
    )
    return tag(
        "figure",
        tag("div", img, frame, class_="framed", data_stage=name),
        tag("figcaption", title, data_title=name),
        class_="mini",
    )


def _box(left: float, top: float, width: float, height: float, W: int, H: int) -> Html:
    sides = {"left": left / W, "top": top / H, "width": width / W, "height": height / H}
    return tag("span", class_="frame", style=";".join(f"{k}:{100 * v:.3f}%" for k, v in sides.items()))


def _playable(record: Record) -> bool:
    sizes = [record.arrays[key].data.size for key in ("input", "maps", "weight")]
    return sum(sizes) <= _PLAYABLE and len(record.arrays["input"].data) == 1 and record.method["params"]["groups"] == 1


def _kernels(record: Record) -> Html:
    address, chosen = record.method["params"]["layer"], record.method["params"]["kernel"]
    buttons = [
        tag(
            "button",
            f":{k}",
            type="button",
            data_kernel=k,
            aria_pressed="true" if k == chosen else "false",
            aria_label=f"kernel {address}:{k}",
        )
        for k in range(len(record.arrays["weight"].data))
    ]
    return tag("div", *buttons, class_="choices js", role="group", aria_label="Kernel")


def _data(record: Record) -> Html | None:
    """The arrays for the script, float32 little-endian in base64; the page computes with the network's own numbers."""
    if not _playable(record):
        return None
    arrays = {}
    for key in ("input", "weight", "bias", "maps"):
        data = record.arrays[key].data
        text = base64.b64encode(data.astype("<f4").tobytes()).decode("ascii")
        arrays[key] = {"shape": list(data.shape), "f4": text}
    row, params = record.rows[0], record.method["params"]
    place = {"kernel": params["kernel"], "row": row["row"], "column": row["column"]}
    return json_script("one-number-data", arrays | place | {k: params[k] for k in ("layer", "stride", "dilation")})
