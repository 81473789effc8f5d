"""Exported networks have no convolution modules any more; what they look at is found all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.inspect import layers_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    """A network, and the same as read back from a .pt2."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), head).eval()
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 9, 9),), dynamic_shapes=({0: batch},)), path)
    assert Path(path).exists()
    return net, torch.export.load(path).module()


def test_its_kernels_are_those_of_the_network_under_the_same_addresses(pair: tuple[nn.Module, nn.Module]) -> None:
    mine, exported = (inspect.kernels(net) for net in pair)
    assert [row["target"] for row in exported.rows] == [row["target"] for row in mine.rows]
    for key, array in mine.arrays.items():
        assert np.array_equal(exported.arrays[key].data, array.data)
    assert layers_of(pair[1])["3"].groups == 2 and layers_of(pair[1])["3"].channels == 8


def test_its_maps_and_ablations_are_those_of_the_network(pair: tuple[nn.Module, nn.Module]) -> None:
    x = torch.randn(3, 3, 9, 9)
    mine, exported = (inspect.feature_maps(net, x) for net in pair)
    assert exported.method["params"]["layers"] == mine.method["params"]["layers"]
    assert np.allclose(exported.arrays["0"].data, mine.arrays["0"].data, atol=1e-6)
    mine, exported = (inspect.ablation(net, x) for net in pair)
    assert np.allclose(exported.arrays["scores_without"].data, mine.arrays["scores_without"].data, atol=1e-6)
