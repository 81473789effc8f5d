"""What ONNX operators do that no single function of torch does: the functions that an imported graph calls.

Sizes are kept apart from tensors: the shape of a tensor, and what is computed from it, are tuples of Python numbers, so
that torch.compile and torch.export see them as sizes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, ...]


SIZES_MATH: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv
}  # fmt: skip


def sizes_math(kind: str, a: int | Sizes, b: int | Sizes) -> int | Sizes:
    """Sum, difference, product or quotient of sizes, one by one; a single number goes with every size."""
    function = SIZES_MATH[kind]
    if not isinstance(a, tuple) and not isinstance(b, tuple):
        return function(a, b)
    length = max(len(side) for side in (a, b) if isinstance(side, tuple))
    left, right = (side if isinstance(side, tuple) else (side,) * length for side in (a, b))
    left, right = (side * length if len(side) == 1 else side for side in (left, right))
    return tuple(function(x, y) for x, y in zip(left, right, strict=True))


def joined(parts: Sequence[int | Sizes]) -> Sizes:
    """Sizes behind each other."""
    return tuple(size for part in parts for size in (part if isinstance(part, tuple) else (part,)))


def picked(sizes: Sizes, indices: int | Sizes) -> int | Sizes:
    """The sizes at `indices`."""
    return tuple(sizes[index] for index in indices) if isinstance(indices, tuple) else sizes[indices]


def product(sizes: Sizes) -> int:
    return math.prod(sizes)


def as_tensor(sizes: int | Sizes) -> Tensor:
    """Sizes as the int64 tensor that ONNX takes them for."""
    return torch.tensor(sizes, dtype=torch.int64)


def reshape(x: Tensor, sizes: Sizes, keep_zeros: bool = False) -> Tensor:
    """ONNX Reshape: a 0 stands for the input's own size, unless keep_zeros."""
    sizes = tuple(sizes)
    return x.reshape(sizes if keep_zeros else tuple(x.shape[i] if n == 0 else n for i, n in enumerate(sizes)))


def flatten(x: Tensor, axis: int) -> Tensor:
    """ONNX Flatten: always two dimensions, before and from `axis`."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def expand(x: Tensor, sizes: Sizes) -> Tensor:
    """ONNX Expand: both sides may have ones."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))


