"""Feature maps: the numbers that the network had, at the tap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.errors import DataError, ModelError, UnknownNameError


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), head)


def test_maps_are_the_networks_own_numbers() -> None:
    net, x = classifier(), torch.randn(2, 1, 9, 9)
    record = inspect.feature_maps(net, x)
    assert np.array_equal(record.arrays["0"].data, net[:2](x).detach().numpy())
    assert np.array_equal(record.arrays["2"].data, net[:3](x).detach().numpy())
    assert np.array_equal(record.arrays["scores"].data, net(x).detach().numpy())
    assert record.method["params"]["layers"]["0"] == {"tap": "relu", "shape": [4, 7, 7]}
    row = record.row("0:2")
    maps = record.arrays["0"].data[:, 2]
    assert row["active"] == pytest.approx((maps > 0).mean())
    assert row["max"] == maps.max()


def test_one_image_may_come_without_its_batch() -> None:
    net, x = classifier(), torch.randn(1, 9, 9)
    assert inspect.feature_maps(net, x).arrays["input"].data.shape == (1, 1, 9, 9)


def test_the_strongest_maps_are_kept_in_the_networks_order() -> None:
    layer = nn.Conv2d(1, 4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -9.0, 0.5, 3.0]).view(4, 1, 1, 1))
    record = inspect.feature_maps(nn.Sequential(layer), torch.ones(1, 1, 2, 2), most=2)
    assert record.arrays["0:kernels"].data.tolist() == [1, 3]
    assert record.arrays["0"].data[0, :, 0, 0].tolist() == [-9.0, 3.0]
    assert len(record.rows) == 4


def test_what_is_no_score_is_not_called_one() -> None:
    record = inspect.feature_maps(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5))
    assert "scores" not in record.arrays
    assert record.uncovered == [{"target": "scores", "reason": "the network does not return one row an image"}]


def test_refusals() -> None:
    net = classifier()
    with pytest.raises(DataError, match=r"Images have the shape that the network takes\. Received: \(1, 3, 9, 9\)"):
        inspect.feature_maps(net, torch.randn(1, 3, 9, 9))
    with pytest.raises(UnknownNameError, match='unknown convolution "1"'):
        inspect.feature_maps(net, torch.randn(1, 1, 9, 9), layers=["1"])
    with pytest.raises(ModelError, match="ran none"):
        inspect.feature_maps(nn.Flatten(), torch.randn(1, 1, 9, 9))
