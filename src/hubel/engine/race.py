"""How long prepared convolutions take: each once a round, on memory of their own."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hubel.engine.epilogue import operand_words
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec

if TYPE_CHECKING:
    from hubel.engine.invoke import Invocation

# Rounds that count, and the seconds after which fewer will do.
ROUNDS = 15
PATIENCE_S = 0.5
# What memory is filled with: near one as float32, bfloat16 and float16 alike. Numbers behind every tensor that no
# kernel writes to.
FILL, SLACK = 0x3F80, 32

Strides = tuple[int, ...]


def race(
    invocations: Sequence[Invocation], x: Strides, w: Strides, y: Strides, threads: int, rounds: int = ROUNDS
) -> list[float]:
    """Median seconds of each invocation of one problem, on tensors with these element strides.

    Weights are packed beforehand, caches are as warm as the problem lets them be, and in each round every invocation
    runs once, so that what disturbs the machine disturbs them alike.
    """
    runs = []
    for invocation in invocations:
        operands = Operands(invocation, x, w, y)
        invocation(*operands.addresses, threads)
        runs.append((invocation, operands))
    samples: list[list[float]] = [[] for _ in runs]
    begun = time.perf_counter()
    while len(samples[0]) < rounds and not (samples[0] and time.perf_counter() - begun > PATIENCE_S):
        for taken, (invocation, operands) in zip(samples, runs, strict=True):
            start = time.perf_counter()
            invocation(*operands.addresses, threads)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in samples]


class Operands:
    """Memory for the tensors of an invocation, and its base addresses in the order of a call."""

    def __init__(self, invocation: Invocation, x: Strides, w: Strides, y: Strides) -> None:
        problem = invocation.plan.problem
        spec, size = problem.spec, 2 if problem.dtype != "float32" else 4
        self._kept: list[object] = []
        of_x = self._filled(_extent(spec.input_shape, x) * size)
        of_y = self._filled(_extent(spec.output_shape, y) * size)
        # Weight gradients are float32, whatever is stored.
        of_weight = 4 if problem.direction is Direction.WEIGHT_GRADIENT else size
        of_w = self._filled(_extent(spec.weight_shape, w) * of_weight)
        numbers = self._filled(4 * spec.out_channels + 4 * spec.in_channels)
        if problem.direction is Direction.WEIGHT_GRADIENT:
            self.addresses = of_x, of_y, numbers if problem.bias else 0, of_w
            return
        packed = self._filled(invocation.packed_bytes)
        invocation.pack(of_w, packed)
        source, target = (of_x, of_y) if problem.direction is Direction.FORWARD else (of_y, of_x)
        third = numbers if problem.bias else 0
        if problem.epilogue:
            residual = self._filled(_extent(_result_shape(spec, problem), y) * size)
            words = operand_words(third, numbers, numbers, residual, target)
            self._kept.append(words)
            third = ctypes.addressof(words)
        self.addresses = source, packed, third, target

    def _filled(self, size: int) -> int:
        """The address of so many bytes, and some beyond; read as any of the dtypes they are numbers near one."""
        array = np.full(size // 2 + 2 * SLACK, FILL, dtype=np.uint16)
        self._kept.append(array)
        return -(-array.ctypes.data // 64) * 64


def _extent(shape: tuple[int, ...], strides: Strides) -> int:
    """Numbers from the first to the last of a tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if math.prod(shape) else 0


def _result_shape(spec: ConvSpec, problem: Problem) -> tuple[int, ...]:
    return spec.output_shape if problem.direction is Direction.FORWARD else spec.input_shape
