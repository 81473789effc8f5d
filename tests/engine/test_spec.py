"""The sizes and texts of convolutions: right, round trip, and one clear message where there is none."""

from __future__ import annotations

import dataclasses
import pickle
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.problem import DTYPES, Direction, Policy, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import HubelError, SpecError, UnknownNameError, UnsupportedError
from tests.strategies import problems, specs

CONV = (F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

RESNET = ConvSpec(1, 64, 128, (56, 56), 3, padding=1)


# --- sizes


def test_numbers_become_one_a_dimension() -> None:
    spec = ConvSpec(2, 4, 8, (7, 8, 9), 3, 2, 1, 1, 2)
    assert (spec.kernel_size, spec.stride, spec.padding, spec.dilation) == ((3,) * 3, (2,) * 3, (1,) * 3, (1,) * 3)
    assert spec == ConvSpec(2, 4, 8, [7, 8, 9], [3, 3, 3], (2, 2, 2), (1, 1, 1), (1, 1, 1), 2)


def test_numpy_and_torch_integers_become_ints() -> None:
    one, two, three = (cast(int, number) for number in (np.int64(1), np.int32(2), np.uint8(3)))
    spec = ConvSpec(one, two, 3, torch.Size([5, 5]), three)
    assert spec == ConvSpec(1, 2, 3, (5, 5), 3)
    assert all(type(field) is int for field in (spec.batch, spec.in_channels, *spec.input_size, *spec.kernel_size))


def test_what_a_known_layer_costs() -> None:
    assert RESNET.output_size == (56, 56)
    assert RESNET.weight_shape == (128, 64, 3, 3)
    assert RESNET.taps == 9
    assert RESNET.parameters == 73_728
    assert RESNET.macs == 231_211_008
    assert RESNET.flops == 462_422_016
    assert RESNET.bytes() == 4 * (64 * 56 * 56 + 73_728 + 128 * 56 * 56)
    assert RESNET.bytes(2) * 2 == RESNET.bytes(4)


def test_groups_divide_the_cost() -> None:
    dense, grouped = ConvSpec(1, 8, 16, (9,), 3), ConvSpec(1, 8, 16, (9,), 3, groups=4)
    assert grouped.macs * 4 == dense.macs
    assert grouped.parameters * 4 == dense.parameters


@given(specs())
def test_output_shape_is_torchs(spec: ConvSpec) -> None:
    x, w = torch.empty(spec.input_shape, device="meta"), torch.empty(spec.weight_shape, device="meta")
    y = CONV[spec.ndim - 1](x, w, None, spec.stride, spec.padding, spec.dilation, spec.groups)
    assert spec.output_shape == tuple(y.shape)


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(1, 9))
def test_same_padding_keeps_the_size(ndim: int, kernel: int, dilation: int, size: int) -> None:
    try:
        spec = ConvSpec(1, 1, 1, (size,) * ndim, kernel, padding="same", dilation=dilation)
    except SpecError:
        assert dilation * (kernel - 1) % 2 == 1
    else:
        assert spec.output_size == spec.input_size


def test_valid_padding_is_none() -> None:
    assert ConvSpec(1, 1, 1, (5, 5), 3, padding="valid").padding == (0, 0)


def test_specs_are_values() -> None:
    assert pickle.loads(pickle.dumps(RESNET)) == RESNET
    assert {RESNET: 1}[ConvSpec.parse(str(RESNET))] == 1
    assert dataclasses.replace(RESNET, batch=16).output_shape == (16, 128, 56, 56)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESNET.batch = 2  # type: ignore[misc]


# --- transposed


