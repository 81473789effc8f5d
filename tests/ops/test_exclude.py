"""Layers that are left to torch."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import hubel
from hubel.errors import ModelError
from hubel.ops import exclude as module


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 2, 1))


def test_an_excluded_layer_runs_on_torch_both_ways(net: nn.Sequential) -> None:
    x = torch.randn(2, 3, 9, 9)
    expected = net(x)
    assert hubel.exclude(net[2]) == 1
    with hubel.enabled() as log:
        y = net(x)
        y.sum().backward()
    assert (log.native, log.fallback) == (4, 2)
    assert {reason for _, reason in log.reasons} == {"the layer was excluded"}
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert hubel.include(net) == 1
    with hubel.enabled() as log, torch.no_grad():
        net(x)
    assert (log.native, log.fallback) == (3, 0)


def test_its_bits_are_torchs(net: nn.Sequential) -> None:
    layer, x = net[0], torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        expected = layer(x)
        hubel.exclude(layer)
        with hubel.enabled():
            assert torch.equal(layer(x), expected)
        assert torch.equal(hubel.nn.swap(layer)(x), expected), "Hubel's own layers keep to it, too"


def test_all_convolutions_of_a_module(net: nn.Sequential) -> None:
    assert hubel.exclude(net) == 3
    assert hubel.exclude(net) == 3, "twice is once"
    assert hubel.include(net) == 3
    assert hubel.include(net) == 0


def test_what_is_gone_is_forgotten() -> None:
    before = len(module.excluded)
    layer = nn.Conv2d(3, 4, 3)
    hubel.exclude(layer)
    assert len(module.excluded) == before + 1
    del layer
    gc.collect()
    assert len(module.excluded) == before


def test_a_module_without_convolutions_is_a_mistake() -> None:
    with pytest.raises(ModelError, match=r"Received: Linear without any\. Pass the convolution"):
        hubel.exclude(nn.Linear(3, 4))
