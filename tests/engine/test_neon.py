"""Kernels for NEON run in an emulator, through the launcher for ARM: with every algorithm, in every direction, they
agree with the definition as the kernels of this machine do.

Needs an emulator and a cross compiler: on Debian the packages qemu-user and gcc-aarch64-linux-gnu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hubel.engine import Machine, Policy
from hubel.engine.algorithms import ALGORITHMS, winograd
from hubel.engine.choose import candidates
from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.invoke import laid_out
from hubel.engine.plan import Plan
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine import guards, test_edges, test_exact
from tests.engine.emulated import MISSING, Emulator
from tests.engine.guards import same_bits
from tests.engine.stored import rounded
from tests.engine.test_accuracy import exact, relative

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


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("neon"))


def problem_of(text: str, direction: Direction, **more: object) -> Problem:
    return Problem(ConvSpec.parse(text), direction, bias=direction is not INPUT_GRADIENT, **more)  # type: ignore[arg-type]


def definition(problem: Problem, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """In float64: the plain loops, or, where those would take long, what is tested against them."""
    first, second, *bias = arrays
    if problem.spec.macs > 50_000:
        return exact(problem, first, second, bias[0] if bias else None)
    return test_exact.expected(problem, first, second, bias[0] if bias else None)


def bias_gradient(dy: np.ndarray) -> np.ndarray:
    return dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))


def normal(problem: Problem) -> list[np.ndarray]:
    x, w, b, dy = guards.normal(problem.spec, 5)
    return {FORWARD: [x, w, b], INPUT_GRADIENT: [dy, w], WEIGHT_GRADIENT: [x, dy]}[problem.direction]


def plans(
    problem: Problem, arrays: Sequence[np.ndarray], layout: str, policy: Policy, machine: Machine = MACHINE
) -> list[Plan]:
    """Every plan there is for these tensors, and a result with this layout."""
    first, second = (tuple(s // 4 for s in array.strides) for array in arrays[:2])
    x, _, y = guards._by_position(problem, first, second, guards._result(problem, layout).strides)
    return candidates(laid_out(problem, x, y), machine, policy)[0]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", EXACT)
def test_small_integers_agree_bit_for_bit(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    ref = definition(problem, guards.operands(problem, 3))
    # Alone, in one range; by two threads, in two; in ranges of an item.
    ways = (("contiguous", MACHINE, 1, 1), ("channels_last", MACHINE, 2, 2), ("sliced", TIGHT, 2, 10**9))
    for layout, machine, team, parts in ways:
        arrays = guards.operands(problem, 3, (layout, layout))
        for plan in plans(problem, arrays, layout, Policy("strict", threads=2), machine):
            result, db = emulator.run(plan, *arrays, layout=layout, team=team, parts=parts)
            np.testing.assert_array_equal(result, ref, f"{plan.algorithm}, {layout}")
            if db.size:
                np.testing.assert_array_equal(db, bias_gradient(arrays[1]), f"{plan.algorithm}, {layout}")


def errors_are_within_bounds(problem: Problem, found: Sequence[Plan], emulator: Emulator) -> None:
    arrays = normal(problem)
    ref = definition(problem, arrays)
    for plan in found:
        result, db = emulator.run(plan, *arrays)
        error = relative(result, ref)
        assert error <= plan.error_bound, f"{plan.algorithm}: {error:.1e}, bound {plan.error_bound:.1e}"
        if db.size:
            assert relative(db, bias_gradient(arrays[1])) <= 1e-6, plan.algorithm
        again, _ = emulator.run(plan, *arrays, team=2, parts=2)
        assert same_bits(again, result), plan.algorithm


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", ROUNDED)
def test_errors_stay_within_the_bound(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    errors_are_within_bounds(problem, plans(problem, normal(problem), "contiguous", Policy(threads=2)), emulator)


@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRADIENT])
@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_winograd(text: str, direction: Direction, emulator: Emulator) -> None:
    problem = problem_of(text, direction)
    found = [winograd.plan_tiles(problem, machine, Policy(threads=2)) for machine in (MACHINE, TIGHT)]
    errors_are_within_bounds(problem, found, emulator)


@pytest.mark.parametrize("text", test_edges.LAYERS)
@pytest.mark.parametrize(
    "direction, dtype, epilogue",
    [
        (FORWARD, "float32", test_edges.EXACT[1]),
        (FORWARD, "bfloat16", test_edges.EXACT[3]),
        (FORWARD, "float16", test_edges.EXACT[1]),
        (INPUT_GRADIENT, "bfloat16", None),
        (INPUT_GRADIENT, "float16", test_edges.EXACT[3]),
        (WEIGHT_GRADIENT, "bfloat16", None),
        (WEIGHT_GRADIENT, "float16", None),
    ],
    ids=str,
)
def test_storage_and_epilogues(
    text: str, direction: Direction, dtype: str, epilogue: Epilogue | None, emulator: Emulator
) -> None:
    """Exact, and rounded once."""
    problem = problem_of(text, direction, dtype=dtype, epilogue=epilogue)
    for layout in ("contiguous", "channels_last"):
        arrays = guards.operands(problem, 4, (layout, "contiguous"))
        sums = test_edges.followed(problem, definition(problem, arrays)).astype(np.float32)
        ref = sums if direction is WEIGHT_GRADIENT else rounded(sums, dtype)
        for plan in plans(problem, arrays, layout, Policy("strict", threads=2)):
            result, _ = emulator.run(plan, *arrays, layout=layout, team=2, parts=2)
            np.testing.assert_array_equal(result, ref, f"{plan.algorithm}, {layout}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, dtype: str, emulator: Emulator) -> None:
    """After every algorithm that a dense layer has, of numbers of which few are large."""
    epilogue = Epilogue(scale=True, activation=activation, slope=0.1)
    problem = problem_of("n1c12o20i9x11k3x3s1p1", FORWARD, dtype=dtype, epilogue=epilogue)
    first, second, bias = (rounded(a, dtype) for a in normal(problem))
    arrays = [first, rounded(second / 8, dtype), bias]
    ref = test_edges.followed(problem, definition(problem, arrays))
    for plan in plans(problem, arrays, "contiguous", Policy()):
        result, _ = emulator.run(plan, *arrays)
        assert relative(result, ref) <= 2 * plan.error_bound, f"{plan.algorithm}: {relative(result, ref):.1e}"


@pytest.mark.parametrize("control", [0, 1 << 24], ids=["kept by the caller", "flushed by the caller"])
@pytest.mark.parametrize("team", [1, 2])
def test_denormals_are_kept_under_strict_alone(team: int, control: int, emulator: Emulator) -> None:
    """The launcher sets FPCR on every thread to the caller's, and flushes where asked; `emulated.c` sees that it is
    restored. What the caller flushes stays flushed.
    """
    problem = problem_of("n2c3o5i6x6k3x3s1p1", INPUT_GRADIENT)
    dy, w = guards.operands(problem, 0)
    arrays = [dy * np.float32(1e-41), w]
    for level in ("strict", "default"):
        for plan in plans(problem, arrays, "contiguous", Policy(level)):  # type: ignore[arg-type]
            result, _ = emulator.run(plan, *arrays, team=team, parts=2, control=control)
            assert result.any() == (level == "strict" and not control), plan.algorithm
            if result.any():
                np.testing.assert_allclose(result, definition(problem, arrays), rtol=0, atol=5e-44)


def test_every_algorithm_is_run() -> None:
    """By the lists above: whoever adds an algorithm adds a layer for it."""
    seen = set()
    for texts, policy in ((EXACT, Policy("strict", threads=2)), (ROUNDED, Policy(threads=2))):
        for text, direction in product(texts, Direction):
            problem = problem_of(text, direction)
            for layout in ("contiguous", "channels_last") if texts is EXACT else ("contiguous",):
                arrays = guards.operands(problem, 3, (layout, layout))
                seen |= {plan.algorithm for plan in plans(problem, arrays, layout, policy)}
    assert seen == set(ALGORITHMS)


def test_the_emulator_sees_what_it_should_refuse(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that there is no room for is written beside the result."""
    problem = problem_of("n2c3o4i6x6k3x3s1p1", FORWARD)
    arrays = guards.operands(problem, 3)
    (plan, *_) = plans(problem, arrays, "contiguous", Policy("strict"))
    monkeypatch.setattr(guards, "_result", lambda problem, layout: guards.output((1, *problem.spec.output_shape[1:])))
    with pytest.raises(AssertionError, match="written beside the result"):
        emulator.run(plan, *arrays)
