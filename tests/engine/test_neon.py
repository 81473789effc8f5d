"""Kernels for NEON run in an emulator, through the launcher for ARM: with every algorithm, in every direction, they
agree with the definition as the kernels of this machine do.

Needs an emulator and a cross compiler: on Debian the packages qemu-user and gcc-aarch64-linux-gnu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from hubel.engine import Machine, Policy
from hubel.engine.algorithms import ALGORITHMS, winograd
from hubel.engine.choose import candidates
from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.invoke import laid_out
from hubel.engine.plan import Plan
from hubel.engine.spec import ConvSpec, Direction, Problem
from tests.engine import guards, test_exact
from tests.engine.emulated import MISSING, Emulator, Operands
from tests.engine.guards import same_bits
from tests.engine.test_accuracy import exact, relative
from tests.engine.test_storage import narrow, widen
from tests.strategies import integers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"to run ARM code here takes {', '.join(MISSING)}"),
]

MACHINE = Machine.named("neoverse-n1")
# The same code, with so little cache that small problems are cut into many blocks.
TIGHT = replace(MACHINE, l1=4096, l2=32768)
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = Direction

# All kinds of layers: dense, 1×1, strided, dilated, stems, one to three dimensions, grouped, depthwise, many images.
EXACT = [
    "n2c7o20i9x11k3x3s1p1",
    "n2c7o10i9x8k3x3s2p1",
    "n1c3o16i19x23k7x7s2p3",
    "n2c8o12i7x9k4x4s2p1",
    "n2c8o6i9x7k3x3s1p2d2",
    "n2c21o24i7x9k1x1s1p0",
    "n1c40o33i6x6k1x1s2p0",
    "n2c9o7i50k5s1p2",
    "n1c5o6i4x6x7k3x3x3s1p1",
    "n20c5o6i5x5k3x3s1p1",
    "n2c16o16i9x10k3x3s1p1g4",
    "n1c32o32i8x7k3x3s2p1g4",
    "n2c9o9i10x13k3x3s1p1g9",
    "n2c6o6i14x14k5x5s2p2g6",
    "n3c10o10i7x7k7x7s1p3g10",
    "n2c6o12i6x5k3x2s1x2p1g6",
    "n1c5o5i20x19k3x3s1p1g5",
]
# Those that have a faster algorithm whose sums are rounded.
ROUNDED = [
    "n1c12o20i9x11k3x3s1p1",
    "n1c64o48i7x7k3x3s1p1",
    "n16c12o20i7x7k3x3s1p1",
    "n1c70o18i20x31k5x5s1p1",
    "n2c4o4i20x20k31x31s1p15g4",
    "n1c3o5i24x20k13x13s1p6",
    "n1c2o2i60x20k13x11s1p6x5g2",
    "n2c16o32i28x28k1x1s1p0",
]
# Every form of Winograd's algorithm.
FORMS = [
    "n3c5o7i4x5k3x3s1p3",
    "n2c3o5i11x14k5x5s1p2",
    "n2c5o7i40k3s1p1",
    "n2c70o20i100k5s1p2",
    "n2c6o7i17x17k1x7s1p0x3",
    "n2c6o7i17x18k7x1s1p3x0",
    "n1c6o8i13x40k5x1s1p2x0g2",
    "n1c8o7i20x23k7x7s1p3",
    "n2c6o7i5x9x11k3x3x3s1p1",
    "n2c6o7i9x5x11k3x1x1s1p1x0x0",
]
# One for every algorithm that stores other numbers than float32.
EDGES = [
    "n2c7o20i9x11k3x3s1p1",
    "n2c7o10i9x8k3x3s2p1",
    "n2c21o24i7x9k1x1s1p0",
    "n20c5o6i5x5k3x3s1p1",
    "n2c16o16i9x10k3x3s1p1g4",
    "n2c9o9i10x13k3x3s1p1g9",
    "n3c10o10i7x7k7x7s1p3g10",
]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("neon"))


def laid(values: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers, laid out as `tests.strategies.LAYOUTS` says."""
    strides = tuple(s // 4 * values.itemsize for s in integers(values.shape, layout=layout).strides)
    reach = 1 + sum((n - 1) * s for s, n in zip(strides, values.shape, strict=True)) // values.itemsize
    view = as_strided(np.zeros(reach, values.dtype), values.shape, strides)
    view[...] = values
    return view


def shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Of the first and second operand and the result."""
    spec = problem.spec
    if problem.direction is FORWARD:
        return spec.input_shape, spec.weight_shape, spec.output_shape
    if problem.direction is INPUT_GRADIENT:
        return spec.output_shape, spec.weight_shape, spec.input_shape
    return spec.input_shape, spec.output_shape, spec.weight_shape


def given(problem: Problem, arrays: Sequence[np.ndarray], layout: str = "contiguous", **more: np.ndarray) -> Operands:
    """Operands of float32 numbers, stored as the problem says."""
    wide = problem.dtype == "float32"
    first, second, *bias = (
        laid(a if wide else narrow(a, problem.dtype), layout if a.ndim > 1 else "contiguous") for a in arrays
    )
    weights = problem.direction is WEIGHT_GRADIENT
    result = np.zeros(shapes(problem)[2], np.float32 if wide or weights else np.uint16)
    residual = more.pop("residual", None)
    if residual is not None:
        residual = laid(residual if wide else narrow(residual, problem.dtype), layout)
    result = laid(result, "contiguous" if weights else layout)
    return Operands(first, second, result, *bias, residual=residual, **more)


def plans(problem: Problem, operands: Operands, policy: Policy, machine: Machine = MACHINE) -> list[Plan]:
    """Every plan there is."""
    x, _, y = operands.strides(problem.direction)
    return candidates(laid_out(problem, x, y), machine, policy)[0]


def definition(problem: Problem, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """In float64: the plain loops, or, where those would take long, what is tested against them."""
    first, second, *bias = arrays
    if problem.spec.macs > 50_000:
        return exact(problem, first, second, bias[0] if bias else None)
    return test_exact.expected(problem, first, second, bias[0] if bias else None)


def problem_of(text: str, direction: Direction, **more: object) -> Problem:
    return Problem(ConvSpec.parse(text), direction, bias=direction is not INPUT_GRADIENT, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", EXACT)
def test_small_integers_agree_bit_for_bit(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    arrays = guards.operands(problem, 3)
    ref = definition(problem, arrays)
    for layout, machine in (("contiguous", MACHINE), ("channels_last", MACHINE), ("sliced", TIGHT)):
        operands = given(problem, arrays, layout)
        for plan in plans(problem, operands, Policy("strict", threads=2), machine):
            # Alone, in one range; by two threads, in two; the ranges of an item each.
            for team, parts in ((1, 1), (2, 2), (2, 1 << 40))[: 3 if layout == "contiguous" else 2]:
                result, db = emulator.run(plan, operands, team, parts)
                np.testing.assert_array_equal(result, ref, f"{plan.algorithm}, {layout}, {team} threads")
                if db.size:
                    np.testing.assert_array_equal(db, arrays[1].sum(axis=(0, *range(2, arrays[1].ndim))))


def errors_are_within_bounds(
    problem: Problem, found: Sequence[Plan], operands: Operands, arrays: Sequence[np.ndarray], emulator: Emulator
) -> None:
    ref = definition(problem, arrays)
    for plan in found:
        result, db = emulator.run(plan, operands)
        error = relative(result, ref)
        assert error <= plan.error_bound, f"{plan.algorithm}: {error:.1e}, bound {plan.error_bound:.1e}"
        if db.size:
            assert relative(db, arrays[1].astype(np.float64).sum(axis=(0, *range(2, arrays[1].ndim)))) <= 1e-6
        again, _ = emulator.run(plan, operands, 2, 2)
        assert same_bits(again, result), plan.algorithm


def normal(problem: Problem) -> list[np.ndarray]:
    x, w, b, dy = guards.normal(problem.spec, 5)
    return {FORWARD: [x, w, b], INPUT_GRADIENT: [dy, w], WEIGHT_GRADIENT: [x, dy]}[problem.direction]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", ROUNDED)
def test_errors_stay_within_the_bound(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    arrays = normal(problem)
    operands = given(problem, arrays)
    errors_are_within_bounds(problem, plans(problem, operands, Policy(threads=2)), operands, arrays, emulator)


@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRADIENT])
@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_winograd(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    arrays = normal(problem)
    found = [winograd.plan_tiles(problem, machine, Policy(threads=2)) for machine in (MACHINE, TIGHT)]
    errors_are_within_bounds(problem, found, given(problem, arrays), arrays, emulator)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", EDGES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_of_16_bits(dtype: str, text: str, direction: Direction, emulator: Emulator) -> None:
    """Sums of small integers are rounded once. Winograd's, rounded before, agree within its bound."""
    problem = problem_of(text, direction, dtype=dtype)
    arrays = guards.operands(problem, 4)
    ref = definition(problem, arrays)
    for layout in ("contiguous", "channels_last"):
        operands = given(problem, arrays, layout)
        for plan in plans(problem, operands, Policy("default"), MACHINE):
            result, _ = emulator.run(plan, operands)
            if "winograd" in plan.algorithm:
                wide = result if direction is WEIGHT_GRADIENT else widen(result, dtype)
                assert relative(wide, ref) <= plan.error_bound
            elif direction is WEIGHT_GRADIENT:
                np.testing.assert_array_equal(result, ref, plan.algorithm)
            else:
                np.testing.assert_array_equal(result, narrow(ref.astype(np.float32), dtype), plan.algorithm)


def finished(epilogue: Epilogue, sums: np.ndarray, operands: dict[str, np.ndarray]) -> np.ndarray:
    """What an epilogue makes of sums, in float64."""
    channels = (-1, *[1] * (sums.ndim - 2))
    if epilogue.scale:
        sums = sums * operands["scale"].reshape(channels) + operands["shift"].reshape(channels)
    if epilogue.residual:
        sums = sums + operands["residual"]
    x = sums.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-x))
    cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return {
        "": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "leaky_relu": lambda: np.where(x < 0, epilogue.slope * x, x),
        "silu": lambda: x * sigmoid,
        "hardswish": lambda: x * np.clip(x + 3, 0, 6) / 6,
        "gelu": lambda: x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2,
        "gelu_tanh": lambda: x * (1 + np.tanh(cubic)) / 2,
        "sigmoid": lambda: sigmoid,
        "tanh": lambda: np.tanh(x),
    }[epilogue.activation]()


