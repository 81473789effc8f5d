"""The microscope on the zoo's networks, on the published stages of MTCNN's kind, and beside other tools."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from hubel import inspect, zoo
from hubel.inspect.look import ORDER
from tests.inspect.nets import same_state, state_of


def small(name: str) -> Tensor:
    shape = zoo.describe(name).input
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_analysis_takes_every_network(name: str) -> None:
    net, x = zoo.build(name, seed=0), small(name)
    before = state_of(net)
    found = inspect.look(net, x, keep=False)
    assert same_state(before, state_of(net))
    assert [record.id for record in found.records] == list(ORDER)
    for record in found.records:
        assert record.status != "failed", (record.id, record.reason)
        assert record.rows or record.reason or record.uncovered, record.id


def test_an_untrained_resnet_whose_last_norms_are_zero_has_no_dead_kernels() -> None:
    net = zoo.build("resnet18", seed=0)
    last = [module for name, module in net.named_modules() if name.endswith("bn2")]
    assert len(last) == 8
    for norm in last:
        nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    record = inspect.dead_kernels(net, x)
    zero = {item["target"] for item in record.uncovered if "as residual branches begin" in item["reason"]}
    assert len(zero) == 8
    for row in record.rows:
        assert not row["bn_collapsed"] and not row["weight_dead"]
        assert row["never_active"] is None or row["target"].rpartition(":")[0] not in zero


PUBLISHED = {"conv1": (7, 2), "layer1.1.conv2": (43, 4), "layer2.1.conv2": (99, 8), "layer4.1.conv2": (435, 32)}


@pytest.mark.parametrize("layers", [["conv1", "layer1.1.conv2"], pytest.param(list(PUBLISHED), marks=pytest.mark.slow)])
def test_fields_of_resnet18_are_the_published_ones(layers: list[str]) -> None:
    """Araujo et al. 2019: the four stages of ResNet-18 end at 43, 99, 211 and 435 pixels."""
    record = inspect.receptive_field(zoo.build("resnet18", seed=0), shape=(3, 64, 64), layers=layers)
    for address in layers:
        row = record.row(address)
        size, stride = PUBLISHED[address]
        assert (row["height"], row["width"], row["stride_y"], row["whole"]) == (size, size, stride, 0)


class Stage(nn.Module):
    """The shape of MTCNN's stages: valid convolutions, PReLU, ceiling pools, and two answers in a dict or a tuple."""

    def __init__(self, answer: type) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(10, 16, 3), nn.PReLU(16), nn.Conv2d(16, 32, 3), nn.PReLU(32)),
        )
        self.face, self.box = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)
        self.answer = answer

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        x = self.body(x)
        face, box = torch.softmax(self.face(x), 1), self.box(x)
        return {"face": face[..., 0, 0], "box": box} if self.answer is dict else (face[..., 0, 0], box)


@pytest.mark.parametrize("answer", [dict, tuple])
def test_stages_with_two_answers(answer: type) -> None:
    torch.manual_seed(0)
    net, x = Stage(answer), torch.rand(70, 3, 12, 12)
    only = ["top_patches", "dead_kernels", "receptive_field", "edges", "contributions", "importance"]
    found = inspect.look(net, x, torch.arange(70) % 2, only=only, keep=False)
    assert all(record.status == "ok" for record in found.records)
    taps = {address: tap.tap for address, tap in found.sweep.taps.items()}  # type: ignore[union-attr]
    assert taps["body.0"] == "prelu" and taps["face"] == "convolution"
    record = found.record("receptive_field")
    # Three 3×3 and the pool between the first two: 3 + 1 + 2·2 + 2·2.
    assert record is not None and record.row("box")["height"] == 12 and record.row("box")["stride_y"] is not None


def test_convolutions_cost_what_torchscan_counts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports
        torchscan = pytest.importorskip("torchscan")
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, groups=4, bias=False)
    )
    report = torchscan.crawl_module(net.eval(), (3, 16, 16))
    layers = [layer for layer in report["layers"] if layer["type"] == "Conv2d"]
    record = inspect.cost(net, torch.zeros(1, 3, 16, 16), rounds=2)
    for row, layer in zip(record.rows[:2], layers, strict=True):
        assert row["macs"] == layer["metrics"]["macs"]["value"]
        assert row["parameters"] == layer["parameters"]["trainable"]
        # Without bias it counts one addition less an output than two a multiply-add.
        outputs = torch.Size(layer["output"]["args" if "args" in layer["output"] else "shape"]).numel()
        assert row["flops"] == layer["metrics"]["module_flops"]["value"] + outputs
