"""Direct convolution where rows are long enough to be done one by one: exact, and straight to the output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubel.engine import Plan, Policy, reference
from hubel.engine.algorithms import direct
from hubel.engine.algorithms.tiling import row_by_row
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal, operands, same_bits

HERE = Machine.detect()
# Whole tiles only; a tail, for tiles of every width that there is; ragged output channels; three dimensions; groups and
# dilation.
LAYERS = [
    "n1c3o7i4x192k3x3s1p1",
    "n2c4o3i3x189k1x3s1p0x1",
    "n1c2o3i2x4x189k2x3x3s1p0x1x1",
    "n1c4o6i4x191k2x3s1p0x1d2x1g2",
]


def planned(problem: Problem, rows: int, threads: int = 1) -> Plan:
    """A plan with boxes of so many rows, and blocks of two channels."""
    plan = direct.propose(problem, HERE, Policy(threads=threads))
    assert isinstance(plan, Plan), plan
    return replace(plan, box=(1, rows, problem.spec.output_size[-1]), channel_block=2)


def width(plan: Plan) -> int:
    return plan.tile.vectors * plan.tile.lanes


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("text", LAYERS)
def test_exact(text: str, rows: int) -> None:
    problem = Problem(ConvSpec.parse(text), bias=True)
    plan = planned(problem, rows)
    assert row_by_row(plan.box, width(plan)) is (rows > 1)
    x, w, bias = operands(problem, 0, ("contiguous", "contiguous"))
    expected = reference.forward(problem.spec, x, w, bias)
    for layout in ("contiguous", "channels_last", "sliced"):
        result, _ = convolve(problem, x, w, bias, policy=plan, layout=layout)
        assert np.array_equal(result, expected), layout


@pytest.mark.parametrize("text", LAYERS[:3])
def test_the_bits_do_not_depend_on_how_rows_are_done(text: str) -> None:
    problem = Problem(ConvSpec.parse(text))
    x, w, _, _ = normal(problem.spec)
    one, several = (convolve(problem, x, w, policy=planned(problem, rows))[0] for rows in (1, 2))
    assert same_bits(one, several)


def test_gradients_and_short_rows_run_on_into_the_next() -> None:
    problem = Problem(ConvSpec.parse("n1c4o3i6x96k2x2s2p0"), Direction.INPUT_GRADIENT)
    first, w = operands(problem, 0, ("contiguous", "contiguous"))
    plan = planned(problem, 3)
    result, _ = convolve(problem, first, w, policy=replace(plan, box=(1, 3, 48)))
    assert np.array_equal(result, reference.input_gradient(problem.spec, first, w))
    assert not row_by_row((1, 4, 17), 16) and not row_by_row((2, 4, 64), 16) and not row_by_row((1, 1, 64), 16)
