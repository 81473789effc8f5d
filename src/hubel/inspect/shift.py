"""Does the answer stay when the image moves by a few pixels? (Zhang 2019, arXiv 1904.11486)

Every image is enlarged a little and cropped, so that what comes in at the border is real; consistency is how often the
crop and the crop s pixels further have the same answer. A constant answer is consistent, too, so accuracy (with labels)
and the margin between the best two scores stand beside it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.errors import DataError
from hubel.inspect import effects
from hubel.inspect.importance import check_labels
from hubel.inspect.receptive_field import theoretical
from hubel.inspect.running import Output, run, scores
from hubel.records import Column, Method, Record

COLUMNS = [
    Column(name="shift", unit="px", better=None),
    Column(name="consistency", unit="share of pairs", better="up"),
    Column(name="accuracy", unit="share of images", better="up"),
    Column(name="margin", unit="of the scores", better="up"),
    Column(name="margin_change", unit="mean of |change|", better="down"),
]


def shift(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    output: Output = None,
    most: int = 64,
    largest: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Record:
    """A row a shift of 1, 2, 4, … pixels up to the network's total stride (or `largest`), diagonal, in either
    direction.

    most: images, the first ones. Wilson intervals over images; the margin's change by bootstrap.
    """
    start = time.perf_counter()
    record = Record("shift", "shift", list(COLUMNS), level="model")
    if images.ndim != 4 or min(images.shape[2:]) < 4:
        record.status, record.reason = "not_applicable", "only images of 4 pixels or more can be shifted"
        return record
    x, y = images[:most], None if labels is None else labels[:most].cpu().long()
    stride = largest or total_stride(net, images[:1])
    steps = sorted({min(2**i, stride) for i in range(stride.bit_length() + 1)})
    steps = [s for s in steps if s < min(images.shape[2:]) // 2] or [1]
    room = 2 * steps[-1]
    params: dict[str, Any] = {"images": len(x), "total_stride": stride, "enlarged_by": room, "seed": seed}
    record.method = Method(name="crops of enlarged images", params=params, source="Zhang 2019, arXiv 1904.11486")
    H, W = x.shape[2:]
    larger = F.interpolate(x, (H + room, W + room), mode="bilinear", align_corners=False)
    corner = steps[-1]
    try:
        base = scores(net, larger[..., corner : corner + H, corner : corner + W], output)
    except DataError as error:
        record.status, record.reason = "not_applicable", str(error)
        return record
    check_labels(y, len(x), base.shape[1])
    signs = np.random.default_rng(seed).choice([-1, 1], (len(x), 2))
    record.rows.append(_row(0, base, base, y, level))
    for s in steps:
        moved = torch.stack(
            [
                image[:, corner + s * dy : corner + s * dy + H, corner + s * dx : corner + s * dx + W]
                for image, (dy, dx) in zip(larger, signs.tolist(), strict=True)
            ]
        )
        record.rows.append(_row(s, base, scores(net, moved, output), y, level))
    record.seconds = time.perf_counter() - start
    return record


def total_stride(net: nn.Module, image: Tensor) -> int:
    """The largest stride of a layer's field: how far one must move for every map to move by whole places."""
    calls = run(net, image, keep=False)[0]
    fields = theoretical(net, image, [call.address for call in calls[-4:]])[0]
    return max([1, *[side.stride for field in fields.values() for side in field if not side.whole]])


def _row(s: int, base: Tensor, moved: Tensor, y: Tensor | None, level: float) -> dict[str, Any]:
    n = len(base)
    same = int((base.argmax(1) == moved.argmax(1)).sum())
    margins = [_margin(rows) for rows in (base, moved)]
    change = effects.paired(np.abs(margins[1] - margins[0])[None], level, 200, np.random.default_rng(0))[0]
    right = None if y is None else effects.wilson(int((moved.argmax(1) == y).sum()), n, level)
    return {
        "target": f"shift {s}",
        "shift": s,
        "consistency": effects.wilson(same, n, level),
        "accuracy": right,
        "margin": float(margins[1].mean()),
        "margin_change": change,
    }


def _margin(rows: Tensor) -> np.ndarray:
    if rows.shape[1] < 2:
        return rows[:, 0].double().numpy()
    best = rows.double().topk(2, 1).values
    return (best[:, 0] - best[:, 1]).numpy()
