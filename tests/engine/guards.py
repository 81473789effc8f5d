"""Runs kernels among guards: memory in which a touch out of place leaves a mark.

Every tensor stands alone between `GUARD` numbers on either side. All memory that is not input holds one NaN of a bit
pattern that no arithmetic makes, `CANARY`: outputs and packed weights before they are written, the gaps between the
elements of a strided tensor, the guards, and the scratch arena. So a kernel that reads beside its tensors, or scratch
that it has not written, computes NaN; one that writes where it should not wipes out a canary; and one that forgets an
element leaves it there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hubel.engine import Invocation, Plan, Policy, Problem, choose, invoke, prepare, threads
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.epilogue import operand_words
from hubel.engine.invoke import laid_out
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction
from hubel.engine.spec import ConvSpec
from tests.engine.stored import STORED, narrow, widen
from tests.strategies import integers

T = TypeVar("T")

CANARY = 0x7FC0BEEF
# A NaN of bfloat16 and of float16.
SHORT_CANARY = 0x7FDE
GUARD = 512
STRICT = Policy("strict")

# Where results may lie: as `tests.strategies.LAYOUTS`, but for layouts in which elements share memory.
OUTPUT_LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "window")


class Guarded:
    """A tensor among guards: `values` shows it as it is stored, `memory` is all of it."""

    def __init__(self, like: np.ndarray, filled: bool = True, dtype: str = "float32") -> None:
        """A tensor with the shape and strides (in numbers) of `like`, which is float32, and its values if `filled`."""
        self.dtype, self._canary = dtype, CANARY if dtype == "float32" else SHORT_CANARY
        number = np.dtype(STORED[dtype])
        self.strides = tuple(s // 4 for s in like.strides)
        reach = sum((n - 1) * s for n, s in zip(like.shape, self.strides, strict=True) if n > 1) + 1 if like.size else 0
        self.memory = np.full(GUARD + reach + GUARD, self._canary, f"u{number.itemsize}")
        self._steps = [s * number.itemsize for s in self.strides]
        self.values = as_strided(self.memory.view(number)[GUARD:], like.shape, self._steps)
        self.address = self.values.ctypes.data
        if filled:
            self.values[...] = narrow(like, dtype)
        self._before = self.memory.copy()

    def assert_untouched(self, name: str) -> None:
        """Nothing was written, neither to the tensor nor beside it."""
        assert np.array_equal(self.memory, self._before), f"the {name} changed"

    def take(self, name: str) -> np.ndarray:
        """A copy of what was written, as float32. Fails if anything was written beside the tensor."""
        result = widen(self.values.copy(), self.dtype)
        as_strided(self.memory[GUARD:], self.values.shape, self._steps)[...] = self._canary
        beside = np.flatnonzero(self.memory != self._canary)
        assert not beside.size, f"written beside the {name}, at {beside[:8] - GUARD} of {self.memory.size - 2 * GUARD}"
        return result


def output(shape: tuple[int, ...], layout: str = "contiguous", dtype: str = "float32") -> Guarded:
    """A result to be: canaries in the given layout."""
    return Guarded(integers(shape, layout=layout), filled=False, dtype=dtype)


@contextmanager
def guarded_scratch() -> Iterator[None]:
    """Poison the scratch arena before every launch, leave gaps between its parts, and look at them afterwards."""

    def launch(
        block: int, p0: int, p1: int, p2: int, p3: int, team: int, shared: int, scratch: int, flush: int
    ) -> None:
        parts = [(shared + 63) // 64 * 64 + 4 * GUARD] + [(scratch + 63) // 64 * 64 + 4 * GUARD] * team
        used = [shared] + [scratch] * team
        arena = threads._arena
        arena.grow(sum(parts) + 64 * team + 8 * GUARD)
        arena.address += 4 * GUARD
        arena.size -= 4 * GUARD
        words = arena.memory.view(np.uint32)
        words[...] = CANARY
        threads.launch(block, p0, p1, p2, p3, team, parts[0], parts[-1], flush)
        at = (arena.address - arena.memory.ctypes.data) // 4
        assert (words[:at] == CANARY).all(), "written before the scratch memory"
        for number, (part, size) in enumerate(zip(parts, used, strict=True)):
            gap = words[at + -(-size // 4) : at + part // 4]
            assert (gap == CANARY).all(), f"written behind part {number} of the scratch memory (0: shared)"
            at += part // 4
        assert (words[at:] == CANARY).all(), "written behind the scratch memory"

    before, invoke.launch = invoke.launch, launch
    try:
        yield
    finally:
        invoke.launch = before


def packed(run: Invocation, w: Guarded, team: int = 1) -> Guarded | None:
    """The packed weights, among guards; None where the kernel reads the weights as they are."""
    if not run.packed_bytes:
        return None
    memory = output((run.packed_bytes // 4,))
    run.pack(w.address, memory.address, team)
    return Guarded(memory.take("packed weights"))


def convolve(
    problem: Problem,
    first: np.ndarray,
    second: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    policy: Policy | Plan = STRICT,
    layout: str = "contiguous",
    team: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(result, bias gradient) of a problem run among guards: by the plan chosen here for a policy, or by a given one.

    first, second: x and w · dy and w · x and dy, by direction. layout: of the result, but for weight gradients, which
    are contiguous. The bias gradient is empty where none is asked for.
    """
    return _run(problem, first, second, bias, layout, team, policy)


