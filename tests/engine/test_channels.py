"""Output channels in lanes: exact, the bits of direct convolution, and chosen where it pays."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hubel.engine import Plan, Policy, Refusal, choose, reference
from hubel.engine.algorithms import channels, direct
from hubel.engine.algorithms.geometry import sums
from hubel.engine.compile import emit_assembly
from hubel.engine.ir import module_text
from hubel.engine.ir.broadcast import broadcast_tile
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal, operands, same_bits
from tests.engine.test_generated_code import FUSED, SPILL, arithmetic_loops, check_loop

HERE = Machine.detect()
MACHINES = [HERE, *(m for m in [Machine.named("haswell")] if m.runs_here() and m.isa != HERE.isa)]
BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# Rows shorter than a tile and than half of one, and longer; ragged output channels; strides with and without rows that
# no kernel reads; several blocks of channels; dilation, groups, one and three dimensions, planes that meet one tap of
# four; no image.
LAYERS = [
    "n2c18o34i9x17k3x3s2p1",
    "n1c40o70i9x9k3x3s2p0",
    "n1c4o16i12x44k7x7s2p3",
    "n2c6o16i7x7k3x3s1p1",
    "n1c12o20i11x3k3x1s1x2p1x0d3x1",
    "n2c8o36i6x6k3x3s2x1p2x3d2x1g2",
    "n1c24o33i8x8k4x4s2p1",
    "n1c70o40i9x9k1x1s2p0",
    "n1c20o9i5x6x7k3x3x3s2p1",
    "n2c30o17i4x7x6k4x4x3s1p3x1x1",
    "n1c17o33i200k3s2p4d2",
    "n1c64o65i2x2k2x2s1p0",
    "n1c5o7i9x9k2x2s3p0",
    "n0c4o5i4x4k3x3s1p1",
]
LAYOUTS = [
    ("contiguous", "contiguous"),
    ("channels_last", "channels_last"),
    ("contiguous", "sliced"),
    ("channels_last", "contiguous"),
]


def planned(problem: Problem, machine: Machine = HERE, threads: int = 1) -> Plan:
    """The plan, whether it is the cheapest or not."""
    plan = channels.propose(problem, machine, Policy(threads=threads))
    assert isinstance(plan, Plan), plan
    return plan


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", LAYERS)
def test_exact(text: str, direction: Direction, machine: Machine) -> None:
    problem = Problem(ConvSpec.parse(text), direction, bias=direction is Direction.FORWARD)
    expected = None
    for n, (of_input, of_output) in enumerate(LAYOUTS):
        first, second, *bias = operands(problem, 0, (of_input, of_input))
        if expected is None and direction is Direction.FORWARD:
            expected = reference.forward(problem.spec, first, second, bias[0])
        elif expected is None:
            expected = reference.input_gradient(problem.spec, first, second)
        team = 1 + n % 2
        plan = planned(problem, machine, team)
        result, _ = convolve(problem, first, second, *bias, policy=plan, layout=of_output, team=team)
        assert np.array_equal(result, expected), (of_input, of_output)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", LAYERS[:-1])
def test_the_bits_are_those_of_direct_convolution(text: str, direction: Direction, machine: Machine) -> None:
    """So the one may take the other's place."""
    problem = Problem(ConvSpec.parse(text), direction)
    x, w, b, dy = normal(problem.spec)
    first, bias = (x, b) if direction is Direction.FORWARD else (dy, None)
    other = direct.propose(problem, machine, Policy())
    assert isinstance(other, Plan)
    mine, _ = convolve(problem, first, w, bias, policy=planned(problem, machine))
    assert same_bits(mine, convolve(problem, first, w, bias, policy=other)[0])


def test_planes_of_padding_are_not_summed() -> None:
    """An infinite weight that meets padding alone leaves no NaN: it was never multiplied with a zero."""
    problem = Problem(ConvSpec.parse("n1c40o16i6x9x9k3x4x4s1p1"))
    x, w, _, _ = normal(problem.spec)
    expected, _ = convolve(problem, x, w, policy=planned(problem))
    w[:, :, 0] = np.inf
    result, _ = convolve(problem, x, w, policy=planned(problem))
    assert same_bits(result[:, :, 0], expected[:, :, 0])
    assert not np.isfinite(result[:, :, 1:]).any()
    # `direct` multiplies them: it may not take this one's place, whatever the batch.
    assert planned(problem).order == channels.NAME


def test_the_taps_of_a_plane_are_those_inside() -> None:
    (forward,) = sums(Problem(ConvSpec.parse("n1c1o1i5x8x8k3x2x2s2x1x1p2x0x0")))
    assert forward.taps_inside() == [range(8, 12), range(12), range(12), range(4)]
    gradient = sums(Problem(ConvSpec.parse("n1c1o1i3x8x8k3x2x2s1p1x0x0"), Direction.INPUT_GRADIENT))
    assert [part.taps_inside() for part in gradient] == [[range(8), range(12), range(4, 12)]]


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", ["n2c6o16i7x7k3x3s1p1", "n1c24o33i8x8k4x4s2p1", "n1c20o9i5x6x7k3x3x3s2p1"])
def test_weights_may_lie_in_any_order(text: str, direction: Direction) -> None:
    """Kernels turned in memory, channels last, output channels last: whatever strides they have."""
    problem = Problem(ConvSpec.parse(text), direction)
    x, w, _, dy = normal(problem.spec)
    first, plan = x if direction is Direction.FORWARD else dy, planned(problem)
    expected, _ = convolve(problem, first, w, policy=plan)
    axes = tuple(range(w.ndim))
    for order in ((0, 1, *axes[:1:-1]), (0, *axes[2:], 1), (*axes[1:], 0), axes[::-1]):
        turned = np.ascontiguousarray(w.transpose(order)).transpose(np.argsort(order))
        assert same_bits(convolve(problem, first, turned, policy=plan)[0], expected), order


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n1c64o64i14x14k3x3s2/weight_gradient", "weight gradients"),
        ("n1c64o64i14x14k1x1", "pointwise"),
        ("n1c64o64i56x56k3x3s2g64", "to fill its lanes"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    answer = channels.propose(Problem.parse(text), Machine.named("skylake-avx512"), Policy())
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


def test_strided_layers_and_short_rows_are_its_own() -> None:
    for text in ("n1c128o128i56x56k3x3s2p1", "n1c256o128i16x16k4x4s2p1/input_gradient", "n1c64o96i7x7k3x3/strided"):
        problem = Problem.parse(text)
        plan = choose(problem, Machine.named("skylake-avx512"), Policy("strict"))
        assert plan.algorithm == channels.NAME and plan.order == direct.NAME


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_tiles_stay_in_registers(name: str) -> None:
    machine = Machine.named(name)
    for rows in (16, 32, 48):
        tile = channels._tile(machine, rows)
        function = broadcast_tile(tile.rows, tile.vectors, tile.lanes)
        function.private = False
        loops = arithmetic_loops(emit_assembly(module_text(function, tile.lanes), machine), tile.lanes)
        *doubles, single = sorted(loops, key=len, reverse=True)
        check_loop(single, tile, machine.arch)
        for loop in doubles:
            fused = [line for line in loop if re.search(FUSED[tile.lanes], line)]
            assert len(fused) == 2 * tile.rows * tile.vectors
            assert not [line for line in loop if re.search(SPILL, line)], "\n".join(loop)
