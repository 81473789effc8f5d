"""On small integers, where float32 arithmetic is exact, kernels agree with the definition bit for bit.

Every problem runs among guards (`tests.engine.guards`), with every algorithm that does it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubel.engine import Policy, prepare, reference
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.definition import expected
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, convolve_in_every_way, operands
from tests.engine.machines import HERE, OTHERS
from tests.strategies import CHANNELS, KINDS, layouts, problems, seeds, specs

teams = st.sampled_from((1, 2))
output_layouts = st.sampled_from(OUTPUT_LAYOUTS)


def agrees(
    problem: Problem,
    machine: Machine,
    seed: int,
    of_inputs: tuple[str, str] = ("contiguous", "contiguous"),
    of_outputs: Sequence[str] = ("contiguous",),
    team: int = 1,
) -> None:
    """Compare every number that every plan of a problem gives with the definition."""
    first, second, *rest = operands(problem, seed, of_inputs)
    bias = rest[0] if rest else None
    ref = expected(problem, first, second, bias)
    for layout in of_outputs:
        results = convolve_in_every_way(problem, first, second, bias, machine=machine, layout=layout, team=team)
        for plan, result, db in results:
            np.testing.assert_array_equal(result, ref, f"{plan.algorithm}, {layout}")
            if db.size:
                np.testing.assert_array_equal(db, reference.bias_gradient(second))


def check(kind: str, direction: Direction, machine: Machine, examples: int) -> None:
    """Run `examples` problems of a kind with every plan there is for them."""

    @settings(max_examples=examples)
    @given(problems([direction], specs(kinds=[kind])), seeds(), layouts(), layouts(), output_layouts, teams)
    def run(problem: Problem, seed: int, of_first: str, of_second: str, of_output: str, team: int) -> None:
        agrees(problem, machine, seed, (of_first, of_second), [of_output], team)

    run()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_definition(kind: str, direction: Direction) -> None:
    check(kind, direction, HERE, 50)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("machine", OTHERS, ids=lambda machine: machine.isa)
def test_other_instruction_sets_agree_too(machine: Machine, direction: Direction) -> None:
    for kind in KINDS:
        check(kind, direction, machine, 15)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("machine", [HERE, *OTHERS], ids=lambda machine: machine.isa)
def test_agrees_with_the_definition_at_length(kind: str, direction: Direction, machine: Machine) -> None:
    check(kind, direction, machine, 500)


# What random draws meet too seldom.
HARD = [
    "n1c1o1i1k1s1p0",
    "n0c3o5i4x4k3x3s1p1",
    "n3c1o1i1x1k7x7s1p3",  # one pixel under a kernel of 49
    "n1c2o3i2x2k5x5s3p4",  # kernel larger than the input; outputs that see only padding
    "n2c3o4i7x9k3x3s2p1",  # stride 2 on odd sizes
    "n2c3o4i8x10k3x3s2p0",  # the last row and column are never read
    "n1c2o2i9x9k2x2s3p0",  # a stride larger than the kernel: pixels never read
    "n1c3o2i5x5k1x1s2p0",
    "n1c3o2i3x3k1x1s1p2",  # 1×1 with padding
    "n1c5o6i11x3k3x1s1x2p1x0d3x1",  # dimensions of a kind each
    "n2c4o6i6x6k3x3s2x1p2x3d2x1g2",
    "n3c7o7i5x6k3x3s2p1g7",
    "n2c5o15i6x5k3x2s1x2p1g5",  # depthwise with multiplier 3
    "n3c16o16i3x7k2x3s2x1p0g16",  # depthwise, a row of the input that no output reads
    "n1c2o2i3x4x5k3x2x1s1x2x2p1x1x0",
    "n2c2o3i2x3x4k2x2x2s1p1d2x1x2",
    "n1c33o17i12k3s2p4d2",
    "n1c1o1i200k1s7p0",
    "n1c17o33i1x35k1x3s1p0x1",
    "n1c64o65i2x2k2x2s1p0",
    "n1c1o1i1x300k1x2s1p0x1",  # one long row, more than a box
    "n1c1o1i40x40k3x3s1p1",  # several boxes of rows
    "n1c1o1i3x12x12k2x3x3s1p1",
    "n40c1o2i2x2k1x1s1p0",  # many images of few pixels
]  # fmt: skip


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("machine", [HERE, *OTHERS], ids=lambda machine: machine.isa)
def test_hard_shapes(text: str, direction: Direction, machine: Machine) -> None:
    problem = Problem(ConvSpec.parse(text), direction, bias=direction is not Direction.INPUT_GRADIENT)
    agrees(problem, machine, 7, of_outputs=OUTPUT_LAYOUTS)
    agrees(problem, machine, 8, ("sliced", "transposed"), team=2)
    agrees(problem, machine, 9, ("channels_last", "channels_last"), ["channels_last"], team=2)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_count_of_channels(channels: int, direction: Direction) -> None:
    """As many on one side as on the other as a tile has rows, and one more, and one less."""
    for other in (1, 6):
        for pair in ((channels, other), (other, channels)):
            problem = Problem(ConvSpec(1, *pair, (5,), 3, padding=1), direction)
            agrees(problem, HERE, 3)


@pytest.mark.parametrize("width", range(1, 80))
def test_every_width(width: int) -> None:
    """Rows of every length around one to four vectors: copies and stores at the end of a row."""
    for spec in (ConvSpec(1, 1, 1, (2, width), (1, 3), padding=(0, 1)), ConvSpec(1, 1, 1, (width,), 2, 2, padding=1)):
        for direction in Direction:
            problem = Problem(spec, direction)
            agrees(problem, HERE, width)


@given(seeds(), st.data())
@settings(max_examples=60)
def test_transposed_convolutions(seed: int, data: st.DataObject) -> None:
    """A transposed convolution is an input gradient, and written out here once more, by scattering."""
    ndim = data.draw(st.integers(1, 3))

    def axes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(ndim))

    size, kernel, stride, dilation = axes(1, 4), axes(1, 4), axes(1, 3), axes(1, 2)
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in stride)
    large = [
        (i - 1) * s + d * (k - 1) + 1 + e for i, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(data.draw(st.integers(0, min(2, (n - 1) // 2))) for n in large)
    groups = data.draw(st.sampled_from((1, 1, 2, 3)))
    C, O = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    spec = ConvSpec.for_transposed(2, C, O, size, kernel, stride, padding, extra, dilation, groups)
    problem = Problem(spec, Direction.INPUT_GRADIENT)
    x, w = operands(problem, seed)
    result, _ = convolve(problem, x, w)

    padded = np.zeros((2, O, *large))
    for n, c, *i in np.ndindex(x.shape):
        for o in range(O // groups):
            for k in np.ndindex(*kernel):
                at = [p * s + t * d for p, s, t, d in zip(i, stride, k, dilation, strict=True)]
                padded[n, c // (C // groups) * (O // groups) + o, *at] += x[n, c, *i] * w[c, o, *k]
    inside = tuple(slice(p, n - p) for p, n in zip(padding, large, strict=True))
    np.testing.assert_array_equal(result, padded[:, :, *inside])


@pytest.mark.parametrize("team", [1, 2])
def test_calls_bound_beforehand(team: int) -> None:
    """For callers that count microseconds: everything decided but the addresses."""
    problem = Problem(ConvSpec.parse("n2c3o5i9x8k3x3s1p1"), bias=True)
    x, w, b = operands(problem, 5)
    y = np.full(problem.spec.output_shape, np.nan, np.float32)
    run = prepare(problem, *(tuple(s // 4 for s in array.strides) for array in (x, w, y)), Policy())
    packed = np.empty(max(1, run.packed_bytes // 4), np.float32)
    if run.packed_bytes:
        run.pack(w.ctypes.data, packed.ctypes.data)
    call = run.prebound(team)
    for factor in (1, 2):
        first = x * np.float32(factor)
        call(first.ctypes.data, (packed if run.packed_bytes else w).ctypes.data, b.ctypes.data, y.ctypes.data)
        np.testing.assert_array_equal(y, reference.forward(problem.spec, first, w, b))
