"""1×1 convolutions, with pixels or output channels in lanes: exact, the same bits, and each where it pays."""

from __future__ import annotations

import numpy as np
import pytest

from hubel.engine import Plan, Policy, Refusal, choose, kernel_text, reference
from hubel.engine.algorithms import pointwise, pointwise_channels
from hubel.engine.choose import candidates
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal, operands, same_bits
from tests.engine.test_generated_code import arithmetic_loops, check_loop, multiply_adds

HERE = Machine.detect()
MACHINES = [HERE, *(m for m in [Machine.named("haswell")] if m.runs_here() and m.isa != HERE.isa)]
BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# Runs of one pixel to several tiles, planes smaller than a vector, ragged and few output channels, several blocks of
# input channels, groups, strides, one and three dimensions, no image.
LAYERS = [
    "n2c18o34i5x17k1",
    "n1c300o21i4x7k1",
    "n2c5o16i1x1k1",
    "n3c12o24i2x2k1g2",
    "n1c1o3i5x1k1",
    "n1c40o70i3x4k1g2",
    "n1c20o48i40k1",
    "n2c9o17i3x4x5k1",
    "n1c70o40i9x9k1s2",
    "n2c24o33i8x7k1s2x3g3",
    "n1c20o9i5x6x7k1s2",
    "n1c33o9i64k1s3",
    "n0c4o5i4x4k1",
]
LAYOUTS = [
    ("contiguous", "contiguous"),
    ("channels_last", "channels_last"),
    ("contiguous", "channels_last"),
    ("channels_last", "contiguous"),
    ("sliced", "contiguous"),
]


def planned(problem: Problem, machine: Machine = HERE, threads: int = 1) -> Plan:
    """The plan with output channels in lanes, whether it is the cheapest or not."""
    plan = pointwise_channels.propose(problem, machine, Policy(threads=threads))
    assert isinstance(plan, Plan), plan
    return plan


def does(text: str, direction: Direction) -> bool:
    return direction is Direction.FORWARD or set(ConvSpec.parse(text).stride) == {1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", LAYERS)
def test_exact(text: str, direction: Direction, machine: Machine, dtype: str) -> None:
    if not does(text, direction):
        return
    problem = Problem(ConvSpec.parse(text), direction, bias=direction is Direction.FORWARD, dtype=dtype)
    first, second, *bias = operands(problem, 0)
    if direction is Direction.FORWARD:
        expected = reference.forward(problem.spec, first, second, bias[0])
    else:
        expected = reference.input_gradient(problem.spec, first, second)
    # Sums beyond this are no numbers of bfloat16; the float32 test has them.
    if dtype == "bfloat16" and np.abs(expected).max(initial=0) > 256:
        pytest.skip("sums of more digits than bfloat16 has")
    for n, (of_input, of_output) in enumerate(LAYOUTS):
        first, second, *bias = operands(problem, 0, (of_input, "contiguous"))
        team = 1 + n % 2
        plan = planned(problem, machine, team)
        result, _ = convolve(problem, first, second, *bias, policy=plan, layout=of_output, team=team)
        assert np.array_equal(result, expected), (of_input, of_output)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", [text for text in LAYERS[:-1] if does(text, Direction.INPUT_GRADIENT)])
def test_both_ways_have_the_same_bits(text: str, direction: Direction, machine: Machine) -> None:
    """So the one may take the other's place."""
    problem = Problem(ConvSpec.parse(text), direction)
    x, w, b, dy = normal(problem.spec)
    first, bias = (x, b) if direction is Direction.FORWARD else (dy, None)
    other = pointwise.propose(problem, machine, Policy())
    assert isinstance(other, Plan) and planned(problem, machine).order == other.order
    mine, _ = convolve(problem, first, w, bias, policy=planned(problem, machine))
    assert same_bits(mine, convolve(problem, first, w, bias, policy=other)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("epilogue", ["scale+residual+relu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("text", ["n2c18o37i5x7k1", "n1c24o16i9x9k1s2"])
def test_epilogues_are_those_of_the_other_way(text: str, dtype: str, epilogue: str, layout: str) -> None:
    """Bit for bit those of the generic kernels."""
    problem = Problem.parse(f"{text}/bias/{dtype}/{epilogue}".replace("/float32", ""))
    x, w, bias = operands(problem, 3, (layout, "contiguous"))
    reached = Problem.parse(f"{problem}/strided") if "s2" in text else problem
    plans, _ = candidates(reached, HERE, Policy("strict"))
    other = next(plan for plan in plans if plan.algorithm != pointwise_channels.NAME)
    mine, _ = convolve(problem, x, w, bias, policy=planned(problem), layout=layout)
    assert same_bits(mine, convolve(problem, x, w, bias, policy=other, layout=layout)[0])


@pytest.mark.parametrize("direction", BOTH)
def test_weights_may_lie_in_any_order(direction: Direction) -> None:
    problem = Problem(ConvSpec.parse("n1c36o40i4x5k1g2"), direction)
    x, w, _, dy = normal(problem.spec)
    first, plan = x if direction is Direction.FORWARD else dy, planned(problem)
    expected, _ = convolve(problem, first, w, policy=plan)
    turned = np.ascontiguousarray(w.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)
    assert same_bits(convolve(problem, first, turned, policy=plan)[0], expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n1c64o64i14x14k3x3p1", "needs a 1×1 kernel and no padding"),
        ("n1c64o64i14x14k1p1", "needs a 1×1 kernel and no padding"),
        ("n1c64o64i14x14k1/weight_gradient", "weight gradients are sums over pixels"),
        ("n1c64o64i14x14k1s2/input_gradient", "it does the forward direction"),
        ("n1c64o64i14x14k1/strided", "needs outputs that follow each other"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    answer = pointwise_channels.propose(Problem.parse(text), HERE, Policy())
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_small_maps_strides_and_channels_last_are_its_own(name: str) -> None:
    machine = Machine.named(name)
    # With 32 registers the other way has a tile for the pixel too many.
    small = ("n1c960o160i7x7k1",) if machine.registers == 16 else ()
    for text in (*small, "n1c256o512i56x56k1s2", "n1c256o64i56x56k1/channels_last"):
        assert choose(Problem.parse(text), machine, Policy()).algorithm == pointwise_channels.NAME, text
    assert choose(Problem.parse("n1c256o64i56x56k1"), machine, Policy()).algorithm == pointwise.NAME


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_tiles_stay_in_registers(name: str) -> None:
    plan = planned(Problem.parse("n1c64o64i14x14k1"), Machine.named(name))
    loops = arithmetic_loops(kernel_text(plan, "asm"), plan.tile.lanes)
    largest = max(loops, key=lambda loop: multiply_adds(loop, plan.tile.lanes))
    check_loop(largest, plan.tile, plan.machine.arch)
