"""What kernels read and write: 16-bit numbers, and epilogues, in every algorithm that has them.

On small integers the sums are exact, and so is what follows them: results are the definition's, rounded once, bit for
bit. Everything runs among guards (`tests.engine.guards`).
"""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hubel.engine import Policy, choose, reference
from hubel.engine.algorithms import pointwise, pointwise_channels
from hubel.engine.algorithms.geometry import one_image
from hubel.engine.choose import STORED_ERRORS, candidates
from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.ir import F32, I64, PTR, Function, vector_of
from hubel.engine.ir.activation import activated
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import UnsupportedError
from tests.engine.calls import LANES, native
from tests.engine.definition import expected
from tests.engine.guards import OUTPUT_LAYOUTS, convolve, convolve_in_every_way, following, normal, operands, same_bits
from tests.engine.machines import HERE, OTHERS
from tests.engine.stored import rounded
from tests.strategies import KINDS, layouts, problems, seeds, specs

NARROW = ("bfloat16", "float16")
DTYPES = ("float32", *NARROW)
# Those of whose results on integers all are exact.
EXACT = (
    Epilogue(activation="relu"),
    Epilogue(scale=True, residual=True, activation="relu6"),
    Epilogue(scale=True),
    Epilogue(residual=True, activation="leaky_relu", slope=0.5),
)


def followed(problem: Problem, sums: np.ndarray) -> np.ndarray:
    """What the epilogue makes of exact sums, in float64."""
    epilogue = problem.epilogue
    if epilogue is None:
        return sums
    scale, shift, residual = (np.asarray(a, np.float64) for a in following(problem, sums.shape))
    column = (1, -1, *(1,) * (sums.ndim - 2))
    result = np.asarray(sums, np.float64)
    if epilogue.scale:
        result = result * scale.reshape(column) + shift.reshape(column)
    if epilogue.residual:
        result = result + residual
    return torchs(epilogue.activation, epilogue.slope, result)


def torchs(name: str, slope: float, x: np.ndarray) -> np.ndarray:
    """torch's activation in float64."""
    functions = {
        "": lambda t: t,
        # torch's own loses digits below 0, in float64 too.
        "gelu": lambda t: t * torch.special.erfc(-t * 0.5**0.5) / 2,
        "leaky_relu": lambda t: F.leaky_relu(t, slope),
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    }
    function = functions.get(name) or getattr(torch if name in ("sigmoid", "tanh") else F, name)
    return function(torch.from_numpy(np.array(x, np.float64))).numpy()


def agrees(problem: Problem, machine: Machine, seed: int, of_inputs: tuple[str, str], layout: str, team: int) -> None:
    first, second, *rest = operands(problem, seed, of_inputs)
    bias = rest[0] if rest else None
    sums = expected(problem, first, second, bias)
    stored = "float32" if problem.direction is Direction.WEIGHT_GRADIENT else problem.dtype
    wanted = rounded(followed(problem, sums).astype(np.float32), stored)
    for plan, result, db in convolve_in_every_way(
        problem, first, second, bias, machine=machine, layout=layout, team=team
    ):
        np.testing.assert_array_equal(result, wanted, f"{plan.algorithm}, {layout}")
        if db.size:
            np.testing.assert_array_equal(db, reference.bias_gradient(second))


def check(kind: str, direction: Direction, machine: Machine, examples: int) -> None:
    epilogues = st.none() | st.sampled_from(EXACT)
    outputs, teams = st.sampled_from(OUTPUT_LAYOUTS), st.sampled_from((1, 2))

    @settings(max_examples=examples)
    @given(
        problems([direction], specs(kinds=[kind])),
        *(st.sampled_from(DTYPES), epilogues, seeds(), layouts(), layouts(), outputs, teams),
    )
    def run(problem, dtype, epilogue, seed, of_first, of_second, of_output, team) -> None:
        if direction is Direction.WEIGHT_GRADIENT:
            epilogue = None
        asked = dataclasses.replace(problem, dtype=dtype, epilogue=epilogue)
        agrees(asked, machine, seed, (of_first, of_second), of_output, team)

    run()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("kind", KINDS)
def test_edges_agree_with_the_definition(kind: str, direction: Direction) -> None:
    check(kind, direction, HERE, 4)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("machine", OTHERS, ids=lambda machine: machine.isa)