def convolve_in_every_way(
    problem: Problem,
    first: np.ndarray,
    second: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    machine: Machine | None = None,
    policy: Policy = STRICT,
    layout: str = "contiguous",
    team: int = 1,
) -> list[tuple[Plan, np.ndarray, np.ndarray]]:
    """As `convolve`, by every plan that there is for these tensors on a machine: the chosen one first."""
    machine = machine or Machine.detect()
    result = _result(problem, layout)
    strides = [tuple(s // 4 for s in first.strides), tuple(s // 4 for s in second.strides), result.strides]
    x, _, y = _by_position(problem, *strides)
    laid = laid_out(problem, x, y)
    chosen = choose(laid, machine, policy)
    plain = problem.dtype == "float32" and problem.epilogue is None
    others = [a for name, a in ALGORITHMS.items() if name != chosen.algorithm and (plain or hasattr(a, "ANY_EDGES"))]
    answers = [a.propose(laid, machine, policy) for a in others]
    plans = [chosen, *(answer for answer in answers if isinstance(answer, Plan))]
    return [(plan, *_run(problem, first, second, bias, layout, team, plan)) for plan in plans]


def _by_position(problem: Problem, first: T, second: T, result: T) -> tuple[T, T, T]:
    """(x, w, y) or their gradients."""
    if problem.direction is Direction.FORWARD:
        return first, second, result
    return (result, second, first) if problem.direction is Direction.INPUT_GRADIENT else (first, result, second)


def _result(problem: Problem, layout: str) -> Guarded:
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return output(problem.spec.weight_shape)
    forward = problem.direction is Direction.FORWARD
    return output(problem.spec.output_shape if forward else problem.spec.input_shape, layout, problem.dtype)


def _run(
    problem: Problem,
    first: np.ndarray,
    second: np.ndarray,
    bias: np.ndarray | None,
    layout: str,
    team: int,
    how: Plan | Policy,
) -> tuple[np.ndarray, np.ndarray]:
    a, b = (Guarded(operand, dtype=problem.dtype) for operand in (first, second))
    result = _result(problem, layout)
    strides = [tensor.strides for tensor in _by_position(problem, a, b, result)]
    # Not the remembered one: it may have been made when tiny problems stayed on one thread.
    run = prepare.__wrapped__(problem, *strides, how) if isinstance(how, Policy) else Invocation(how, *strides)
    vector = Guarded(bias, dtype=problem.dtype) if bias is not None else None
    gradient = output((problem.spec.out_channels,)) if problem.direction is Direction.WEIGHT_GRADIENT else None
    with guarded_scratch():
        ready = packed(run, b, team)
        third = (gradient if problem.bias else None) or vector
        address, more = third.address if third else 0, {}
        if problem.epilogue:
            more = _following(problem, result)
            scale, shift, residual = (more[name].address for name in ("scale", "shift", "residual"))
            words = operand_words(address, scale, shift, residual, result.address)
            address = ctypes.addressof(words)
        run(a.address, (ready or b).address, address, result.address, team)
    inputs = {"first operand": a, "second operand": b, "packed weights": ready, "bias": vector, **more}
    for name, tensor in inputs.items():
        if tensor:
            tensor.assert_untouched(name)
    db = gradient.take("bias gradient") if gradient else np.empty(0, np.float32)
    return result.take("result"), db if problem.bias else db[:0]


def following(problem: Problem, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scale, shift and residual of a problem whose result has this shape: small integers."""
    return integers((shape[1],), 91), integers((shape[1],), 92), integers(shape, 93)


def _following(problem: Problem, result: Guarded) -> dict[str, Guarded]:
    scale, shift, residual = following(problem, result.values.shape)
    like = as_strided(np.zeros(result.memory.size, np.float32), residual.shape, [4 * s for s in result.strides])
    like[...] = residual
    return {"scale": Guarded(scale), "shift": Guarded(shift), "residual": Guarded(like, dtype=problem.dtype)}


def operands(problem: Problem, seed: int, layouts: tuple[str, str] = ("contiguous", "contiguous")) -> list[np.ndarray]:
    """The first and the second operand of a problem, and its bias where it reads one: small integers."""
    spec, direction = problem.spec, problem.direction
    first = spec.output_shape if direction is Direction.INPUT_GRADIENT else spec.input_shape
    second = spec.output_shape if direction is Direction.WEIGHT_GRADIENT else spec.weight_shape
    arrays = [integers(first, seed, layouts[0]), integers(second, seed + 1, layouts[1])]
    if problem.bias and direction is Direction.FORWARD:
        arrays.append(integers((spec.out_channels,), seed + 2))
    return arrays


def normal(spec: ConvSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, w, b and dy drawn from N(0, 1)."""
    draw = np.random.default_rng(seed)
    shapes = spec.input_shape, spec.weight_shape, (spec.out_channels,), spec.output_shape
    x, w, b, dy = (draw.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return x, w, b, dy


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal shapes and equal bits, so that −0 is not 0 and NaN is itself."""
    return a.shape == b.shape and np.array_equal(
        np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)
    )
