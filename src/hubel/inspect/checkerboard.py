"""Patterns of the stride: does a transposed convolution (or the gradient of a strided one) paint a checkerboard?

Where the kernel is no multiple of the stride, neighbouring outputs are sums of different numbers of terms (Odena et al.
2016, doi 10.23915/distill.00003). What the weights make of that is measured: an input of ones through the actual
weights, averaged over input channels; inside, away from the border, a kernel's output has one value per phase (y mod s,
x mod s). `variation` is the deviation of the phases over their mean size: 0 for none. Weights may undo an uneven
overlap, and may have a pattern where the overlap is even.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.inspect.layers import Layer, layers_of
from hubel.records import Array, Column, Method, Record

COLUMNS = [
    Column(name="transposed", unit="1 if it enlarges", better=None),
    Column(name="kernel_mod_stride", unit="largest over axes", better="down"),
    Column(name="overlap_variation", unit="of the number of terms", better="down"),
    Column(name="variation", unit="median over kernels", better="down"),
    Column(name="variation_max", unit="largest over kernels", better="down"),
]


def checkerboard(net: nn.Module, images: Tensor | None = None, labels: Tensor | None = None) -> Record:
    """A row for each convolution with a stride above 1. Strided ones show it in the gradient that they send back.

    Arrays: for each layer `conv1` (kernels, phases): the value of each phase, in the order of y, then x.
    """
    del images, labels
    start = time.perf_counter()
    record = Record("checkerboard", "checkerboard", list(COLUMNS), level="layer")
    record.method = Method(name="ones through the weights", params={}, source="Odena et al. 2016, Distill")
    for address, layer in layers_of(net).items():
        if layer.stride is None or max(layer.stride) < 2 or layer.weight.numel() == 0:
            continue
        size = layer.weight.shape[2:]
        phases = phases_of(layer)
        ones = phases_of(layer, torch.ones_like(layer.weight))
        spread = variation(phases)
        cells: dict[str, Any] = {
            "transposed": int(layer.transposed),
            "kernel_mod_stride": max(
                (d * (k - 1) + 1) % s
                for k, s, d in zip(size, layer.stride, layer.dilation or [1] * len(size), strict=True)
            ),
            "overlap_variation": float(variation(ones).max()),
            "variation": float(np.median(spread)),
            "variation_max": float(spread.max()),
        }
        record.rows.append({"target": address, **cells})
        record.arrays[address] = Array(phases.astype(np.float32))
    if not record.rows:
        record.status, record.reason = "not_applicable", "no convolution of the network has a stride above 1"
    record.seconds = time.perf_counter() - start
    return record


def phases_of(layer: Layer, weight: Tensor | None = None) -> np.ndarray:
    """(kernels, phases): what an input of ones becomes inside, at each place modulo the stride.

    Of a transposed convolution the kernels are its outputs; of a strided one they are its inputs, whose gradient is a
    transposed convolution with the same weights.
    """
    w = (layer.weight if weight is None else weight).detach().double().cpu()
    stride, dilation = layer.stride or (), layer.dilation or (1,) * (w.ndim - 2)
    # torch's weight of both: (what is summed over, what comes out / groups, *size).
    sums = w.reshape(layer.groups, -1, *w.shape[1:]).sum(1).reshape(-1, *w.shape[2:]).numpy()
    counts = np.zeros((len(sums), *stride))
    for offset in np.ndindex(*w.shape[2:]):
        phase = tuple(o * d % s for o, d, s in zip(offset, dilation, stride, strict=True))
        counts[(slice(None), *phase)] += sums[(slice(None), *offset)]
    return counts.reshape(len(sums), -1)


def variation(phases: np.ndarray) -> np.ndarray:
    """Of each kernel (K, phases): standard deviation over root mean square; 0 where nothing comes out."""
    size = np.sqrt((phases**2).mean(1))
    return np.where(size > 0, phases.std(1) / np.where(size > 0, size, 1), 0.0)
