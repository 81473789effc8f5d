"""torch's layers to Hubel's and back, in place: only the class changes, so parameters, hooks and sharing stay."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from hubel.nn import layers
from hubel.ops.weights import learn_buffers

_TO_HUBEL: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: layers.Conv1d,
    nn.Conv2d: layers.Conv2d,
    nn.Conv3d: layers.Conv3d,
    nn.ConvTranspose1d: layers.ConvTranspose1d,
    nn.ConvTranspose2d: layers.ConvTranspose2d,
    nn.ConvTranspose3d: layers.ConvTranspose3d,
}
_TO_TORCH = {hubel: torch for torch, hubel in _TO_HUBEL.items()}

Net = TypeVar("Net", bound=nn.Module)


def swap(net: Net) -> Net:
    """Make every convolution layer of `net` a Hubel layer, in place, and return `net`.

    Layers of a class derived from torch's, parametrised and lazy ones among them, stay as they are: their `forward`
    may be their own. `hubel.enable()` reaches these too.
    """
    learn_buffers(net)
    return _exchanged(net, _TO_HUBEL)


def restore(net: Net) -> Net:
    """Take back `swap`: every Hubel layer of `net` becomes torch's again, in place. Returns `net`."""
    return _exchanged(net, _TO_TORCH)


def _exchanged(net: Net, table: dict[type[nn.Module], type[nn.Module]]) -> Net:
    for module in net.modules():
        if type(module) in table:
            module.__class__ = table[type(module)]
    return net
