"""Watching a network: what is reported, where the tap is, and that the network leaves as it came."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hubel.inspect import layers_of, watch


class Styles(nn.Module):
    """One convolution for each way in which something can follow it."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("module", "function", "method", "inplace", "normed", "residual", "bare", "twice"):
            setattr(self, name, nn.Conv2d(2, 2, 3, padding=1))
        self.relu, self.bn1, self.bn2 = nn.ReLU(), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.weight = nn.Parameter(torch.randn(2, 2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.module(x))  # type: ignore[operator]
        x = F.gelu(self.function(x))  # type: ignore[operator]
        x = self.method(x).tanh()  # type: ignore[operator]
        x = F.relu(self.inplace(x), inplace=True)  # type: ignore[operator]
        x = F.leaky_relu(self.bn1(self.normed(x)))  # type: ignore[operator]
        x = x + self.bn2(self.residual(x))  # type: ignore[operator]
        x = 2 * self.bare(x)  # type: ignore[operator]
        x = self.twice(self.twice(x))  # type: ignore[operator]
        return F.conv2d(x, self.weight)


def hooks_of(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_every_style_of_writing_a_network_has_its_tap() -> None:
    net, x = Styles(), torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        net.inplace.bias.copy_(torch.tensor([-9.0, 9.0]))  # type: ignore[union-attr]
    with watch(net) as calls:
        net(x)
    assert {call.address: call.tap for call in calls} == {
        "module": "relu",
        "function": "gelu",
        "method": "tanh",
        "inplace": "relu",
        "normed": "leaky_relu",
        "residual": "pre_add",
        "bare": "convolution",
        "twice": "convolution",
        "twice@2": "convolution",
        "conv2d#1": "convolution",
    }
    by_address = {call.address: call for call in calls}
    inplace = by_address["inplace"]
    assert (inplace.output < 0).any(), "an in-place ReLU must not overwrite the copy of what it was given"
    assert torch.equal(inplace.activation, inplace.output.relu())
    normed = by_address["normed"]
    assert torch.equal(normed.activation, F.leaky_relu(net.eval().bn1(normed.output)))


def test_a_functional_convolution_has_the_address_of_who_called_it() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, torch.ones(1, 1, 1, 1)) + F.conv2d(x, torch.ones(1, 1, 1, 1))

    net = nn.Sequential(nn.Conv2d(1, 1, 1), Inner())
    with watch(net) as calls:
        net(torch.ones(1, 1, 2, 2))
    assert [call.address for call in calls] == ["0", "1/conv2d#1", "1/conv2d#2"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_leaves_as_it_came(fails: bool) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.rand(3)
            if fails:
                raise ValueError("inside")
            return x

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), Fails())
    net.train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes, random = [m.training for m in net.modules()], torch.random.get_rng_state()
    try:
        with watch(net):
            net(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    except ValueError as error:
        assert str(error) == "inside"
    assert hooks_of(net) == 0
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    # The function mode is gone too: what follows is not watched.
    assert torch.is_grad_enabled() and F.relu(torch.ones(1)).item() == 1


def test_an_edit_is_asked_again_behind_norm_and_activation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sigmoid())
    with watch(net, edit=lambda address, tensor: torch.zeros_like(tensor), keep=False):
        assert net(torch.randn(1, 1, 3, 3)).abs().max() == 0, "sigmoid(0) is one half unless the edit comes after it"


def test_an_edit_reaches_whoever_keeps_the_tensor_of_an_in_place_activation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            x.sigmoid_()
            return x

    net = Net()
    with watch(net, edit=lambda address, tensor: torch.zeros_like(tensor), keep=False):
        assert net(torch.ones(1, 1, 2, 2)).abs().max() == 0


def test_a_network_that_is_a_convolution_is_named_by_its_class() -> None:
    net = nn.Conv1d(1, 2, 3)
    assert list(layers_of(net)) == ["conv1d"]
    with watch(net) as calls:
        net(torch.ones(1, 1, 5))
    assert calls[0].address == "conv1d"


def test_adding_in_place_ends_the_chain() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.other = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.bn(self.conv(x))
            out += x
            out = F.relu(out, inplace=True)
            more = self.other(out)
            more.mul_(2)
            return F.relu(more)

    net, x = Block(), torch.randn(1, 2, 3, 3)
    seen: list[tuple[str, str]] = []
    with watch(net, read=lambda address, stage, tensor: seen.append((address, stage))) as calls:
        net(x)
    assert {call.address: call.tap for call in calls} == {"conv": "pre_add", "other": "convolution"}
    assert torch.equal(calls[0].activation, net.bn.eval()(net.conv(x))), "the copy is from before the addition"
    assert seen == [("conv", "convolution"), ("conv", "pre_add"), ("other", "convolution")]


def test_what_is_not_kept_has_shapes_and_no_memory() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with watch(net, keep=False) as calls:
        net(torch.ones(3, 1, 6, 6))
    call = calls[0]
    assert call.activation.device.type == call.input.device.type == "meta"
    assert (tuple(call.input.shape), tuple(call.activation.shape), call.tap) == ((3, 1, 6, 6), (3, 2, 4, 4), "relu")


def test_gradients_may_be_asked_for_and_leave_no_trace() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1))
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    with watch(net, keep=False, gradients=True):
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
    assert gradient.abs().max() > 0
    assert x.grad is None and all(p.grad is None for p in net.parameters())
