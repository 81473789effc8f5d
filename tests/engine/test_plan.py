"""Plans and refusals: what they say, what they may depend on, and that every problem of the engine has one."""

from __future__ import annotations

import dataclasses
import importlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubel.engine import Invocation, Policy, Refusal, choose, kernel_text, prepare
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.geometry import one_image
from hubel.engine.invoke import laid_out
from hubel.engine.machine import MACHINES, Machine
from hubel.engine.plan import Estimate, Plan, Tile, error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import UnknownNameError, UnsupportedError
from tests.strategies import problems

HASWELL = Machine.named("haswell")
LAYER = Problem(ConvSpec.parse("n1c64o128i56x56k3x3s1p1"))
LAYERS = [
    "n1c64o128i56x56k3x3s1p1",
    "n8c256o64i14x14k1x1s1p0",
    "n1c96o96i28x28k5x5s2p2g96",
    "n1c3o64i224x224k7x7s2p3",
    "n1c1o1i1k1s1p0",
    "n0c4o4i8x8k3x3s1p1",
    "n64c1o6i28x28k5x5s1p2",
    "n1c512o512i1x1k1x1s1p0",
    "n2c30o7i9x10x11k3x2x1s2x1x3p1x0x0",
]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    result, step = [], 1
    for size in reversed(shape):
        result.insert(0, step)
        step *= max(1, size)
    return tuple(result)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", LAYERS)
@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_has_a_plan_whose_tile_fits(name: str, text: str, direction: Direction) -> None:
    machine = Machine.named(name)
    plan = choose(Problem(ConvSpec.parse(text), direction), machine, Policy())
    rows, vectors = plan.tile.rows, plan.tile.vectors
    assert plan.machine is machine and plan.algorithm in ALGORITHMS
    # A tiny problem leaves the widest vectors alone.
    assert plan.tile.lanes == machine.lanes or (
        machine.lanes == 16 and plan.tile.lanes == 8 and plan.estimate.flops < 1e6
    )
    assert rows >= 1 and vectors >= 1
    # The sums, and one factor of the two at least.
    assert rows * vectors + min(rows, vectors) <= machine.registers
    assert plan.channel_block >= 1 and plan.row_tiles >= 1 and min(plan.box) >= 1
    assert plan.reason
    isa = {16: "avx512", 8: "avx2", 4: "neon"}[plan.tile.lanes]
    assert all(isa in kernel for kernel in plan.kernels)


@given(problems())
def test_every_problem_has_a_plan(problem: Problem) -> None:
    plan = choose(problem, HASWELL, Policy("strict"))
    assert plan.problem == problem
    answers = [refusal.algorithm for refusal in plan.refusals]
    assert sorted([plan.algorithm, *answers]) == sorted(ALGORITHMS), "every algorithm answers once"
    assert all(refusal.reason for refusal in plan.refusals)


def test_the_cheapest_plan_is_chosen() -> None:
    """And those that would have cost more are told how much."""
    problem = Problem(ConvSpec.parse("n1c64o64i28x28k1x1s1p0"))
    answers = [algorithm.propose(problem, HASWELL, Policy()) for algorithm in ALGORITHMS.values()]
    plans = [answer for answer in answers if isinstance(answer, Plan)]
    chosen = choose(problem, HASWELL, Policy())
    assert chosen.cost == min(plan.cost for plan in plans)
    for plan in plans:
        if plan.algorithm != chosen.algorithm:
            (reason,) = [r.reason for r in chosen.refusals if r.algorithm == plan.algorithm]
            assert f"{plan.cost / chosen.cost:.2f} times the cost of {chosen.algorithm}" in reason


def test_an_algorithm_that_cannot_refuses_with_a_reason() -> None:
    for name, algorithm in ALGORITHMS.items():
        answers = {d: algorithm.propose(dataclasses.replace(LAYER, direction=d), HASWELL, Policy()) for d in Direction}
        for answer in answers.values():
            assert isinstance(answer, Plan | Refusal)
            assert name == answer.algorithm and answer.reason
    assert isinstance(ALGORITHMS["pointwise"].propose(LAYER, HASWELL, Policy()), Refusal)


def test_other_dtypes_are_handed_back() -> None:
    problem = dataclasses.replace(LAYER, dtype="float64")
    with pytest.raises(UnsupportedError, match="kernels store float32, .* Received: dtype=float64. torch's own kernel"):
        choose(problem, HASWELL, Policy())
    spec = problem.spec
    shapes = spec.input_shape, spec.weight_shape, spec.output_shape
    with pytest.raises(UnsupportedError):
        prepare(problem, *map(strides, shapes), Policy())


