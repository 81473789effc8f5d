"""The zoo under hubel.enable(): every convolution is Hubel's, and the numbers are PyTorch's, in training too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import hubel
from hubel import zoo
from hubel.zoo import ZOO
from hubel.zoo.layers import StochasticDepth
from tests.zoo.test_zoo import OPTIONS, examples, small, tensors

FAST = ("lenet5", "squeezenet1_1", "dcgan_generator", "dcgan_discriminator", "ds_cnn")
NETWORKS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
# A second size, where the architecture takes one: odd, so that strides and pooling round.
OTHER: dict[str, tuple[int, ...]] = {
    "inception_v3": (107, 95),
    "crnn": (32, 36),
    "ds_cnn": (9000,),
    "dcgan_generator": (2, 1),
}
# Distances from the same network in float64. Random networks on small images can be so ill conditioned that PyTorch's
# float32 lies further off than this; then Hubel's may be some times as far.
TOLERANCE = 1e-4
# Pooling still chooses, and a choice that rounding turns over moves a gradient by more than rounding.
GRADIENTS = 1e-3
TIMES = 4


def other(name: str, n: int) -> torch.Tensor:
    network = ZOO[name]
    fixed = network.smallest == network.size and name not in OTHER
    return small(name, n) if fixed else examples(name, OTHER.get(name, (97, 75)), n)


def built(name: str) -> nn.Module:
    """With batch norms that have seen data: at first they do nothing, and random networks fade or explode."""
    net = zoo.build(name, seed=0, **OPTIONS.get(name, {}))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    with torch.no_grad():
        net(small(name, 4))
    return net


def apart(ours: Any, theirs: Any) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(tensors(ours), tensors(theirs), strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_enabled_is_eager(name: str) -> None:
    net = built(name).eval()
    convolutions = sum(isinstance(module, nn.modules.conv._ConvNd) for module in net.modules())
    with torch.no_grad():
        for x in (small(name, 1), small(name, 3), other(name, 2)):
            theirs = net(x)
            with hubel.enabled() as log:
                ours = net(x)
            assert log.native >= 0.9 * (convolutions - 2) and log.native > 0, log.reasons
            assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
            exact = copy.deepcopy(net).double()(x.double())
            assert apart(ours, exact) < max(TOLERANCE, TIMES * apart(theirs, exact))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_enabled_is_eager(name: str) -> None:
    net = smooth(built(name)).train()
    x = small(name, 4)
    with hubel.enabled() as log:
        ours = step(copy.deepcopy(net), x)
    assert log.native > 0
    theirs, exact = step(copy.deepcopy(net), x), step(net.double(), x.double())
    for part, tolerance in enumerate((TOLERANCE, GRADIENTS)):
        assert apart(ours[part], exact[part]) < max(tolerance, TIMES * apart(theirs[part], exact[part]))


def smooth(net: nn.Module) -> nn.Module:
    """Without the kinks of ReLU and its kin: there rounding turns single gradients on and off, PyTorch's too."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
    return net


def step(net: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The outputs, and the gradient of all parameters as one vector."""
    outputs = tensors(net(x))
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    # A VGG's take a gigabyte in float64.
    net.zero_grad(set_to_none=True)
    return outputs, gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_torch_compile_captures_each_network_whole(name: str) -> None:
    net = built(name)
    x = small(name, 2)
    for training in (False, True):
        torch._dynamo.reset()
        compiled: Any = torch.compile(net.train(training), backend="eager", fullgraph=True)
        torch.manual_seed(0)
        ours = compiled(x)
        torch.manual_seed(0)
        assert apart(ours, net(x)) < 1e-6
