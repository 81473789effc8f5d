"""How tensors lie: which layout strides mean, and what plans make of channels next to each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hubel.engine import Machine, Plan, Policy, choose, prepare
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.geometry import layout_of, packed_strides
from hubel.engine.choose import GATHERED, candidates
from hubel.engine.problem import LAYOUTS, Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal, same_bits
from tests.engine.test_size_classes import LAYERS, SIZES
from tests.strategies import integers

LAYER = ConvSpec.parse("n2c8o16i6x7k3x3s1p1")
PLANES, LAST, STRIDED = LAYOUTS
HASWELL = Machine.named("haswell")


def strides(spec: ConvSpec, x: str, y: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    arrays = integers(spec.input_shape, layout=x), integers(spec.output_shape, layout=y)
    made = [tuple(step // 4 for step in array.strides) for array in arrays]
    return made[0], made[1]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("contiguous", "contiguous", PLANES),
        ("channels_last", "channels_last", LAST),
        # Pixels at one distance, but channels apart: on one side, or both.
        ("channels_last", "contiguous", PLANES),
        ("contiguous", "channels_last", PLANES),
        ("sliced", "contiguous", STRIDED),
        ("transposed", "transposed", STRIDED),
    ],
)
def test_strides_mean_a_layout(x: str, y: str, expected: str) -> None:
    assert layout_of(LAYER, *strides(LAYER, x, y)) == expected


@pytest.mark.parametrize(
    ("text", "x", "y", "expected"),
    [
        # One channel lies both ways: the other tensor decides.
        ("c1o8i6x6k3x3", "contiguous", "channels_last", LAST),
        ("c1o8i6x6k3x3", "channels_last", "contiguous", PLANES),
        ("c8o1i6x6k3x3", "channels_last", "contiguous", LAST),
        ("c1o1i6x6k3x3", "channels_last", "channels_last", PLANES),
        # And so do single pixels.
        ("c8o4i3x3k3x3", "channels_last", "contiguous", LAST),
        ("c8o4i3x3k3x3", "contiguous", "channels_last", PLANES),
        ("c8o4i1x1k1x1", "channels_last", "channels_last", PLANES),
        ("c8o4i6k3", "channels_last", "channels_last", LAST),
        ("c8o4i6x5x4k3x3x3", "channels_last", "channels_last", LAST),
    ],
)
def test_tensors_that_lie_both_ways(text: str, x: str, y: str, expected: str) -> None:
    spec = ConvSpec.parse(text)
    assert layout_of(spec, *strides(spec, x, y)) == expected


def test_a_part_of_the_channels_still_lies_channels_last() -> None:
    x, y = strides(LAYER, "channels_last", "channels_last")
    wide = tuple(step * 3 if step > 1 else 1 for step in x)
    assert layout_of(LAYER, wide, y) == LAST
    assert layout_of(LAYER, (x[0], 2, *x[2:]), y) == PLANES


@pytest.mark.parametrize("size", [(5,), (4, 5), (3, 4, 5)])
def test_packed_strides_are_torchs(size: tuple[int, ...]) -> None:
    shape = (2, 7, *size)
    assert packed_strides(shape, PLANES) == torch.empty(shape).stride()
    order = (0, len(shape) - 1, *range(1, len(shape) - 1))
    assert packed_strides(shape, LAST) == torch.empty((2, *size, 7)).permute(order).stride()


def plans(text: str, layout: str, machine: Machine = HASWELL, threads: int = 1) -> dict[str, Plan]:
    found, _ = candidates(Problem.parse(f"{text}/{layout}"), machine, Policy(threads=threads))
    return {plan.algorithm: plan for plan in found}


@pytest.mark.parametrize("threads", [1, 2])
def test_gathering_is_counted_where_an_algorithm_cannot_read_channels_last(threads: int) -> None:
    text = "n1c64o96i28x28k3x3s1p1"
    planes, last = (plans(text, layout, threads=threads) for layout in (PLANES, LAST))
    numbers = (64 + 96) * 28 * 28
    assert {"direct", "winograd", "channels"} <= set(last) == set(planes)
    for name, plan in last.items():
        if getattr(ALGORITHMS[name], "CHANNELS_LAST", False):
            # What need not be turned may count for less.
            assert plan.estimate.cycles <= planes[name].estimate.cycles * 1.0001, name
        else:
            more = GATHERED * numbers / threads
            assert plan.estimate.cycles == pytest.approx(planes[name].estimate.cycles + more), name


def test_1x1_kernels_have_channels_in_the_lanes_there() -> None:
    text = "n1c64o256i56x56k1x1s1p0"
    assert "channels" not in plans(text, PLANES)
    assert "channels" in plans(text, LAST)
    assert next(iter(plans(text, LAST))) == "pointwise_channels"


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_at_most_four_kernels(name: str) -> None:
    for layer, sizes in LAYERS.items():
        for direction in Direction:
            problems = [
                Problem(ConvSpec(n, input_size=size, **sizes), direction, layout=LAST)
                for size in SIZES[::12]
                for n in (1, 16)
            ]
            kernels = {choose(problem, Machine.named(name), Policy()).kernel_key for problem in problems}
            assert len(kernels) <= 4, f"{layer} {direction}: {sorted(kernels)}"


LARGE = [
    "n3c70o45i33x31k3x3s1p1", "n3c200o40i14x14k1x1s1p0", "n3c24o40i45x29k5x5s2p2", "n3c48o48i30x30k3x3s1p1g48",
    "n3c40o24i19x17k3x3s1p2d2g4",
]  # fmt: skip


@pytest.mark.parametrize("text", LARGE)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRADIENT])
def test_neither_batch_nor_threads_matter(text: str, direction: Direction) -> None:
    together = Problem(ConvSpec.parse(text), direction)
    x, w, _, dy = normal(together.spec)
    first = integers((dy if direction is Direction.INPUT_GRADIENT else x).shape, layout="channels_last")
    first[...] = dy if direction is Direction.INPUT_GRADIENT else x
    many, _ = convolve(together, first, w, policy=Policy(threads=2), layout="channels_last", team=2)
    alone = dataclasses.replace(together, spec=dataclasses.replace(together.spec, batch=1))
    for n in range(together.spec.batch):
        one, _ = convolve(alone, first[n : n + 1], w, policy=Policy(), layout="channels_last")
        assert same_bits(one, many[n : n + 1])


def test_prepared_calls_know_their_layout() -> None:
    spec = LAYER
    given = [packed_strides(s, LAST) for s in (spec.input_shape, spec.weight_shape, spec.output_shape)]
    problem = prepare(Problem(spec), *given, Policy()).plan.problem
    assert problem.layout == LAST
    assert Problem.parse(str(problem)) == problem and str(problem).endswith("/channels_last")
