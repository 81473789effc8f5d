"""Every convolution as the same sum in three dimensions, forward or backward: `Sum` objects.

    out[n, g, m, o·j + r]  =  Σ_c Σ_t  weight[g, m, c, t] · input[n, g, c, s·j + shift_t]

*Forward*: o = 1, r = 0, s is the stride and shift_t = t·dilation − padding. The *input gradient* of a convolution
with stride s falls apart into s sums an axis, one for each remainder r of the input's position modulo s: those taps t
that meet it, each with the whole shift (r + padding − t·dilation) ∕ s; here o is the stride and s = 1, and the
channels change places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.window import Axes, Axis

# The batch that training is taken to have where a choice may not depend on it.
TRAINING_BATCH = 16


@dataclass(frozen=True)
class Sum:
    """One such sum: `axes` (z, y, x) of what is read; `taps`: for each axis the kernel positions that take part, in
    the axes' order; out_step and out_start (o and r) of what is written; `rows` m and `channels` c of a group.
    """

    axes: Axes
    taps: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    out_step: tuple[int, int, int]
    out_start: tuple[int, int, int]
    rows: int
    channels: int

    @property
    def outputs(self) -> tuple[int, int, int]:
        return tuple(axis.outputs for axis in self.axes)  # type: ignore[return-value]

    @property
    def tap_count(self) -> int:
        return prod(len(t) for t in self.taps)

    def taps_inside(self) -> list[range]:
        """For each plane of outputs those of the `tap_count` taps that meet a plane of the input: the others meet
        padding.
        """
        axis, of_plane = self.axes[0], prod(len(t) for t in self.taps[1:])
        found = []
        for place in range(axis.outputs):
            met = [i for i, shift in enumerate(axis.shifts) if 0 <= place * axis.step + shift < axis.size]
            found.append(range(met[0] * of_plane, (met[-1] + 1) * of_plane) if met else range(0))
        return found


def one_image(problem: Problem) -> Problem:
    """The problem without its batch."""
    return _of_batch(problem, 1)


def of_usual_batch(problem: Problem) -> Problem:
    """The problem with the batch that an order of summation is chosen for, whatever batch it has: one image, as
    networks are used; some images for input gradients, which are there for training. (With strides they may be
    transposed convolutions, which run one image, too.)
    """
    trains = problem.direction is Direction.INPUT_GRADIENT and set(problem.spec.stride) == {1}
    return _of_batch(problem, TRAINING_BATCH if trains else 1)


def _of_batch(problem: Problem, images: int) -> Problem:
    return problem if problem.spec.batch == images else replace(problem, spec=replace(problem.spec, batch=images))


def three(sizes: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    """Sizes of one to three dimensions as (z, y, x)."""
    return (fill,) * (3 - len(sizes)) + sizes  # type: ignore[return-value]


def is_product(problem: Problem) -> bool:
    """Whether it is a matrix product over pixels as they lie in memory: a 1×1 convolution with stride 1 and no padding,
    in a layout whose pixels lie at one distance.
    """
    spec = problem.spec
    plain = set(spec.kernel_size) | set(spec.stride) == {1} and set(spec.padding) == {0}
    return plain and problem.layout != "strided"


@lru_cache(maxsize=1024)
def flattened(problem: Problem) -> ConvSpec:
    """The sizes of a problem; of a matrix product as a convolution over a single long row."""
    spec = problem.spec
    if not is_product(problem):
        return spec
    return ConvSpec(spec.batch, spec.in_channels, spec.out_channels, (prod(spec.input_size),), 1, groups=spec.groups)


def one_run(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The distance between neighbouring pixels if all follow each other at one distance; None if they do not."""
    inner: tuple[int, int] | None = None
    for size, stride in reversed(list(zip(sizes, strides, strict=True))):
        if size == 1:
            continue
        if inner is not None and stride != inner[0] * inner[1]:
            return None
        inner = (size * (inner[0] if inner else 1), inner[1] if inner else stride)
    return inner[1] if inner else 1


def layout_of(spec: ConvSpec, x: tuple[int, ...], y: tuple[int, ...]) -> str:
    """The layout of a problem whose input and output (or their gradients) have these strides.

    Where planes are single pixels, or there is one channel, a tensor is both: then the other one decides, and "planes"
    where that is both, too.
    """
    tensors = (spec.in_channels, spec.input_size, x), (spec.out_channels, spec.output_size, y)
    steps = [one_run(size, strides[2:]) for _, size, strides in tensors]
    if None in steps:
        return "strided"
    last = all(channels == 1 or strides[1] == 1 for channels, _, strides in tensors)
    planes = all(step == 1 or prod(size) == 1 for step, (_, size, _) in zip(steps, tensors, strict=True))
    return "channels_last" if last and not planes else "planes"


def packed_strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides of a tensor (n, c, *space) without gaps: the channels innermost where the layout is "channels_last"."""
    inner = [*range(len(shape))]
    order = [1, *inner[:1:-1], 0] if layout == "channels_last" else inner[::-1]
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def flat_strides(spec: ConvSpec, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides of input and output of a flattened problem."""
    x_step, y_step = one_run(spec.input_size, x[2:]), one_run(spec.output_size, y[2:])
    assert x_step is not None and y_step is not None, "rows of strided problems are not flattened"
    return (*x[:2], x_step), (*y[:2], y_step)


@lru_cache(maxsize=1024)
def sums(problem: Problem) -> tuple[Sum, ...]:
    """The sums that make up a forward convolution (one) or an input gradient (stride of them an axis)."""
    spec = problem.spec
    size, outputs = three(spec.input_size, 1), three(spec.output_size, 1)
    kernel, stride = three(spec.kernel_size, 1), three(spec.stride, 1)
    padding, dilation = three(spec.padding, 0), three(spec.dilation, 1)
    rows, channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    if problem.direction is Direction.FORWARD:
        axes = tuple(
            Axis(size[a], outputs[a], stride[a], tuple(t * dilation[a] - padding[a] for t in range(kernel[a])))
            for a in range(3)
        )
        taps = tuple(tuple(range(k)) for k in kernel)
        return (Sum(axes, taps, (1, 1, 1), (0, 0, 0), rows, channels),)  # type: ignore[arg-type]
    parts = []
    for start in product(*(range(min(stride[a], size[a])) for a in range(3))):
        axes, taps = [], []
        for a in range(3):
            meet = [t for t in range(kernel[a]) if (start[a] + padding[a] - t * dilation[a]) % stride[a] == 0]
            shifts = tuple((start[a] + padding[a] - t * dilation[a]) // stride[a] for t in meet)
            axes.append(Axis(outputs[a], -(-(size[a] - start[a]) // stride[a]), 1, shifts))
            taps.append(tuple(meet))
        parts.append(Sum(tuple(axes), tuple(taps), stride, start, channels, rows))  # type: ignore[arg-type]
    return tuple(parts)
