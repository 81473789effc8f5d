"""Depthwise convolutions of channels-last tensors, channels in the lanes: exact on small integers, in every dtype
and with every kind of epilogue, over sizes at which tiles, strips, bands and blocks of channels end.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hubel.engine import Direction, Policy, Refusal, choose
from hubel.engine.algorithms import ALGORITHMS, depthwise_channels, depthwise_weight_channels
from hubel.engine.epilogue import Epilogue
from hubel.engine.machine import Machine
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from tests.engine import test_edges
from tests.engine.definition import by_torch
from tests.engine.guards import convolve, convolve_in_every_way, normal, operands, same_bits
from tests.engine.machines import MACHINES
from tests.engine.test_depthwise import WINDOWS
from tests.strategies import integers

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = Direction
NAMES = {
    FORWARD: depthwise_channels.NAME,
    INPUT_GRADIENT: depthwise_channels.NAME,
    WEIGHT_GRADIENT: depthwise_weight_channels.NAME,
}
BOTH = (FORWARD, INPUT_GRADIENT)
# Tiles of seven, of four and of one; one that overlaps the one before; fewer rows than the kernel has.
SIZES = [(7, 7), (14, 15), (3, 29), (5, 4), (9, 2), (2, 11), (30, 8), (6, 13)]
LAST = "channels_last"
# (kernel, stride, padding, dilation)
FEW = [(3, 1, 1, 1), (3, 2, 1, 1), (5, 2, 2, 1), (3, 2, 4, 2)]
MANY = [*(window for window in WINDOWS if window not in FEW), (9, 1, 4, 1), (3, 3, 2, 1), (4, 2, 0, 3)]


def layer(size: tuple[int, int], window: tuple[int, int, int, int], batch: int = 1, channels: int = 21) -> ConvSpec:
    kernel, stride, padding, dilation = window
    return ConvSpec(batch, channels, channels, size, kernel, stride, padding, dilation, channels)


def fits(size: tuple[int, int], window: tuple[int, int, int, int]) -> bool:
    return min(size) + 2 * window[2] > window[3] * (window[0] - 1)


def agrees(problem: Problem, machine: Machine, team: int = 1) -> None:
    of_second = LAST if problem.direction is WEIGHT_GRADIENT else "contiguous"
    first, second, *rest = operands(problem, 3, (LAST, of_second))
    bias = rest[0] if rest else None
    ref = by_torch(problem, first, second, bias)
    results = convolve_in_every_way(problem, first, second, bias, machine=machine, layout=LAST, team=team)
    ours = [result for plan, result, _ in results if plan.algorithm == NAMES[problem.direction]]
    assert len(ours) == 1, [plan.algorithm for plan, _, _ in results]
    np.testing.assert_array_equal(ours[0], ref, f"{problem} {machine.isa}")
    if problem.bias and problem.direction is WEIGHT_GRADIENT:
        for plan, _, gradient in results:
            np.testing.assert_array_equal(gradient, second.sum((0, *range(2, second.ndim))), plan.algorithm)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("window", FEW + [pytest.param(w, marks=pytest.mark.slow) for w in MANY])
def test_heights_and_widths(window: tuple[int, int, int, int], direction: Direction, machine: Machine) -> None:
    for number, size in enumerate(SIZES):
        if fits(size, window):
            problem = Problem(layer(size, window, 1 + number % 2), direction, direction is not INPUT_GRADIENT)
            agrees(problem, machine, team=1 + number % 2)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    "text",
    [
        # Several blocks of channels, strips and bands; axes that differ; one dimension.
        "n1c200o200i40x40k3x3s1p1g200",
        "n2c72o72i30x31k7x7s1p3g72",
        "n1c40o40i33x29k3x5s2x1p1x2g40",
        "n1c40o40i21x25k5x1s1p2x0g40",
        "n1c24o24i20x19k1x3s1x2p0x1g24",
        "n3c33o33i50k5s2p2g33",
        "n1c33o33i50k3s1p2d2g33",
        "n1c16o16i12x70k2x33s1p1x16g16",
        # Outputs of an input gradient side by side, not all of which the last ones have, or the first; more than fit.
        "n1c16o16i11x14k4s4p0g16",
        "n1c24o24i13x23k3x7s2x5p1x3g24",
        "n1c16o16i9x40k2x16s1x9p0x4g16",
        "n2c16o16i3x1k3s2p1g16",
        "n1c16o16i2x3k3s5p1g16",
        "n1c16o16i7x9k1s3p0g16",
    ],
)
def test_other_shapes(text: str, direction: Direction) -> None:
    problem = Problem(ConvSpec.parse(text), direction)
    if problem.spec.kernel_size[-1] > depthwise_channels.MOST_COLUMNS:
        algorithm = ALGORITHMS[NAMES[direction]]
        answer = algorithm.propose(dataclasses.replace(problem, layout=LAST), Machine.detect(), Policy())
        assert isinstance(answer, Refusal) and "up to 31 columns" in answer.reason
    else:
        agrees(problem, Machine.detect(), team=2)


@pytest.mark.parametrize("dtype", test_edges.DTYPES)
@pytest.mark.parametrize("epilogue", [None, *test_edges.EXACT], ids=str)
def test_dtypes_and_epilogues(epilogue: Epilogue | None, dtype: str) -> None:
    for text, direction in (("n2c21o21i9x15k3x3s1p1g21", FORWARD), ("n1c16o16i11x12k3x3s2p1g16", INPUT_GRADIENT)):
        problem = Problem(ConvSpec.parse(text), direction, direction is FORWARD, dtype, LAST, epilogue)
        assert choose(problem, Machine.detect(), Policy()).algorithm == NAMES[direction]
        test_edges.agrees(problem, Machine.detect(), 5, (LAST, LAST), LAST, 2)


@pytest.mark.parametrize("dtype", test_edges.NARROW)
def test_weight_gradients_of_16_bit_tensors(dtype: str) -> None:
    problem = Problem(ConvSpec.parse("n2c21o21i9x15k3x3s2p1g21"), WEIGHT_GRADIENT, True, dtype, LAST)
    assert choose(problem, Machine.detect(), Policy()).algorithm == NAMES[WEIGHT_GRADIENT]
    test_edges.agrees(problem, Machine.detect(), 5, (LAST, LAST), LAST, 2)


@pytest.mark.parametrize("text", ["n5c24o24i21x33k3x3s1p1g24", "n1c72o72i40x9k5x5s2p2g72"])
def test_threads_do_not_matter_to_weight_gradients(text: str) -> None:
    """Several shares of the images, or of the rows of one; of numbers that are rounded."""
    problem = Problem(ConvSpec.parse(text), WEIGHT_GRADIENT, True)
    x, _, _, dy = normal(problem.spec)
    first, second = integers(x.shape, layout=LAST), integers(dy.shape, layout=LAST)
    first[...], second[...] = x, dy
    one, bias = convolve(problem, first, second, policy=Policy())
    for threads, team in ((2, 1), (2, 2), (16, 2)):
        other, other_bias = convolve(problem, first, second, policy=Policy(threads=threads), team=team)
        assert same_bits(one, other) and same_bits(bias, other_bias)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("n1c32o32i9x9k3x3s1p1g32", "channels that are next to each other"),
        ("n1c32o64i9x9k3x3s1p1g32/channels_last", "one input and one output channel a group"),
        ("n1c3o3i9x9k3x3s1p1g3/channels_last", "needs 8 channels to fill its lanes"),
        ("n1c32o32i9x9x9k3x3x3s1p1g32/channels_last", "has one or two dimensions"),
        ("n1c32o32i9x9k3x3s1p1g32/weight_gradient/channels_last", "sums over pixels"),
    ],
)
def test_what_it_declines(text: str, why: str) -> None:
    problem = Problem.parse(text)
    answer = depthwise_channels.propose(problem, Machine.named("haswell"), Policy())
    assert isinstance(answer, Refusal) and why in answer.reason
    if problem.direction is FORWARD:
        gradient = dataclasses.replace(problem, direction=WEIGHT_GRADIENT)
        answer = depthwise_weight_channels.propose(gradient, Machine.named("haswell"), Policy())
        assert isinstance(answer, Refusal) and why in answer.reason


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("window", WINDOWS)
def test_it_is_chosen_with_at_most_four_kernels(
    window: tuple[int, int, int, int], direction: Direction, name: str
) -> None:
    machine, kernels = Machine.named(name), set()
    for height in (*range(1, 18), 28, 56, 113):
        for width in (*range(1, 18), 28, 56, 113):
            if fits((height, width), window):
                problem = Problem(layer((height, width), window, channels=64), direction, layout=LAST)
                plan = choose(problem, machine, Policy())
                assert plan.algorithm == NAMES[direction] or height * width == 1, problem
                kernels.add(plan.kernel_key)
    assert 1 <= len(kernels) <= 4, sorted(kernels)


@pytest.mark.parametrize("direction", BOTH)
def test_what_lies_beside_an_image_does_not_matter(direction: Direction) -> None:
    """NaN and infinities reach those outputs that read them, and no others: of no other image and no other channel."""
    problem = Problem(layer((9, 15), (3, 1, 1, 1), 2), direction)
    first, second, *_ = operands(problem, 5, (LAST, "contiguous"))
    clean = by_torch(problem, first, second, None)
    for y, x, value in ((0, 14, np.nan), (4, 0, np.inf), (8, 14, np.nan), (0, 0, -np.inf)):
        spoiled = first.copy(order="K")
        spoiled[1, 3, y, x] = value
        reached = np.zeros(clean.shape, bool)
        reached[1, 3, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
        for plan, result, _ in convolve_in_every_way(problem, spoiled, second, layout=LAST):
            if plan.algorithm == NAMES[direction]:
                np.testing.assert_array_equal(result[~reached], clean[~reached])
                assert not np.isfinite(result[1, 3, y, x])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("window", FEW)
def test_asking_for_lines_ahead_changes_no_number(
    window: tuple[int, int, int, int], direction: Direction, machine: Machine
) -> None:
    """Down to the last row of the last image, below which there is nothing."""
    small = dataclasses.replace(machine, l3=1024)
    problem = Problem(layer((9, 15), window, 2), direction, layout=LAST)
    for here, ahead in ((machine, False), (small, True)):
        plan = depthwise_channels.propose(problem, here, Policy())
        assert not isinstance(plan, Refusal) and ("_ahead" in plan.kernels[0]) == ahead
        agrees(problem, here)


def test_large_images_are_asked_for_ahead() -> None:
    machine = dataclasses.replace(Machine.named("haswell"), l3=32 * 2**20)
    for batch, ahead in ((1, False), (16, True)):
        problem = Problem(ConvSpec.parse(f"n{batch}c144o144i56x56k3x3s1p1g144"), layout=LAST)
        plan = depthwise_channels.propose(problem, machine, Policy())
        assert not isinstance(plan, Refusal) and ("_ahead" in plan.kernels[0]) == ahead
        text = depthwise_channels.emit(plan)[plan.kernels[0]]()
        assert ("llvm.prefetch" in text) == ahead
