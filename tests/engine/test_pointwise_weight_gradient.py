"""Weight gradients of 1×1 kernels as outer products: exact on small integers, in the same bits whatever the threads and
layout, and when they are declined."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from hubel.engine import Invocation, Policy, choose, kernel_text
from hubel.engine.algorithms import pointwise_weight_gradient as pointwise
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal, error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import Guarded, guarded_scratch, normal, operands, output, same_bits
from tests.engine.machines import HERE, MACHINES
from tests.engine.test_accuracy import exact
from tests.engine.test_generated_code import arithmetic_loops, check_loop

# Channels that fit no vector, images that are cut, several images in a block, fewer than four pixels, one and several
# parts, shares and tiles of output channels, one and three dimensions.
SPECS = [
    "n1c3o5i1x1k1x1s1p0",
    "n3c5o7i1x2k1x1s1p0",
    "n2c20o35i9x13k1x1s1p0",
    "n9c16o16i3x3k1x1s1p0",
    "n2c33o15i37x31k1x1s1p0",
    "n5c300o40i7x7k1x1s1p0",
    "n2c16o270i4x5k1x1s1p0",
    "n2c24o18i500k1s1p0",
    "n2c18o40i3x5x7k1x1x1s1p0",
    "n1c9o600i5x7k1x1s1p0",
]


def problem(text: str, bias: bool = False) -> Problem:
    return Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias, layout="planes")


def run(
    asked: Problem, x: np.ndarray, dy: np.ndarray, *, machine: Machine = HERE, threads: int = 1, team: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(weight gradient, bias gradient) as outer products among guards, whether it pays or not."""
    plan = pointwise.plan_products(asked, machine, Policy("strict", threads=threads))
    first, second, dw = Guarded(x), Guarded(dy), output(asked.spec.weight_shape)
    db = output((asked.spec.out_channels,))
    native = Invocation(plan, first.strides, dw.strides, second.strides)
    with guarded_scratch():
        native(first.address, second.address, db.address if asked.bias else 0, dw.address, team)
    first.assert_untouched("input")
    second.assert_untouched("output gradient")
    return dw.take("weight gradient"), db.take("bias gradient") if asked.bias else np.empty(0)


@pytest.mark.parametrize("text", SPECS)
def test_small_integers_are_exact(text: str) -> None:
    asked = problem(text, bias=True)
    x, dy = operands(asked, 3)
    expected = exact(asked, x, dy, None)
    for team, machine in product((1, 2), MACHINES):
        dw, db = run(asked, x, dy, machine=machine, team=team)
        assert np.array_equal(dw, expected), f"{team} threads, {machine.name}"
        assert np.array_equal(db, dy.sum((0, *range(2, dy.ndim))))


@pytest.mark.parametrize("text", ["n1c16o24i224x224k1x1s1p0", "n64c32o16i7x7k1x1s1p0"])
def test_errors_of_long_sums(text: str) -> None:
    asked = problem(text)
    x, _, _, dy = normal(asked.spec, 2)
    expected = exact(asked, x, dy, None)
    error = np.linalg.norm(run(asked, x, dy)[0] - expected) / np.linalg.norm(expected)
    assert error <= pointwise.plan_products(asked, HERE, Policy()).error_bound <= 2 * error_unit(terms_of(asked))


@pytest.mark.parametrize("text", ["n2c33o15i37x31k1x1s1p0", "n5c300o40i7x7k1x1s1p0", "n3c5o7i1x2k1x1s1p0"])
def test_neither_threads_nor_layout_matter(text: str) -> None:
    asked = problem(text, bias=True)
    x, _, _, dy = normal(asked.spec, 4)
    one = run(asked, x, dy)
    for threads in (2, 16):
        for a, b in zip(one, run(asked, x, dy, threads=threads, team=2), strict=True):
            assert same_bits(a, b), f"{threads} threads"
    last = [np.ascontiguousarray(t.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for t in (x, dy)]
    wide = [np.repeat(t, 2, axis=3)[..., ::2] for t in (x, dy)]
    for first, second in (last, wide, (x, last[1])):
        assert same_bits(one[0], run(asked, first, second)[0])


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_every_share_holds_a_whole_tile(name: str) -> None:
    machine = Machine.named(name)
    for count in (*range(1, 800), 16_384, 32_768, 100_003):
        how = pointwise.shares(ConvSpec(2, 1, count, (4, 4), (1, 1)), machine)
        assert how.tile.rows <= count - (how.row_shares - 1) * how.rows <= how.rows, count


def test_nan_and_infinity_stay_in_their_channels() -> None:
    asked = problem("n2c20o18i9x9k1x1s1p0")
    x, _, _, dy = normal(asked.spec, 6)
    clean, _ = run(asked, x, dy)
    x[0, 3, 4, 4], dy[1, 17, 0, 0] = np.inf, np.nan
    result, _ = run(asked, x, dy)
    touched = np.zeros((18, 20), bool)
    touched[17], touched[:, 3] = True, True
    assert not np.isfinite(result[touched]).any()
    assert same_bits(result[~touched], clean[~touched])


def test_it_declines_with_a_reason() -> None:
    machine, layer = Machine.named("haswell"), problem("n16c64o64i56x56k1x1s1p0")
    for level in ("strict", "default"):
        assert isinstance(pointwise.propose(layer, machine, Policy(level)), Plan)
    cases = {
        "weight gradients only": replace(layer, direction=Direction.FORWARD),
        "stride 1": problem("n16c64o64i56x56k1x1s2p0"),
        "no padding": problem("n16c64o64i56x56k1x1s1p1"),
        "1×1 kernels": problem("n16c64o64i56x56k3x3s1p1"),
        "lie at one distance": replace(layer, layout="strided"),
        "one group": problem("n16c64o64i56x56k1x1s1p0g2"),
        "no images": problem("n0c64o64i56x56k1x1s1p0"),
    }
    for reason, asked in cases.items():
        answer = pointwise.propose(asked, machine, Policy())
        assert isinstance(answer, Refusal) and reason in answer.reason, reason
    narrow = problem("n16c3o2i56x56k1x1s1p0")
    assert choose(narrow, machine, Policy()).algorithm == "dot_products", "few channels fill no lanes"


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_few_kernels_serve_all_image_sizes(name: str) -> None:
    machine, spec = Machine.named(name), ConvSpec.parse("n1c64o80i56x56k1x1s1p0")
    kernels, parts = set(), set()
    for size, batch, threads in product((*range(1, 60), 112, 224), (1, 16), (1, 8)):
        sized = Problem(replace(spec, batch=batch, input_size=(size, size)), Direction.WEIGHT_GRADIENT, layout="planes")
        plan = pointwise.plan_products(sized, machine, Policy(threads=threads))
        kernels |= set(plan.kernels)
        parts.add((size, batch, plan.partial_sums, plan.box))
    assert len(kernels) <= 3
    assert len(parts) == 61 * 2, "what fixes the order of summation depends on the threads"


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_the_register_tile_keeps_its_sums_in_registers(name: str) -> None:
    machine = Machine.named(name)
    for text in ("n16c64o64i28x28k1x1s1p0", "n16c512o2048i7x7k1x1s1p0"):
        plan = pointwise.plan_products(problem(text), machine, Policy())
        loops = sorted(arithmetic_loops(kernel_text(plan, "asm"), plan.tile.lanes), key=len)
        assert len(loops) == 2
        for width, loop in zip((1, plan.tile.vectors), loops, strict=True):
            check_loop(loop, replace(plan.tile, vectors=width), machine.arch)
