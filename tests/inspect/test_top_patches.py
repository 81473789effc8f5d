"""Top patches: the right images, at the right places, whose pixels are what the kernel saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hubel import inspect
from hubel.inspect.receptive_field import Side
from hubel.inspect.top_patches import patch


def test_they_are_the_images_and_places_of_the_largest_activations() -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3)),
        torch.randn(40, 1, 14, 14),
    )
    record = inspect.top_patches(net, x)
    for address, maps in (("0", net[:2](x)), ("3", net(x))):
        top, values = record.arrays[f"{address}:top"].data, record.arrays[f"{address}:values"].data
        field = tuple(Side(**side) for side in record.method["params"]["layers"][address]["field"])
        assert top.shape == (maps.shape[1], 9, 3)
        for k in range(maps.shape[1]):
            best = maps[:, k].flatten(1).amax(1).topk(9)
            assert top[k, :, 0].tolist() == best.indices.tolist()
            assert np.allclose(values[k], best.values.detach().numpy())
            for (n, row, column), value in zip(top[k], values[k], strict=True):
                assert maps[n, k, row, column] == value
                if address == "0":  # without padding, the patch alone gives the same number
                    seen = F.relu(net[0](patch(x[n], field, row, column)[None]))[0, k]  # type: ignore[arg-type,operator]
                    assert seen.shape == (1, 1) and torch.allclose(seen, torch.tensor(float(value)), atol=1e-6)
        row = record.row(f"{address}:0")
        assert row["largest"] == values[0, 0] and row["ninth"] == values[0, 8]


def test_the_middle_ones_are_from_the_middle_and_distinct() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(100, 1, 8, 8)
    record = inspect.top_patches(net, x)
    maxima = net(x).flatten(2).amax(2).detach().numpy()
    for k, images in enumerate(record.arrays["0:middle"].data[:, :, 0]):
        assert len(set(images.tolist())) == 9
        lo, hi = np.quantile(maxima[:, k], [0.5, 0.9])
        assert all(lo <= maxima[n, k] <= hi for n in images)
    again = inspect.top_patches(net, x)
    assert np.array_equal(record.arrays["0:middle"].data, again.arrays["0:middle"].data), "drawn with the seed"


def test_images_in_which_a_kernel_is_silent_are_no_patches_of_it() -> None:
    net: Any = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = torch.tensor([1.0, -1.0])
    x = torch.cat([torch.full((3, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -1.0)])
    record = inspect.top_patches(net, x, torch.tensor([0, 0, 1, 1]))
    assert record.arrays["0:top"].data[:, :4, 0].tolist() == [[0, 1, 2, -1], [3, -1, -1, -1]]
    first, second = record.rows
    assert (first["fired"], second["fired"]) == (0.75, 0.25)
    assert (first["top_class"], first["top_class_count"], first["base_rate"]) == (0, 2, 0.5)
    assert second["top_class"] == 1 and second["ninth"] == 1.0