def check_epilogue(problem: Problem, emulator: Emulator, layout: str = "contiguous") -> None:
    """Small numbers, so that every part of an activation is met; what is left to rounding is a few last places."""
    epilogue, channels = problem.epilogue, problem.spec.out_channels
    assert epilogue
    if problem.direction is INPUT_GRADIENT:
        channels = problem.spec.in_channels
    arrays = guards.operands(replace(problem, epilogue=None), 6)
    arrays[0] = arrays[0] / 8
    draw = np.random.default_rng(7)
    more = {}
    if epilogue.scale:
        more["scale"], more["shift"] = (draw.integers(-4, 5, channels).astype(np.float32) / 4 for _ in range(2))
    if epilogue.residual:
        more["residual"] = draw.integers(-4, 5, shapes(problem)[2]).astype(np.float32)
    ref = finished(epilogue, definition(replace(problem, epilogue=None), arrays), more)
    operands = given(problem, arrays, layout, **dict(more))
    for plan in plans(problem, operands, Policy("default")):
        result, _ = emulator.run(plan, operands, 2, 2)
        wide = result if problem.dtype == "float32" else widen(result, problem.dtype)
        assert relative(wide, ref) <= plan.error_bound + 1e-6, f"{plan.algorithm}: {relative(wide, ref):.1e}"