@st.composite
def transposed(draw: st.DrawFn) -> tuple:
    """Arguments of `ConvSpec.for_transposed` that torch accepts, and that have an output."""
    ndim = draw(st.integers(1, 3))
    axes = []
    for _ in range(ndim):
        size, kernel, stride, dilation = (draw(st.integers(1, 3)) for _ in range(4))
        extra = draw(st.integers(0, stride - 1))
        largest = (size - 1) * stride + dilation * (kernel - 1) + extra
        axes.append((size, kernel, stride, draw(st.integers(0, largest // 2)), extra, dilation))
    groups = draw(st.sampled_from((1, 1, 2)))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    return (draw(st.integers(0, 2)), *channels, *zip(*axes, strict=True), groups)


@given(transposed())
def test_transposed_exchanges_the_roles(arguments: tuple) -> None:
    batch, into, _, size, _, stride, padding, extra, dilation, groups = arguments
    spec = ConvSpec.for_transposed(*arguments)
    assert spec.output_shape == (batch, into, *size)
    dy, w = torch.empty(spec.output_shape, device="meta"), torch.empty(spec.weight_shape, device="meta")
    dx = CONV_TRANSPOSE[spec.ndim - 1](dy, w, None, stride, padding, extra, groups, dilation)
    assert spec.input_shape == tuple(dx.shape)


def test_transposed_refusals() -> None:
    with pytest.raises(UnsupportedError, match=r"output_padding=\(1, 1\), stride=\(1, 1\), dilation=\(2, 2\)"):
        ConvSpec.for_transposed(1, 1, 1, (4, 4), 3, output_padding=1, dilation=2)
    with pytest.raises(SpecError, match="output_padding must be less than stride or dilation"):
        ConvSpec.for_transposed(1, 1, 1, (4, 4), 3, stride=2, output_padding=2)
    with pytest.raises(SpecError, match=r"must have an output.*output_size=\(0,\)"):
        ConvSpec.for_transposed(1, 1, 1, (1,), 2, padding=1)


# --- texts


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("n1c64o128i56x56k3x3s1p1", RESNET),
        ("n2c3o8i31k5s2p2d3", ConvSpec(2, 3, 8, (31,), 5, 2, 2, 3)),
        ("n0c4o8i9x7k3x1s1x2p1x0g4", ConvSpec(0, 4, 8, (9, 7), (3, 1), (1, 2), (1, 0), groups=4)),
        ("n1c1o1i4x5x6k1x1x1s1p0d1x1x2", ConvSpec(1, 1, 1, (4, 5, 6), 1, dilation=(1, 1, 2))),
    ],
)
def test_canonical_text(text: str, spec: ConvSpec) -> None:
    assert str(spec) == text
    assert ConvSpec.parse(text) == spec


@pytest.mark.parametrize("text", ["c64o128i56x56k3p1", "p1k3i56x56o128c64", "n1c64o128i56x56k3x3s1x1p1x1d1g1"])
def test_parse_fills_in_torchs_defaults(text: str) -> None:
    assert ConvSpec.parse(text) == RESNET


@given(specs())
def test_spec_round_trip(spec: ConvSpec) -> None:
    assert ConvSpec.parse(str(spec)) == spec


EPILOGUES = st.builds(
    Epilogue, st.booleans(), st.booleans(), st.sampled_from(ACTIVATIONS), st.sampled_from([0.01, 0.2, 1e-5, -1.0])
)


@given(problems(), st.sampled_from(list(DTYPES)), st.none() | EPILOGUES)
def test_problem_round_trip(problem: Problem, dtype: str, epilogue: Epilogue | None) -> None:
    if problem.direction is Direction.WEIGHT_GRADIENT:
        epilogue = None
    elif epilogue and epilogue.activation != "leaky_relu":
        epilogue = dataclasses.replace(epilogue, slope=0.01)
    problem = dataclasses.replace(problem, dtype=dtype, epilogue=epilogue)
    assert Problem.parse(str(problem)) == problem


def test_problem_text() -> None:
    assert str(Problem(RESNET)) == str(RESNET)
    assert str(Problem(RESNET, Direction.INPUT_GRADIENT)) == f"{RESNET}/input_gradient"
    assert str(Problem(RESNET, Direction.WEIGHT_GRADIENT, bias=True)) == f"{RESNET}/weight_gradient/bias"
    assert str(Problem(RESNET, dtype="bfloat16")) == f"{RESNET}/bfloat16"
    epilogue = Epilogue(scale=True, residual=True, activation="leaky_relu", slope=0.1)
    assert str(Problem(RESNET, bias=True, epilogue=epilogue)) == f"{RESNET}/bias/scale+residual+leaky_relu0.1"


# --- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 30, "groups": 4}, r"in_channels must be divisible by groups\. .*in_channels=30, groups=4"),
        ({"out_channels": 6, "groups": 4}, r"out_channels must be divisible by groups\. .*out_channels=6, groups=4"),
        ({"batch": -1}, "batch must be at least 0.*batch=-1"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"out_channels": 0}, "out_channels must be at least 1"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"input_size": (8, 0)}, r"input_size\[1\] must be at least 1.*input_size\[1\]=0"),
        ({"input_size": (8, 8, 8, 8)}, "input_size must hold 1, 2 or 3 integers"),
        ({"input_size": 8}, "input_size must hold 1, 2 or 3 integers"),
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, r"one for each of the input's 2 dimensions.*kernel_size=\(3, 3, 3\)"),
        ({"kernel_size": 3.0}, r"kernel_size must be an integer\. Received: 3\.0 of type float"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"stride": "2"}, "stride must be an integer"),
        ({"dilation": (1, 0)}, r"dilation\[1\] must be at least 1"),
        ({"padding": -1}, "padding must be at least 0"),
        ({"padding": "full"}, 'padding must be a number, "same" or "valid".*"full"'),
        ({"padding": "same", "stride": 2}, r'padding="same" needs stride 1\. Received: stride=\(2, 2\)'),
        ({"padding": "same", "kernel_size": 2}, 'padding="same" must be even'),
        (
            {"kernel_size": 9},
            r"kernel must fit into the padded input.*input_size=\(8, 8\), kernel_size=\(9, 9\), stride=\(1, 1\), "
            r"padding=\(0, 0\), dilation=\(1, 1\), which gives output_size=\(0, 0\)",
        ),
        ({"dilation": 4}, r"dilation=\(4, 4\), which gives output_size=\(0, 0\)"),
    ],
)
def test_impossible_convolutions(arguments: dict, message: str) -> None:
    possible = {"batch": 1, "in_channels": 4, "out_channels": 8, "input_size": (8, 8), "kernel_size": 3}
    with pytest.raises(SpecError, match=message):
        ConvSpec(**(possible | arguments))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a run of letters"),
        ("resnet50", "not a run of letters"),
        ("c1o1i5k3 ", "not a run of letters"),
        ("c1o1i5xk3", "not a run of letters"),
        ("c1o1i5k-3", "not a run of letters"),
        ("c1o1i5k" + "9" * 40, "not a run of letters"),
        ("c1o1i5k" + "x1" * 40, "not a run of letters"),
        ("c1o1i5k3z2", 'the letter "z" means nothing'),
        ("c1o1i5k3k3", '"k" is given twice'),
        ("c1i5", r'"o" \(out_channels\), "k" \(kernel_size\) must be given'),
        ("c1x2o1i5k3", r'"c" \(in_channels\) takes one number'),
        ("c1o1i5x5k3x3x3", '"c1o1i5x5k3x3x3": kernel_size must be one integer or one for each'),
        ("c1o1i3k5", '"c1o1i3k5": the kernel must fit'),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ConvSpec.parse(text)


