"""Fourier transforms along columns: the networks themselves, and convolutions with large kernels made of them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from hubel.engine import Direction, Policy, choose, kernel_text
from hubel.engine.algorithms import fft, fft_weight_gradient
from hubel.engine.algorithms.fft_kernels import restore_function, transform_function
from hubel.engine.algorithms.fft_products import tiles_of
from hubel.engine.choose import STORED_ERRORS
from hubel.engine.epilogue import Epilogue
from hubel.engine.ir.fourier import FIRST, operations
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal, error_unit, terms_of
from hubel.engine.problem import Problem
from hubel.engine.spec import ConvSpec
from tests.engine.calls import LANES, native
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, normal, same_bits
from tests.engine.guards import operands as operands_of
from tests.engine.machines import HERE, MACHINES
from tests.engine.stored import rounded
from tests.engine.test_accuracy import exact, relative
from tests.engine.test_edges import EXACT, followed
from tests.engine.test_generated_code import SPILL, UNFUSED, arithmetic_loops, multiply_adds
from tests.strategies import integers

BOTH = (Direction.FORWARD, Direction.INPUT_GRADIENT)
# One band and several; kernels larger than the plane; little padding, and much; rows of one vector, and odd ones;
# several outputs a channel; dense layers; wide kernels and tall ones.
PROBLEMS = [
    "n2c3o3i14x14k31x31s1p15g3",
    "n1c5o5i28x28k31x31s1p15g5",
    "n1c3o3i56x56k31x31s1p15g3",
    "n2c4o4i32x32k9x9s1p4g4",
    "n1c3o3i150x19k13x13s1p6g3",
    "n1c3o3i40x40k13x13s1p0g3",
    "n1c2o2i25x33k13x9s1p12x8g2",
    "n1c3o3i56x20k51x5s1p25x2g3",
    "n1c2o2i20x60k7x51s1p3x25g2",
    "n1c2o6i21x21k11x11s1p5g2",
    "n2c3o5i30x30k11x11s1p5",
    "n1c4o6i80x50k13x7s1p6x3g2",
    "n2c2o2i9x17k7x9s1p3x4g2",
]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s // 4 for s in np.empty(shape, np.float32).strides)


def planned(problem: Problem, machine: Machine = HERE, threads: int = 1) -> Plan:
    module = fft_weight_gradient if problem.direction is Direction.WEIGHT_GRADIENT else fft
    plan = module.propose(problem, machine, Policy(threads=threads))
    assert isinstance(plan, Plan), plan
    return plan


def operands(problem: Problem, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    x, w, b, dy = normal(problem.spec, seed)
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return x, dy, None
    return (x, w, b if problem.bias else None) if problem.direction is Direction.FORWARD else (dy, w, None)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("length", FIRST)
def test_transforms(length: int, lanes: int) -> None:
    """Forwards as numpy's; backwards, the frequencies weighted, what it was."""
    x = normal(ConvSpec(1, 1, length, (lanes,), 1), 1)[3][0]
    between, made, back = np.full((3, length, lanes), np.nan, np.float32)

    def rows(array: np.ndarray) -> np.ndarray:
        return np.array([row.ctypes.data for row in array], np.int64)

    call = {"between": between, "count": lanes}
    native(transform_function(length, lanes), lanes)(ins=rows(x), outs=rows(made), **call)
    spectrum = np.fft.rfft(x.astype(np.float64), axis=0)
    parts = np.stack([spectrum.real, spectrum.imag], 1).reshape(-1, lanes)
    expected = np.concatenate([parts[:1], parts[-2:-1], parts[2:-2]])
    assert np.linalg.norm(made - expected) < 2e-7 * np.linalg.norm(expected)
    made[2:] *= 2
    native(restore_function(length, lanes), lanes)(ins=rows(made), outs=rows(back), **call)
    assert np.linalg.norm(back / length - x) < 3e-7 * np.linalg.norm(x)


def test_real_transforms_take_half_of_the_operations() -> None:
    for length in FIRST:
        there, back = operations(length)
        assert there <= back <= 1.3 * there < 1.3 * 1.4 * length * np.log2(length)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", PROBLEMS)
def test_errors_stay_within_the_bound(text: str, direction: Direction, machine: Machine) -> None:
    problem = Problem(ConvSpec.parse(text), direction, bias=direction is Direction.FORWARD)
    plan = planned(problem, machine, 2)
    first, second, bias = operands(problem)
    result, _ = convolve(problem, first, second, bias, policy=plan, team=2)
    error = relative(result, exact(problem, first, second, bias))
    assert error <= plan.error_bound <= 6 * error_unit(terms_of(problem))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("text", [text for text in PROBLEMS if "o5i30" not in text and "c4o6" not in text])