@pytest.mark.parametrize("epilogue", ["scale+residual+relu6", "residual+leaky_relu0.25", "silu"])
@pytest.mark.parametrize("text", EDGES)
def test_epilogues(text: str, epilogue: str, emulator: Emulator) -> None:
    for dtype in ("float32", "bfloat16"):
        check_epilogue(problem_of(text, FORWARD, dtype=dtype, epilogue=Epilogue.parse(epilogue)), emulator)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_epilogues_of_input_gradients_and_layouts(layout: str, emulator: Emulator) -> None:
    epilogue = Epilogue.parse("scale+residual+relu")
    for text in EDGES:
        for direction in (FORWARD, INPUT_GRADIENT):
            check_epilogue(problem_of(text, direction, epilogue=epilogue), emulator, layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, emulator: Emulator) -> None:
    check_epilogue(problem_of("n2c5o7i6x7k1x1s1p0", FORWARD, epilogue=Epilogue(activation=activation)), emulator)


@pytest.mark.parametrize("control", [0, 1 << 24], ids=["kept by the caller", "flushed by the caller"])
@pytest.mark.parametrize("team", [1, 2])
def test_denormals_are_kept_under_strict_alone(team: int, control: int, emulator: Emulator) -> None:
    """The launcher sets FPCR on every thread, to the caller's and flushing where asked; `emulated.c` sees that it is
    restored. What the caller flushes stays so.
    """
    problem = problem_of("n2c3o5i6x6k3x3s1p1", INPUT_GRADIENT)
    arrays = guards.operands(problem, 0)
    arrays[0] = arrays[0] * np.float32(1e-41)
    operands = given(problem, arrays)
    for level in ("strict", "default"):
        for plan in plans(problem, operands, Policy(level)):  # type: ignore[arg-type]
            result, _ = emulator.run(plan, operands, team, 2, control)
            assert result.any() == (level == "strict" and not control)
            if result.any():
                np.testing.assert_allclose(result, definition(problem, arrays), rtol=0, atol=5e-44)


def test_every_algorithm_is_run() -> None:
    """With the lists above: whoever adds an algorithm adds a layer for it."""
    seen = set()
    for texts, level in ((EXACT, "strict"), (ROUNDED, "default")):
        for text in texts:
            for direction in Direction:
                problem = problem_of(text, direction)
                seen |= {plan.algorithm for plan in candidates(problem, MACHINE, Policy(level))[0]}  # type: ignore[arg-type]
    assert seen == set(ALGORITHMS)


def test_the_emulator_sees_what_it_should_refuse(emulator: Emulator) -> None:
    """A plan for more images than there is room for writes beside the result."""
    one, two = (problem_of(f"n{n}c3o4i6x6k3x3s1p1", FORWARD) for n in (1, 2))
    first, *others = guards.operands(one, 3)
    operands = replace(given(one, [first, *others]), first=np.broadcast_to(first, shapes(two)[0]))
    (plan, *_) = plans(two, operands, Policy("strict"))
    with pytest.raises(AssertionError, match="written beside result"):
        emulator.run(plan, operands)