def test_edges_agree_on_other_instruction_sets(machine: Machine, direction: Direction) -> None:
    for kind in KINDS:
        check(kind, direction, machine, 2)


# One layer for each way of storing that algorithms have: whole tiles, ragged ones, several blocks of channels, planes
# written out, streams, tiles of rows, strides, groups, other dimensions.
LAYERS = (
    "n2c40o21i9x11k1x1s1p0",
    "n1c900o13i7x7k1x1s1p0",
    "n2c20o17i13x15k3x3s1p1",
    "n1c200o6i11x12k5x5s2p2",
    "n2c9o9i7x7k3x3s1p1g9",
    "n2c6o6i14x14k5x5s1p2g6",
    "n1c5o10i14x14k3x3s2p1g5",
    "n1c6o6i25x27k3x3s1p1g6",
    "n1c6o6i41x40k7x7s1p3g6",
    "n17c6o10i6x6k3x3s2p1",
    "n1c12o8i33k5s1p2",
    "n1c8o12i4x6x7k3x3x3s1p1g4",
    "n1c3o20i15x17k3x3s2p1",
    "n1c16o16i9x11k3x3s1p1g4",
    "n1c6o6i20x21k13x13s1p6g6",
)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "machine", [HERE, *(pytest.param(m, marks=pytest.mark.slow) for m in OTHERS)], ids=lambda machine: machine.isa
)
def test_every_kind_of_layer(layer: str, machine: Machine) -> None:
    """Each dtype, an epilogue with and one without residual, and a gradient."""
    forward, gradient = Direction.FORWARD, Direction.WEIGHT_GRADIENT
    cases = [(forward, "float32", EXACT[1]), (forward, "bfloat16", EXACT[2]), (forward, "float16", EXACT[1])]
    for direction, dtype, epilogue in [*cases, (gradient, "bfloat16", None)]:
        problem = Problem(ConvSpec.parse(layer), direction, True, dtype, epilogue=epilogue)
        for layout in ("contiguous", "channels_last"):
            agrees(problem, machine, 3, (layout, "contiguous"), layout, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("layer", "accuracy", "activations"),
    [
        ("n2c64o70i17x19k3x3s1p1", "default", ACTIVATIONS[0::3]),
        ("n2c64o33i14x14k1x1s1p0", "strict", ACTIVATIONS[1::3]),
        ("n3c32o32i28x28k3x3s1p1g32", "default", ACTIVATIONS[2::3]),
    ],
)
def test_every_activation_of_random_numbers(
    layer: str, accuracy: str, activations: tuple[str, ...], dtype: str
) -> None:
    """Within the plan's bound, which rounding belongs to: activations change differences by little."""
    spec = ConvSpec.parse(layer)
    x, w, b, _ = (rounded(a, dtype) for a in normal(spec))
    for activation in activations:
        problem = Problem(spec, bias=True, dtype=dtype, epilogue=Epilogue(True, True, activation, 0.1))
        of_x, of_w, of_b = (torch.from_numpy(np.array(a, np.float64)) for a in (x, w, b))
        sums = F.conv2d(of_x, of_w, of_b, 1, spec.padding, 1, spec.groups)
        wanted = followed(problem, sums.numpy())
        result, _ = convolve(problem, x, w, b, policy=Policy(accuracy))  # type: ignore[arg-type]
        bound = choose(problem, HERE, Policy(accuracy)).error_bound  # type: ignore[arg-type]
        assert np.linalg.norm(result - wanted) <= 2 * bound * np.linalg.norm(wanted), activation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["n3c70o45i33x31k3x3s1p1", "n3c200o40i14x14k1x1s1p0", "n3c48o48i30x30k3x3s1p1g48"])
