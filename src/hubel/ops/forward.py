"""A forward call, prepared: what is left to do when it comes again is to allocate, look up the weights and start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from hubel.engine.invoke import Invocation, prepare
from hubel.engine.problem import Direction, Problem
from hubel.ops import accuracy
from hubel.ops.arguments import STORED, Handed, Request, check_tensors, request
from hubel.ops.fallback import torch_convolution
from hubel.ops.log import announce, count_native
from hubel.ops.native import Prepared
from hubel.ops.recipe import PACKED, Argument, Made, Recipe, Result, with_weights
from hubel.ops.results import lies_in_shared_memory, room
from hubel.ops.strides import Config, Strides, result_formats, strides_of
from hubel.ops.weights import one_of, packed

Forward: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def prepare_forward(x: Tensor, w: Tensor, b: Tensor | None, config: Config, threads: int) -> Forward:
    """y = f(x, w, b) for tensors laid out like these. Raises one of `arguments.REASONS` where torch must do it."""
    check_tensors(*((x, w) if b is None else (x, w, b)))
    asked = request(x.shape, w.shape, config)
    spec, transposed = asked.spec, asked.transposed
    if b is not None and b.shape != (spec.in_channels if transposed else spec.out_channels,):
        raise Handed("the bias has not one number an output channel; torch says so")
    formats = result_formats(x, w, b, None if b is None else b.shape, config)
    shape = spec.input_shape if transposed else spec.output_shape
    strides = torch_convolution(x, w, b, *config).stride() if formats is None else strides_of(shape, formats[0])
    run = _bare(with_zeros(x, asked), w, b, asked, shape, strides, threads)

    # An input gradient has no bias, kernels read a bias as neighbours, and few calls need zeros behind their input.
    if (b is None or (not transposed and b.is_contiguous())) and not any(asked.beyond):
        return run

    def run_in_steps(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        x = with_zeros(x, asked)
        if b is None or not transposed:
            return run(x, w, None if b is None else b.contiguous())
        return run(x, w, None).add_(b.view(-1, *(1,) * spec.ndim))

    return run_in_steps


def _bare(
    x: Tensor, w: Tensor, b: Tensor | None, asked: Request, shape: Strides, strides: Strides, threads: int
) -> Forward:
    if asked.transposed:
        # It reads a gradient, in the place of the output, and writes in the place of the input.
        problem, places = Problem(asked.spec, Direction.INPUT_GRADIENT), (strides, w.stride(), x.stride())
    else:
        problem, places = Problem(asked.spec, bias=b is not None), (x.stride(), w.stride(), strides)
    dtype, problem = x.dtype, replace(problem, dtype=STORED[x.dtype])
    invocation = invocation_of(problem, places, threads)
    key, convolve, allocate = one_of(invocation.packing_key), invocation.prebound(threads), room(shape, strides, dtype)

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = allocate()
        weights = packed(w, invocation, key, threads)
        convolve(x.data_ptr(), weights.address, 0 if b is None else b.data_ptr(), y.data_ptr())
        count_native()
        return y

    def run_on_weights_as_they_are(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = allocate()
        convolve(x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), y.data_ptr())
        count_native()
        return y

    chosen = run if invocation.packed_bytes else run_on_weights_as_they_are
    bias = None if b is None else Argument(2)

    def recipe() -> Recipe:
        launches = with_weights(invocation, Argument(0), Argument(1), bias, Result(0))
        made = Made(tuple(shape), tuple(strides), dtype)
        return Recipe((made,), launches, {PACKED: invocation.packed_bytes}, native=1)

    chosen.recipe = recipe  # type: ignore[attr-defined]
    if not lies_in_shared_memory(shape, dtype):
        chosen.prepared = Prepared(invocation, key, shape, strides, dtype, threads)  # type: ignore[attr-defined]
    return chosen


def with_zeros(x: Tensor, asked: Request) -> Tensor:
    """A transposed convolution's input with the zeros behind it that `asked.beyond` says."""
    if not any(asked.beyond):
        return x
    return F.pad(x, [n for more in reversed(asked.beyond) for n in (0, more)])


def invocation_of(problem: Problem, strides: tuple[Strides, Strides, Strides], threads: int) -> Invocation:
    """strides: of the tensors in the places of input, weight and output, whatever the direction."""
    invocation = prepare(problem, *strides, accuracy.policy(threads))
    announce(str(invocation.plan.problem), invocation.plan.algorithm)
    return invocation
