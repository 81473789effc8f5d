"""Hubel's layers are torch's in everything but who computes; swap and restore change nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import hubel
from hubel.ops.log import Log

# name: (arguments, input shape)
LAYERS = {
    "Conv1d": [(3, 4, 3), {"padding": "same", "padding_mode": "circular"}, (2, 3, 9)],
    "Conv2d": [(4, 6, (3, 5)), {"stride": 2, "padding": (1, 2), "groups": 2}, (2, 4, 9, 8)],
    "Conv3d": [(2, 3, 2), {"bias": False, "dilation": (1, 2, 1)}, (1, 2, 4, 5, 6)],
    "ConvTranspose1d": [(4, 3, 3), {"stride": 2, "output_padding": 1}, (2, 4, 7)],
    "ConvTranspose2d": [(4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5, 6)],
    "ConvTranspose3d": [(2, 3, 2), {"bias": False}, (1, 2, 3, 4, 5)],
}


def _pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    arguments, options, shape = LAYERS[name]
    theirs = getattr(nn, name)(*arguments, **options)
    ours = getattr(hubel.nn, name)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_torchs_and_computed_by_hubel(name):
    ours, theirs, x = _pair(name)
    x.requires_grad_()
    log = Log()
    found = ours(x)
    assert_close(found, theirs(x), rtol=1e-4, atol=1e-5)
    gradients = (torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()]) for net in (ours, theirs))
    assert_close(*gradients, rtol=1e-4, atol=1e-3)
    assert log.native == 3


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_repr_and_class_are_torchs(name):
    ours, theirs, _ = _pair(name)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(nn, name))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert str(pickle.loads(pickle.dumps(ours))) == repr(theirs)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode):
    theirs = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    ours = hubel.nn.swap(copy.deepcopy(theirs))
    x = torch.randn(2, 3, 6, 6)
    assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_output_size_of_transposed_layers():
    theirs = nn.ConvTranspose2d(3, 4, 3, stride=2)
    ours = hubel.nn.swap(copy.deepcopy(theirs))
    x = torch.randn(2, 3, 6, 6)
    assert_close(ours(x, output_size=[14, 13]), theirs(x, output_size=[14, 13]), rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.normed = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.normed(self.again(self.first(x))))


def test_swap_and_restore_leave_the_network_as_it_was():
    net = Shared().eval()
    x = torch.randn(1, 3, 6, 6)
    calls = []
    net.first.register_forward_hook(lambda *_: calls.append("hook"))
    before, text, parameters = net(x), repr(net), list(net.parameters())

    assert hubel.nn.swap(net) is net
    assert net.first is net.again
    assert type(net.first) is hubel.nn.Conv2d
    assert repr(net) == text
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    log = Log()
    assert_close(net(x), before, rtol=1e-4, atol=1e-5)
    assert log.native == 3  # the parametrised layer is of a class of its own, and stays torch's

    assert hubel.nn.restore(net) is net
    assert type(net.first) is nn.Conv2d
    assert type(net.up) is nn.ConvTranspose2d
    assert torch.equal(net(x), before)
    assert len(calls) == 6


def test_a_network_that_is_one_layer():
    net = nn.Conv2d(1, 1, 1)
    assert type(hubel.nn.swap(net)) is hubel.nn.Conv2d
    assert type(hubel.nn.restore(net)) is nn.Conv2d


class Mine(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_derived_layers_stay_as_they_are():
    assert type(hubel.nn.swap(nn.Sequential(Mine(1, 1, 1)))[0]) is Mine
    assert type(hubel.nn.swap(nn.Sequential(nn.LazyConv2d(1, 1)))[0]) is nn.LazyConv2d


def test_hubel_disable_runs_layers_on_torch(monkeypatch):
    ours, theirs, x = _pair("Conv2d")
    monkeypatch.setenv("HUBEL_DISABLE", "1")
    log = Log()
    assert torch.equal(ours(x), theirs(x))
    assert log.native == 0
