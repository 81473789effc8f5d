"""The definition: what a convolution is, and its gradients, as plain loops in float64. Slow and obvious.

A convolution is one sum over products, with N images, O output channels, C input channels a group, output positions q
and kernel taps t (one loop a dimension each: seven loops for a 2-D convolution):

    y[n, o, q] = b[o] + sum over c, t of  x[n, g*C + c, i] * w[o, c, t]   with  i = q * stride - padding + t * dilation

where g is the group of o, and what lies outside the input is left out (zero padding). Its gradients are sums over the
same products with the roles exchanged, so all three walk `_products`; everything else in the engine is how these three
sums are made fast. Arguments are numpy arrays of any layout and dtype, results float64 and contiguous.
Every function raises `SpecError` if an array has not the shape that the spec gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from hubel.engine.spec import ConvSpec
from hubel.errors import SpecError

Index = tuple[int, ...]


def forward(spec: ConvSpec, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The convolution itself: y of `spec.output_shape`. b: (out_channels,), or none."""
    x, w = _float64("input", x, spec.input_shape), _float64("weights", w, spec.weight_shape)
    y = np.zeros(spec.output_shape)
    if b is not None:
        b = _float64("bias", b, (spec.out_channels,))
        for o in range(spec.out_channels):
            y[:, o] = b[o]
    for i, j, k in _products(spec):
        y[k] += x[i] * w[j]
    return y


def input_gradient(spec: ConvSpec, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The gradient of sum(y * dy) by the input, `spec.input_shape`; also the transposed convolution of dy by w."""
    dy, w = _float64("output gradient", dy, spec.output_shape), _float64("weights", w, spec.weight_shape)
    dx = np.zeros(spec.input_shape)
    for i, j, k in _products(spec):
        dx[i] += dy[k] * w[j]
    return dx


def weight_gradient(spec: ConvSpec, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The gradient of sum(y * dy) by the weights, `spec.weight_shape`."""
    x, dy = _float64("input", x, spec.input_shape), _float64("output gradient", dy, spec.output_shape)
    dw = np.zeros(spec.weight_shape)
    for i, j, k in _products(spec):
        dw[j] += x[i] * dy[k]
    return dw


def bias_gradient(dy: np.ndarray) -> np.ndarray:
    """The gradient of sum(y * dy) by the bias, (out_channels,): dy (N, O, *output_size) summed channel by channel."""
    dy = np.asarray(dy, dtype=np.float64)
    db = np.zeros(dy.shape[1])
    for o in range(dy.shape[1]):
        db[o] = dy[:, o].sum()
    return db


def _products(spec: ConvSpec) -> Iterator[tuple[Index, Index, Index]]:
    """Where in (input, weights, output) the factors and the sum of every product stand."""
    meetings = list(_meetings(spec))
    in_group = spec.in_channels // spec.groups
    out_group = spec.out_channels // spec.groups
    for n in range(spec.batch):
        for o in range(spec.out_channels):
            first = o // out_group * in_group
            for c in range(in_group):
                for pixel, tap, position in meetings:
                    yield (n, first + c, *pixel), (o, c, *tap), (n, o, *position)


def _meetings(spec: ConvSpec) -> Iterator[tuple[Index, Index, Index]]:
    """Every (pixel, tap, position): the tap lies on this pixel when the kernel stands at this output position."""
    for position in product(*map(range, spec.output_size)):
        for tap in product(*map(range, spec.kernel_size)):
            pixel = tuple(
                q * s - p + t * d
                for q, t, s, p, d in zip(position, tap, spec.stride, spec.padding, spec.dilation, strict=True)
            )
            if all(0 <= i < size for i, size in zip(pixel, spec.input_size, strict=True)):
                yield pixel, tap, position


def _float64(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(array) != shape:
        raise SpecError(
            f"the {name} must have the shape that the spec gives. Received: {np.shape(array)} instead of {shape}. "
            "Pass an array of that shape, or the spec of this one."
        )
    return np.asarray(array, dtype=np.float64)
