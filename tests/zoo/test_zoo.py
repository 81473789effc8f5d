"""Every network of the zoo, by going over the table; and LeNet-5 by its own numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hubel import zoo
from hubel.errors import ModelError, UnknownNameError
from hubel.zoo import ZOO


@pytest.fixture(params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def images(name: str, channels: int | None = None, n: int = 2) -> torch.Tensor:
    c, h, w = ZOO[name].input
    return torch.rand(n, channels or c, h, w, generator=torch.Generator().manual_seed(0))


def test_each_network_is_as_its_line_says(name: str) -> None:
    network = zoo.describe(name)
    net = zoo.build(name, seed=0)
    assert network.name == name
    assert sum(p.numel() for p in net.parameters()) == network.parameters
    assert net(images(name)).shape == (2, network.num_classes)
    assert net.training


def test_each_network_takes_other_classes_and_channels(name: str) -> None:
    net = zoo.build(name, num_classes=3, in_channels=2, seed=0)
    assert net(images(name, channels=2)).shape == (2, 3)


def test_each_network_learns_from_one_step(name: str) -> None:
    net = zoo.build(name, seed=0)
    x, y = images(name, n=8), torch.arange(8) % ZOO[name].num_classes
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = nn.functional.cross_entropy(net(x), y)
    before.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    optimizer.step()
    assert nn.functional.cross_entropy(net(x), y) < before


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (zoo.build(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_weights_come_from_a_file_or_a_state_dict(name: str, tmp_path: Path) -> None:
    state = zoo.build(name, seed=1).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    for weights in (state, tmp_path / "w.safetensors", str(tmp_path / "w.pth")):
        built = zoo.build(name, weights=weights, seed=2).state_dict()
        assert all(torch.equal(built[key], state[key]) for key in state)


def test_weights_that_do_not_fit_are_named(name: str) -> None:
    state = zoo.build(name, num_classes=3, seed=1).state_dict()
    with pytest.raises(ModelError, match=r"misshapen: .*\[3"):
        zoo.build(name, weights=state)
    with pytest.raises(ModelError, match="missing"):
        zoo.build(name, weights={"head.weight": torch.zeros(2)})


def test_unknown_networks_and_options_name_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown network "lenet-5"\. Did you mean "lenet5"\?'):
        zoo.build("lenet-5")
    with pytest.raises(UnknownNameError, match=r'option of lenet5 "activations"\. Did you mean "activation"\?'):
        zoo.build("lenet5", activations="tanh")
    with pytest.raises(UnknownNameError, match=r'unknown activation "thanh"\. Did you mean "tanh"\?'):
        zoo.build("lenet5", activation="thanh")


@pytest.mark.parametrize(
    "sizes", [{"num_classes": 0}, {"in_channels": -1}, {"num_classes": 2.0}, {"in_channels": True}]
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"{next(iter(sizes))} of lenet5 is a positive whole number"):
        zoo.build("lenet5", **sizes)


def test_lenet5_has_the_layers_of_the_paper() -> None:
    net = zoo.build("lenet5", seed=0)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in net.named_children()}
    with_weights = {name: count for name, count in counts.items() if count}
    assert with_weights == {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "fc3": 850}


def test_lenet5_pads_28_to_the_papers_32() -> None:
    net = zoo.build("lenet5", seed=0)
    x = images("lenet5")
    conv1 = net.get_submodule("conv1")
    assert isinstance(conv1, nn.Conv2d)
    by_hand = nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2)), conv1.weight, conv1.bias)
    torch.testing.assert_close(conv1(x), by_hand)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_he_initialisation_has_the_variance_it_promises(activation: str) -> None:
    fc1 = zoo.build("lenet5", seed=0, activation=activation).get_submodule("fc1")
    assert isinstance(fc1, nn.Linear)
    gain = {"relu": math.sqrt(2), "tanh": 5 / 3}[activation]
    # 48,000 normal numbers: their standard deviation is known to 0.3 %, so 2 % is six standard errors.
    assert fc1.weight.std().item() == pytest.approx(gain / math.sqrt(400), rel=0.02)
    assert not fc1.bias.any()
