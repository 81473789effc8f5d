"""Winograd: the matrices are exact, F(2, 3) agrees bit for bit on small integers, every form within its bound; and
when it declines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from hubel.engine import Invocation, Policy, choose
from hubel.engine.algorithms import winograd, winograd_tiling
from hubel.engine.algorithms.geometry import one_image
from hubel.engine.algorithms.winograd_forms import ERRORS, LIMITS, WITH_STRIDE, forms, forms_of
from hubel.engine.algorithms.winograd_transforms import Matrix, cook_toom, interleaved, strided, transforms
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal, error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.definition import by_torch
from tests.engine.guards import Guarded, guarded_scratch, normal, operands, output, packed, same_bits
from tests.engine.machines import MACHINES

BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# Tiles that hang over the border, fewer tiles than lanes, rows of tiles longer than a vector, several blocks, groups,
# paddings 0 to 4.
SPECS = [
    "n1c1o1i3x3k3x3s1p0",
    "n1c1o1i1x1k3x3s1p1",
    "n2c3o5i9x11k3x3s1p1",
    "n3c5o7i4x5k3x3s1p3",
    "n1c2o2i2x200k3x3s1p1x4",
    "n2c6o8i70x9k3x3s1p1x2",
    "n3c24o18i12x13k3x3s1p1g3",
    "n1c70o35i20x31k3x3s1p0",
    "n5c9o16i7x7k3x3s1p1",
    "n2c40o24i33x30k3x3s1p2",
]
# The other kernel sizes: rows or columns alone, one to three dimensions, taps of a third axis, planes in several
# groups.
OTHERS = [
    "n2c3o5i11x14k5x5s1p2",
    "n1c70o18i20x31k5x5s1p1",
    "n2c5o7i40k3s1p1",
    "n2c70o20i100k5s1p2",
    "n3c20o20i400k7s1p3",
    "n2c6o7i17x17k1x7s1p0x3",
    "n2c70o7i17x18k7x1s1p3x0",
    "n3c6o7i8x8k1x3s1p0x1",
    "n1c6o7i8x8k3x1s1p4x0",
    "n1c6o8i13x40k5x1s1p2x0g2",
    "n1c8o7i20x23k7x7s1p3",
    "n2c6o7i5x9x11k3x3x3s1p1",
    "n1c70o15i8x28x28k3x3x3s1p1",
    "n1c6o8i4x5x6k3x3x3s1p0x2x3g2",
    "n2c6o7i5x9x11k1x3x3s1p0x1x1",
    "n2c6o7i9x5x11k3x1x1s1p1x0x0",
    "n1c3o4i3x7x9k3x5x5s1p1x2x2",
]
# Stride 2, where the kernel has more than one tap: gradients of both remainders, inputs that end with either, borders.
STRIDED = [
    "n1c1o1i3x3k3x3s2p1",
    "n1c1o1i1x1k3x3s2p1",
    "n2c3o5i9x11k3x3s2p0",
    "n3c5o7i4x5k3x3s2p3",
    "n1c6o8i70x9k3x3s2p1x2",
    "n3c24o18i12x13k3x3s2p1g3",
    "n1c70o35i20x31k3x3s2p1",
    "n2c40o24i33x150k3x3s2p0x1",
    "n2c5o7i8x9k4x4s2p1",
    "n1c70o18i20x31k4x4s2p0",
    "n2c20o20i13x40k4x4s2p2x1",
    "n2c20o18i13x14k5x5s2p2",
    "n1c6o7i14x13k5x5s2p1x0",
    "n2c5o7i40k3s2p1",
    "n2c70o20i101k4s2p1",
    "n3c20o20i400k5s2p2",
    "n2c6o7i9x40k1x3s1x2p0x1",
    "n2c6o7i4x9x11k3x3x3s1x2x2p1",
]
# The third axis with stride 2, which has a forward form alone: taps of one to five planes, several groups of planes.
VOLUMES = [
    "n2c6o7i5x9x11k3x3x3s2p1",
    "n1c70o15i16x28x28k3x3x3s2p1",
    "n1c6o8i9x5x6k4x3x3s2p0x2x3g2",
    "n2c20o18i9x13x14k5x3x3s2p4x1x1",
    "n2c6o7i6x9x11k1x3x3s2p0x1x1",
]
# Those whose small form is F(2, 3), or made of F(2, 2) and F(2, 1).
EXACT = [*SPECS, *(text for text in OTHERS if re.search(r"k(?:[13]x)*[13]s", text)), *STRIDED]
# With the directions that they have.
EXACT_EITHER_WAY = [*product(EXACT, BOTH), *product(VOLUMES, BOTH[:1])]
EITHER_WAY = [*product([*SPECS, *OTHERS, *STRIDED], BOTH), *product(VOLUMES, BOTH[:1])]


@pytest.fixture(params=[-1, 0], ids=["small", "large"])
def which(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The smaller or the larger form of a kernel size only."""
    winograd_tiling.cut.cache_clear()
    monkeypatch.setattr(winograd_tiling, "allowed", lambda problem, _: (forms_of(problem)[request.param],))
    yield request.param
    winograd_tiling.cut.cache_clear()


