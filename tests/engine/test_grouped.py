"""Grouped convolutions with output channels in lanes: exact, the bits of `direct` where it says so, and when they are
declined."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest

from hubel.engine import Policy, choose, kernel_text
from hubel.engine.algorithms import grouped
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, normal, operands, same_bits
from tests.engine.machines import HERE, MACHINES
from tests.engine.test_accuracy import exact
from tests.engine.test_generated_code import SPILLED_VECTOR, arithmetic_loops, multiply_adds

BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# Groups that share vectors and that have their own, the last of them incomplete; several bands; maps narrower than any
# tile but the last; strides, dilation, one dimension, other kernels, more output than input channels.
LAYERS = [
    "n2c16o16i9x7k3x3s1p1g4",
    "n1c20o20i33x30k3x3s1p1g5",
    "n1c40o40i9x9k3x3s2p1g5",
    "n1c48o48i11x13k3x3s2p1g2",
    "n2c64o64i7x7k3x3s1p1g2",
    "n1c24o24i6x61k5x1s1p2x0g6",
    "n1c8o16i3x3k3x3s1p1g2",
    "n1c40o80i21k5s2p2g2",
    "n1c32o32i12x20k3x2s1p2d2g2",
    "n1c34o34i5x2k3x3s1p1g17",
    "n1c24o24i13x11k1x1s3p0g6",
]
PROBLEMS = [Problem(ConvSpec.parse(text), d, bias=d is Direction.FORWARD) for text in LAYERS for d in BOTH]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_exact(problem: Problem, machine: Machine) -> None:
    first, second, *bias = operands(problem, 1)
    if problem.direction is Direction.FORWARD:
        expected = exact(problem, first, second, bias[0])
    else:
        expected = exact(problem, first, second, None)
    layouts = OUTPUT_LAYOUTS[: 2 if problem.spec.ndim == 2 else 1]
    for layout, team in product(layouts, (1, 2)):
        plan = grouped.propose(problem, machine, Policy("strict", threads=team))
        if isinstance(plan, Refusal):
            assert "share" in plan.reason
            return
        result, _ = convolve(problem, first, second, *bias, policy=plan, layout=layout, team=team)
        assert (result == expected).all()


@pytest.mark.parametrize("text", ["n3c16o16i19x30k3x3s1p1g4", "n2c64o64i9x9k3x3s2p1g2", "n2c64o64i9x9k3x3s1p1g2"])
def test_the_same_bits(text: str) -> None:
    """For any number of threads, and for an image alone; those of `direct` where the plan says so."""
    made = Problem(ConvSpec.parse(text), bias=True)
    x, w, b, _ = normal(made.spec)
    results = []
    for threads in (1, 2, 7):
        plan = grouped.propose(made, HERE, Policy(threads=threads))
        assert isinstance(plan, Plan)
        results.append(convolve(made, x, w, b, policy=plan, team=2)[0])
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
    alone = replace(made, spec=replace(made.spec, batch=1))
    plan = grouped.propose(alone, HERE, Policy())
    assert isinstance(plan, Plan)
    assert same_bits(convolve(alone, x[1:2], w, b, policy=plan)[0], results[0][1:2])
    if plan.order == "direct":
        other = grouped.direct.propose(made, HERE, Policy())
        assert isinstance(other, Plan)
        assert same_bits(convolve(made, x, w, b, policy=other)[0], results[0])


def test_the_bits_of_direct_for_groups_of_one_block() -> None:
    orders = [
        grouped.propose(
            Problem.parse(f"n1c64o64i9x9k3x3s1p1g{groups}"), Machine.named("skylake-avx512"), Policy()
        ).order  # type: ignore[union-attr]
        for groups in (16, 4, 2)
    ]
    assert orders == ["direct", "direct", "grouped"]


@pytest.mark.parametrize(
    ("text", "machine", "reason"),
    [
        ("n1c64o64i9x9k3x3s1p1g8/weight_gradient", "haswell", "weight gradients"),
        ("n1c64o64i9x9k3x3s1p1", "haswell", "groups of several channels"),
        ("n1c64o64i9x9k3x3s1p1g64", "haswell", "groups of several channels"),
        ("n1c64o64i9x9x9k3x3x3s1p1g8", "haswell", "two dimensions"),
        ("n1c512o512i9x9k3x3s1p1g4", "haswell", "at most 80 channels"),
        ("n1c48o48i9x9k3x3s1p1g8", "haswell", "evenly"),
        ("n1c32o16i9x9k3x3s1p1g8", "haswell", "evenly"),
        ("n1c64o64i9x99k1x13s1p1g8", "haswell", "columns"),
        ("n1c16o16i9x9k3x3s1p1g8", "neoverse-n1", "x86"),
        ("n0c64o64i9x9k3x3s1p1g8", "haswell", "no outputs"),
    ],
)
def test_refusals(text: str, machine: str, reason: str) -> None:
    answer = grouped.propose(Problem.parse(text), Machine.named(machine), Policy())
    assert isinstance(answer, Refusal) and reason in answer.reason, answer


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512"])
def test_few_channels_a_group_are_its_own(name: str) -> None:
    problem = Problem.parse("n1c128o128i56x56k3x3s1p1g32")
    assert choose(problem, Machine.named(name), Policy(threads=2)).algorithm == "grouped"


@pytest.mark.parametrize("text", ["n1c128o128i56x56k3x3s1p1g32", "n1c512o512i14x14k3x3s1p1g16"])
@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_the_register_tiles_keep_their_sums_in_registers(name: str, text: str) -> None:
    machine = Machine.named(name)
    plan = grouped.propose(Problem.parse(text), machine, Policy("strict"))
    assert isinstance(plan, Plan)
    loops = arithmetic_loops(kernel_text(plan, "asm"), machine.lanes)
    assert len(loops) >= 6
    for loop in loops:
        spilled = [line for line in loop if re.search(SPILLED_VECTOR, line)]
        assert len(spilled) <= multiply_adds(loop, machine.lanes) / 20, "\n".join(loop)