def squeeze(x: Tensor, axes: Sizes | None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(x: Tensor, axes: Sizes) -> Tensor:
    """ONNX Unsqueeze: `axes` are places in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis + rank if axis < 0 else axis for axis in axes):
        x = x.unsqueeze(axis)
    return x


def sliced(x: Tensor, starts: Sizes, ends: Sizes, axes: Sizes | None, steps: Sizes | None) -> Tensor:
    """ONNX Slice with positive steps; ends beyond the size are the size."""
    axes = tuple(range(len(starts))) if axes is None else axes
    cut: list[slice] = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps or (1,) * len(starts), strict=True):
        cut[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
    return x[tuple(cut)]


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX Gather: rows of `axis` in the order and shape of `indices`, negative ones counted from the end."""
    axis = axis + x.dim() if axis < 0 else axis
    flat = indices.reshape(-1)
    rows = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return rows.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def split_evenly(x: Tensor, parts: int, axis: int) -> tuple[Tensor, ...]:
    """ONNX Split into equal parts; the last may be smaller."""
    return x.split(-(-x.shape[axis] // parts), axis)


def softmax_of_rest(x: Tensor, axis: int, log: bool = False) -> Tensor:
    """Softmax as it was before opset 13: over `axis` and all behind it together."""
    axis = axis + x.dim() if axis < 0 else axis
    flat = x.flatten(axis) if axis < x.dim() else x[..., None]
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def over_space(kind: str, x: Tensor) -> Tensor:
    """A reduction over all dimensions but batch and channels, which keep their place."""
    return REDUCTIONS[kind](x, tuple(range(2, x.dim())), True)


def reduce(kind: str, x: Tensor, axes: Sizes | None, keep: bool, unchanged_if_none: bool = False) -> Tensor:
    """A reduction over `axes`; over all of them if there are none, or nothing."""
    if not axes:
        return x if unchanged_if_none else REDUCTIONS[kind](x, tuple(range(x.dim())), keep)
    return REDUCTIONS[kind](x, tuple(axes), keep)


def _product(x: Tensor, axes: Sizes, keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Callable[[Tensor, Sizes, bool], Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}


def divide(a: Any, b: Any) -> Any:
    """ONNX Div: whole numbers stay whole, cut towards zero."""
    whole = not (isinstance(a, float) or isinstance(b, float))
    whole = whole and not any(isinstance(side, Tensor) and side.is_floating_point() for side in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else operator.truediv(a, b)


def padded(x: Tensor, pads: Sizes, axes: Sizes | None, mode: str, value: float) -> Tensor:
    """ONNX Pad. pads: all begins, then all ends, of `axes` or of every dimension."""
    axes = tuple(range(x.dim())) if axes is None else tuple(axis % x.dim() for axis in axes)
    around: list[int] = [0] * (2 * x.dim())
    for place, axis in enumerate(axes):
        # torch counts from the last dimension
        at = 2 * (x.dim() - 1 - axis)
        around[at], around[at + 1] = pads[place], pads[place + len(axes)]
    if mode == "constant":
        return F.pad(x, around, value=value)
    while len(around) > 2 and around[-2:] == [0, 0]:
        del around[-2:]
    return F.pad(x, around, mode=mode)


def pad_same(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, upper: bool, value: float) -> Tensor:
    """auto_pad SAME_UPPER or SAME_LOWER: ceil(size / stride) results, the odd pixel behind or before."""
    around: list[int] = []
    for size, k, s, d in zip(
        reversed(x.shape[2:]), reversed(kernel), reversed(stride), reversed(dilation), strict=True
    ):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        around += [small, large] if upper else [large, small]
    return F.pad(x, around, value=value)


def average_of_what_is_there(x: Tensor, around: Sizes, kernel: Sizes, stride: Sizes, ceil: bool) -> Tensor:
    """Mean over windows, padding not counted, where the padding is not the same on both sides."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    there = torch.ones_like(x[:1, :1])
    over, under = (pool(F.pad(part, around), kernel, stride, 0, ceil) for part in (x, there))
    return over / under


def depth_to_space(x: Tensor, block: int, columns_first: bool) -> Tensor:
    """ONNX DepthToSpace: mode CRD is torch's pixel shuffle, DCR has the block's place before the channel."""
    if columns_first:
        return F.pixel_shuffle(x, block)
    N, C, H, W = x.shape
    y = x.reshape(N, block, block, C // block**2, H, W).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(N, C // block**2, H * block, W * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    N, C, H, W = x.shape
    y = x.reshape(N, C, H // block, block, W // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(N, C * block**2, H // block, W // block)


def resized(x: Tensor, sizes: Sizes, mode: str, align: bool | None) -> Tensor:
    """To `sizes`, of all dimensions: batch and channels keep theirs."""
    return F.interpolate(x, size=tuple(sizes)[2:], mode=mode, align_corners=align)


def by_direction(x: Tensor, directions: int) -> Tensor:
    """What torch's LSTM returns, (steps, N, directions · H), as ONNX has it: (steps, directions, N, H)."""
    T, N, width = x.shape
    return x.reshape(T, N, directions, width // directions).transpose(1, 2)


def short_time_fourier(signal: Tensor, size: int, hop: int, window: Tensor | None, half: bool) -> Tensor:
    """ONNX STFT of a real signal (N, samples) or (N, samples, 1). Returns (N, frames, frequencies, 2)."""
    real = signal.reshape(signal.shape[0], signal.shape[1])
    spectrum = torch.stft(real, size, hop, window=window, center=False, onesided=half, return_complex=True)
    return torch.view_as_real(spectrum).transpose(1, 2)
