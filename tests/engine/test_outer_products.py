"""Weight gradients as outer products: exact on small integers, in the same bits whatever the threads and the layout,
and when they are declined."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from hubel.engine import Policy, choose, kernel_text
from hubel.engine.algorithms import outer_products
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, Refusal, error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal, operands, same_bits
from tests.engine.machines import HERE, MACHINES
from tests.engine.test_accuracy import exact
from tests.engine.test_generated_code import SPILLED_VECTOR, arithmetic_loops

# Channels that fit no vector and no run, groups, several images in a block, several blocks, parts and shares, strides,
# dilation, padding on one side of a kernel, one and three dimensions, kernels wider than a tile.
LAYERS = [
    "n2c16o16i9x7k3x3s1p1",
    "n1c3o64i24x22k7x7s2p3",
    "n3c40o40i9x9k3x3s2p1",
    "n5c48o96i11x13k3x3s2p1g2",
    "n7c64o64i7x7k3x3s1p1g2",
    "n1c5o24i33x61k1x3s1p0x1",
    "n2c8o16i30k5s2p2",
    "n1c3o32i40x41k11x11s4p2",
    "n1c20o16i5x6x7k3x3x3s2p1",
    "n2c6o40i9x8x7k3x1x3s1p1x0x1d2x1x1",
    "n1c64o64i20x20k3x3s1p2d2g2",
    "n2c24o33i33x31k1x1s2p0",
    "n1c4o20i600k9s1p4",
    "n3c34o150i3x3k3x3s1p1",
]


def problem(text: str, bias: bool = True) -> Problem:
    return Problem(ConvSpec.parse(text), Direction.WEIGHT_GRADIENT, bias)


def planned(asked: Problem, machine: Machine = HERE, threads: int = 1) -> Plan:
    plan = outer_products.propose(asked, machine, Policy("strict", threads=threads))
    assert isinstance(plan, Plan), plan
    return plan


def last(tensor: np.ndarray) -> np.ndarray:
    """The same values, channels last."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(tensor, 1, -1)), -1, 1)


@pytest.fixture(params=[False, True], ids=["planes", "turned"])
def one_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """x held in one of the two ways, whichever pays."""
    turned = request.param
    cut = outer_products._cut
    monkeypatch.setattr(outer_products, "blocks", lambda spec, machine: cut(spec, machine, turned and spec.ndim < 3))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.isa)
@pytest.mark.parametrize("text", LAYERS)
@pytest.mark.usefixtures("one_way")
def test_exact(text: str, machine: Machine) -> None:
    asked = problem(text)
    x, dy = operands(asked, 3)
    expected = exact(asked, x, dy, None)
    for team, arrange in product((1, 2), (np.ascontiguousarray, last)):
        dw, db = convolve(asked, arrange(x), arrange(dy), policy=planned(asked, machine), team=team)
        assert np.array_equal(dw, expected)
        assert np.array_equal(db, dy.sum((0, *range(2, dy.ndim))))


@pytest.mark.parametrize("text", ["n5c48o96i11x13k3x3s2p1g2", "n1c5o24i33x61k1x3s1p0x1", "n1c20o16i5x6x7k3x3x3s2p1"])
def test_neither_threads_nor_layout_matter(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor how x is held."""
    asked = problem(text)
    x, _, _, dy = normal(asked.spec, 4)
    one = convolve(asked, x, dy, policy=planned(asked))
    for threads in (2, 16):
        again = convolve(asked, x, dy, policy=planned(asked, threads=threads), team=2)
        assert all(same_bits(a, b) for a, b in zip(one, again, strict=True))
    again = convolve(asked, last(x), last(dy), policy=planned(asked))
    assert all(same_bits(a, b) for a, b in zip(one, again, strict=True))
    cut = outer_products._cut
    for turned in (False, True)[: 1 + (asked.spec.ndim < 3)]:
        monkeypatch.setattr(outer_products, "blocks", lambda s, m, turned=turned: cut(s, m, turned))
        assert same_bits(one[0], convolve(asked, x, dy, policy=planned(asked))[0])


@pytest.mark.parametrize("text", ["n2c3o16i224x224k3x3s2p1", "n32c16o16i14x14k3x3s2p1"])
def test_errors_of_long_sums(text: str) -> None:
    asked = problem(text, bias=False)
    x, _, _, dy = normal(asked.spec, 2)
    expected = exact(asked, x, dy, None)
    error = np.linalg.norm(convolve(asked, x, dy, policy=planned(asked))[0] - expected) / np.linalg.norm(expected)
    assert error <= planned(asked).error_bound <= 2 * error_unit(terms_of(asked))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Problem.parse("n1c64o64i9x9k3x3s2p1"), "weight gradients only"),
        (problem("n1c64o64i9x9k1x1s1p0"), "pointwise"),
        (problem("n0c64o64i9x9k3x3s2p1"), "no outputs"),
        (problem("n1c64o64i9x9k3x3s2p1g16"), "fill no vector"),
    ],
    ids=str,
)
def test_refusals(asked: Problem, reason: str) -> None:
    answer = outer_products.propose(asked, Machine.named("haswell"), Policy())
    assert isinstance(answer, Refusal) and reason in answer.reason, answer


def test_strides_stems_and_groups_are_its_own() -> None:
    for name, text in product(
        ("haswell", "skylake-avx512"),
        ("n16c128o128i56x56k3x3s2p1", "n16c3o64i224x224k7x7s2p3", "n16c1024o1024i14x14k3x3s2p1g32"),
    ):
        assert choose(problem(text), Machine.named(name), Policy(threads=2)).algorithm == "outer_products"


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("text", ["n16c128o128i28x28k3x3s2p1", "n16c3o64i224x224k7x7s2p3"])
def test_the_register_tile_keeps_its_sums_in_registers(name: str, text: str) -> None:
    machine = Machine.named(name)
    loops = arithmetic_loops(kernel_text(planned(problem(text), machine), "asm"), machine.lanes)
    assert len(loops) == 2
    for loop in loops:
        assert len([line for line in loop if re.search(SPILLED_VECTOR, line)]) <= 3, "\n".join(loop)
