"""Winograd's weight gradient: right within its bound, in the same bits whatever the threads and layout, and when it
declines."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hubel.engine import Invocation, Policy, kernel_text
from hubel.engine.algorithms import winograd_weight_gradient as winograd
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal, error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import Guarded, guarded_scratch, normal, output, same_bits
from tests.engine.machines import HERE, MACHINES
from tests.engine.test_accuracy import exact
from tests.engine.test_generated_code import arithmetic_loops, check_loop

# Tiles that hang over the border, paddings 0 to 5, channels that fit no vector, rows of tiles longer than a block,
# rows of fewer than four pixels, one and several parts, shares and tiles of output channels.
SPECS = [
    "n1c3o5i1x1k3x3s1p1",
    "n1c16o16i3x3k3x3s1p0",
    "n2c20o35i9x13k3x3s1p2",
    "n3c5o7i4x5k3x3s1p5",
    "n2c40o21i7x150k3x3s1p0x1",
    "n2c16o16i70x9k3x3s1p1x2",
    "n5c33o64i14x14k3x3s1p1",
    "n2c130o20i12x3k3x3s1p1",
    "n2c17o200i8x6k3x3s1p1",
    "n2c48o34i9x13k3x3s1p1g2",
    "n1c60o48i6x5k3x3s1p1g3",
    "n3c200o16i7x7k3x3s1p0g2",
]


def problem(text: str, bias: bool = False) -> Problem:
    return Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias)


def run(
    asked: Problem, x: np.ndarray, dy: np.ndarray, *, machine: Machine = HERE, threads: int = 1, team: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(weight gradient, bias gradient) by Winograd's algorithm among guards, whether it pays or not."""
    plan = winograd.plan_tiles(asked, machine, Policy(threads=threads))
    first, second, dw = Guarded(x), Guarded(dy), output(asked.spec.weight_shape)
    db = output((asked.spec.out_channels,))
    native = Invocation(plan, first.strides, dw.strides, second.strides)
    with guarded_scratch():
        native(first.address, second.address, db.address if asked.bias else 0, dw.address, team)
    first.assert_untouched("input")
    second.assert_untouched("output gradient")
    return dw.take("weight gradient"), db.take("bias gradient") if asked.bias else np.empty(0)


