"""The classic networks. ZOO is the table, written out: adding a network is one file and one line here.

net = hubel.zoo.build("lenet5", seed=0)                     # random weights, the same ones for the same seed
net = hubel.zoo.build("lenet5", weights="weights.safetensors")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubel.convert.weights import load_into, read_state_dict
from hubel.errors import ModelError, unknown
from hubel.zoo.lenet import LENET5
from hubel.zoo.network import Network, initialise

ZOO: dict[str, Network] = {
    "lenet5": LENET5,
}

__all__ = ["ZOO", "Network", "build", "describe", "initialise"]


def describe(name: str) -> Network:
    """What the zoo says of a network: its input, its size, where it comes from. UnknownNameError names near ones."""
    try:
        return ZOO[name]
    except (KeyError, TypeError):
        raise unknown("network", name, ZOO) from None


def build(
    name: str,
    weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """A network of the zoo, in training mode.

    weights: a `.safetensors` or `.pth` file, or a state dict; without it the weights are random (He), drawn from `seed`
    and then from nothing else, or from torch's global generator if `seed` is None.
    num_classes, in_channels: for data other than the network's own. options: its own, listed in `describe(name)`.

    Raises UnknownNameError for a name or an option that does not exist, ModelError for sizes that cannot be and for
    weights that do not fit.
    """
    network = describe(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    for key, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ModelError(
                f"{key} of {name} is a positive whole number. Received: {value!r}. Leave it out or pass >= 1."
            )
    sizes = {key: value for key, value in sizes.items() if value is not None}
    for option in options:
        if option not in network.options:
            raise unknown(f"option of {name}", option, network.options)

    # Seeding must not disturb the caller's own random numbers; without a seed, drawing from them is what is asked.
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = network.factory(**sizes, **options)
    if weights is not None:
        if isinstance(weights, Mapping):
            load_into(net, weights, name=name, source="a state dict")
        else:
            load_into(net, read_state_dict(Path(weights)), name=name, source=Path(weights))
    return net