def problem(text: str, direction: Direction = Direction.FORWARD, bias: bool = False) -> Problem:
    return Problem(ConvSpec.parse(text), direction, bias)


def run(
    problem: Problem,
    first: np.ndarray,
    second: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    policy: Policy = Policy(),  # noqa: B008
    machine: Machine | None = None,
    layout: str = "contiguous",
    team: int = 1,
) -> np.ndarray:
    """The result of Winograd's algorithm among guards, whether it pays or not."""
    plan = winograd.plan_tiles(problem, machine or Machine.detect(), policy)
    forward = problem.direction is Direction.FORWARD
    a, w = Guarded(first), Guarded(second)
    result = output(problem.spec.output_shape if forward else problem.spec.input_shape, layout)
    x, y = (a, result) if forward else (result, a)
    native = Invocation(plan, x.strides, w.strides, y.strides)
    vector = Guarded(bias) if bias is not None else None
    with guarded_scratch():
        ready = packed(native, w, team)
        assert ready is not None
        native(a.address, ready.address, vector.address if vector else 0, result.address, team)
    for name, tensor in (("first operand", a), ("weights", w), ("packed weights", ready), ("bias", vector)):
        if tensor:
            tensor.assert_untouched(name)
    return result.take("result")


# --- the matrices ---


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((c * v for c, v in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


KNOWN = [(1, 1), (2, 3), (4, 3), (2, 5), (4, 5), (2, 7), (4, 7)]


@pytest.mark.parametrize(("outputs", "taps"), [*KNOWN, (6, 3), (3, 2), (1, 3)])
def test_transforms_compute_the_convolution_exactly(outputs: int, taps: int) -> None:
    points = tuple(Fraction(p, 7) for p in range(-1, outputs + taps - 3))
    t = transforms(outputs, taps) if (outputs, taps) in KNOWN else cook_toom(points, outputs, taps)
    assert len(t.inputs) == len(t.filters) == t.size == outputs + taps - 1
    draw = np.random.default_rng(0)
    d, g = ([Fraction(int(v)) for v in draw.integers(-9, 10, n)] for n in (t.size, taps))
    y = times(t.results, [u * v for u, v in zip(times(t.filters, g), times(t.inputs, d), strict=True)])
    assert y == [sum(d[i + k] * g[k] for k in range(taps)) for i in range(outputs)]


@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_transforms_with_stride_2_compute_the_convolution_exactly(outputs: int, taps: int) -> None:
    t = strided(outputs, taps)
    assert t.size == t.read == 2 * outputs + taps - 2
    assert t.direct == outputs * taps and (t.size < t.direct or taps == 2)
    draw = np.random.default_rng(1)
    d, g = ([Fraction(int(v)) for v in draw.integers(-9, 10, n)] for n in (t.read, taps))
    y = times(t.results, [u * v for u, v in zip(times(t.filters, g), times(t.inputs, d), strict=True)])
    assert y == [sum(d[2 * i + k] * g[k] for k in range(taps)) for i in range(outputs)]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_interleaved_transforms_compute_the_transpose_exactly(outputs: int, taps: int, padding: int) -> None:
    """Of a long row of gradients, beginning so far right that the first output meets what lies before it."""
    t, before = interleaved(outputs, taps, padding), taps
    draw = np.random.default_rng(2)
    d, g = ([Fraction(int(v)) for v in draw.integers(-9, 10, n)] for n in (t.read, taps))
    shifts = [((tap - padding) % 2 + padding - tap) // 2 for tap in range(taps)]
    wide = [Fraction(0)] * (2 * (before + t.read) + taps)
    for i, value in enumerate(d):
        for tap in range(taps):
            wide[2 * (before + i + min(shifts)) + tap - padding] += value * g[tap]
    in_order = [tap for _, tap in sorted(zip(shifts, range(taps), strict=True))]
    products = zip(times(t.filters, [g[tap] for tap in in_order]), times(t.inputs, d), strict=True)
    assert times(t.results, [u * v for u, v in products]) == wide[2 * before : 2 * (before + outputs)]
    assert t.size == 2 * outputs + taps - 2 < t.direct == outputs * taps or taps == 2


def test_points_must_differ() -> None:
    with pytest.raises(ValueError, match="needs 3 distinct points"):
        cook_toom((Fraction(0), Fraction(1), Fraction(1)), 2, 3)


def test_f2_keeps_small_integers_exact() -> None:
    """No entry needs more than one bit behind the point."""
    t = transforms(2, 3)
    entries = {abs(c) for c in (c for m in (t.inputs, t.filters, t.results) for row in m for c in row)}
    assert entries == {0, 1, Fraction(1, 2)}


# --- the kernels ---


@pytest.mark.parametrize("which", [-1], indirect=True)
@pytest.mark.parametrize(("text", "direction"), EXACT_EITHER_WAY)
def test_f2_on_small_integers_is_exact(which: int, text: str, direction: Direction) -> None:
    asked = problem(text, direction, direction is Direction.FORWARD)
    given = operands(asked, 3)
    expected = by_torch(asked, *given)
    for team, machine in product((1, 2), MACHINES):
        result = run(asked, *given, policy=Policy(threads=team), machine=machine, team=team)
        assert np.array_equal(result, expected), f"{team} threads, {machine}"


@pytest.mark.parametrize(("text", "direction"), EITHER_WAY)
def test_errors_are_within_the_bound(which: int, text: str, direction: Direction) -> None:
    asked = problem(text, direction)
    x, w, _, dy = normal(asked.spec, 1)
    first = x if direction is Direction.FORWARD else dy
    expected = by_torch(asked, first, w)
    for machine in MACHINES:
        error = np.linalg.norm(run(asked, first, w, machine=machine) - expected)
        plan = winograd.plan_tiles(asked, machine, Policy())
        assert error <= plan.error_bound * float(np.linalg.norm(expected))
        assert plan.error_bound <= LIMITS["default"] * error_unit(terms_of(asked))


LONG = [
    "n1c256o64i14x14k3x3s1p1",
    "n1c512o32i12x12k3x3s1p1",
    "n1c1024o16i8x8k3x3s1p1",
    "n1c92o32i24x24k5x5s1p2",
    "n1c512o16i12x12k5x5s1p2",
    "n1c47o32i24x24k7x7s1p3",
    "n1c768o32i200k3s1p1",
    "n1c460o32i200k5s1p2",
    "n1c328o32i200k7s1p3",
    "n1c192o32i17x17k7x1s1p3x0",
    "n1c85o32i6x16x16k3x3x3s1p1",
    "n1c256o64i28x28k3x3s2p1",
    "n1c144o64i28x28k4x4s2p1",
    "n1c92o32i48x48k5x5s2p2",
    "n1c768o32i400k3s2p1",
    "n1c576o32i400k4s2p1",
    "n1c460o32i400k5s2p2",
]


@pytest.mark.parametrize("text", LONG)
def test_errors_of_long_sums(which: int, text: str) -> None:
    """Where the accuracy level leaves the least room, about 2304 terms: on N(0, 1), and on what a ReLU leaves."""
    asked = problem(text)
    x, w, _, _ = normal(asked.spec, 2)
    for image in (x, np.maximum(x, 0)):
        expected = by_torch(asked, image, w)
        error = np.linalg.norm(run(asked, image, w) - expected) / np.linalg.norm(expected)
        assert error <= winograd.plan_tiles(asked, Machine.detect(), Policy()).error_bound


def test_every_form_states_its_error() -> None:
    sizes = [(k,) for k in (3, 5, 7)] + [(k, k) for k in (3, 5, 7)] + [(1, k) for k in (3, 5, 7)]
    made = [form for size in sizes for form in forms(size)]
    for rows, cols in WITH_STRIDE:
        size, stride = (rows, cols), (1 if rows == 1 else 2, 2)
        made += [form for padding in (None, (0, 0), (1, 1)) for form in forms(size, stride, padding)]
    found = {tuple(sorted((form.rows.longest, form.cols.longest))) for form in made}
    assert found == set(ERRORS)
    assert len({str(form) for form in made}) == len({(form.rows, form.cols) for form in made}), "names tell them apart"
    assert all(error <= LIMITS["default"] for error in ERRORS.values())
    assert not forms((2, 2)) and not forms((1, 1)) and not forms((31, 31))


# --- the same bits ---

BATCHES = [
    "n3c70o45i33x31k3x3s1p1",
    "n3c24o18i12x13k3x3s1p1g3",
    "n3c130o24i5x7k3x3s1p1",
    "n3c30o40i13x14k5x5s1p2",
    "n3c70o20i150k7s1p3",
    "n3c20o24i6x12x11k3x3x3s1p1",
    "n3c70o45i33x31k3x3s2p1",
    "n3c24o18i12x13k4x4s2p1g3",
    "n3c70o20i150k3s2p1",
]


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", BATCHES)
def test_neither_threads_nor_batch_nor_layout_matter(which: int, text: str, direction: Direction) -> None:
    asked = problem(text, direction, direction is Direction.FORWARD)
    x, w, b, dy = normal(asked.spec, 4)
    first, bias = (x, b) if direction is Direction.FORWARD else (dy, None)
    one = run(asked, first, w, bias)
    for threads in (2, 5, 16):
        assert same_bits(one, run(asked, first, w, bias, policy=Policy(threads=threads), team=2)), f"{threads} threads"
    alone = one_image(asked)
    for n in range(asked.spec.batch):
        assert same_bits(one[n : n + 1], run(alone, first[n : n + 1], w, bias)), f"image {n}"
    flipped = np.moveaxis(np.ascontiguousarray(np.moveaxis(first, 1, -1)), -1, 1)
    turned = np.ascontiguousarray(w.T).T
    for layout in ("channels_last", "transposed", "sliced"):
        assert same_bits(one, run(asked, flipped, turned, bias, layout=layout)), layout


@pytest.mark.parametrize("text", [*SPECS, *BATCHES])
def test_the_choice_does_not_depend_on_batch_or_threads(text: str) -> None:
    """Whether it is proposed, the size of its tiles, and the blocks of its sums."""
    machine, spec = Machine.named("skylake-avx512"), ConvSpec.parse(text)
    for direction in BOTH:
        kinds = set()
        for batch, threads in product((1, 3, 64), (1, 2, 16)):
            answer = winograd.propose(Problem(replace(spec, batch=batch), direction), machine, Policy(threads=threads))
            kinds.add((answer.box, answer.channel_block) if isinstance(answer, Plan) else answer)
        assert len(kinds) == 1


# --- plans ---


def test_it_declines_with_a_reason() -> None:
    machine, layer = Machine.named("haswell"), problem("n1c64o64i56x56k3x3s1p1")
    assert isinstance(winograd.propose(layer, machine, Policy()), Plan)
    cases = {
        "strict allows direct algorithms only": (layer, Policy("strict")),
        "sums over pixels": (replace(layer, direction=Direction.WEIGHT_GRADIENT), Policy()),
        "strides 1 and 2, and dilation 1": (problem("n1c64o64i56x56k3x3s3p1"), Policy()),
        "kernels of 7×7 with stride 2×2 have no form": (problem("n1c64o64i56x56k7x7s2p3"), Policy()),
        "kernels of 3×3×3 with stride 2×2×2 have no form": (
            problem("n1c64o64i8x56x56k3x3x3s2p1", Direction.INPUT_GRADIENT),
            Policy(),
        ),
        "kernels of 3×3 with stride 1×2 have no form": (problem("n1c64o64i56x56k3x3s1x2p1"), Policy()),
        "with fewer than 16": (problem("n1c3o64i56x56k3x3s2p1"), Policy()),
        "kernels of 2×2 have no form": (problem("n1c64o64i56x56k2x2s1p0"), Policy()),
        "fewer than 16 channels": (problem("n1c64o8i56x56k5x5s1p2"), Policy()),
        "no outputs": (problem("n0c64o64i8x8k3x3s1p1"), Policy()),
    }
    for reason, (asked, policy) in cases.items():
        answer = winograd.propose(asked, machine, policy)
        assert isinstance(answer, Refusal) and reason in answer.reason
    dilated = winograd.propose(problem("n1c64o64i56x56k3x3s1p2d2"), machine, Policy())
    assert isinstance(dilated, Refusal)
    assert choose(problem("n1c64o64i1x1k3x3s1p1"), machine, Policy()).algorithm != "winograd", "one pixel: too small"


@pytest.mark.parametrize("kernel", ["3x3s1", "5x5s1", "7x7s1", "7x1s1", "3x3s2", "4x4s2"])
@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_few_kernels_serve_all_image_sizes(name: str, kernel: str) -> None:
    machine, spec = Machine.named(name), ConvSpec.parse(f"n1c64o64i56x56k{kernel}p3")
    kernels, estimates = set(), []
    for size in (*range(1, 60), 112, 224):
        for batch in (1, 16):
            sized = Problem(replace(spec, batch=batch, input_size=(size, size)))
            plan = winograd.plan_tiles(sized, machine, Policy())
            kernels |= set(plan.kernels)
            estimates.append(plan.estimate)
    assert len(kernels) <= 4
    assert all(e.computed > 0 and e.bytes > 4 * spec.parameters for e in estimates)


def test_one_infinity_stays_in_its_tiles(which: int) -> None:
    """It reaches only outputs of tiles that read it: at most n − 1 = m + 1 pixels away."""
    asked = problem("n1c4o3i40x40k3x3s1p1")
    x, w, _, _ = normal(asked.spec, 6)
    clean = run(asked, x, w)
    m = forms((3, 3))[which].outputs[0]
    assert f"spreads over tiles of {m}×{m} outputs" in winograd.plan_tiles(asked, Machine.detect(), Policy()).reason
    x[0, 1, 17, 22] = np.inf
    far = np.ones((40, 40), bool)
    far[17 - m - 1 : 17 + m + 2, 22 - m - 1 : 22 + m + 2] = False
    result = run(asked, x, w)
    assert not np.isfinite(result[0, :, 16:19, 21:24]).any()
    assert same_bits(result[:, :, far], clean[:, :, far])


@pytest.mark.parametrize("direction", BOTH)
def test_with_stride_2_one_infinity_reaches_as_many_outputs_as_a_tile_has(which: int, direction: Direction) -> None:
    """Twice as many pixels where a tile has m outputs of each remainder."""
    asked = problem("n1c4o4i40x40k3x3s2p1", direction)
    x, w, _, dy = normal(asked.spec, 6)
    first = x if direction is Direction.FORWARD else dy
    clean = run(asked, first, w)
    reach = forms_of(asked)[which].outputs[0]
    first[0, 1, 9, 12] = np.inf
    result = run(asked, first, w)
    changed = (result != clean) | ~np.isfinite(result)
    for axis in (2, 3):
        places = np.flatnonzero(changed.any(axis=tuple({0, 1, 2, 3} - {axis})))
        assert 1 <= len(places) and places.max() - places.min() < reach
