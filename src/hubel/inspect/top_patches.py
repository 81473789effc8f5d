"""The patches of one's own images that excite a kernel most: the default picture of what it answers to.

One patch an image, around the place of its largest activation, so that nine patches are nine images. Beside them nine
random ones from the middle of the range (50th to 90th percentile of the images' maxima): a few extreme patches look
alike for many reasons. People predict a kernel's answers from natural patches better than from synthetic ones (Borowski
et al. 2021, arXiv 2010.12606). A patch is (image, y, x): the page cuts it out of the image that it has anyway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import unknown
from hubel.inspect.receptive_field import Field, theoretical
from hubel.inspect.sweep import Sweep, Tap
from hubel.inspect.sweep import sweep as sweep_images
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="largest", unit="", better=None),
    Column(name="ninth", unit="", better=None),
    Column(name="median", unit="", better=None),
    Column(name="fired", unit="share of images", better=None),
    Column(name="top_class", unit="index", better=None),
    Column(name="top_class_count", unit="of the top patches", better=None),
    Column(name="base_rate", unit="share of images", better=None),
]
MIDDLE = (0.5, 0.9)


def top_patches(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    layers: Sequence[str] | None = None,
    count: int = 9,
    seed: int = 0,
) -> Record:
    """For every kernel of images (N, C, H, W) the `count` images with the largest maxima, and as many from the middle.

    sweep: of these images, if there is one. Images in which a kernel never exceeds zero, or its smallest maximum, are
    no patches of it, so that fewer may be there.

    Arrays, for each layer `conv1`: `conv1:top` and `conv1:middle` (kernels, count, 3) int32: image, y, x of the place
    in the layer's map, image −1 where there is none; `conv1:values`, `conv1:middle_values` (kernels, count): the
    activation. `method.params["layers"]` has each layer's `tap`, map `size`, and `field`: [y, x] of {start, stride,
    extent, whole}; the place p sees the pixels from start + p·stride, extent of them, cut off at the image's border
    (what lies outside is padding). With labels: the commonest class among the top patches beside its share of all
    images.
    """
    start = time.perf_counter()
    done = sweep if sweep is not None else sweep_images(net, images, correlations=False, seed=seed)
    for name in layers or ():
        if name not in done.taps:
            raise unknown("convolution", name, done.taps)
    chosen = [a for a in (layers or done.taps) if done.taps[a].finite]
    record = Record("top_patches", "top_patches", list(COLUMNS), level="kernel")
    params: dict[str, Any] = {"count": count, "middle": list(MIDDLE), "images": done.done, "seed": seed, "layers": {}}
    record.method = Method(name="largest activation of each image", params=params, source="arXiv 2010.12606")
    fields: dict[str, Field] = {}
    if images.ndim == 4:
        fields = theoretical(net, images[:1], chosen)[0]
    rng = np.random.default_rng(seed)
    rates = _base_rates(labels)
    for address in chosen:
        tap = done.taps[address]
        _add(record, tap, done.done, count, rng)
        field = fields.get(address)
        params["layers"][address] = {
            "tap": tap.tap,
            "size": list(tap.size),
            "field": field and [vars(s) for s in field],
        }
        if field is None:
            record.uncovered.append(Uncovered(target=address, reason="its field is not known: patches have no box"))
        if labels is not None and rates is not None:
            _classes(record, address, labels, rates)
    record.uncovered += [Uncovered(target=a, reason=reason) for a, reason in done.unread.items() if a != "scores"]
    record.uncovered += [
        Uncovered(target=a, reason="activations are NaN or infinite") for a, tap in done.taps.items() if not tap.finite
    ]
    record.seconds = time.perf_counter() - start
    return record


def _add(record: Record, tap: Tap, n: int, count: int, rng: np.random.Generator) -> None:
    maxima, where = tap.maxima[:n], tap.where[:n]
    order = np.argsort(-maxima, axis=0, kind="stable")[:count].T  # (K, count)
    floor = np.where(tap.lowest < 0, maxima.min(0), 0.0)
    top, values = _places(order, maxima, where, tap, floor)
    lo, hi = np.quantile(maxima, MIDDLE, axis=0)
    middle = np.full((tap.kernels, count), -1, np.int64)
    for k in range(tap.kernels):
        pool = np.nonzero((maxima[:, k] >= lo[k]) & (maxima[:, k] <= hi[k]) & (maxima[:, k] > floor[k]))[0]
        chosen = rng.choice(pool, min(count, len(pool)), replace=False) if len(pool) else pool
        middle[k, : len(chosen)] = chosen
    drawn, drawn_values = _places(middle, maxima, where, tap, floor)
    a = tap.address
    record.arrays |= {f"{a}:top": Array(top), f"{a}:values": Array(values)}
    record.arrays |= {f"{a}:middle": Array(drawn), f"{a}:middle_values": Array(drawn_values)}
    median = np.median(maxima, axis=0)
    for k in range(tap.kernels):
        have = values[k][top[k, :, 0] >= 0]
        record.rows.append(
            {
                "target": f"{a}:{k}",
                "largest": float(maxima[:, k].max()),
                "ninth": float(have[-1]) if len(have) else None,
                "median": float(median[k]),
                "fired": float(tap.fired[k] / n),
                "top_class": None,
                "top_class_count": None,
                "base_rate": None,
            }
        )


def _places(
    chosen: np.ndarray, maxima: np.ndarray, where: np.ndarray, tap: Tap, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(K, count, 3) image, y, x, and the activations there, of the images in `chosen` (K, count); −1 is none."""
    kernels = np.arange(tap.kernels)[:, None]
    values = maxima[np.maximum(chosen, 0), kernels]
    none = (chosen < 0) | (values <= floor[:, None])
    at = np.unravel_index(where[np.maximum(chosen, 0), kernels], tap.size)
    y, x = (at[-2], at[-1]) if len(tap.size) > 1 else (np.zeros_like(at[0]), at[0])
    places = np.stack([chosen, y, x], -1).astype(np.int32)
    places[none] = -1
    return places, np.where(none, 0, values).astype(np.float32)


def _base_rates(labels: Tensor | None) -> np.ndarray | None:
    return None if labels is None or not len(labels) else np.bincount(labels.cpu().numpy()) / len(labels)


def _classes(record: Record, address: str, labels: Tensor, rates: np.ndarray) -> None:
    names = labels.cpu().numpy()
    top = record.arrays[f"{address}:top"].data[:, :, 0]
    rows = record.rows[-len(top) :]
    for row, images in zip(rows, top, strict=True):
        images = images[(images >= 0) & (images < len(names))]
        if len(images):
            counts = np.bincount(names[images])
            common = int(counts.argmax())
            row |= {"top_class": common, "top_class_count": int(counts[common]), "base_rate": float(rates[common])}


def box(field: Field, y: int, x: int, size: Sequence[int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) in pixels of what the place (y, x) of a map sees, cut to an image of size (H, W)."""
    found = []
    for side, place, pixels in zip(field, (y, x), size, strict=True):
        first = 0 if side.whole else side.start + place * side.stride
        last = pixels if side.whole else first + side.extent
        found.append((max(0, first), min(pixels, last)))
    return found[0][0], found[1][0], found[0][1], found[1][1]


def patch(image: Tensor, field: Field, y: int, x: int) -> Tensor:
    """The pixels of one image (C, H, W) that the place (y, x) sees."""
    top, left, bottom, right = box(field, y, x, torch.Size(image.shape[1:]))
    return image[:, top:bottom, left:right]