def test_weight_gradients_stay_within_the_bound(text: str, machine: Machine) -> None:
    problem = Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias=True)
    plan = planned(problem, machine, 2)
    x, dy, _ = operands(problem)
    result, db = convolve(problem, x, dy, policy=plan, team=2)
    assert relative(result, exact(problem, x, dy, None)) <= plan.error_bound <= 6 * error_unit(terms_of(problem))
    assert relative(db, dy.astype(np.float64).sum(axis=(0, 2, 3))) <= plan.error_bound
    one, _ = convolve(problem, x, dy, policy=planned(problem, machine))
    assert same_bits(one, result)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", PROBLEMS[3:6])
def test_layouts(text: str, direction: Direction) -> None:
    problem = Problem(ConvSpec.parse(text), direction)
    first, second, _ = operands(problem)
    ref = exact(problem, first, second, None)
    plan = planned(problem)
    seen = None
    for inputs in ("contiguous", "sliced", "channels_last", "transposed"):
        a, b = (integers(array.shape, layout=inputs) for array in (first, second))
        a[...], b[...] = first, second
        for layout in OUTPUT_LAYOUTS:
            result, _ = convolve(problem, a, b, policy=plan, layout=layout)
            assert relative(result, ref) <= plan.error_bound
            seen = result if seen is None else seen
            assert same_bits(np.ascontiguousarray(result), np.ascontiguousarray(seen)), f"{inputs}, {layout}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", PROBLEMS[3:5])
def test_narrow_numbers(text: str, direction: Direction, dtype: str) -> None:
    """Sums of numbers that are stored in 16 bits, rounded once."""
    problem = Problem(ConvSpec.parse(text), direction, direction is Direction.FORWARD, dtype)
    first, second, *rest = (None if a is None else rounded(a, dtype) for a in operands(problem))
    bias = rest[0]
    assert first is not None and second is not None
    for layout in ("contiguous", "channels_last"):
        result, _ = convolve(problem, first, second, bias, policy=planned(problem), layout=layout)
        ref = exact(problem, first, second, bias)
        limit = planned(problem).error_bound
        limit += STORED_ERRORS[dtype] if direction is not Direction.WEIGHT_GRADIENT else 0
        assert relative(result, ref) <= limit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("epilogue", EXACT, ids=str)
def test_epilogues(epilogue: Epilogue, dtype: str) -> None:
    spec = ConvSpec.parse("n2c4o4i32x32k9x9s1p4g4")
    problem = Problem(spec, bias=True, dtype=dtype, epilogue=epilogue)
    x, w, b = operands_of(problem, 1)
    result, _ = convolve(problem, x, w, b, policy=planned(problem))
    wanted = followed(problem, exact(problem, x, w, b))
    assert relative(result, wanted) <= planned(problem).error_bound + STORED_ERRORS[dtype]


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("text", ["n3c5o5i80x33k13x13s1p6g5", "n3c3o8i40x40k11x11s1p5"])
def test_neither_threads_nor_the_batch_matter(text: str, direction: Direction) -> None:
    problem = Problem(ConvSpec.parse(text), direction)
    first, second, _ = operands(problem)
    together, _ = convolve(problem, first, second, policy=planned(problem, threads=2), team=2)
    alone = Problem(dataclasses.replace(problem.spec, batch=1), direction)
    for n in range(problem.spec.batch):
        one, _ = convolve(alone, first[n : n + 1], second, policy=planned(alone))
        assert same_bits(one, together[n : n + 1])


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("direction", BOTH)
def test_an_infinity_spreads_over_its_band_alone(direction: Direction, value: float) -> None:
    """Over all rows of the bands that read it, in those columns whose kernels do."""
    problem = Problem(ConvSpec.parse("n1c2o2i150x40k13x9s1p6x4g2"), direction)
    plan = planned(problem)
    assert f"spreads over {plan.box[1]} rows" in plan.reason
    first, second, _ = operands(problem)
    clean, _ = convolve(problem, first, second, policy=plan)
    y, x = 90, 20
    first[0, 1, y, x] = value
    spoiled, _ = convolve(problem, first, second, policy=plan)
    may = np.zeros(clean.shape, bool)
    axis, _ = fft.axes_of(problem)
    found = fft.cut(problem, HERE)
    assert found
    for start, count in found.bands:
        if start - axis.before <= y < start + count + axis.taps - 1 - axis.before:
            may[0, 1, start : start + count, x - 4 : x + 5] = True
    assert 0 < may.sum() < may[0, 1].size
    assert same_bits(np.where(may, 0, clean), np.where(may, 0, spoiled))
    assert not np.isfinite(spoiled[0, 1, y - 6 : y + 7, x - 4 : x + 5]).any()