def test_the_same_bits_whatever_the_threads_and_the_batch(layer: str, dtype: str) -> None:
    spec, epilogue = ConvSpec.parse(layer), Epilogue(scale=True, activation="gelu")
    problem = Problem(spec, bias=True, dtype=dtype, epilogue=epilogue)
    x, w, b, _ = (rounded(a, dtype) for a in normal(spec))
    together, _ = convolve(problem, x, w, b, policy=Policy("default"))
    threads, _ = convolve(problem, x, w, b, policy=Policy("default", threads=2), team=2)
    assert same_bits(together, threads)
    alone = dataclasses.replace(problem, spec=one_image(problem).spec)
    for n in range(spec.batch):
        one, _ = convolve(alone, x[n : n + 1], w, b, policy=Policy("default"))
        assert same_bits(one, together[n : n + 1])


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.WEIGHT_GRADIENT])
@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_what_float32_does_stays_as_it_was(name: str, direction: Direction) -> None:
    """The same algorithm does a layer whatever it stores, and its kernels have other names."""
    for layer in LAYERS:
        plans = [
            choose(Problem(ConvSpec.parse(layer), direction, dtype=d), Machine.named(name), Policy()) for d in DTYPES
        ]
        assert len({plan.kernel_key for plan in plans}) == 3
        if direction is Direction.FORWARD:
            bounds = [plan.error_bound - STORED_ERRORS[plan.problem.dtype] for plan in plans]
            assert min(bounds) > 0


def test_algorithms_without_edges_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pointwise, "ANY_EDGES")
    monkeypatch.delattr(pointwise_channels, "ANY_EDGES")
    # The package's function of this name hides the module.
    importlib.import_module("hubel.engine.choose")._answers.cache_clear()
    layer = ConvSpec.parse(LAYERS[0])
    for other in (Problem(layer, dtype="bfloat16"), Problem(layer, epilogue=EXACT[0])):
        with pytest.raises(UnsupportedError, match="pointwise: reads and writes float32, without an epilogue"):
            candidates(other, HERE, Policy())
    assert candidates(Problem(layer), HERE, Policy())[0]


# --- activations


def applied(name: str, lanes: int, x: np.ndarray, slope: float = 0.01) -> np.ndarray:
    """The activation of every number of x, in vectors, and in single numbers behind the last whole one."""
    f = Function("activate", [("y", PTR), ("x", PTR), ("count", I64)])
    whole = f.arg("count") // lanes * lanes
    with f.loop("i", 0, whole, lanes) as i:
        f.store(activated(f, name, slope, f.load(f.arg("x") + i.index, vector_of(lanes))), f.arg("y") + i.index)
    with f.loop("one", whole, f.arg("count")) as i:
        f.store(activated(f, name, slope, f.load(f.arg("x") + i.index, F32)), f.arg("y") + i.index)
    f.ret()
    y = np.full(x.size, np.float32(7))
    native(f, lanes)(y=y, x=x, count=x.size)
    return y


# Errors in units of the last place of the result.
UNITS = {"relu": 0, "relu6": 0, "leaky_relu": 1.5, "hardswish": 3, "sigmoid": 3, "silu": 3.5, "tanh": 3.5}
UNITS |= {"gelu_tanh": 6, "gelu": 6}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_nearly_exact(name: str, lanes: int) -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([
        draw.uniform(-12, 12, 40_000), draw.normal(0, 1, 20_000), draw.normal(0, 1e-3, 5_000),
        draw.normal(0, 1e-20, 99), np.linspace(-20, 20, 4001), [0.0, 1e30, 3e38, 88.0, 100.0],
    ]).astype(np.float32)  # fmt: skip
    exact, result = torchs(name, 0.01, x.astype(np.float64)), applied(name, lanes, x)
    # gelu_tanh takes the power of a rounded number: where it is far below |x| it has fewer digits, as torch's has.
    least = np.abs(x) / 10 if name == "gelu_tanh" else 1e-30
    place = np.spacing(np.maximum(np.abs(exact), np.maximum(least, 1e-30)).astype(np.float32)).astype(np.float64)
    errors = np.abs(result - exact) / place
    assert errors.max() <= UNITS[name], f"{errors.max():.1f} units at {x[errors.argmax()]}"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_limits(name: str) -> None:
    """NaN stays NaN; infinities are torch's, but that nothing times infinity may be NaN where the limit is 0."""
    limits = np.array([np.nan, np.inf, -np.inf, -1e30, -3e38], np.float32)
    result, exact = applied(name, LANES[-1], limits), torchs(name, 0.01, limits.astype(np.float64))
    assert np.isnan(result[0])
    np.testing.assert_allclose(result[1], exact[1])
    np.testing.assert_allclose(result[3:], exact[3:], rtol=1e-3)
    assert np.isnan(result[2]) or result[2] == exact[2]
