"""Cost: counts against torch's own counter and by hand; times are there, and what was not counted is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hubel
from hubel import inspect
from hubel.records import Value
from tests.inspect.nets import NETS, build


@pytest.mark.parametrize("name", NETS)
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    net, x = build(name).eval(), torch.randn(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        net(x)
    record = inspect.cost(net, x, rounds=2, batch=2)
    total = record.row("(end to end)")
    assert total["flops"] == counter.get_total_flops() == 2 * total["macs"]
    assert total["parameters"] == sum(p.numel() for p in net.parameters())
    convolutions = sum(row["flops"] for row in record.rows if not row["target"].startswith("("))
    assert convolutions + record.row("(matrix products)")["flops"] == total["flops"]


def test_a_layer_counted_by_hand() -> None:
    net: Any = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2))
    record = inspect.cost(net, torch.randn(3, 4, 8, 8), rounds=7)
    row = record.row("0")
    macs = 6 * 4 * 4 * 2 * 9  # output channels, rows, columns, inputs a group, window
    moved = 4 * (4 * 64 + 6 * 16 + 6 * 2 * 9 + 6)
    assert (row["macs"], row["flops"], row["bytes"], row["parameters"]) == (macs, 2 * macs, moved, 114)
    assert row["intensity"] == 2 * macs / moved and row["kernel_share"] == 1 / 6 and row["kernels"] == 6
    ms = row["ms"]
    assert isinstance(ms, Value) and ms.of == "rounds" and ms.n == 7
    assert None not in (ms.lo, ms.hi, ms.value) and ms.lo <= ms.value <= ms.hi  # type: ignore[operator]
    assert row["gflops"] == pytest.approx(2 * macs / ms.value * 1e-6)  # type: ignore[operator]
    params = record.method["params"]
    assert params["engine"] == "torch" and params["batch"] == 1
    assert params["not_counted"] == {"relu": 1, "max_pool2d_with_indices": 1}
    assert params["gap_ms"] == pytest.approx(record.row("(end to end)")["ms"].value - params["sum_of_layers_ms"])


def test_the_engine_is_the_one_that_runs() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(1, 1, 8, 8)
    with hubel.enabled() as log:
        record = inspect.cost(net, x, rounds=2)
    assert record.method["params"]["engine"] == "hubel" and log.native > 0
    assert record.row("0")["macs"] == 2 * 36 * 9


def test_cost_against_importance_finds_how_many_kernels_can_go() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        # Only kernels 0 and 1 are read, and each knows something that the other does not.
        net[0].weight[:2] = 0
        net[0].weight[0, 0, 0, 0] = net[0].weight[1, 0, 2, 2] = 1
        net[4].weight.zero_()
        net[4].weight[:, :2] = torch.tensor([[30.0, -30.0], [-30.0, 30.0]])
    x = torch.randn(40, 1, 8, 8)
    y = net(x).argmax(1)
    for labels in (None, y):
        record = inspect.cost(net, x, labels, sweep=inspect.sweep(net, x), rounds=2, against=40)
        row = record.row("0")
        assert row["removable"] == 0.75 and isinstance(row["removable_effect"], Value)
        assert row["removable_effect"].value == 0.0
        assert record.method["params"]["measure"] == ("kl" if labels is None else "accuracy")
    without = inspect.cost(net, x, rounds=2, against=40)
    assert without.row("0")["removable"] is None
    assert "needs a sweep" in without.uncovered[-1]["reason"]


def test_macs_and_flops_are_torchscans_but_for_the_additions_of_a_bias() -> None:
    torchscan = pytest.importorskip("torchscan")
    chain: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, (1, 5), bias=False),
    ).eval()
    theirs = {layer["path"]: layer["metrics"] for layer in torchscan.crawl_module(chain, (3, 16, 16))["layers"]}
    record = inspect.cost(chain, torch.randn(1, 3, 16, 16), rounds=2)
    for address in ("0", "2", "3"):
        row, of_torchscan = record.row(address), theirs[address]
        assert row["macs"] == of_torchscan["macs"]["value"]
        outputs = 0 if chain[int(address)].bias is not None else {"2": 8 * 8 * 8, "3": 12 * 8 * 4}[address]
        assert row["flops"] - outputs == of_torchscan["module_flops"]["value"]
