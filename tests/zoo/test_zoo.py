"""Every network of the zoo, by going over the table."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hubel import zoo
from hubel.errors import ModelError, UnknownNameError
from hubel.zoo import ZOO
from hubel.zoo.features import with_features
from tests.zoo.published import GOOGLENET_WITH_AUX, PUBLISHED, names

# The large ones are built in the slow tests; on the meta device, where nothing is computed, all of them are.
LIGHT = [name for name, network in ZOO.items() if network.parameters < 30e6]
LARGE = [name for name in ZOO if name not in LIGHT]
# Images for the passes of the fast tests: small, and not a single pixel in the last maps, where batch norm has nothing.
SMALL = {"inception_v3": (75, 75), "crnn": (32, 20), "ds_cnn": (6400,)}
# What is built for them: without parts that want 224 or 299 pixels a side.
OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"aux_logits": False},
    "googlenet": {"aux_logits": True},
    "vit_tiny": {"image_size": 64},
    "vitc_1gf": {"image_size": 64},
}


def examples(name: str, sizes: tuple[int, ...], n: int = 2, channels: int | None = None) -> torch.Tensor:
    shape = (n, channels or ZOO[name].input[0], *sizes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small(name: str, n: int = 2, channels: int | None = None) -> torch.Tensor:
    network = ZOO[name]
    fixed = network.smallest == network.size and name not in OPTIONS
    return examples(name, network.size if fixed else SMALL.get(name, (64, 64)), n, channels)


@functools.cache
def as_built(name: str) -> nn.Module:
    """In its original form, without numbers: to be read only."""
    return on_meta(name)


def on_meta(name: str, **how: Any) -> nn.Module:
    with torch.device("meta"):
        return zoo.build(name, **how).eval()


def tensors(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)


@pytest.fixture(scope="module", params=LIGHT)
def light(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module]]:
    """A network of moderate size, built once for the tests that leave it as it is."""
    name = request.param
    yield name, zoo.build(name, seed=0, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", ZOO)
def test_each_network_is_as_its_line_says(name: str) -> None:
    network = zoo.describe(name)
    net = as_built(name)
    assert network.name == name
    assert sum(p.numel() for p in net.parameters()) == network.parameters
    with torch.device("meta"):
        N, *rest = net(torch.empty(2, *network.input)).shape
        net(torch.empty(1, network.input[0], *network.smallest))
    assert N == 2
    assert {"scores": rest, "sequence": rest[1:], "image": [None]}[network.output] == [network.num_classes]
    assert network.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", network.arxiv)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_multiply_adds_are_the_published_ones(name: str) -> None:
    """Names and counts say that weights load; multiply-adds say that strides, pooling and groups are right."""
    published, net = PUBLISHED[name], as_built(name)
    state = net.state_dict()
    assert sorted(state) == sorted(names(published.names))
    assert {key: tuple(state[key].shape) for key in published.shapes} == published.shapes
    if published.macs is not None:
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, *ZOO[name].input))
        assert round(counter.get_total_flops() / 2e9, 3) == published.macs


def test_every_network_with_published_names_is_held_to_them() -> None:
    assert {name for name, network in ZOO.items() if network.names != "hubel"} == set(PUBLISHED)


@pytest.mark.parametrize("name", ZOO)
def test_each_network_takes_other_classes_and_channels(name: str) -> None:
    network = ZOO[name]
    classes = {} if network.num_classes is None else {"num_classes": 3}
    net = on_meta(name, in_channels=2, **classes)
    shape = net(torch.empty(2, 2, *network.size, device="meta")).shape
    assert shape[-1] == 3 if classes else shape[1:] == (3, 64, 64)


def test_a_forward_pass_is_finite_and_depends_on_the_image(light: tuple[str, nn.Module]) -> None:
    name, net = light
    with torch.no_grad():
        one, other = net.eval()(small(name))
    net.train()
    assert one.isfinite().all() and other.isfinite().all()
    assert not torch.equal(one, other)


def test_the_backward_pass_reaches_every_parameter(light: tuple[str, nn.Module]) -> None:
    name, net = light
    torch.manual_seed(0)
    outputs = tensors(net.train()(small(name)))
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    reached = {
        key: p.grad is not None and bool(p.grad.isfinite().all() and p.grad.any()) for key, p in net.named_parameters()
    }
    net.zero_grad()
    assert [key for key, there in reached.items() if not there] == []


def test_a_networks_features_are_what_its_modules_return(light: tuple[str, nn.Module]) -> None:
    """Against hooks, for every module at the first two levels that runs once."""
    name, net = light
    seen: dict[str, Any] = {}
    calls: dict[str, int] = {}
    hooks = []
    for key, module in net.named_modules():
        if key and key.count(".") <= 1:

            def keep(_m: nn.Module, _x: Any, y: Any, key: str = key) -> None:
                # a copy: layers that work in place overwrite what they are given
                seen[key] = y.clone() if isinstance(y, torch.Tensor) else y
                calls[key] = calls.get(key, 0) + 1

            hooks.append(module.register_forward_hook(keep))
    x = small(name)
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    wanted = [key for key in seen if calls[key] == 1 and isinstance(seen[key], torch.Tensor)]
    tapped = with_features(net, wanted, called=name)
    with torch.no_grad():
        found = tapped(x)
    net.train()
    assert list(found) == wanted and len(wanted) >= 2
    for key in wanted:
        assert torch.equal(found[key], seen[key]), key
    assert set(tapped.state_dict()) <= set(net.state_dict())


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v3_small", "ds_cnn"])
def test_weights_come_from_a_file_or_a_state_dict(name: str, tmp_path: Path) -> None:
    state = zoo.build(name, seed=1).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    for weights in (state, tmp_path / "w.safetensors", str(tmp_path / "w.pth")):
        built = zoo.build(name, weights=weights, seed=2).state_dict()
        assert list(built) == list(state)
        assert all(torch.equal(built[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1", "vit_tiny", "ds_cnn"])
def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (zoo.build(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_weights_that_do_not_fit_are_named() -> None:
    state = zoo.build("lenet5", num_classes=3, seed=1).state_dict()
    with pytest.raises(ModelError, match=r"misshapen: .*\[3"):
        zoo.build("lenet5", weights=state)
    with pytest.raises(
        ModelError, match=r"nearest network of the zoo is lenet5, with 8 of whose 10 tensors .*num_classes"
    ):
        zoo.build("lenet5", weights=state)
    with pytest.raises(ModelError, match=r"missing: .* and 6 more; unexpected: head.weight\)\. Build the network"):
        zoo.build("lenet5", weights={"head.weight": torch.zeros(2)})
    of_another = zoo.build("squeezenet1_0", seed=1).state_dict()
    with pytest.raises(ModelError, match=r"network squeezenet1_1.*is squeezenet1_0, with 52 of whose 52"):
        zoo.build("squeezenet1_1", weights=of_another)


@pytest.mark.parametrize(
    ("name", "count"),
    [("googlenet", 13_004_888), pytest.param("inception_v3", 27_161_264, marks=pytest.mark.slow)],
)
def test_auxiliary_classifiers_of_published_files_may_be_left_aside(name: str, count: int) -> None:
    full = zoo.build(name, aux_logits=True, seed=1)
    assert sum(p.numel() for p in full.parameters()) == count
    state = full.state_dict()
    if name == "googlenet":
        assert sorted(state) == sorted(names(GOOGLENET_WITH_AUX))
    plain = zoo.build(name, aux_logits=False, weights=state)
    x = examples(name, (75, 75))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), full.eval()(x))


def test_old_names_of_densenets_weights_load() -> None:
    state = zoo.build("densenet121", seed=1).state_dict()
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old and len(old) == len(state)
    built = zoo.build("densenet121", weights=old, seed=2).state_dict()
    assert all(torch.equal(built[key], state[key]) for key in state)


def test_features_leave_out_what_is_behind_them() -> None:
    net = zoo.build("resnet18", features=["layer2", "layer1.0.conv2"], seed=0)
    found = net(examples("resnet18", (64, 64)))
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "layer2": (2, 128, 8, 8),
        "layer1.0.conv2": (2, 64, 16, 16),
    }
    assert net.training and not any(key.startswith(("layer3", "fc")) for key in net.state_dict())
    found["layer2"].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (["layer9"], UnknownNameError, r'unknown module of resnet18 "layer9"\. Did you mean "layer4"'),
        ("layer1", ModelError, "features are names of modules of resnet18, each once, as a list. Received: 'layer1'"),
        ([], ModelError, r'Write features=\["conv1"\]'),
        (["fc", "fc"], ModelError, "each once"),
    ],
)
def test_features_that_cannot_be_are_refused(features: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        on_meta("resnet18", features=features)


def test_a_module_that_does_not_run_has_no_features() -> None:
    with pytest.raises(ModelError, match="must run to have an output. Received: features with 'aux1' of googlenet"):
        on_meta("googlenet", aux_logits=True, features=["aux1"])


def test_unknown_networks_and_options_name_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown network "resnet51"\. Did you mean "resnet5?'):
        zoo.build("resnet51")
    with pytest.raises(UnknownNameError, match=r'option of lenet5 "activations"\. Did you mean "activation"\?'):
        zoo.build("lenet5", activations="tanh")
    with pytest.raises(UnknownNameError, match=r'unknown activation "thanh"\. Did you mean "tanh"\?'):
        zoo.build("lenet5", activation="thanh")
    with pytest.raises(UnknownNameError, match=r'unknown origin "tensor"\. Did you mean "tensorflow"'):
        zoo.build("efficientnet_lite0", origin="tensor")


@pytest.mark.parametrize(
    "sizes", [{"num_classes": 0}, {"in_channels": -1}, {"num_classes": 2.0}, {"in_channels": True}]
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"{next(iter(sizes))} of lenet5 is a positive whole number"):
        zoo.build("lenet5", **sizes)


def test_what_an_architecture_does_not_allow_is_refused() -> None:
    with pytest.raises(ModelError, match="num_classes is for networks that tell classes apart.*dcgan_generator"):
        zoo.build("dcgan_generator", num_classes=3)
    with pytest.raises(ModelError, match="multiple of 16, the side of a patch. Received: 100. Write 96"):
        zoo.build("vit_tiny", image_size=100)
    with pytest.raises(ModelError, match="image_size of lenet5 is a whole number of 12 or more. Received: 8"):
        zoo.build("lenet5", image_size=8)
    with pytest.raises(ModelError, match="A spectrogram has positive sizes"):
        zoo.build("ds_cnn", hop=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_run_both_ways(name: str) -> None:
    net = zoo.build(name, seed=0)
    x = small(name)
    with torch.no_grad():
        y = net.eval()(x)
    assert y.isfinite().all() and not torch.equal(y[0], y[1])
    torch.manual_seed(0)
    net.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow
def test_inceptions_auxiliary_classifier_learns() -> None:
    net = zoo.build("inception_v3", seed=0)
    outputs = net.train()(examples("inception_v3", (299, 299)))
    assert outputs._fields == ("logits", "aux_logits") and outputs.aux_logits.shape == (2, 1000)
    (outputs.logits.mean() + outputs.aux_logits.mean()).backward()
    assert all(p.grad is not None for p in net.parameters())
