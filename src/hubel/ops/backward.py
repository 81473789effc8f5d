"""A backward call, prepared: up to three gradients, each by the kernel of its direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hubel.engine.between import mapped
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.ops import accuracy
from hubel.ops.arguments import STORED, Handed, Request, check_tensors, request
from hubel.ops.fallback import torch_convolution_backward
from hubel.ops.forward import invocation_of, with_zeros
from hubel.ops.log import count_native
from hubel.ops.recipe import PACKED, Argument, Made, Recipe, Result, Room, of_invocation, of_work, with_weights
from hubel.ops.results import empty, room
from hubel.ops.strides import Config, Strides, result_formats, strides_of
from hubel.ops.weights import is_dense, one_of, packed

FLOAT = torch.float32
Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
# Numbers in a window, and operations an image, from which windows that do not overlap become pixels for the gradients.
_MANY_NUMBERS, _MUCH_WORK = 32, 6_000_000
# What is left of the last gradient that had to be rearranged: one for all layers, as large as the largest.
_spares: list[Tensor] = []
Backward: TypeAlias = Callable[[Tensor, Tensor, Tensor], Gradients]


def prepare_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    config: Config,
    mask: Sequence[bool],
    threads: int,
    like_weight: bool = False,
) -> Backward:
    """(dx, dw, db) = f(dy, x, w) for tensors laid out like these; None where `mask` does not ask. like_weight: dw lies
    as a dense w does.

    Raises one of `arguments.REASONS` where torch must do it.
    """
    check_tensors(dy, x, w)
    asked = request(x.shape, w.shape, config)
    if dy.shape != (asked.spec.input_shape if asked.transposed else asked.spec.output_shape):
        raise Handed("the gradient has not the output's shape; torch says so")

    formats = result_formats(x, w, None, bias_sizes, config)
    if formats is None:
        theirs = torch_convolution_backward(dy, x, w, bias_sizes, *config, (True, True, False))
        x_strides, w_strides = theirs[0].stride(), theirs[1].stride()
    else:
        x_strides, w_strides = strides_of(x.shape, formats[0]), strides_of(w.shape, formats[1])
    if like_weight and is_dense(w):
        w_strides = w.stride()
    if formats is not None and _windows_apart(asked):
        return _on_windows(dy, x, w, bias_sizes, asked.spec, mask, (x_strides, w_strides), threads)

    wants_x, wants_w, wants_b = mask
    of_input = _input_gradient(dy, x, w, asked, x_strides, threads) if wants_x else None
    of_weight = _weight_gradient(dy, x, w, asked, config, w_strides, wants_b, threads) if wants_w else None
    of_bias = _bias_gradient(dy, threads) if wants_b and (asked.transposed or not wants_w) else None

    def run(dy: Tensor, x: Tensor, w: Tensor) -> Gradients:
        dx = of_input(dy, w) if of_input else None
        dw, db = of_weight(dy, x) if of_weight else (None, None)
        if of_bias:
            db = of_bias(dy)
        count_native()
        return dx, dw, db

    parts = [getattr(of, "recipe", None) for of in (of_input, of_weight, of_bias) if of]
    if all(parts):
        run.recipe = lambda: _together([part() for part in parts])  # type: ignore[attr-defined]
    return run


def _together(parts: Sequence[Recipe]) -> Recipe:
    """One recipe for what is left of three gradients, each of which names its own results and leaves the others out."""
    results = zip(*(part.results for part in parts), strict=True)
    made = tuple(next((one for one in each if one), None) for each in results)
    launches = tuple(launch for part in parts for launch in part.launches)
    rooms = {room: size for part in parts for room, size in part.rooms.items()}
    return Recipe(made, launches, rooms, native=1)


def _windows_apart(asked: Request) -> bool:
    """Whether no pixel is in two windows (1×1 with a stride, patches), and there is enough to do for copies not to
    matter: whatever the batch, for an image's gradient has the same bits in any.
    """
    spec = asked.spec
    apart = all(k <= s for k, s in zip(spec.kernel_size, spec.stride, strict=True)) and max(spec.stride) > 1
    whole = spec.taps == 1 or (spec.groups == 1 and max(spec.dilation) == 1)
    if asked.transposed or any(spec.padding) or not (apart and whole):
        return False
    return spec.in_channels * spec.taps >= _MANY_NUMBERS and spec.flops >= _MUCH_WORK * spec.batch


def _on_windows(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    spec: ConvSpec,
    mask: Sequence[bool],
    strides: tuple[Strides, Strides],
    threads: int,
) -> Backward:
    """The gradients of the 1×1 convolution of which each window of x is one pixel, and its numbers are the channels.

    Matrix products of what lies close together. Both gradients of 16 images, with the stride in the kernels and so:
    1×1, 1024 to 2048 channels at 14×14, 60 and 45 ms; the stem of a ConvNeXt (4×4), 18 and 8; the input gradient of a
    ViT's (16×16), 42 and 8 (Zen 3, 2026-11). strides: of the gradients of x and w.
    """
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    kernel, stride, size = spec.kernel_size, spec.stride, spec.output_size
    ones, zeros = (1,) * spec.ndim, (0,) * spec.ndim
    plain: Config = (ones, zeros, ones, False, zeros, spec.groups)
    everywhere = kernel == stride and spec.input_size == tuple(n * k for n, k in zip(size, kernel, strict=True))
    allocate, allocate_w = room(x.shape, strides[0], x.dtype), room(w.shape, strides[1], w.dtype)

    # Where channels are innermost in memory, they are among a window's numbers, too.
    inner, outer = range(len(size) + 2, 2 * len(size) + 2), range(2, len(size) + 2)
    order = (0, *outer, *inner, 1) if last else (0, 1, *inner, *outer)

    def windows(x: Tensor) -> Tensor:
        """A view: batch, then channels, kernel and places, in the order in which they lie."""
        for dim, (k, s) in enumerate(zip(kernel, stride, strict=True), 2):
            x = x.unfold(dim, k, s)
        return x.permute(order)

    def as_pixels(x: Tensor) -> Tensor:
        # Copied where it is a view: kernels would gather what does not lie close together (1024 to 2048 channels at
        # 14×14: 30 and 21 ms).
        if last:
            return windows(x).reshape(x.shape[0], *size, -1).contiguous().movedim(-1, 1)
        return windows(x).reshape(x.shape[0], -1, *size).contiguous()

    def as_1x1(w: Tensor) -> Tensor:
        # The weight itself, if it is one: its packed form is remembered.
        return w if kernel == ones else (w.movedim(1, -1) if last else w).reshape(w.shape[0], -1, *ones)

    dense = prepare_backward(dy, as_pixels(x), as_1x1(w), bias_sizes, plain, mask, threads)

    def run(dy: Tensor, x: Tensor, w: Tensor) -> Gradients:
        of_pixels, of_1x1, db = dense(dy, as_pixels(x) if mask[1] else x, as_1x1(w))
        dx = dw = None
        if of_1x1 is not None:
            dw = of_1x1.reshape(w.movedim(1, -1).shape).movedim(-1, 1) if last else of_1x1.reshape(w.shape)
            if dw.stride() != strides[1]:
                dw = allocate_w().copy_(dw)
        if of_pixels is not None:
            dx = allocate() if everywhere else allocate().zero_()
            read = windows(dx)
            read.copy_((of_pixels.movedim(1, -1) if last else of_pixels).reshape(read.shape))
        return dx, dw, db

    return run


def _input_gradient(
    dy: Tensor, x: Tensor, w: Tensor, asked: Request, strides: Strides, threads: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """dx = f(dy, w). A transposed convolution's is the plain convolution of dy."""
    shape = tuple(x.shape)
    whole, whole_strides = shape, strides
    if any(asked.beyond):
        whole = asked.spec.output_shape
        whole_strides = strides_of(whole, torch.contiguous_format)
    dtype, stored = dy.dtype, STORED[dy.dtype]
    if asked.transposed:
        problem, places = Problem(asked.spec, dtype=stored), (dy.stride(), w.stride(), whole_strides)
    else:
        problem = Problem(asked.spec, Direction.INPUT_GRADIENT, dtype=stored)
        places = whole_strides, w.stride(), dy.stride()
    invocation = invocation_of(problem, places, threads)
    key, packs = one_of(invocation.packing_key), invocation.packed_bytes > 0
    allocate_whole, allocate = room(whole, whole_strides, dtype), room(shape, strides, dtype)

    def run(dy: Tensor, w: Tensor) -> Tensor:
        # First the weights: what is kept longer than the gradient would lie behind it, in the way of the next one.
        weights = packed(w, invocation, key, threads) if packs else None
        dx = allocate_whole()
        invocation(dy.data_ptr(), weights.address if weights else w.data_ptr(), 0, dx.data_ptr(), threads)
        if whole is not shape:
            # The zeros behind the input have gradients too, which nobody asked for.
            dx = allocate().copy_(dx[tuple(slice(n) for n in shape)])
        return dx

    def recipe() -> Recipe:
        launches = with_weights(invocation, Argument(0), Argument(2), None, Result(0))
        return Recipe((Made(shape, tuple(strides), dtype), None, None), launches, {PACKED: invocation.packed_bytes})

    if whole is shape:
        run.recipe = recipe  # type: ignore[attr-defined]
    return run


