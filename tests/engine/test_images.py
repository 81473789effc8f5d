"""Small maps of many images: exact, the same bits as for an image alone, and only where it pays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hubel.engine import Plan, Policy, Refusal, choose, reference
from hubel.engine.algorithms import images
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, normal, operands, same_bits

HERE = Machine.detect()
SKYLAKE = Machine.named("skylake-avx512")
BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# Full and ragged groups of images, of output channels and of pixels; strides, dilation, groups, one dimension, a map
# smaller than a vector, several blocks of channels.
LAYERS = [
    "n32c3o9i8x8k5x5s1p0",
    "n19c2o7i9x7k5x4s1p2x1",
    "n17c5o7i3x3k3x3s2p1",
    "n16c6o4i7x6k5x5s1p2g2",
    "n18c7o10i6x7k3x3s2p1",
    "n18c40o6i10k5s1p2",
    "n16c30o5i5x5k3x3s1p2d2",
]
PROBLEMS = [
    Problem(ConvSpec.parse(text), direction, bias=direction is Direction.FORWARD)
    for text in LAYERS
    for direction in BOTH
    if direction is Direction.FORWARD or "s1" in text
]


def planned(problem: Problem, threads: int = 1) -> Plan:
    """The plan, whether it pays or not."""
    plan = images.propose(problem, HERE, Policy(threads=threads))
    assert isinstance(plan, Plan), plan
    return plan


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_exact(problem: Problem) -> None:
    first, second, *bias = operands(problem, 1)
    if problem.direction is Direction.FORWARD:
        expected = reference.forward(problem.spec, first, second, bias[0])
    else:
        expected = reference.input_gradient(problem.spec, first, second)
    for layout in OUTPUT_LAYOUTS[:2]:
        for team in (1, 2):
            result, _ = convolve(problem, first, second, *bias, policy=planned(problem, team), layout=layout, team=team)
            assert np.array_equal(result, expected)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_an_image_alone_has_the_same_bits(problem: Problem) -> None:
    """Alone, another algorithm does it."""
    x, w, b, dy = normal(problem.spec)
    first, bias = (x, b) if problem.direction is Direction.FORWARD else (dy, None)
    together, _ = convolve(problem, first, w, bias, policy=planned(problem))
    alone = dataclasses.replace(problem, spec=dataclasses.replace(problem.spec, batch=1))
    assert choose(alone, HERE, Policy()).order == "direct"
    for n in (0, 15, problem.spec.batch - 1):
        one, _ = convolve(alone, first[n : n + 1], w, bias, policy=Policy())
        assert same_bits(one, together[n : n + 1])


def test_small_maps_of_many_images_are_its_own() -> None:
    """LeNet-5's second layer; not a strided layer, which has channels enough, nor a stem, nor a few images."""

    def algorithm(text: str) -> str:
        return choose(Problem.parse(text), SKYLAKE, Policy()).algorithm

    assert algorithm("n64c6o16i14x14k5x5") == images.NAME
    for text in ("n16c256o512i14x14k3x3s2p1", "n64c3o64i224x224k7x7s2p3", "n4c6o16i14x14k5x5"):
        assert algorithm(text) == "channels"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n64c6o16i14x14k5x5/weight_gradient", "weight gradients"),
        ("n8c6o16i14x14k5x5", "needs 16 images"),
        ("n64c6o16i9x9x9k5x5x5", "planes"),
        ("n64c6o16i14x14k1x1", "one row"),
        ("n64c16o16i14x14k5x5g16", "one channel a group"),
        ("n64c6o16i14x14k3x3s2/input_gradient", "stride 1"),
        ("n64c6o16i14x14k3x3", "winograd"),
        ("n16c64o64i224x224k9x9", "do not fit"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    answer = images.propose(Problem.parse(text), SKYLAKE, Policy())
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


def test_strided_tensors_are_refused() -> None:
    problem = dataclasses.replace(Problem.parse("n64c6o16i14x14k5x5"), layout="strided")
    assert isinstance(images.propose(problem, SKYLAKE, Policy()), Refusal)