def test_bands_read_nothing_that_has_gone_round() -> None:
    """By the definition: at no output of a band do two rows, or a row and a tap that should meet none, coincide."""
    for size, kernel, pad, length in (
        (56, 31, 15, 72), (57, 31, 15, 72), (150, 31, 15, 72), (40, 13, 0, 28), (40, 13, 12, 28), (14, 31, 15, 28),
        (9, 31, 30, 48),
    ):  # fmt: skip
        axis = fft.Axis(size, size + 2 * pad - kernel + 1, kernel, pad)
        pieces = fft.bands(axis, length)
        assert sum(count for _, count in pieces) == axis.outputs
        for start, count in pieces:
            begin = start - axis.before
            rows = list(range(max(0, begin), min(size, begin + count + axis.taps - 1)))
            for j in range(count):
                reached = {(j + t) % length for t in range(axis.taps)}
                read = {i for i in rows if (i - begin) % length in reached}
                assert read == {i for i in rows if 0 <= i - begin - j < axis.taps}
                assert all(0 <= i - begin < length for i in rows)


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("direction", BOTH)
def test_at_most_three_kernels_a_layer(direction: Direction, name: str) -> None:
    machine = Machine.named(name)
    for kernel in (9, 13, 27, 29, 31, 51):
        sizes = [(h, w) for h in (*range(1, 40), 56, 57, 100, 112, 300) for w in (8, 16, 57)]
        answers = [
            fft.propose(
                Problem(ConvSpec(1, 8, 8, size, kernel, padding=kernel // 2, groups=8), direction), machine, Policy()
            )
            for size in sizes
        ]
        kernels = {answer.kernel_key for answer in answers if isinstance(answer, Plan)}
        assert 1 <= len(kernels) <= 3, sorted(kernels)


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_inner_loops_stay_in_registers(name: str) -> None:
    """The loops over taps: four multiply-adds a frequency and vector, or two; no vector and no number on the stack."""
    machine = Machine.named(name)
    plan = planned(Problem(ConvSpec.parse(PROBLEMS[1])), machine)
    loops = arithmetic_loops(kernel_text(plan, "asm"), machine.lanes)
    counts = sorted(multiply_adds(loop, machine.lanes) for loop in loops)
    widths = tiles_of(machine.lanes, machine.registers)
    # One vector goes with two frequencies, and with the last one alone.
    assert counts == sorted([2 * width for width in widths] + [4 * width for width in widths] + [8])
    for loop in loops:
        text = "\n".join(loop)
        assert not [line for line in loop if re.search(SPILL, line) or re.search(UNFUSED, line)], text
        assert len(loop) <= 1.5 * multiply_adds(loop, machine.lanes) + 8, text


def test_it_is_chosen_for_large_kernels_alone() -> None:
    def chosen(text: str, accuracy: str = "default") -> str:
        return choose(Problem(ConvSpec.parse(text)), Machine.named("haswell"), Policy(accuracy)).algorithm  # type: ignore[arg-type]

    for text in ("n1c128o128i56x56k31x31s1p15g128", "n1c512o512i14x14k27x27s1p13g512", "n1c3o16i64x64k31x31s1p15"):
        assert chosen(text) == chosen(text, "fast") == "fft"
        assert chosen(text, "strict") != "fft"
    for text in ("n1c96o96i56x56k7x7s1p3g96", "n1c64o64i56x56k3x3s1p1", "n1c128o128i56x56k31x31s2p15g128"):
        assert chosen(text) != "fft"


def test_refusals_say_why() -> None:
    def why(text: str, accuracy: str = "default") -> str:
        answer = fft.propose(Problem.parse(text), HERE, Policy(accuracy))  # type: ignore[arg-type]
        assert isinstance(answer, Refusal)
        return answer.reason

    assert "strict" in why("n1c8o8i56x56k31x31s1p15g8", "strict")
    assert "stride 1" in why("n1c8o8i56x56k31x31s2p15g8")
    assert "pixels" in why("n1c8o8i56x56k31x31s1p15g8/weight_gradient")
    problem = Problem.parse("n1c8o8i56x56k5x31s1p2x15g8/weight_gradient")
    assert "7 rows" in getattr(fft_weight_gradient.propose(problem, HERE, Policy()), "reason", "")
    assert "7 rows" in why("n1c8o8i56x56k5x31s1p2x15g8")
    assert "padding" in why("n1c8o8i56x56k9x9s1p9g8")
    assert "up to 144 rows" in why("n1c2o2i200x20k150x9s1p0g2")


def test_dense_layers_whose_transforms_do_not_fit_the_cache_are_refused() -> None:
    problem = Problem(ConvSpec.parse("n1c64o64i56x56k11x11s1p5"))
    assert "cache" in getattr(fft.propose(problem, HERE, Policy()), "reason", "")
    assert isinstance(fft.propose(problem, dataclasses.replace(HERE, l2=2**23), Policy()), Plan)
