"""How one number of a feature map is made: a patch of the input, times the kernel, summed, plus the bias."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.errors import DataError, ModelError, unknown
from hubel.inspect.hooks import Call
from hubel.inspect.running import run
from hubel.records import Array, Column, Method, Record

COLUMNS = [
    Column(name="row", unit="pixels", better=None),
    Column(name="column", unit="pixels", better=None),
    Column(name="sum", unit="", better=None),
    Column(name="bias", unit="", better=None),
    Column(name="value", unit="", better=None),
    Column(name="map", unit="", better=None),
]


def one_number(
    net: nn.Module, x: Tensor, *, layer: str | None = None, kernel: int | None = None, at: tuple[int, int] | None = None
) -> Record:
    """One output of one 2-D convolution, by hand: Σ patch · kernel + bias in float64, beside what the network computed.

    x: one image (C, H, W) as the network takes it. layer: default the first 2-D convolution; kernel and at (row and
    column in the map): default the place where that layer answers most strongly.

    The row `conv1:3` holds sum, bias, value = sum + bias, and map, the number that the network itself wrote there; the
    last two agree up to the rounding of float32. Arrays: `patch`, `kernel`, `products` (slices, kh, kw); for a reader
    who wants another place, `input` (C, H, W), padded, `weight`, `bias` and `maps`, the outputs before activation.
    """
    start = time.perf_counter()
    if x.ndim == 4 and len(x) == 1:
        x = x[0]
    if x.ndim != 3:
        raise DataError(f"One number comes from one image (C, H, W). Received: shape {tuple(x.shape)}. Pass x[i].")
    call = _choose(run(net, x[None])[0], layer)
    module = call.module
    assert isinstance(module, nn.Conv2d)

    padded = _pad(module, call.input)[0].double().numpy()
    weight, maps = module.weight.detach().double().numpy(), call.output[0].double().numpy()
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
    k, row, column = _place(maps, kernel, at)

    slices, kh, kw = weight.shape[1:]
    first = k // (len(maps) // module.groups) * slices
    (top, left), (sh, sw), (dh, dw) = (row, column), module.stride, module.dilation
    window = padded[first : first + slices, top * sh :, left * sw :]
    patch = window[:, : dh * (kh - 1) + 1 : dh, : dw * (kw - 1) + 1 : dw]
    products = patch * weight[k]
    total = float(products.sum())
    cells = {"sum": total, "bias": float(bias[k]), "value": total + float(bias[k]), "map": float(maps[k, row, column])}

    params = {"kernel": k, "stride": list(module.stride), "dilation": list(module.dilation), "groups": module.groups}
    params |= {
        "layer": call.address,
        "padding": [int(p) for p in _padding(module)],
        "image": list(x.shape),
        "tap": call.tap,
    }
    record = Record(id="one_number", kind="one_number", level="kernel", columns=COLUMNS, tap="convolution")
    record.method = Method(name="sum of products", params=params, source="hubel.engine.reference")
    record.rows.append({"target": f"{call.address}:{k}", "row": row, "column": column, **cells})
    arrays = {"patch": patch, "kernel": weight[k], "products": products}
    arrays |= {"input": padded, "weight": weight, "bias": bias, "maps": maps}
    record.arrays = {key: Array(value.astype(np.float32)) for key, value in arrays.items()}
    record.seconds = time.perf_counter() - start
    return record


def _choose(calls: list[Call], layer: str | None) -> Call:
    plain = {call.address: call for call in calls if isinstance(call.module, nn.Conv2d)}
    if layer is not None and layer not in plain:
        raise unknown("2-D convolution", layer, plain)
    if not plain:
        raise ModelError(
            "One number is shown for a 2-D convolution. Received: a network without. Use `kernels` instead."
        )
    return plain[layer] if layer is not None else next(iter(plain.values()))


def _place(maps: np.ndarray, kernel: int | None, at: tuple[int, int] | None) -> tuple[int, int, int]:
    """Kernel, row, column: as asked, and where not asked, where the answer is largest."""
    K, H, W = maps.shape
    if (kernel is not None and not 0 <= kernel < K) or (at is not None and not (0 <= at[0] < H and 0 <= at[1] < W)):
        raise DataError(
            f"The place is inside the layer's output: {K} kernels, {H}x{W} positions. "
            f"Received: kernel={kernel}, at={at}. Count from 0."
        )
    if at is None:
        chosen = maps if kernel is None else maps[kernel : kernel + 1]
        k, row, column = np.unravel_index(chosen.argmax(), chosen.shape)
        return int(k) if kernel is None else kernel, int(row), int(column)
    return int(maps[:, at[0], at[1]].argmax()) if kernel is None else kernel, *at


def _padding(module: nn.Conv2d) -> list[int]:
    """(left, right, top, bottom), as torch.nn.functional.pad takes it; "same" and "valid" are in there as numbers."""
    return list(module._reversed_padding_repeated_twice)


def _pad(module: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, _padding(module), mode=mode)
    return padded.cpu() if padded.dtype == torch.float32 else padded.float().cpu()