def _weight_gradient(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    asked: Request,
    config: Config,
    strides: Strides,
    wants_b: bool,
    threads: int,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """(dw, db) = f(dy, x); db only where it is asked for and the kernel sums the right tensor.

    A transposed convolution's weight gradient is that of `spec`, which reads dy and of which x is the gradient.
    """
    spec, transposed = asked.spec, asked.transposed
    strict = accuracy.policy(threads).accuracy == "strict"
    shape, w_numbers = tuple(w.shape), w.numel()
    plain = strides_of(shape, torch.contiguous_format)
    dtype = dy.dtype
    problem = Problem(spec, Direction.WEIGHT_GRADIENT, wants_b and not transposed, STORED[dtype])
    read, gradient = (dy, with_zeros(x, asked)) if transposed else (x, dy)
    invocation = invocation_of(problem, (read.stride(), plain, gradient.stride()), threads)
    # Dimensions of size 1 may have any stride: the same memory then has torch's strides. Kernels write float32.
    rearranged = any(n > 1 and s != p for n, s, p in zip(shape, strides, plain, strict=True)) or dtype != FLOAT
    allocate = room(shape, strides, dtype)

    def run(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        spare = _spare(w_numbers) if rearranged else None
        dw = spare[:w_numbers].view(shape) if spare is not None else allocate()
        db = empty((spec.out_channels,), (1,), FLOAT) if problem.bias else None
        read, gradient = (dy, with_zeros(x, asked)) if transposed else (x, dy)
        invocation(read.data_ptr(), gradient.data_ptr(), 0 if db is None else db.data_ptr(), dw.data_ptr(), threads)
        if strict and not bool(dw.isfinite().all()):
            # The kernel also multiplies x by zeros between the rows of dy, which a NaN or Inf in x survives.
            like_w = empty(shape, strides, dtype)
            dw = torch_convolution_backward(dy, x, like_w, None, *config, (False, True, False))[1]
        elif rearranged:
            dw = allocate().copy_(dw)
        if spare is not None:
            _spares[:] = [spare]
        return dw, db if db is None else db.to(dtype)

    def recipe() -> Recipe:
        made = Made(shape, tuple(strides), dtype), Made((spec.out_channels,), (1,), FLOAT) if problem.bias else None
        to = Room("rows as they are summed") if rearranged else Result(1)
        launches = [of_invocation(invocation, Argument(1), Argument(0), Result(2) if problem.bias else None, to)]
        if rearranged:
            launches.append(of_work(mapped("copy", shape, tuple(strides), plain), to, None, None, Result(1)))
        rooms = {to: 4 * w_numbers} if isinstance(to, Room) else {}
        return Recipe((None, *made), tuple(launches), rooms)

    if not (transposed or strict) and dtype == FLOAT:
        run.recipe = recipe  # type: ignore[attr-defined]
    return run


def _spare(numbers: int) -> Tensor:
    """Room for so many float32 numbers that was in use before, if there is any: new pages would be faulted in."""
    try:
        found = _spares.pop()
    except IndexError:
        found = empty((0,), (1,), FLOAT)
    return found if found.numel() >= numbers else empty((numbers,), (1,), FLOAT)


def _bias_gradient(dy: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
    """db = f(dy), the sum over the batch and all positions, where no weight gradient's kernel has it.

    `torch.sum` splits it by the number of threads, and so do its bits. The weight gradient of a pointwise convolution
    sums it in a fixed order; its one input channel is any number of dy, read with strides of 0, and never used.
    """
    n, channels, *size = dy.shape
    dtype = dy.dtype
    problem = Problem(ConvSpec(n, 1, channels, size, 1), Direction.WEIGHT_GRADIENT, True, STORED[dtype])
    invocation = invocation_of(problem, ((0,) * dy.dim(), (1,) * dy.dim(), dy.stride()), threads)

    def run(dy: Tensor) -> Tensor:
        db, unused = empty((channels,), (1,), FLOAT), empty((channels,), (1,), FLOAT)
        invocation(dy.data_ptr(), dy.data_ptr(), db.data_ptr(), unused.data_ptr(), threads)
        return db.to(dtype)

    return run
