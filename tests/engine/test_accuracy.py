"""Rounding errors stay within the bounds that plans state, and what is not finite goes where the definition sends it.

Error: ‖out − ref‖ ∕ ‖ref‖ against float64 on N(0, 1) data, in units of
u = 3e-7 · max(1, √(K ∕ 2304)) for sums of K terms.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hubel.engine import Policy, reference
from hubel.engine.plan import error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, convolve_in_every_way, normal, operands
from tests.strategies import integers, seeds, specs

LIMITS = {"strict": 2, "default": 6, "fast": 20}

CHANNELS = [  # sums over channels and taps
    "n1c512o64i7x7k3x3s1p1",
    "n1c200o32i9x9k5x5s1p2",
    "n1c512o128i14x14k1x1s1p0",
    "n1c64o64i28x28k3x3s1p1",
    "n2c16o16i32x32k3x3s1p1",
    "n1c3o32i64x64k7x7s2p3",
    "n1c128o128i28x28k3x3s1p1g128",
    "n1c512o64i150k9s1p4",
    "n1c48o32i6x12x12k3x3x3s1p1",
    "n1c512o32i20x20k3x3s2p1d2g2",
]
PIXELS = [  # sums over images and pixels
    "n16c32o32i56x56k3x3s1p1",
    "n64c4o8i64x64k3x3s1p1",
    "n1c16o16i224x224k1x1s1p0",
    "n1c8o8i300x300k3x3s1p1",
    "n256c16o24i7x7k3x3s1p1",
    "n8c8o16i20000k3s1p1",
    "n16c32o32i56x56k3x3s1p1g32",
    "n32c16o32i57x57k3x3s2p1",
    "n2c8o8i16x40x40k3x3x3s1p1",
]
LARGER = [
    "n1c512o512i28x28k3x3s1p1",
    "n1c512o512i14x14k3x3s1p1/input_gradient",
    "n1c2048o512i14x14k1x1s1p0",
    "n32c64o64i112x112k3x3s1p1/weight_gradient",
    "n256c3o32i64x64k3x3s1p1/weight_gradient",
    "n4c64o64i224x224k3x3s1p1g64/weight_gradient",
]


def exact(problem: Problem, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The result in float64, by torch, which `test_reference.py` holds against the definition."""
    spec = problem.spec
    a, b = torch.from_numpy(first).double(), torch.from_numpy(second).double()
    how = spec.stride, spec.padding, spec.dilation, False, [0] * spec.ndim, spec.groups
    if problem.direction is Direction.FORWARD:
        return torch.convolution(a, b, None if bias is None else torch.from_numpy(bias).double(), *how).numpy()
    backward = torch.ops.aten.convolution_backward
    if problem.direction is Direction.INPUT_GRADIENT:
        x = torch.empty(spec.input_shape, dtype=torch.float64)
        return backward(a, x, b, None, *how, (True, False, False))[0].numpy()
    w = torch.empty(spec.weight_shape, dtype=torch.float64)
    return backward(b, a, w, None, *how, (False, True, False))[1].numpy()


def relative(out: np.ndarray, ref: np.ndarray) -> float:
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def check(problem: Problem, level: str) -> None:
    """The error of every plan is below its own bound, and that below the level's limit."""
    u = error_unit(terms_of(problem))
    policy = Policy(level)  # type: ignore[arg-type]
    x, w, b, dy = normal(problem.spec, 5)
    first, second = (dy, w) if problem.direction is Direction.INPUT_GRADIENT else (x, w)
    if problem.direction is Direction.WEIGHT_GRADIENT:
        second = dy
    bias = b if problem.bias and problem.direction is Direction.FORWARD else None
    ref = exact(problem, first, second, bias)
    for plan, out, db in convolve_in_every_way(problem, first, second, bias, policy=policy):
        error = relative(out, ref)
        assert error <= plan.error_bound <= LIMITS[level] * u, f"{plan.algorithm}: {error / u:.2f} u"
        if db.size:
            error = relative(db, dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim))))
            assert error <= LIMITS[level] * u, f"bias gradient: {error / u:.2f} u"


@pytest.mark.parametrize("level", ["strict", "default"])
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRADIENT])
@pytest.mark.parametrize("text", CHANNELS)
def test_sums_over_channels(text: str, direction: Direction, level: str) -> None:
    check(Problem(ConvSpec.parse(text), direction, bias=direction is Direction.FORWARD), level)


