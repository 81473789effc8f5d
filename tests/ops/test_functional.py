"""hubel.conv1d ... conv_transpose3d: torch.nn.functional's values for its signatures, and messages of our own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import hubel
from hubel.errors import SpecError
from tests.ops.samples import OPS, calls

# torch's own remark on padding="same" with even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

WRONG: Any = 1.5
# The calls below are wrong on purpose.
X: Any
W: Any
B: Any
X, W, B = torch.randn(2, 6, 8, 8), torch.randn(4, 6, 3, 3), torch.randn(4)
T = torch.randn(6, 4, 3, 3)


@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients_are_torchs(name, monkeypatch):
    for call in calls(name):
        expected = call.run(torch.Tensor.double)
        monkeypatch.setattr(type(call), "function", lambda self: getattr(hubel, self.name))
        found = call.run()
        monkeypatch.undo()
        for ours, reference in zip(found, expected, strict=True):
            assert_close(ours, reference.float(), rtol=1e-4, atol=2e-4, msg=lambda text, call=call: f"{call}\n{text}")


@pytest.mark.parametrize("name", OPS)
def test_parameters_are_named_and_ordered_as_torchs(name):
    documented = {
        "conv": ["input", "weight", "bias", "stride", "padding", "dilation", "groups"],
        "conv_transpose": ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"],
    }
    assert list(inspect.signature(getattr(hubel, name)).parameters) == documented[name[:-2]]


def test_unbatched_inputs_give_unbatched_outputs():
    assert_close(hubel.conv2d(X[0], W, B), F.conv2d(X[0], W, B))
    assert_close(hubel.conv_transpose2d(X[0], T), F.conv_transpose2d(X[0], T), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 5), (1, 4)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_as_torchs(kernel, dilation):
    w = torch.randn(4, 6, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    ours = hubel.conv2d(X, w, padding="same", dilation=dilation)
    assert ours.shape == (2, 4, 8, 8)
    assert_close(ours, F.conv2d(X, w, padding="same", dilation=dilation), rtol=1e-4, atol=1e-4)


def test_other_dtypes_and_empty_inputs_are_torchs():
    assert_close(hubel.conv2d(X.double(), W.double()), F.conv2d(X.double(), W.double()), rtol=0, atol=0)
    assert hubel.conv2d(X[:0], W).shape == (0, 4, 6, 6)
    assert hubel.conv2d(X.to("meta"), W.to("meta")).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("call", "rule", "received", "remedy"),
    [
        (lambda: hubel.conv2d(X, W[:, :5]), "expects an input of 5 channels", "6, in an input", "Channels come"),
        (lambda: hubel.conv2d(X, W, groups=4), "must be divisible by groups", "groups=4", "common divisors"),
        (lambda: hubel.conv2d(X, W, groups=0), "groups must be a whole number of at least 1", "groups=0", "Use 1"),
        (lambda: hubel.conv2d(X, W, B[:3]), "one number for each of the 4 output channels", "(3,)", "Pass 4 numbers"),
        (lambda: hubel.conv2d(X[0, 0], W), "must have 4 dimensions", "(8, 8)", "Reshape"),
        (lambda: hubel.conv1d(X, W), "or 2 without a batch", "(2, 6, 8, 8)", "Reshape"),
        (lambda: hubel.conv2d(X, W[0]), "the weight of conv2d must have 4 dimensions", "(6, 3, 3)", "Its last 2"),
        (lambda: hubel.conv2d(X, W, stride=0), "stride must be whole numbers of at least 1", "stride=0", "larger"),
        (lambda: hubel.conv2d(X, W, stride=WRONG), "stride must be", "stride=1.5", "larger"),
        (lambda: hubel.conv2d(X, W, padding=-1), "padding must be whole numbers of at least 0", "padding=-1", "larger"),
        (lambda: hubel.conv2d(X, W, dilation=(1, 0)), "dilation must be", "(1, 0)", "larger"),
        (lambda: hubel.conv2d(X, W, padding=(1, 1, 1)), "padding must be one number or 2", "(1, 1, 1)", "a dimension"),
        (lambda: hubel.conv2d(X, W, padding="full"), '"same" or "valid"', '"full"', "Use one of these"),
        (lambda: hubel.conv2d(X, W, padding="same", stride=2), "needs stride 1", "(2, 2)", "as numbers"),
        (lambda: hubel.conv2d(X[..., :2], W), "must fit into the padded input", "input size 2", "more padding"),
        (lambda: hubel.conv2d(X, W.double()), "must have one dtype", "torch.float64", ".to("),
        (lambda: hubel.conv2d(X.numpy(), W), "works on tensors", "ndarray", "Pass a Tensor"),
        (lambda: hubel.conv_transpose2d(X, T[:5]), "expects an input of 5 channels", "6, in an input", "Channels come"),
        (lambda: hubel.conv_transpose2d(X, T, output_padding=1), "less than stride or dilation", "(1, 1)", "smaller"),
        (lambda: hubel.conv_transpose2d(X, T, padding=9), "must have an output", "(-8, -8)", "Use less padding"),
    ],
)  # fmt: skip
def test_errors_say_rule_received_and_remedy(call, rule, received, remedy):
    with pytest.raises(SpecError) as error:
        call()
    message = str(error.value)
    place = message.index("Received")
    assert rule in message[:place]
    assert received in message[place:]
    assert remedy in message[place:]
