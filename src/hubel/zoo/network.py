"""What the zoo knows of a network before it is built, and how weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Network:
    """One line of the zoo.

    factory: takes `num_classes` (where there are classes), `in_channels` and the `options`, and returns an initialised
    module.
    input: shape of one example that it is made for: (channels, height, width), or (channels, samples) of a sound.
    smallest: the smallest sizes, without channels, that pass through it; those of `input` if no others do.
    output: scores (N, num_classes), a sequence of scores (N, steps, num_classes), or an image (N, channels, H, W).
    num_classes: None for what has none.
    parameters: their number in the original form, buffers not counted. names: whose state dicts load
    (examples: those of PyTorch).
    arxiv: the paper's number there, if it has one. options: what else the factory takes, and what that means.
    """

    name: str
    factory: Callable[..., nn.Module]
    input: tuple[int, ...]
    smallest: tuple[int, ...]
    num_classes: int | None
    parameters: int
    year: int
    source: str
    arxiv: str | None = None
    names: Literal["hubel", "torchvision", "timm", "examples", "crnn.pytorch"] = "hubel"
    output: Literal["scores", "sequence", "image"] = "scores"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width) of the images it is made for; (samples,) of a sound."""
        return self.input[1:]

    @property
    def classifies_images(self) -> bool:
        """Whether it gives an image one score a class, which is what `hubel train` teaches."""
        return len(self.input) == 3 and self.output == "scores"


def rows(*networks: Network) -> dict[str, Network]:
    """A family's part of the table, by name."""
    return {network.name: network for network in networks}


# What GoogLeNet's paper weighs the losses of auxiliary classifiers with (arXiv 1409.4842, section 5).
AUXILIARY = 0.3


def cross_entropy(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The loss of a training pass. outputs: scores (N, classes), or a tuple of them, the auxiliary ones behind."""
    if isinstance(outputs, torch.Tensor):
        return F.cross_entropy(outputs, labels)
    first, *auxiliary = (F.cross_entropy(scores, labels) for scores in outputs)
    return first + AUXILIARY * sum(auxiliary)


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


@torch.no_grad()
def he_fan_in(net: nn.Module) -> nn.Module:
    """Draw convolutions with variance 2 / fan_in, which keeps the size of the activations; their biases start at zero.

    Linear layers stay as torch draws them, with biases at zero. Returns `net`.
    """
    for layer in net.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            layer.weight.normal_(0, math.sqrt(2 / _fan_in(layer)))
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and layer.bias is not None:
            layer.bias.zero_()
    return net


@torch.no_grad()
def he_fan_out(net: nn.Module, linear: float | None = None) -> nn.Module:
    """Draw convolutions with variance 2 / fan_out, which keeps the size of the gradients (He et al. 2015, section 2.2).

    What the residual networks and those after them start from. fan_out: how many outputs one input takes part in, of
    its own group. linear: standard deviation of the linear layers; None leaves them as torch draws them. Biases of
    what is drawn start at zero. Returns `net`.
    """
    for layer in net.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            fan_out = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
            layer.weight.normal_(0, math.sqrt(2 / fan_out))
        elif isinstance(layer, nn.Linear) and linear is not None:
            layer.weight.normal_(0, linear)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()
    return net


@torch.no_grad()
def truncated_normal(net: nn.Module, std: float) -> nn.Module:
    """Draw convolutions and linear layers from a normal of standard deviation `std`, cut at ±2; biases start at zero.

    Returns `net`.
    """
    for layer in net.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2, b=2)
            if layer.bias is not None:
                layer.bias.zero_()
    return net


def _fan_in(layer: nn.Module) -> int:
    """How many inputs one output sums over."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return layer.in_features