@pytest.mark.parametrize("level", ["strict", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", PIXELS)
def test_sums_over_pixels(text: str, level: str) -> None:
    check(Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias=True), level)


@pytest.mark.slow
@pytest.mark.parametrize("level", LIMITS)
@pytest.mark.parametrize("text", LARGER)
def test_larger_sums(text: str, level: str) -> None:
    check(Problem.parse(text), level)


@pytest.mark.parametrize("direction", Direction)
def test_the_bound_holds_for_small_problems_too(direction: Direction) -> None:
    @settings(max_examples=30)
    @given(specs(batches=[1, 3]), seeds())
    def run(spec: ConvSpec, seed: int) -> None:
        problem = Problem(spec, direction)
        x, w, _, dy = normal(spec, seed)
        first, second = {"forward": (x, w), "input_gradient": (dy, w), "weight_gradient": (x, dy)}[direction]
        ref = exact(problem, first, second, None)
        # Few numbers may cancel: measured against what they would be without signs.
        size = np.linalg.norm(exact(problem, abs(first), abs(second), None))
        out, _ = convolve(problem, first, second)
        assert np.linalg.norm(out - ref) <= 2 * error_unit(terms_of(problem)) * size

    run()


@settings(max_examples=60)
@given(specs(batches=[1, 3], macs=100_000), seeds())
def test_gradients_are_adjoint_to_forward(spec: ConvSpec, seed: int) -> None:
    """⟨conv(x, w), dy⟩ = ⟨x, input_gradient(dy, w)⟩ = ⟨w, weight_gradient(x, dy)⟩, up to rounding."""
    x, w, _, dy = (array.astype(np.float64) for array in normal(spec, seed))
    single = normal(spec, seed)
    y, _ = convolve(Problem(spec), single[0], single[1])
    dx, _ = convolve(Problem(spec, Direction.INPUT_GRADIENT), single[3], single[1])
    dw, _ = convolve(Problem(spec, Direction.WEIGHT_GRADIENT), single[0], single[3])
    products = [np.vdot(y, dy), np.vdot(x, dx), np.vdot(w, dw)]
    scale = np.vdot(exact(Problem(spec), abs(x), abs(w), None), abs(dy))
    assert np.ptp(products) <= 1e-6 * scale


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("text", ["n1c1o3i400x400k1x1s1p0", "n2c1o3i100000k1s1p0", "n1c1o2i40x60x60k1x1x1s1p0"])
def test_bias_gradients_of_large_planes(text: str, layout: str) -> None:
    problem = Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias=True)
    x, _, _, values = normal(problem.spec, 6)
    dy = integers(values.shape, layout=layout)
    dy[...] = values
    _, db = convolve(problem, x, dy)
    ref = values.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))
    # Few sums, which may come out small: measured against the standard deviation of such sums.
    error = np.linalg.norm(db - ref) / np.sqrt(db.size * values[:, 0].size)
    assert error <= 2 * error_unit(terms_of(problem)), f"{error / error_unit(terms_of(problem)):.2f} u"


# --- what is not finite, and what is hardly there


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRADIENT])
def test_nan_and_infinity_go_where_the_definition_sends_them(direction: Direction, value: float) -> None:
    """One such number among the first operand; no output that does not read it may know of it.

    Weight gradients multiply such numbers with zeros too; where strict is asked for, `hubel.ops` hands them to torch.
    """

    @settings(max_examples=40)
    @given(specs(batches=[1, 3], macs=1500), seeds())
    def run(spec: ConvSpec, seed: int) -> None:
        problem = Problem(spec, direction)
        first, second = operands(problem, seed)
        second[second == 0] = 1  # 0 · ∞ is NaN
        first = np.ascontiguousarray(first)
        first.flat[seed % first.size] = value
        with np.errstate(invalid="ignore"):
            definition = reference.forward if direction is Direction.FORWARD else reference.input_gradient
            ref = definition(spec, first, second)
        out, _ = convolve(problem, first, second)
        np.testing.assert_array_equal(out, ref)

    run()


@pytest.mark.parametrize("direction", Direction)
def test_denormals_are_kept_under_strict_alone(direction: Direction) -> None:
    problem = Problem(ConvSpec.parse("n1c3o5i6x6k3x3s1p1"), direction)
    first, second = operands(problem, 0)
    tiny = first * np.float32(1e-41)  # ≤ 4e-41, denormal, and so are its products with small integers
    kept, _ = convolve(problem, tiny, second, policy=Policy("strict"))
    np.testing.assert_allclose(kept, exact(problem, tiny, second, None), rtol=0, atol=5e-44)
    assert kept.any()
    for level in ("default", "fast"):
        flushed, _ = convolve(problem, tiny, second, policy=Policy(level))  # type: ignore[arg-type]
        assert not flushed.any()


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRADIENT])
def test_denormal_weights_are_flushed_when_packed(direction: Direction) -> None:
    problem = Problem(ConvSpec.parse("n1c3o5i6x6k3x3s1p1"), direction)
    first, second = operands(problem, 0)
    tiny = second * np.float32(1e-41)
    large = first * np.float32(1e30)  # products would be normal numbers again
    kept, _ = convolve(problem, large, tiny, policy=Policy("strict"))
    np.testing.assert_allclose(kept, exact(problem, large, tiny, None), rtol=0, atol=1e-6 * abs(kept).max())
    assert kept.any()
    flushed, _ = convolve(problem, large, tiny, policy=Policy("default"))
    assert not flushed.any()
