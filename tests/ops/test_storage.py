"""Layers of 16-bit numbers: under autocast, in training, with weights kept packed, and what torch is handed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import hubel

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
NARROW = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.detach().double() - reference.detach()).norm() / reference.detach().norm())


@NARROW
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 24, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 24, 5, stride=2),
        nn.ConvTranspose2d(16, 8, 4, 2, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layers_and_their_gradients(layer: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = copy.deepcopy(layer).to(dtype)
    reference = copy.deepcopy(net).double()
    x = torch.randn(2, 16, 13, 15).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with hubel.enabled() as log:
        y = net(x)
        dy = torch.randn(y.shape).to(dtype)
        y.backward(dy)
    assert (log.native, log.fallback) == (2, 0), log.reasons
    expected = reference(exact)
    expected.backward(dy.double())
    assert y.dtype == dtype and x.grad is not None and x.grad.dtype == dtype
    pairs = [(y, expected), (x.grad, exact.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(net.parameters(), reference.parameters(), strict=True)]
    for result, wanted in pairs:
        assert error(result, wanted) <= 2 * ROUNDING[dtype]


def test_autocast_is_native() -> None:
    """Autocast makes the arguments bfloat16; parameters and their gradients stay float32."""
    torch.manual_seed(0)
    net, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9)
    with hubel.enabled() as log, torch.autocast("cpu"):
        y = net(x)
        y.sum().backward()
    assert (log.native, log.fallback) == (2, 0)
    assert y.dtype == torch.bfloat16
    assert net.weight.grad is not None and net.weight.grad.dtype == torch.float32
    expected = copy.deepcopy(net).double()(x.double())
    # Input, weights and output are rounded.
    assert error(y, expected) <= 3 * ROUNDING[torch.bfloat16]


@NARROW
def test_packed_weights_follow_the_parameter(dtype: torch.dtype) -> None:
    """Of a weight so small that all of it is compared, and of one that is sampled."""
    for channels in (4, 64):
        torch.manual_seed(0)
        net, x = nn.Conv2d(channels, channels, 3).to(dtype), torch.randn(1, channels, 9, 9).to(dtype)
        with torch.no_grad(), hubel.enabled() as log:
            before = net(x)
            assert torch.equal(net(x), before)
            net.weight.mul_(2)
            net.weight.data.mul_(0.5)
            net.weight.data.mul_(-2)
            after = copy.deepcopy(net)(x)
            assert torch.equal(net(x), after) and not torch.equal(after, before)
        assert log.fallback == 0


def test_dtypes_that_do_not_agree_are_torchs() -> None:
    x, w = torch.randn(1, 3, 8, 8), torch.randn(8, 3, 3, 3, dtype=torch.bfloat16)
    with hubel.enabled() as log, pytest.raises(RuntimeError, match="expected scalar type"):
        torch.conv2d(x, w)
    assert log.native == 0
    assert ["Hubel reads tensors of one dtype" in why for _, why in log.reasons] == [True]