def test_where_all_decline_their_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's function of this name hides the module.
    module = importlib.import_module("hubel.engine.choose")
    monkeypatch.setattr(module, "ALGORITHMS", {"pointwise": ALGORITHMS["pointwise"]})
    module._answers.cache_clear()
    problem = Problem(ConvSpec.parse("n1c2o2i31x31k3x3s1p1"))
    with pytest.raises(UnsupportedError, match=r"no algorithm does n1c2o2i31x31k3x3s1p1\. pointwise: needs a 1×1"):
        choose(problem, HASWELL, Policy())


def test_plans_are_values() -> None:
    """Equal, hashable, immutable, picklable: they can be kept and compared."""
    first = choose(LAYER, HASWELL, Policy())
    again = pickle.loads(pickle.dumps(first))
    assert again == first and hash(again) == hash(first)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.algorithm = "other"  # type: ignore[misc]
    refused = first.with_refusals((Refusal("winograd", "too small"),))
    assert refused.refusals[-1].reason == "too small" and refused.kernel_key == first.kernel_key


def test_the_kernel_key_names_the_kernel() -> None:
    """Size, batch, stride and dilation are arguments; direction, tile and instruction set are not."""
    key = choose(LAYER, HASWELL, Policy("strict")).kernel_key
    for text in ("n1c64o128i57x56k3x3s1p1", "n1c64o128i56x56k3x3s1p2d2", "n1c64o128i56x56k5x5s1p2"):
        assert choose(Problem(ConvSpec.parse(text)), HASWELL, Policy("strict")).kernel_key == key
    tile = choose(LAYER, HASWELL, Policy("strict")).tile
    assert str(tile) in key and "avx2" in key
    assert choose(LAYER, Machine.named("zen4"), Policy("strict")).kernel_key != key
    assert (
        choose(dataclasses.replace(LAYER, direction=Direction.WEIGHT_GRADIENT), HASWELL, Policy("strict")).kernel_key
        != key
    )
    assert str(Tile(6, 2, 8)) == "6x16"


@pytest.mark.parametrize("text", [text for text in LAYERS if not text.startswith("n0")])
@pytest.mark.parametrize("direction", Direction)
def test_estimates_count_the_work(text: str, direction: Direction) -> None:
    """What direct algorithms compute includes the waste of tiles: it is never less than what is useful."""
    spec = ConvSpec.parse(text)
    estimate = choose(Problem(spec, direction), HASWELL, Policy("strict")).estimate
    assert estimate.flops == spec.flops
    assert estimate.bytes == spec.bytes()
    assert estimate.computed > 0
    assert estimate.computed >= 0.99 * estimate.flops
    # No core does more than two vectors of multiply-adds a cycle.
    assert estimate.cycles >= estimate.flops / (4 * HASWELL.lanes)


