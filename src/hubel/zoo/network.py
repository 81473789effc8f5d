"""What the zoo knows of a network before it is built, and how weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """One line of the zoo.

    factory: takes `num_classes`, `in_channels` and the `options`, and returns an initialised module.
    input: (channels, height, width) it is made for. parameters: their number in the original form.
    """

    name: str
    factory: Callable[..., nn.Module]
    input: tuple[int, int, int]
    num_classes: int
    parameters: int
    year: int
    source: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images it is made for."""
        return self.input[1:]


@torch.no_grad()
def initialise(net: nn.Module, nonlinearity: Literal["relu", "tanh", "linear"] = "relu") -> nn.Module:
    """Draw the weights of every convolution and linear layer; biases start at zero. Returns `net`.

    He et al. 2015 (arXiv 1502.01852): normal with variance gain² / fan_in keeps the size of the activations from layer
    to layer; gain² is 2 after a ReLU, which drops half of what it sees, 25/9 after a tanh (torch's convention), and 1
    for the last layer's logits, which no activation follows.
    """
    layers = [module for module in net.modules() if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))]
    for layer in layers:
        gain = 1.0 if layer is layers[-1] else nn.init.calculate_gain(nonlinearity)
        layer.weight.normal_(0, gain / math.sqrt(_fan_in(layer)))
        if layer.bias is not None:
            layer.bias.zero_()
    return net


def _fan_in(layer: nn.Module) -> int:
    """How many inputs one output sums over."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return layer.in_features
