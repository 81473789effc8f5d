"""Planted nothing: found, called by its name, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hubel import inspect
from hubel.inspect.dead_kernels import CLASSES, denormals

FLAGS = [*CLASSES, "dead"]


class Planted(nn.Module):
    """conv1: 0 healthy, 1 no weights, 2 negative bias, 3 collapsed (γ = 0, β < 0), 4 collapsed (γ = −1e-12, β > 0),
    5 weights of 1e-14, 6 denormal weights, 7 read by nobody (conv2 has zeros there)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            w = self.conv1.weight
            w[1] = 0
            self.bn.bias[1] = -0.5
            self.bn.bias[2] = -50
            self.bn.weight[3], self.bn.bias[3] = 0, -1
            self.bn.weight[4], self.bn.bias[4] = -1e-12, 0.7
            w[5] *= 1e-14
            w[6, 0] = torch.tensor([1, 2, 3] * 3).view(3, 3).to(torch.int32).view(torch.float32)
            self.conv2.weight[:, 7] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


EXPECTED = {
    "conv1:1": {"weight_dead": 1, "never_active": 1, "dead": 1},
    "conv1:2": {"never_active": 1, "dead": 1},
    "conv1:3": {"bn_collapsed": 1, "never_active": 1, "dead": 1},
    "conv1:4": {"bn_collapsed": 1, "constant": 1, "dead": 0},
    "conv1:5": {"weight_dead": 1, "constant": 1, "dead": 0},
}


@pytest.mark.parametrize("flush", [False, True])
def test_planted_kernels_are_found_and_nothing_else(flush: bool) -> None:
    net = Planted().eval()
    with torch.no_grad():
        net.bn.bias[5] = 0.3
    x = torch.randn(30, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    torch.set_flush_denormal(flush)
    try:
        record = inspect.dead_kernels(net, x)
    finally:
        torch.set_flush_denormal(False)
    for row in record.rows:
        expected = EXPECTED.get(row["target"], {})
        found = {name: row[name] for name in FLAGS if row[name]}
        assert found == {name: value for name, value in expected.items() if value}, row["target"]
        assert row["denormal"] == (9 if row["target"] == "conv1:6" else 0), row["target"]
    assert record.row("conv1:4")["dead"] == 0 and record.row("conv1:0")["dead"] is None
    bound = record.row("conv1:2")["bound"]
    assert bound == pytest.approx(1 - 0.05 ** (1 / 30)) and record.row("conv1:0")["bound"] is None
    assert record.method["params"]["thresholds"]["weight_dead"] == 1e-6


def test_without_images_the_weights_and_norms_still_speak() -> None:
    record = inspect.dead_kernels(Planted())
    found = {row["target"] for row in record.rows if row["weight_dead"] or row["bn_collapsed"]}
    assert found == {"conv1:1", "conv1:3", "conv1:4", "conv1:5"}
    assert all(row["never_active"] is None for row in record.rows)
    assert {"target": "activations", "reason": "they need images: none given"} in record.uncovered


def test_the_last_norm_of_a_residual_branch_that_begins_at_zero_is_not_called_collapsed() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            nn.init.zeros_(self.bn.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.bn(self.conv(x))).mean((2, 3))

    for images in (None, torch.randn(5, 3, 6, 6)):
        record = inspect.dead_kernels(Block(), images)
        assert not any(row[name] for row in record.rows for name in FLAGS)
        assert any(
            item["target"] == "conv" and "as residual branches begin" in item["reason"] for item in record.uncovered
        )


def test_rare_and_saturated_kernels() -> None:
    net: Any = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = torch.tensor([1.0, 0.0, 1.0])
        net[0].bias.copy_(torch.tensor([-5.0, 7.0, 0.0]))
        net[0].weight[1] = 0.1
    x = torch.rand(200, 1, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    x[7] = 6.0
    record = inspect.dead_kernels(net, x)
    assert [row["rare"] for row in record.rows] == [1, 0, 0]
    assert [row["saturated"] for row in record.rows] == [0, 1, 0]
    assert record.rows[0]["fired"] == 1


def test_denormals_are_read_from_bit_patterns() -> None:
    patterns = torch.tensor([0, 1, 0x007FFFFF, 0x00800000, -(2**31), -(2**31) + 1, 0x7F800000], dtype=torch.int32)
    expected = [0, 1, 1, 0, 0, 1, 0]
    assert denormals(patterns.view(torch.float32)).tolist() == expected
    halves = torch.tensor([0, 1, 0x03FF, 0x0400, 0x7C00], dtype=torch.int16).view(torch.float16)
    assert denormals(halves).tolist() == [0, 1, 1, 0, 0]
    brains = torch.tensor([0, 1, 0x007F, 0x0080], dtype=torch.int16).view(torch.bfloat16)
    assert denormals(brains).tolist() == [0, 1, 1, 0]


def test_a_reused_kernel_is_dead_only_where_it_is_silent_in_both_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.conv.weight, -1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(-1 - torch.relu(self.conv(x)))).mean((2, 3))

    record = inspect.dead_kernels(Twice(), torch.rand(4, 1, 3, 3) + 0.1)
    assert [row["target"] for row in record.rows] == ["conv:0"] and record.rows[0]["never_active"] == 0
    transposed = inspect.dead_kernels(nn.Sequential(nn.ConvTranspose2d(2, 4, 2, groups=2)))
    assert len(transposed.rows) == 4 and np.isfinite([row["norm"] for row in transposed.rows]).all()