def test_milliseconds_are_those_of_the_slower() -> None:
    """Of 10⁶ cycles at 3.2 GHz, that is, 102.4 GFLOP/s of 8 lanes, and of bytes that no cache holds."""
    plan = choose(LAYER, HASWELL, Policy())
    small = dataclasses.replace(plan, estimate=Estimate(flops=1, computed=1, bytes=HASWELL.l3 // 2, cycles=1e6))
    assert small.predicted_ms(gflops=102.4, gb_per_s=1e-9) == pytest.approx(0.3125)
    large = dataclasses.replace(plan, estimate=Estimate(flops=1, computed=1, bytes=HASWELL.l3, cycles=1e6))
    assert large.predicted_ms(gflops=102.4, gb_per_s=1e9) == pytest.approx(0.3125)
    assert large.predicted_ms(gflops=102.4, gb_per_s=10.0) == pytest.approx(HASWELL.l3 / 1e7)


def test_the_unit_of_error() -> None:
    """DESIGN: u = 3e-7 · max(1, √(K ∕ 2304)), K the terms of a sum."""
    assert error_unit(1) == error_unit(2304) == 3e-7
    assert error_unit(4 * 2304) == pytest.approx(6e-7)
    spec = ConvSpec.parse("n2c12o20i10x9k3x3s2p1g4")
    assert spec.output_size == (5, 5)
    expected = {Direction.FORWARD: 3 * 9, Direction.INPUT_GRADIENT: 5 * 9, Direction.WEIGHT_GRADIENT: 2 * 25}
    assert {d: terms_of(Problem(spec, d)) for d in Direction} == expected


@given(problems())
def test_bounds_keep_their_level(problem: Problem) -> None:
    u = error_unit(terms_of(problem))
    for level, limit in (("strict", 2), ("default", 6), ("fast", 20)):
        plan = choose(problem, HASWELL, Policy(level))  # type: ignore[arg-type]
        assert 0 < plan.error_bound <= limit * u


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", LAYERS)
def test_what_fixes_the_order_of_summation(text: str, direction: Direction) -> None:
    """Threads change no block of a sum; nor does the batch, but for weight gradients."""
    spec = ConvSpec.parse(text)

    def order(batch: int, threads: int) -> tuple[object, ...]:
        problem = Problem(dataclasses.replace(spec, batch=batch), direction)
        plan = choose(problem, HASWELL, Policy(threads=threads))
        shared = (plan.box, plan.images) if direction is Direction.WEIGHT_GRADIENT else ()
        # Several ways to do the same sums: images, output channels or pixels in lanes.
        return plan.order, plan.channel_block, plan.partial_sums, shared

    assert order(4, 1) == order(4, 2) == order(4, 16)
    if direction is not Direction.WEIGHT_GRADIENT:
        assert order(1, 1) == order(3, 2) == order(64, 1)


# --- prepared calls


def test_prepared_calls_are_remembered() -> None:
    spec = ConvSpec.parse("n1c3o5i8x8k3x3s1p1")
    given = [strides(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)]
    first = prepare(Problem(spec), *given, Policy())
    assert prepare(Problem(ConvSpec.parse(str(spec))), *given, Policy()) is first
    assert prepare(Problem(spec), *given, Policy("strict")) is not first
    assert first.plan == choose(laid_out(Problem(spec), given[0], given[2]), Machine.detect(), Policy())


def test_packed_weights_are_large_enough() -> None:
    spec = ConvSpec.parse("n1c3o5i8x8k3x3s1p1")
    given = [strides(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)]
    for direction, packs in zip(Direction, (True, True, False), strict=True):
        run = prepare(Problem(spec, direction), *given, Policy())
        assert (run.packed_bytes >= 4 * spec.parameters) if packs else run.packed_bytes == 0


def test_packing_keys_tell_layouts_apart() -> None:
    """Other strides of the weights, other directions and other weights are packed otherwise."""
    spec = ConvSpec.parse("n1c3o5i8x8k3x3s1p1")
    x, w, y = (strides(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape))
    plain = prepare(Problem(spec), x, w, y, Policy()).packing_key
    assert prepare(Problem(spec, bias=True), x, w, y, Policy()).packing_key == plain
    assert prepare(Problem(spec), x, (27, 1, 9, 3), y, Policy()).packing_key != plain
    assert prepare(Problem(spec, Direction.INPUT_GRADIENT), x, w, y, Policy()).packing_key != plain
    assert hash(plain) == hash(plain)


def test_code_of_other_machines_is_not_run() -> None:
    spec = ConvSpec.parse("n1c3o5i8x8k3x3s1p1")
    given = [strides(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)]
    plan = choose(laid_out(Problem(spec), given[0], given[2]), Machine.named("neoverse-n1"), Policy())
    if not plan.machine.runs_here():
        with pytest.raises(UnsupportedError, match="code for neoverse-n1 does not run"):
            Invocation(plan, *given)


def test_kernels_as_text() -> None:
    plan = choose(LAYER, HASWELL, Policy())
    ir, assembly = kernel_text(plan, "ir"), kernel_text(plan, "asm")
    assert "define void @kernel(" in ir and "vfmadd" in assembly
    for text in (ir, assembly):
        assert text.startswith(f"; {plan.kernel_key}\n")
    with pytest.raises(UnknownNameError, match="asn"):
        kernel_text(plan, "asn")


@given(problems(), st.sampled_from(["strict", "default"]), st.sampled_from(["haswell", "skylake-avx512"]))
def test_the_order_of_summation_depends_neither_on_the_batch_nor_on_threads(
    problem: Problem, accuracy: str, name: str
) -> None:
    """So that an image has the same bits in every batch, on any number of them."""
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return
    machine = Machine.named(name)
    alone = choose(one_image(problem), machine, Policy(accuracy)).order  # type: ignore[arg-type]
    for batch, threads in ((2, 1), (16, 2), (64, 8)):
        batched = dataclasses.replace(problem, spec=dataclasses.replace(problem.spec, batch=batch))
        assert choose(batched, machine, Policy(accuracy, threads=threads)).order == alone  # type: ignore[arg-type]


def test_workspaces_larger_than_memory_are_refused_before_anything_is_allocated() -> None:
    spec = ConvSpec.parse("n1c1000000o1000000i8x8k3x3s1p1")
    given = [strides(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)]
    with pytest.raises(
        UnsupportedError, match=r"must fit into memory\. Received: n1c1000000.* GiB of \d+ on 2 threads"
    ):
        prepare(Problem(spec), *given, Policy(threads=2))
