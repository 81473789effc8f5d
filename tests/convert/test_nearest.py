"""Which network of the zoo is nearest to weights that fit none: on the zoo itself."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hubel import zoo
from hubel.convert.nearest import nearest

NETWORKS = {name: partial(zoo.build, name) for name in zoo.ZOO}
SOME = (
    "lenet5",
    "vgg16",
    "vgg16_bn",
    "resnet18",
    "resnet50",
    "resnet152",
    "squeezenet1_0",
    "squeezenet1_1",
    "vit_tiny",
)
FEW = {name: NETWORKS[name] for name in SOME}


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in SOME)])
def test_weights_that_lack_something_are_nearest_to_their_own_network(name: str) -> None:
    networks = FEW if name in FEW else NETWORKS
    with torch.device("meta"):
        state = zoo.build(name).state_dict()
    del state[next(iter(state))]
    state["head.extra"] = torch.zeros(3)
    found = nearest(state, networks)
    assert found is not None and found.name == name
    assert found.shared == found.of - 1


def test_a_deeper_network_is_nearest_to_its_family() -> None:
    with torch.device("meta"):
        state = zoo.build("resnet101").state_dict()
    found = nearest(state, FEW)
    # resnet152 has all of resnet101's blocks, and more.
    assert str(found) == "resnet152, with 626 of whose 932 tensors they agree in name and shape"


def test_weights_of_something_else_are_near_nothing() -> None:
    assert nearest({"encoder.weight": torch.zeros(3, 3)}, FEW) is None
