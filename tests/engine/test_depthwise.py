"""Depthwise convolutions: the sizes at which other kernels begin, kernels that share a vector, planes written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hubel.engine import Direction, Policy
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from tests.engine.definition import by_torch
from tests.engine.guards import OUTPUT_LAYOUTS, convolve_in_every_way, operands
from tests.engine.machines import HERE, MACHINES

# (kernel, stride, padding, dilation)
WINDOWS = [
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (5, 1, 2, 1),
    (5, 2, 2, 1),
    (7, 1, 3, 1),
    (3, 1, 2, 2),
    (3, 1, 0, 1),
    (2, 2, 0, 1),
]
NAMES = ("depthwise", "depthwise_weight_gradient")


def layer(size: tuple[int, int], window: tuple[int, int, int, int], batch: int = 1, channels: int = 5) -> ConvSpec:
    kernel, stride, padding, dilation = window
    return ConvSpec(batch, channels, channels, size, kernel, stride, padding, dilation, channels)


def plans(problem: Problem, machine: Machine) -> list[Plan]:
    answers = [ALGORITHMS[name].propose(problem, machine, Policy()) for name in NAMES]
    return [answer for answer in answers if isinstance(answer, Plan)]


def agrees(
    problem: Problem, machine: Machine, layout: str = "contiguous", team: int = 1, inputs: str = "contiguous"
) -> None:
    first, second, *rest = operands(problem, 3, (inputs, inputs))
    bias = rest[0] if rest else None
    ref = by_torch(problem, first, second, bias)
    results = convolve_in_every_way(problem, first, second, bias, machine=machine, layout=layout, team=team)
    assert {plan.algorithm for plan, _, _ in results} & set(NAMES)
    for plan, result, _ in results:
        if plan.algorithm in NAMES:
            np.testing.assert_array_equal(result, ref, f"{plan.kernel_key}, {layout}, {inputs}")


# Around the sides at which planes are written out, share a vector, or fill one and a bit; and large ones.
SIDES = (1, 2, 5, 7, 8, 9, 14, 15, 17, 28, 33, 113)
EVERY_SIDE = (*range(1, 35), 56, 112, 113)


@pytest.mark.parametrize("sides", [SIDES, pytest.param(EVERY_SIDE, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("window", WINDOWS)
def test_at_most_four_kernels_over_all_small_sizes(
    window: tuple[int, int, int, int], direction: Direction, name: str, sides: tuple[int, ...]
) -> None:
    """Kernels are named by what is compiled in."""
    machine = Machine.named(name)
    kernels = set()
    for height, width in product(sides, sides):
        if min(height, width) + 2 * window[2] <= window[3] * (window[0] - 1):
            continue
        for batch in (1, 16) if height < 16 else (1,):
            problem = Problem(layer((height, width), window, batch), direction)
            kernels |= {plan.kernel_key for plan in plans(problem, machine)}
    assert 1 <= len(kernels) <= 4, sorted(kernels)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("window", WINDOWS)
def test_heights_and_widths(window: tuple[int, int, int, int], direction: Direction, machine: Machine) -> None:
    """Around the sizes at which planes are written out, share a vector, or fill one and a bit."""
    for height, width in (
        (7, 7),
        (14, 14),
        (7, 5),
        (14, 9),
        (7, 9),
        (13, 14),
        (28, 28),
        (15, 16),
        (14, 17),
        (6, 8),
        (29, 33),
    ):
        for batch, channels in ((2, 5), (1, 2)):
            problem = Problem(
                layer((height, width), window, batch, channels), direction, direction is Direction.FORWARD
            )
            agrees(problem, machine, team=batch)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (14, 28), (28, 28)])
def test_layouts(size: tuple[int, int], direction: Direction) -> None:
    """Planes that are written out, of tensors whose rows, or pixels, lie apart."""
    for window in WINDOWS[:4]:
        problem = Problem(layer(size, window, 2), direction, direction is Direction.FORWARD)
        for layout in OUTPUT_LAYOUTS:
            for inputs in ("contiguous", "sliced", "channels_last", "expanded_all"):
                agrees(problem, HERE, layout, 2, inputs)


def test_several_outputs_a_channel() -> None:
    for size in (7, 14, 28):
        for channels in (1, 3):
            spec = ConvSpec(2, channels + 1, 3 * (channels + 1), (size, size), 3, padding=1, groups=channels + 1)
            agrees(Problem(spec, bias=True), HERE)
            agrees(Problem(spec, Direction.WEIGHT_GRADIENT), HERE)


@pytest.mark.parametrize("direction", Direction)
def test_what_lies_beside_a_row_does_not_matter(direction: Direction) -> None:
    """NaN and infinities in the input reach those outputs that read them, and no others."""
    if direction is Direction.WEIGHT_GRADIENT:
        pytest.skip("every weight reads every pixel, but for the borders")
    for size in (7, 14, 28, 30):
        problem = Problem(layer((size, size), (3, 1, 1, 1), 1, 3), direction)
        first, second, *_ = operands(problem, 5)
        clean = by_torch(problem, first, second, None)
        for y, x, number in ((0, size - 1, np.nan), (size // 2, 0, np.inf), (size - 1, size - 1, np.nan)):
            spoiled = first.copy()
            spoiled[0, 1, y, x] = number
            reached = np.zeros(clean.shape, bool)
            reached[0, 1, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
            for plan, result, _ in convolve_in_every_way(problem, spoiled, second, machine=HERE):
                if plan.algorithm == "depthwise":
                    np.testing.assert_array_equal(result[~reached], clean[~reached], f"{plan.kernel_key}")
                    assert not np.isfinite(result[0, 1, y, x])