def test_bad_problems() -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "input_gradient"'):
        Problem.parse("c1o1i5k3/input_grad")
    with pytest.raises(SpecError, match="a problem has one direction"):
        Problem.parse("c1o1i5k3/input_gradient/forward")
    with pytest.raises(UnknownNameError, match=r'unknown dtype "float33"\. Did you mean "float32"'):
        Problem(RESNET, dtype="float33")
    with pytest.raises(UnknownNameError, match='unknown direction "backward"'):
        Problem(RESNET, "backward")  # type: ignore[arg-type]


def test_bad_epilogues() -> None:
    with pytest.raises(UnknownNameError, match='unknown activation "gelus"'):
        Epilogue(activation="gelus")
    with pytest.raises(SpecError, match="an epilogue does something"):
        Epilogue()
    with pytest.raises(SpecError, match=r'in this order\. Received: "relu\+residual"'):
        Problem.parse("c1o1i5k3/relu+residual")
    with pytest.raises(SpecError, match="weight gradients have no epilogue"):
        Problem.parse("c1o1i5k3/weight_gradient/relu")


def test_bad_policies() -> None:
    assert Policy() == Policy("default", True, 1)
    with pytest.raises(UnknownNameError, match=r'unknown accuracy "strictest"\. Did you mean "strict"'):
        Policy("strictest")  # type: ignore[arg-type]
    with pytest.raises(HubelError, match=r"threads must be at least 1\. Received: 0"):
        Policy(threads=0)


@pytest.mark.parametrize("text", ["n1c1o1i9000000000x9000000000k3x3", "n1c300000o300000i2000000x2000000k3x3s1p1"])
def test_sizes_whose_bytes_cannot_be_counted_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="bytes must be countable in 64 bits. Received: input of shape"):
        ConvSpec.parse(text)
