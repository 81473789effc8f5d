"""What the border of the image does to every layer: answers to one flat colour, by distance from the border.

A network without padding answers to a flat image with flat maps. Zero padding is an edge that is not in the image; how
far in it is felt is measured: the deviation from the middle of the map, as a share of the map's own size, ring by ring
(0 is the outermost). Existing scores of position encoding are not reliable (arXiv 2206.01202), hence this plain
profile.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.inspect.running import run
from hubel.records import Array, Column, Method, Record, Uncovered

FELT = 0.01
COLUMNS = [
    Column(name="border", unit="deviation at the border, share", better="down"),
    Column(name="reach", unit="places", better="down"),
    Column(name="reach_share", unit="share of the way to the middle", better="down"),
    Column(name="untouched", unit="share of places", better="up"),
]


def edges(net: nn.Module, images: Tensor, labels: Tensor | None = None, *, felt: float = FELT) -> Record:
    """A row a layer with two-dimensional maps. images (N, C, H, W): their mean colour is the flat image.

    `reach`: how many rings deviate by more than `felt` (the innermost such one counts); `untouched`: places further in.
    Arrays: for each layer `conv1` (rings,): the deviation, from the border to the middle.
    """
    del labels
    start = time.perf_counter()
    record = Record("edges", "edges", list(COLUMNS), level="layer")
    record.method = Method(name="flat image", params={"felt": felt}, source="Islam et al. 2021, arXiv 2101.12322")
    if images.ndim != 4:
        record.status, record.reason = "not_applicable", "borders are those of images, and the network takes none"
        return record
    flat = images.mean((0, 2, 3))[None, :, None, None].expand(1, *images.shape[1:]).contiguous()
    for call in run(net, flat)[0]:
        maps = call.activation
        if maps.ndim != 4 or len(maps) != 1 or min(maps.shape[2:]) < 3 or not bool(torch.isfinite(maps).all()):
            reason = "its maps are too small for a border and a middle, or not finite"
            record.uncovered.append(Uncovered(target=call.address, reason=reason))
            continue
        profile, rings = profile_of(maps[0].double().cpu().numpy())
        beyond = np.nonzero(profile > felt)[0]
        reach = int(beyond[-1]) + 1 if len(beyond) else 0
        cells: dict[str, Any] = {"border": float(profile[0]), "reach": reach, "reach_share": reach / len(profile)}
        cells["untouched"] = float((rings >= reach).mean())
        record.rows.append({"target": call.address, **cells})
        record.arrays[call.address] = Array(profile.astype(np.float32), "share")
    record.seconds = time.perf_counter() - start
    return record


def profile_of(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square over kernels and places of each ring of |a − middle|, over that of the middle; (K, H, W) in.

    Also the ring of each place, (H, W).
    """
    H, W = maps.shape[1:]
    y, x = np.arange(H), np.arange(W)
    rings = np.minimum(np.minimum(y, H - 1 - y)[:, None], np.minimum(x, W - 1 - x)[None, :])
    middle = maps[:, H // 2, W // 2]
    size = float(np.sqrt((middle**2).mean()))
    size = size if size > 0 else float(np.sqrt((maps**2).mean())) or 1.0
    squares = ((maps - middle[:, None, None]) ** 2).mean(0)
    return np.array([np.sqrt(squares[rings == r].mean()) for r in range(rings.max() + 1)]) / size, rings
