"""The convolutions of a network and their weights, whether they are modules or lines of an exported graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# What a convolution is called, as a function of torch and as an operator of a graph.
CONVOLUTIONS = frozenset({"convolution", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))})


@dataclass(frozen=True)
class Layer:
    """One convolution. `address` is where it is in the network, `key` the name of its weight in the state dict.

    weight: as torch keeps it: (kernels, slices, *size), transposed convolutions (inputs, kernels / groups, *size).
    stride, dilation: None where a graph leaves torch's defaults.
    """

    address: str
    key: str
    kind: str
    weight: Tensor
    stride: tuple[int, ...] | None
    dilation: tuple[int, ...] | None
    groups: int
    transposed: bool

    @property
    def kernels(self) -> int:
        """How many output channels it has."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def channels(self) -> int:
        """How many input channels it has."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    def by_kernel(self, weight: Tensor | None = None) -> np.ndarray:
        """The weights (or others of their shape) as (kernels, slices, *size), whatever torch's layout."""
        w = (self.weight if weight is None else weight).detach().float().cpu().numpy()
        if not self.transposed:
            return w
        I, O, *size = w.shape
        G = self.groups
        return w.reshape(G, I // G, O, *size).swapaxes(1, 2).reshape(G * O, I // G, *size)


def layers_of(net: nn.Module) -> dict[str, Layer]:
    """The convolutions of `net` by address, in the order in which they were registered; shared ones once.

    A network that is a convolution has the address of its class, in small letters. Compiled networks are read through
    the module that they were compiled from. Functional convolutions with weights of their own making are not found.
    """
    net = getattr(net, "_orig_mod", net)
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, _ConvNd):
            layer = _of_module(name, module)
            found[layer.address] = layer
    return found or (_of_graph(net) if isinstance(net, torch.fx.GraphModule) else {})


def name_of(name: str, module: nn.Module) -> str:
    """The address of a module: its name in the network, or of its class where it is the network."""
    return name or type(module).__name__.lower()


def _of_module(name: str, module: _ConvNd) -> Layer:
    return Layer(
        address=name_of(name, module),
        key=f"{name}.weight".lstrip("."),
        kind=type(module).__name__,
        weight=module.weight,
        stride=tuple(module.stride),
        dilation=tuple(module.dilation),
        groups=module.groups,
        transposed=isinstance(module, _ConvTransposeNd),
    )


def _of_graph(net: torch.fx.GraphModule) -> dict[str, Layer]:
    """Exported networks have no modules any more: weights are attributes, named as in the network they came from."""
    found = {}
    for node in net.graph.nodes:
        name = getattr(node.target, "__name__", "").partition(".")[0]
        if node.op != "call_function" or name not in CONVOLUTIONS or len(node.args) < 2:
            continue
        source = node.args[1]
        if not isinstance(source, torch.fx.Node) or source.op != "get_attr":
            continue
        key = str(source.target)
        transposed = "transpose" in name or (name == "convolution" and bool(node.args[6]))
        address = key.removesuffix(".weight")
        weight = reduce(getattr, key.split("."), net)
        groups = _groups(node, name)
        if isinstance(weight, Tensor) and isinstance(groups, int):
            found[address] = Layer(address, key, name, weight, None, None, groups, transposed)
    return found


def _groups(node: torch.fx.Node, name: str) -> object:
    """The argument `groups`: the seventh of conv2d and of conv_transpose2d, the last of aten.convolution."""
    place = 8 if name == "convolution" else 6
    return node.kwargs.get("groups", node.args[place] if len(node.args) > place else 1)
