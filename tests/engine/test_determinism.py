"""The same bits whatever the number of threads, the rest of the batch, and the strides of the tensors.

The order of summation depends on the problem without its batch, so results of random numbers, in which every order
rounds differently, are compared bit for bit.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from hubel.engine import Policy
from hubel.engine.problem import Accuracy, Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, convolve_in_every_way, normal, same_bits
from tests.strategies import integers, seeds, specs

LEVELS: tuple[Accuracy, ...] = ("strict", "default")

# Several work items, boxes that do not divide, blocks of channels, odd sizes.
LARGE = [
    "n3c70o45i33x31k3x3s1p1",
    "n3c200o40i14x14k1x1s1p0",
    "n3c24o40i45x29k5x5s2p2",
    "n3c48o48i30x30k3x3s1p1g48",
    "n3c40o24i19x17k3x3s1p2d2g4",
    "n3c9o33i3000k9s1p4",
    "n3c12o12i7x12x13k3x3x3s1x2x1p1",
    "n3c600o64i5x5k3x3s1p1",
]
BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)


def operands(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    x, w, b, dy = normal(problem.spec, seed)
    if problem.direction is Direction.FORWARD:
        return x, w, b if problem.bias else None
    return (dy, w, None) if problem.direction is Direction.INPUT_GRADIENT else (x, dy, None)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    copy = integers(array.shape, layout=layout)
    copy[...] = array
    return copy


def threads_do_not_matter(problem: Problem, seed: int) -> None:
    first, second, bias = operands(problem, seed)
    for level in LEVELS:
        one, db = convolve(problem, first, second, bias, policy=Policy(level))
        for planned, team in ((1, 2), (2, 1), (2, 2), (16, 2)):
            policy = Policy(level, threads=planned)
            other, other_db = convolve(problem, first, second, bias, policy=policy, team=team)
            assert same_bits(one, other), f"{policy}, {team} threads: {np.sum(one != other)} of {one.size} differ"
            assert same_bits(db, other_db)


def the_batch_does_not_matter(problem: Problem, seed: int) -> None:
    first, second, bias = operands(problem, seed)
    alone = Problem(dataclasses.replace(problem.spec, batch=1), problem.direction, problem.bias)
    for level in LEVELS:
        together, _ = convolve(problem, first, second, bias, policy=Policy(level, threads=2), team=2)
        for n in range(problem.spec.batch):
            one, _ = convolve(alone, first[n : n + 1], second, bias, policy=Policy(level))
            same = together[n : n + 1]
            assert same_bits(one, same), f"{level}, image {n}: {np.sum(one != same)} of {one.size} differ"


def strides_do_not_matter(problem: Problem, seed: int) -> None:
    """Layouts are part of a problem: "planes" and "strided" ones may round differently, but no two of a kind."""
    first, second, bias = operands(problem, seed)
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layout in OUTPUT_LAYOUTS:
        a, b = laid_out(first, layout), laid_out(second, layout)
        plan, result, gradient = convolve_in_every_way(problem, a, b, bias, layout=layout)[0]
        kind = plan.problem.layout
        one, db = seen.setdefault(kind, (result, gradient))
        assert same_bits(one, result), f"{layout} ({kind}): {np.sum(one != result)} of {one.size} differ"
        assert same_bits(db, gradient), f"{layout} ({kind}): the bias gradient differs"


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", LARGE)
def test_threads_do_not_matter(text: str, direction: Direction) -> None:
    threads_do_not_matter(Problem(ConvSpec.parse(text), direction, direction is not Direction.INPUT_GRADIENT), 0)


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", LARGE)
def test_an_image_has_the_same_result_alone_and_in_a_batch(text: str, direction: Direction) -> None:
    the_batch_does_not_matter(Problem(ConvSpec.parse(text), direction, direction is Direction.FORWARD), 1)


@pytest.mark.parametrize("direction", BOTH)
def test_and_in_a_large_batch(direction: Direction) -> None:
    """So many images that boxes and shares of channels are cut otherwise than for one."""
    for text in (
        "n50c20o30i12x12k3x3s1p1", "n60c32o32i8x8k1x1s1p0", "n40c16o16i9x9k3x3s1p1g16", "n20c12o10i9x9k5x5s1p2",
    ):  # fmt: skip
        the_batch_does_not_matter(Problem(ConvSpec.parse(text), direction), 2)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", LARGE)
def test_strides_do_not_matter(text: str, direction: Direction) -> None:
    strides_do_not_matter(Problem(ConvSpec.parse(text), direction, direction is not Direction.INPUT_GRADIENT), 3)


def on_any_problem(direction: Direction, examples: int, macs: int) -> None:
    @settings(max_examples=examples)
    @given(specs(batches=[3], macs=macs), seeds())
    def check(spec: ConvSpec, seed: int) -> None:
        problem = Problem(spec, direction, bias=direction is not Direction.INPUT_GRADIENT)
        threads_do_not_matter(problem, seed)
        strides_do_not_matter(problem, seed)
        if direction is not Direction.WEIGHT_GRADIENT:
            the_batch_does_not_matter(problem, seed)

    check()


@pytest.mark.parametrize("direction", Direction)
def test_on_any_problem(direction: Direction) -> None:
    on_any_problem(direction, examples=15, macs=30_000)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
def test_on_any_problem_at_length(direction: Direction) -> None:
    on_any_problem(direction, examples=400, macs=1_000_000)


@pytest.mark.parametrize("direction", Direction)
def test_a_run_repeats_itself(direction: Direction) -> None:
    """Two threads share items out differently every time."""
    problem = Problem(ConvSpec.parse(LARGE[0]), direction, direction is not Direction.INPUT_GRADIENT)
    first, second, bias = operands(problem, 4)
    runs = [convolve(problem, first, second, bias, policy=Policy("default", threads=2), team=2) for _ in range(8)]
    for result, db in runs[1:]:
        assert same_bits(result, runs[0][0])
        assert same_bits(db, runs[0][1])
