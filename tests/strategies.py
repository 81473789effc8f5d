"""Hypothesis strategies of convolutions, and the arrays to run them on.

Sizes are kept so small that the plain loops of `hubel.engine.reference` take milliseconds, and chosen where kernels
go wrong: channels that fill no vector, kernels larger than the input, whole taps on the padding, strides that miss
the last pixel, dilation, groups, empty batches. Data are small integers: float32 sums of their products are exact in
any order, so that an algorithm which computes them agrees with the reference bit for bit.

    @given(problems(), seeds())
    def test_agrees(problem, seed):
        x = integers(problem.spec.input_shape, seed, layout="sliced")
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec

# Around one, two and four vectors of 4, 8 and 16 lanes, and primes that fill none.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 24, 31, 33, 64, 65)

# The multiply-adds of one example: about 1 µs each in the reference.
MACS = 4000

KINDS = ("dense", "pointwise", "grouped", "depthwise")


def seeds() -> st.SearchStrategy[int]:
    """Seeds for `integers`: hypothesis draws one number instead of every element."""
    return st.integers(0, 2**16 - 1)


@st.composite
def specs(
    draw: st.DrawFn,
    ndim: int | Sequence[int] = (1, 2, 3),
    kinds: Sequence[str] = KINDS,
    batches: Sequence[int] = (1, 3, 0),
    macs: int = MACS,
) -> ConvSpec:
    """Any convolution of at most `macs` multiply-adds. kinds: some of "dense", "pointwise", "grouped", "depthwise"."""
    ndim = ndim if isinstance(ndim, int) else draw(st.sampled_from(ndim))
    kind = draw(st.sampled_from(kinds))
    axes = [draw(_axes(largest=(9, 5, 3)[ndim - 1], pointwise=kind == "pointwise")) for _ in range(ndim)]
    size, kernel, stride, padding, dilation = zip(*axes, strict=True)

    batch = draw(st.sampled_from(batches))
    one = ConvSpec(max(batch, 1), 1, 1, size, kernel, stride, padding, dilation)
    in_channels, out_channels, groups = draw(_channels(kind, max(1, macs // one.macs)))
    return ConvSpec(batch, in_channels, out_channels, size, kernel, stride, padding, dilation, groups)


@st.composite
def problems(
    draw: st.DrawFn, directions: Sequence[Direction] = tuple(Direction), spec: st.SearchStrategy[ConvSpec] | None = None
) -> Problem:
    """Any float32 problem over `specs()` or the given strategy, with and without bias where there can be one."""
    direction = draw(st.sampled_from(directions))
    bias = draw(st.booleans()) if direction is not Direction.INPUT_GRADIENT else False
    return Problem(draw(specs() if spec is None else spec), direction, bias)


@st.composite
def _axes(draw: st.DrawFn, largest: int, pointwise: bool) -> tuple[int, int, int, int, int]:
    """One dimension's (input size, kernel size, stride, padding, dilation), with an output of 1 to `largest`."""
    kernel = 1 if pointwise else draw(st.integers(1, largest))
    dilation = draw(st.sampled_from((1, 1, 2, 3)))
    stride = draw(st.sampled_from((1, 2, 3)))
    span = dilation * (kernel - 1) + 1
    output = draw(st.integers(1, largest))
    # Pixels that the last step of the stride does not reach.
    beyond = draw(st.integers(0, stride - 1))
    padded = (output - 1) * stride + span + beyond
    # Up to the whole span, where the outermost outputs see nothing but padding; one pixel at least stays.
    padding = min(draw(st.sampled_from((0, span // 2, span - 1, span))), (padded - 1) // 2)
    return padded - 2 * padding, kernel, stride, padding, dilation


@st.composite
def _channels(draw: st.DrawFn, kind: str, budget: int) -> tuple[int, int, int]:
    """(in_channels, out_channels, groups) with at most `budget` pairs that meet."""

    def some(limit: int) -> int:
        return draw(st.sampled_from([c for c in CHANNELS if c <= limit] or [1]))

    if kind == "depthwise":
        groups = some(budget)
        multiplier = draw(st.sampled_from((1, 1, 2, 3))) if groups * 3 <= budget else 1
        return groups, groups * multiplier, groups
    groups = draw(st.sampled_from([g for g in (2, 3, 4) if g <= budget] or [1])) if kind == "grouped" else 1
    into = some(budget // groups)
    out = some(budget // (groups * into))
    return groups * into, groups * out, groups


def integers(shape: Sequence[int], seed: int = 0, layout: str = "contiguous", largest: int = 4) -> np.ndarray:
    """A float32 array of whole numbers from -largest to largest, laid out in memory as `LAYOUTS` says.

    Whatever the array does not show of its memory is NaN: a kernel that reads beside it is found out.
    """
    shape = tuple(shape)
    # Along a dimension of stride 0 all elements are one: draw them once.
    drawn = tuple(1 if axis in _EXPANDED.get(layout, ()) and n else n for axis, n in enumerate(shape))
    values = np.random.default_rng(seed).integers(-largest, largest + 1, drawn).astype(np.float32)
    view = as_strided(*_view(shape, layout))
    view[...] = values
    return view


# How the elements of (N, C, *size) lie in memory.
LAYOUTS = {
    "contiguous": "as torch makes them",
    "channels_last": "the channels of a pixel beside each other",
    "transposed": "the dimensions in reverse order",
    "sliced": "every second element of every dimension of a larger array",
    "window": "the inside of a larger array",
    "expanded_batch": "every image the same memory: stride 0",
    "expanded_channels": "every channel the same memory: stride 0",
    "expanded_all": "one number",
}
_EXPANDED: dict[str, Sequence[int]] = {
    "expanded_batch": (0,),
    "expanded_channels": (1,),
    "expanded_all": range(5),
}


def layouts() -> st.SearchStrategy[str]:
    """The keys of `LAYOUTS`, the plain one first."""
    return st.sampled_from(list(LAYOUTS))


def _view(shape: tuple[int, ...], layout: str) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Memory full of NaN, from the first element on; the shape; the strides in bytes."""
    order = list(range(len(shape)))  # outermost dimension first
    held = list(shape)
    first = [0] * len(shape)
    step = 1
    if layout == "channels_last":
        order = [0, *order[2:], 1]
    elif layout == "transposed":
        order = order[::-1]
    elif layout == "sliced":
        held, step = [2 * n for n in shape], 2
    elif layout == "window":
        held, first = [n + 3 for n in shape], [1 + axis % 2 for axis in order]
    elif layout in _EXPANDED:
        held = [1 if axis in _EXPANDED[layout] else n for axis, n in enumerate(shape)]
    elif layout not in LAYOUTS:
        raise ValueError(f'no layout "{layout}" in {list(LAYOUTS)}')

    strides = [0] * len(shape)
    reach = 1
    for axis in reversed(order):
        strides[axis] = reach
        reach *= max(1, held[axis])
    memory = np.full(prod(max(1, n) for n in held) + 1, np.nan, np.float32)
    start = sum(offset * stride for offset, stride in zip(first, strides, strict=True))
    for axis in _EXPANDED.get(layout, ()):
        if axis < len(shape):
            strides[axis] = 0
    return memory[start:], shape, tuple(4 * step * stride for stride in strides)
