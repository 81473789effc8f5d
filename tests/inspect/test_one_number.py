"""A number made by hand is the number in the map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hubel import inspect
from hubel.errors import DataError, ModelError


@st.composite
def layers(draw: st.DrawFn) -> nn.Conv2d:
    groups, slices, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    options = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "padding_mode": draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        "bias": draw(st.booleans()),
    }
    if options["stride"] == (1, 1) and draw(st.booleans()):
        options["padding"] = "same"
    # torch warns about even kernels with padding="same".
    sides = st.sampled_from([1, 3]) if options["padding"] == "same" else st.integers(1, 4)
    size = draw(st.tuples(sides, sides))
    return nn.Conv2d(groups * slices, groups * per_group, size, groups=groups, **options)


@settings(max_examples=60)
@given(layer=layers(), seed=st.integers(0, 10))
def test_by_hand_is_in_the_map_bit_for_bit_on_integers(layer: nn.Conv2d, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=draw))
    x = torch.randint(-4, 5, (layer.in_channels, 9, 11), generator=draw).float()
    maps = layer(x[None])[0]
    K, H, W = maps.shape
    place = [int(torch.randint(n, (), generator=draw)) for n in (K, H, W)]
    record = inspect.one_number(nn.Sequential(layer), x, kernel=place[0], at=(place[1], place[2]))
    row = record.rows[0]
    assert row["target"] == f"0:{place[0]}"
    assert row["value"] == row["map"] == maps[tuple(place)].item()
    assert row["sum"] == record.arrays["products"].data.sum()


def test_on_real_numbers_they_differ_by_rounding_only() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU())
    record = inspect.one_number(net, torch.randn(1, 1, 28, 28))
    row = record.rows[0]
    assert row["value"] == pytest.approx(row["map"], rel=1e-6)
    assert row["map"] == record.arrays["maps"].data.max(), "the default place is where the layer answers most strongly"
    patch, kernel = (record.arrays[key].data.astype(np.float64) for key in ("patch", "kernel"))
    assert (patch * kernel).sum() + row["bias"] == pytest.approx(row["map"], rel=1e-6)


def test_a_layer_can_be_named_and_its_input_is_what_it_was_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    x = torch.randn(1, 9, 9)
    record = inspect.one_number(net, x, layer="2", kernel=1, at=(0, 4))
    assert np.array_equal(record.arrays["input"].data, net[:2](x[None])[0].detach().numpy())
    assert record.rows[0]["map"] == net(x[None])[0, 1, 0, 4].item()


def test_refusals() -> None:
    net = nn.Conv2d(1, 2, 3)
    with pytest.raises(DataError, match=r"2 kernels, 3x3 positions.*Received: kernel=None, at=\(3, 0\)"):
        inspect.one_number(net, torch.randn(1, 5, 5), at=(3, 0))
    with pytest.raises(DataError, match=r"one image \(C, H, W\)"):
        inspect.one_number(net, torch.randn(2, 1, 5, 5))
    with pytest.raises(ModelError, match="2-D convolution"):
        inspect.one_number(nn.ConvTranspose2d(1, 2, 3), torch.randn(1, 5, 5))