def relative(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("text", SPECS)
def test_errors_are_within_the_bound(text: str) -> None:
    asked = problem(text, bias=True)
    x, _, _, dy = normal(asked.spec, 1)
    expected = exact(asked, x, dy, None)
    for machine in MACHINES:
        dw, db = run(asked, x, dy, machine=machine)
        bound = winograd.plan_tiles(asked, machine, Policy()).error_bound
        assert relative(dw, expected) <= bound <= 6 * error_unit(terms_of(asked)), machine.name
        np.testing.assert_allclose(db, dy.sum((0, 2, 3), dtype=np.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", ["n3c32o24i28x28k3x3s1p1", "n1c16o16i300x300k3x3s1p1", "n64c16o16i7x7k3x3s1p1"])
def test_errors_of_long_sums(text: str) -> None:
    """On N(0, 1), and on what a ReLU leaves."""
    asked = problem(text)
    x, _, _, dy = normal(asked.spec, 2)
    for image in (x, np.maximum(x, 0)):
        error = relative(run(asked, image, dy)[0], exact(asked, image, dy, None))
        assert error <= winograd.plan_tiles(asked, HERE, Policy()).error_bound


@pytest.mark.parametrize("text", ["n2c20o35i9x13k3x3s1p2", "n5c33o64i14x14k3x3s1p1", "n2c17o200i8x6k3x3s1p1"])
def test_neither_threads_nor_layout_matter(text: str) -> None:
    asked = problem(text, bias=True)
    x, _, _, dy = normal(asked.spec, 4)
    one = run(asked, x, dy)
    for threads in (2, 16):
        for a, b in zip(one, run(asked, x, dy, threads=threads, team=2), strict=True):
            assert same_bits(a, b), f"{threads} threads"
    last = [np.ascontiguousarray(t.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for t in (x, dy)]
    turned = [np.ascontiguousarray(t.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0) for t in (x, dy)]
    wide = [np.repeat(t, 2, axis=3)[..., ::2] for t in (x, dy)]
    for first, second in (last, turned, wide, (x, last[1])):
        assert same_bits(one[0], run(asked, first, second)[0])


def test_one_infinity_stays_in_its_channels() -> None:
    asked = problem("n1c20o18i9x9k3x3s1p1")
    assert "spreads over all taps of its channel" in winograd.plan_tiles(asked, HERE, Policy()).reason
    x, _, _, dy = normal(asked.spec, 6)
    clean, _ = run(asked, x, dy)
    x[0, 3, 4, 4] = np.inf
    result, _ = run(asked, x, dy)
    assert not np.isfinite(result[:, 3]).any()
    others = np.arange(20) != 3
    assert same_bits(result[:, others], clean[:, others])


def test_parts_depend_on_neither_threads_nor_bias() -> None:
    for text, threads in product(SPECS, (1, 2, 64)):
        plan = winograd.plan_tiles(problem(text), HERE, Policy(threads=threads))
        other = winograd.plan_tiles(problem(text, bias=True), HERE, Policy())
        assert (plan.partial_sums, plan.box, plan.tile) == (other.partial_sums, other.box, other.tile)


def test_it_declines_with_a_reason() -> None:
    machine, layer = Machine.named("haswell"), problem("n16c64o64i56x56k3x3s1p1")
    assert isinstance(winograd.propose(layer, machine, Policy()), Plan)
    cases = {
        "strict allows direct algorithms only": (layer, Policy("strict")),
        "weight gradients only": (replace(layer, direction=Direction.FORWARD), Policy()),
        "stride 1 and dilation 1": (problem("n16c64o64i56x56k3x3s2p1"), Policy()),
        "in two dimensions": (problem("n16c64o64i56k3s1p1"), Policy()),
        "3×3 kernels": (problem("n16c64o64i56x56k5x5s1p2"), Policy()),
        "fewer than 16 channels a group": (problem("n16c64o64i56x56k3x3s1p1g8"), Policy()),
        "no images": (problem("n0c64o64i56x56k3x3s1p1"), Policy()),
    }
    for reason, (asked, policy) in cases.items():
        answer = winograd.propose(asked, machine, policy)
        assert isinstance(answer, Refusal) and reason in answer.reason
    dilated = winograd.propose(problem("n16c64o64i56x56k3x3s1p2d2"), machine, Policy())
    assert isinstance(dilated, Refusal)


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_few_kernels_serve_all_image_sizes(name: str) -> None:
    machine, spec = Machine.named(name), ConvSpec.parse("n1c64o80i56x56k3x3s1p1")
    kernels = set()
    for size, batch in product((*range(1, 60), 112, 224), (1, 16)):
        sized = Problem(replace(spec, batch=batch, input_size=(size, size)), Direction.WEIGHT_GRADIENT)
        plan = winograd.plan_tiles(sized, machine, Policy())
        kernels |= set(plan.kernels)
        assert plan.estimate.computed > 0
    assert len(kernels) <= 4


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_the_register_tile_keeps_its_sums_in_registers(name: str) -> None:
    machine = Machine.named(name)
    for text in ("n16c64o64i28x28k3x3s1p1", "n16c512o512i28x28k3x3s1p1"):
        plan = winograd.plan_tiles(problem(text), machine, Policy())
        tile = plan.tile
        loops = arithmetic_loops(kernel_text(plan, "asm"), tile.lanes)
        counts = [tile.rows * width for width in (tile.vectors, 1)]
        whole = [loop for loop in loops if sum("fma" in line or "fmla" in line for line in loop) in counts]
        assert len(whole) >= 2
        for loop in whole:
            width = max(1, sum("fma" in line or "fmla" in line for line in loop) // tile.rows)
            check_loop(loop, replace(tile, vectors=width), machine.arch)
