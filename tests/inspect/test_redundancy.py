"""Planted duplicates, opposites and separable layers: found, and nothing else; merging measured or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel import inspect
from hubel.inspect.followers import followers, why_not_merged
from hubel.inspect.redundancy import depthwise, spatial
from tests.inspect.nets import Residual, build


class Planted(nn.Module):
    """conv1: 2 is kernel 0 twice as strong, 3 is kernel 1 turned over; conv2 behind a ReLU: 1 answers as 0 does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)
        with torch.no_grad():
            w, b = self.conv1.weight, self.conv1.bias
            assert b is not None
            w[2], b[2] = 2 * w[0], 2 * b[0]
            w[3], b[3] = -w[1], -b[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def pairs_of(record: Any) -> dict[str, dict[str, Any]]:
    return {row["target"]: row for row in record.rows if "~" in row["target"]}


def test_planted_pairs_are_found_and_merging_a_true_duplicate_costs_nothing() -> None:
    torch.manual_seed(0)
    net, x, y = Planted(), torch.randn(40, 2, 10, 10), torch.arange(40) % 3
    pairs = pairs_of(inspect.redundancy(net, x, y, sweep=inspect.sweep(net, x), rounds=2))
    assert set(pairs) == {"conv1:0~conv1:2", "conv1:1~conv1:3"}
    same, opposite = pairs["conv1:0~conv1:2"], pairs["conv1:1~conv1:3"]
    assert same["cosine"] == pytest.approx(1) and same["correlation"] == pytest.approx(1, abs=1e-4)
    assert opposite["cosine"] == pytest.approx(-1) and opposite["correlation"] < 0
    assert same["merge_kl"].value < 1e-8 and same["merge_accuracy"].value == 0
    assert opposite["merge_kl"].value > 10 * same["merge_kl"].value, "after a ReLU an opposite is no copy"


def test_equal_weights_behind_different_norms_are_told_apart_by_their_activations() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[1] = net[0].weight[0]
        net[1].weight[1] = -1
    x = torch.randn(20, 1, 8, 8)
    row = pairs_of(inspect.redundancy(net, x, sweep=inspect.sweep(net, x)))["0:0~0:1"]
    assert row["cosine"] == pytest.approx(1) and row["correlation"] < 0


def test_merging_is_refused_across_sums_concatenations_and_groups() -> None:
    assert why_not_merged(followers(Residual().eval(), torch.zeros(1, 3, 8, 8))["conv2"]) == (
        "its maps are added to others (a residual)"
    )
    found = followers(build("branched").eval(), torch.zeros(1, 3, 16, 16))
    assert why_not_merged(found["a"]) == "its maps are concatenated with others"
    assert why_not_merged(followers(build("plain").eval(), torch.zeros(1, 3, 16, 16))["0"]) == (
        "a grouped convolution reads its maps"
    )
    assert why_not_merged(followers(Planted(), torch.zeros(1, 2, 10, 10))["conv1"]) is None
    assert why_not_merged(None) == "nobody reads its maps"

    net = Residual()
    with torch.no_grad():
        net.conv2.weight[1] = net.conv2.weight[0]
    x = torch.randn(10, 3, 12, 12)
    record = inspect.redundancy(net, x, sweep=inspect.sweep(net, x), rounds=2)
    assert pairs_of(record)["conv2:0~conv2:1"]["merge_kl"] is None
    assert {"target": "conv2", "reason": "not merged: its maps are added to others (a residual)"} in record.uncovered


def test_separable_layers_have_no_error_and_others_have() -> None:
    torch.manual_seed(0)
    rank_one = torch.randn(4, 3, 5, 1) * torch.randn(4, 3, 1, 5)
    shared = torch.randn(4, 3, 1, 1) * torch.randn(1, 3, 5, 5)
    for planted, name, other in ((rank_one, "spatial", "depthwise"), (shared, "depthwise", "spatial")):
        net: Any = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            net[0].weight.copy_(planted)
        before = net[0].weight.clone()
        row = inspect.redundancy(net, torch.randn(6, 3, 9, 9), rounds=2).row("0")
        assert row[f"{name}_error"] < 1e-5 and row[f"{name}_output_error"] < 1e-5
        assert row[f"{name}_change"].value < 1e-9
        assert row[f"{other}_error"] > 0.3 and row[f"{other}_output_error"] > 0.1
        assert row["spatial_macs"] == 10 / 25 and row["depthwise_macs"] == (25 + 4) / (25 * 4)
        assert row["ms"].n == row["depthwise_ms"].n == 2
        assert torch.equal(net[0].weight, before)


def test_nearest_separable_weights_are_the_nearest() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 2, 4, 5))
    best = np.linalg.svd(w[1, 1])[1]
    assert np.linalg.norm(w[1, 1] - spatial(w)[1, 1]) == pytest.approx(np.sqrt((best[1:] ** 2).sum()))
    assert np.linalg.matrix_rank(depthwise(w)[:, 1].reshape(3, -1)) == 1
    net: Any = nn.Sequential(nn.Conv2d(2, 3, (4, 5)))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(w))
    row = inspect.redundancy(net).row("0")
    for name, near in (("spatial", spatial(w)), ("depthwise", depthwise(w))):
        assert row[f"{name}_error"] == pytest.approx(np.linalg.norm(w - near) / np.linalg.norm(w), rel=1e-5)


def test_the_stable_rank_is_that_of_the_matrix() -> None:
    net: Any = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4).view(4, 1, 2, 2))
    assert inspect.redundancy(net).row("0")["stable_rank"] == pytest.approx(4)
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(4, 1, 2, 2))
    row = inspect.redundancy(net).row("0")
    assert row["stable_rank"] == pytest.approx(1) and row["rank_share"] == pytest.approx(0.25)
    assert len(pairs_of(inspect.redundancy(net))) == 6
