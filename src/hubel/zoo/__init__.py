"""The classic networks. ZOO is the table, written out: a family is one file and one line here.

net = hubel.zoo.build("lenet5", seed=0)                     # random weights, the same ones for the same seed
net = hubel.zoo.build("resnet50", weights="resnet50.safetensors")
net = hubel.zoo.build("resnet50", features=["layer1", "layer4"])   # net(x): {"layer1": ..., "layer4": ...}

Weights: state dicts with the parameter names of `describe(name).names`, which is torchvision where it has the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubel.convert.nearest import nearest
from hubel.convert.weights import compare, load_into, read_state_dict
from hubel.errors import ModelError, unknown
from hubel.zoo.alexnet import ALEXNETS
from hubel.zoo.audio import AUDIO
from hubel.zoo.convnext import CONVNEXTS
from hubel.zoo.crnn import CRNNS
from hubel.zoo.dcgan import DCGANS
from hubel.zoo.densenet import DENSENETS
from hubel.zoo.efficientnet import EFFICIENTNETS
from hubel.zoo.features import with_features
from hubel.zoo.inception import GOOGLENETS
from hubel.zoo.inception_v3 import INCEPTIONS
from hubel.zoo.lenet import LENETS
from hubel.zoo.mobilenet import MOBILENETS
from hubel.zoo.network import Network, cross_entropy, initialise
from hubel.zoo.resnet import RESNETS
from hubel.zoo.squeezenet import SQUEEZENETS
from hubel.zoo.vgg import VGGS
from hubel.zoo.vit import VITS

ZOO: dict[str, Network] = {
    **LENETS,  # lenet5
    **ALEXNETS,  # alexnet
    **VGGS,  # vgg11, vgg13, vgg16, vgg19, each also with _bn
    **GOOGLENETS,  # googlenet
    **INCEPTIONS,  # inception_v3
    **RESNETS,  # resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, wide_resnet50_2
    **MOBILENETS,  # mobilenet_v1, mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
    **SQUEEZENETS,  # squeezenet1_0, squeezenet1_1
    **DENSENETS,  # densenet121
    **EFFICIENTNETS,  # efficientnet_b0, efficientnet_lite0
    **CONVNEXTS,  # convnext_tiny
    **VITS,  # vit_tiny, and vitc_1gf with a convolutional stem
    **DCGANS,  # dcgan_generator, dcgan_discriminator
    **AUDIO,  # ds_cnn
    **CRNNS,  # crnn
}

__all__ = ["ZOO", "Network", "build", "cross_entropy", "describe", "initialise"]


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
    features: Sequence[str] | None = None,
    **options: Any,
) -> nn.Module:
    """A network of the zoo, in training mode.

    weights: a `.safetensors` or `.pth` file, or a state dict; without it the weights are random (He), drawn from `seed`
    and then from nothing else, or from torch's global generator if `seed` is None.
    num_classes, in_channels: for data other than the network's own. options: its own, listed in `describe(name)`.
    features: names of modules; the network then returns a dict of what these return, and ends where the last one does.

    Raises UnknownNameError for a name or an option that does not exist, ModelError for sizes that cannot be and for
    weights that do not fit.
    """
    network = describe(name)
    if network.num_classes is None and num_classes is not None:
        raise ModelError(f"num_classes is for networks that tell classes apart. Received: {num_classes!r} for {name}.")
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
    if isinstance(weights, Mapping):
        _load(net, weights, name, "a state dict")
    elif weights is not None:
        _load(net, read_state_dict(Path(weights)), name, str(weights))
    return net if features is None else with_features(net, features, called=name)


def _load(net: nn.Module, state: Mapping[str, torch.Tensor], name: str, source: str) -> None:
    """`state` into `net`, or ModelError with what differs and the network of the zoo that is nearest."""
    mismatch = compare(net, state)
    if not mismatch:
        load_into(net, state, name=name, source=source)
        return
    # Networks of quite another size are not built to be compared.
    count = sum(tensor.numel() for tensor in state.values())
    about = {key: partial(build, key) for key, line in ZOO.items() if count / 4 < line.parameters < 4 * count}
    found = nearest(state, about)
    near = f" The nearest network of the zoo is {found}." if found else ""
    raise ModelError(
        f"The weights must be those of the network {name}. Received: {source}, which differs ({mismatch}).{near} "
        "Build the network they were saved from, with its num_classes, in_channels and options."
    )
