"""Every layer and every kernel on a page of its own, drawn on demand: this packs what the script `atlas.js` draws from.

A network like ResNet-50 has 26,560 kernels; as elements of a page they would be more than a browser likes. Instead the
page carries the numbers: weights as int8 on their layer's scale, patches as (image, y, x), tables by column, and each
image once, as WebP. The script draws the one layer or kernel that the address in the location bar names
(`#layer1.0.conv2`, `#layer1.0.conv2:37`), so that every kernel has a link of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hubel.records import Cell, Document, Record, Value
from hubel.report import pictures
from hubel.report.html import Html, json_script, tag
from hubel.report.parts import find, layer_text, layers_of
from hubel.report.text import number, shape
from hubel.report.words import COLUMNS, FLAGS, RECORDS, TITLES

# Weights on a symmetric scale of a layer: -127..127 is -limit..limit.
_STEPS = 127
# Feature maps are kept at most so wide and high.
_MAP = 56


def atlas(document: Document) -> Html | None:
    """The place where pages of layers and kernels appear, and their data; None if the document has no kernels."""
    weights = find(document, "kernels")
    if weights is None or not weights.method["params"]["layers"]:
        return None
    layers = [_layer(document, weights, address) for address in layers_of(weights)]
    data = {
        "layers": layers,
        "tables": [_table(record) for record in _of_kernels(document)],
        "facts": [_facts(record) for record in _of_layers(document)],
        "findings": [{"targets": f.targets, "message": f.message, "severity": f.severity} for f in document.findings],
        "grid": _grid(document),
        "input": document.model["input"]["shape"][-2:],
        "classes": document.model["classes"],
    }
    view = tag("section", id="view", hidden=True, aria_live="polite", aria_label="One layer or kernel")
    stored = [json_script("atlas-data", data), json_script("atlas-images", _images(document))]
    return Html(view + "".join(stored))


def addresses(document: Document) -> list[str]:
    """The layers that have a page."""
    return list(layers_of(find(document, "kernels")))


def packed(array: np.ndarray, dtype: str) -> str:
    """Little-endian numbers in base64: what a typed array of the script reads."""
    return base64.b64encode(np.ascontiguousarray(array).astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def _layer(document: Document, weights: Record, address: str) -> dict[str, Any]:
    info = weights.method["params"]["layers"][address]
    shown = weights.arrays[address].data
    before = weights.arrays.get(f"{address}:before")
    limit = max(float(np.abs(shown).max()), 1e-30)
    limit = limit if before is None else max(limit, float(np.abs(before.data).max()))
    entry: dict[str, Any] = {
        "address": address,
        "kernels": info["shape"][0],
        "slices": info["shape"][1],
        "size": list(shown.shape[2:]),
        "what": layer_text(info),
        "limit": limit,
        "shown": shown.shape[1],
        "drawn": weights.arrays[f"{address}:kernels"].data.tolist(),
        "which": packed(weights.arrays[f"{address}:slices"].data, "u2"),
        "weights": packed(np.round(shown / limit * _STEPS), "i1"),
        "colour": address == next(iter(layers_of(weights))) and shown.shape[1] == info["shape"][1] == 3,
    }
    if before is not None:
        entry["before"] = packed(np.round(before.data / limit * _STEPS), "i1")
    if len(entry["drawn"]) == entry["kernels"]:
        del entry["drawn"]
    patches = find(document, "top_patches")
    if patches is not None and f"{address}:top" in patches.arrays and find(document, "images") is not None:
        entry["patches"] = _patches(patches, address)
    field = find(document, "receptive_field")
    if field is not None and address in field.arrays:
        m = pictures.shrink(field.arrays[address].data, 64)
        entry["field"] = {"size": list(m.shape), "m": packed(np.round(m / max(float(m.max()), 1e-30) * 255), "u1")}
    entry |= _tuning(document, address) | _maps(document, address)
    return entry


def _grid(document: Document) -> dict[str, list[float]]:
    """The stripes that kernels were asked about: angles in degrees, cycles per pixel, hues in degrees."""
    record = find(document, "tuning_curves")
    names = ("angles", "frequencies", "hues")
    arrays = {} if record is None else record.arrays
    return {name: [float(f"{v:.3g}") for v in arrays[name].data] for name in names if name in arrays}


def _tuning(document: Document, address: str) -> dict[str, Any]:
    """Answers to stripes and hues, of each kernel as shares of its largest; below zero is no answer."""
    record, found = find(document, "tuning_curves"), {}
    for name, key in (("tuning", address), ("hue", f"{address}:hue")):
        if record is not None and key in record.arrays:
            answers = np.clip(record.arrays[key].data, 0, None).reshape(len(record.arrays[key].data), -1)
            largest = np.maximum(answers.max(1, keepdims=True), 1e-30)
            found[name] = packed(np.round(answers / largest * 255), "u1")
    return found


def _maps(document: Document, address: str) -> dict[str, Any]:
    """Feature maps of the pictured images, (images, maps, H, W) on the layer's scale, and whose they are."""
    record = find(document, "feature_maps")
    if record is None or address not in record.arrays or record.arrays[address].data.ndim != 4:
        return {}
    maps = pictures.shrink(record.arrays[address].data, _MAP)
    limit = max(float(np.abs(maps).max()), 1e-30)
    kernels = record.arrays[f"{address}:kernels"].data.tolist()
    return {
        "maps": {
            "size": list(maps.shape),
            "kernels": kernels,
            "limit": limit,
            "values": packed(np.round(maps / limit * _STEPS), "i1"),
        }
    }


