"""What every kernel makes of an image: the feature maps, from the input to the scores."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import unknown
from hubel.inspect.hooks import Call
from hubel.inspect.running import run
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="mean", unit="", better=None),
    Column(name="max", unit="", better=None),
    Column(name="active", unit="share of positions > 0", better=None),
]


def feature_maps(net: nn.Module, x: Tensor, *, layers: Sequence[str] | None = None, most: int = 16) -> Record:
    """The activations of each convolution on images x (N, C, H, W), or one image (C, H, W), as the network takes them.

    An activation is taken after the batch norm and the activation function that directly follow the convolution; where
    that is depends on the network, and `method.params["layers"]` says it for each layer as `tap`.

    layers: addresses of convolutions, default all. most: how many maps a layer are kept as pictures, the largest mean
        |activation| first, in the network's order.

    Rows: a kernel each, over all images and positions. Arrays: `input`, for each layer `conv1` (N, maps, *size) and
    `conv1:kernels`, the indices of what is in it; `scores` (N, classes) if that is what the network returns.
    """
    start = time.perf_counter()
    x = x[None] if x.ndim == 3 else x
    calls, output = run(net, x)
    by_address = {call.address: call for call in calls}
    for name in layers or ():
        if name not in by_address:
            raise unknown("convolution", name, by_address)

    method = Method(name="activations", params={"most": most, "layers": {}}, source="")
    record = Record(id="feature_maps", kind="feature_maps", level="kernel", columns=COLUMNS, method=method)
    record.arrays["input"] = Array(x.detach().float().cpu().numpy())
    for address in layers or by_address:
        _add_layer(record, by_address[address], most, batch=len(x))
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(x):
        scores = output.detach().float().cpu().numpy()
        if np.isfinite(scores).all():
            record.arrays["scores"] = Array(scores)
        else:
            record.uncovered.append(Uncovered(target="scores", reason="some are NaN or infinite"))
    else:
        record.uncovered.append(Uncovered(target="scores", reason="the network does not return one row an image"))
    record.seconds = time.perf_counter() - start
    return record


def _add_layer(record: Record, call: Call, most: int, batch: int) -> None:
    maps = call.activation.float().cpu()
    maps = maps if maps.ndim == call.input.ndim and len(maps) == batch else maps[None]
    if not torch.isfinite(maps).all():
        record.uncovered.append(Uncovered(target=call.address, reason="activations are NaN or infinite"))
        return
    rest = [0, *range(2, maps.ndim)]
    mean, peak, active = maps.mean(rest), maps.amax(rest), (maps > 0).float().mean(rest)
    for k in range(maps.shape[1]):
        row = {"mean": float(mean[k]), "max": float(peak[k]), "active": float(active[k])}
        record.rows.append({"target": f"{call.address}:{k}", **row})
    strongest = torch.argsort(maps.abs().mean(rest), descending=True, stable=True)[:most].sort().values
    record.arrays[call.address] = Array(maps[:, strongest].numpy())
    record.arrays[f"{call.address}:kernels"] = Array(strongest.numpy())
    record.method["params"]["layers"][call.address] = {"tap": call.tap, "shape": list(maps.shape[1:])}