def _patches(record: Record, address: str) -> dict[str, Any]:
    """Places, and values as shares of the kernel's largest: one byte is as much as a caption shows."""
    params = record.method["params"]["layers"][address]
    sides = ("start", "stride", "extent", "whole")
    box = params["field"] and [{name: side[name] for name in sides} for side in params["field"]]
    entry: dict[str, Any] = {"count": record.method["params"]["count"], "box": box, "tap": params["tap"]}
    largest = np.maximum(record.arrays[f"{address}:values"].data.max(1, keepdims=True), 1e-30)
    for name, values in (("top", "values"), ("middle", "middle_values")):
        entry[name] = packed(record.arrays[f"{address}:{name}"].data, "i2")
        shares = np.clip(record.arrays[f"{address}:{values}"].data / largest, 0, 1)
        entry[f"{name}_shares"] = packed(np.round(shares * 255), "u1")
    return entry


def _of_kernels(document: Document) -> Iterable[Record]:
    """Records about many images; the scores of the pictured ones belong to another part of the page."""
    ours = (r for r in document.records if r.level == "kernel" and r.status == "ok" and r.kind in RECORDS)
    return (r for r in ours if r.id != "ablation_scores")


def _of_layers(document: Document) -> Iterable[Record]:
    return (r for r in document.records if r.level == "layer" and r.status == "ok" and r.kind in RECORDS)


def _heads(record: Record) -> list[dict[str, Any]]:
    return [
        {
            "name": column["name"],
            "label": COLUMNS.get(column["name"], column["name"].replace("_", " ")),
            "unit": "" if column["unit"] in FLAGS or column["unit"].startswith("1 if") else column["unit"],
            "flag": column["unit"] in FLAGS or column["unit"].startswith("1 if"),
        }
        for column in record.columns
    ]


def _table(record: Record) -> dict[str, Any]:
    """Rows by layer and kernel: {address: {k: [n, …], cells: [[column], …]}}."""
    by_layer: dict[str, tuple[list[int], list[list[Any]]]] = {}
    names = [column["name"] for column in record.columns]
    for row in record.rows:
        address, _, k = row["target"].rpartition(":")
        if not k.isdigit():
            continue
        kept, cells = by_layer.setdefault(address, ([], [[] for _ in names]))
        kept.append(int(k))
        for column, name in zip(cells, names, strict=True):
            column.append(_cell(row.get(name)))
    values = {a: {"k": kept, "cells": cells} for a, (kept, cells) in by_layer.items()}
    return {
        "id": record.id,
        "title": TITLES.get(record.id, RECORDS[record.kind]),
        "columns": _heads(record),
        "layers": values,
    }


def _facts(record: Record) -> dict[str, Any]:
    """Rows of layers: {address: [cell of each column]}."""
    names = [column["name"] for column in record.columns]
    rows = {
        row["target"]: [_cell(row.get(name)) for name in names]
        for row in record.rows
        if not set(row["target"]) & set("(~")  # sums, pairs of kernels
    }
    return {
        "id": record.id,
        "title": TITLES.get(record.id, RECORDS[record.kind]),
        "columns": _heads(record),
        "layers": rows,
    }


def _cell(cell: Cell) -> Any:
    """A number of four digits, or [number, lo, hi, decided]; null as it is."""
    if isinstance(cell, Value):
        if cell.lo is None or cell.hi is None:
            return _short(cell.value)
        return [_short(cell.value), _short(cell.lo), _short(cell.hi), cell.decided]
    return _short(cell)


def _short(value: float | int | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _images(document: Document) -> Mapping[str, Any]:
    """Each image once. Names are addresses of their own: image 3 of the sample."""
    record = find(document, "images")
    if record is None:
        return {"uris": []}
    stack = record.arrays["images"].data  # (N, H, W, C) uint8
    names = [
        f"image {i}, {shape(image.shape[:2])}, mean {number(float(image.mean()) / 255)}"
        for i, image in enumerate(stack)
    ]
    return {"uris": [pictures.webp(image) for image in stack], "names": names}
