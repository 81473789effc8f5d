"""Receptive fields: theoretical ones against formulas and against NaN, effective ones against their closed form."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from hubel import inspect
from hubel.inspect import watch
from hubel.inspect.receptive_field import Side, field_of, theoretical
from hubel.inspect.top_patches import box, patch
from hubel.records import Value
from tests.inspect.nets import NETS, build

# hubel.inspect.receptive_field is the function.
receptive_field_module: Any = importlib.import_module("hubel.inspect.receptive_field")


def conv(k: int, s: int = 1, d: int = 1, channels: int = 2, first: bool = False) -> nn.Conv2d:
    return nn.Conv2d(1 if first else channels, channels, k, s, d * (k - 1) // 2, d)


CHAINS: dict[str, list[tuple[int, int, int]]] = {
    "one": [(3, 1, 1)],
    "three": [(3, 1, 1), (5, 1, 1), (3, 1, 1)],
    "strides": [(7, 2, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1)],
    "dilation": [(3, 1, 1), (3, 1, 2), (3, 1, 4), (3, 1, 8)],
    "both": [(3, 2, 1), (3, 1, 3), (1, 2, 1), (5, 1, 2)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_have_the_size_of_the_formula(chain: str) -> None:
    """r = 1 + Σ d(k − 1)·Π strides before; jump = Π strides; start = −Σ p·Π strides before (Araujo et al. 2019)."""
    torch.manual_seed(0)
    layers = CHAINS[chain]
    net = nn.Sequential(*[m for i, c in enumerate(layers) for m in (conv(*c, first=i == 0), nn.ReLU(inplace=True))])
    fields, assumed, _ = theoretical(net, torch.zeros(1, 1, 40, 40), [str(2 * i) for i in range(len(layers))])
    assert not assumed
    size, jump, start = 1, 1, 0
    for i, (k, s, d) in enumerate(layers):
        size, start, jump = size + d * (k - 1) * jump, start - d * (k - 1) // 2 * jump, jump * s
        for side in fields[str(2 * i)]:
            assert (side.extent, side.stride, side.start, side.whole) == (size, jump, start, False)


def test_a_field_has_the_holes_of_its_dilation() -> None:
    (side, _) = theoretical(nn.Sequential(conv(3, d=4, first=True)), torch.zeros(1, 1, 20, 20), ["0"])[0]["0"]
    assert (side.extent, side.seen) == (9, 3)


class Sums(nn.Module):
    """Branches of 3×3 and of 1×7 then 5×1, added in place, a residual, a pool with padding and a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, (1, 7), padding=(0, 3))
        self.c, self.last = nn.Conv2d(2, 2, (5, 1), padding=(2, 0)), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x)
        out += F.relu(self.c(torch.relu_(self.b(x))), inplace=True)
        return self.last(F.max_pool2d(F.gelu(out) * out.sigmoid(), 3, 2, 1) - 1)


def test_branches_are_united_axis_by_axis() -> None:
    fields = theoretical(Sums(), torch.zeros(1, 1, 30, 30), ["a", "b", "c", "last"])[0]
    extents = {name: tuple(side.extent for side in field) for name, field in fields.items()}
    assert extents == {"a": (3, 3), "b": (1, 7), "c": (5, 7), "last": (7, 9)}
    assert [side.stride for side in fields["last"]] == [2, 2]


def by_nan(net: nn.Module, x: Tensor, address: str, axis: int) -> set[int]:
    """The definition: the rows of the image that make the middle unit NaN when they are NaN."""
    rows = set()
    # In float64 torch runs plain loops; fast algorithms spread NaN over their tiles.
    x, net = x.double(), copy.deepcopy(net).double()
    for row in range(x.shape[2 + axis]):
        spoiled = x.clone()
        spoiled.select(2 + axis, row).fill_(math.nan)
        with watch(net) as calls:
            net(spoiled)
        tap = next(call.activation for call in calls if call.address == address)
        if tap[(0, slice(None), *[n // 2 for n in tap.shape[2:]])].isnan().any():
            rows.add(row)
    return rows


@pytest.mark.parametrize("name", [name for name in NETS if name != "reused"])
def test_nan_agrees_in_every_style_of_network(name: str) -> None:
    net, x = build(name).eval(), torch.randn(1, 3, 15, 13)
    with watch(net, keep=False) as calls:
        net(x)
    fields = theoretical(net, x, [call.address for call in calls])[0]
    for call in calls:
        for axis in (0, 1):
            side, n, size = fields[call.address][axis], x.shape[2 + axis], call.activation.shape[2 + axis]
            first = side.start + size // 2 * side.stride
            expected = set(range(n)) if side.whole else set(range(max(first, 0), min(first + side.extent, n)))
            found = by_nan(net, x, call.address, axis)
            assert found <= expected and (min(found), max(found)) == (min(expected), max(expected))


def test_zero_weights_zero_gates_and_closed_relus_are_seen_through() -> None:
    net = nn.Sequential(conv(3, first=True), nn.ReLU(), nn.BatchNorm2d(2), conv(3), nn.Hardsigmoid())
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.zero_()  # type: ignore[union-attr,operator]
            layer.bias.fill_(-9)  # type: ignore[union-attr,operator]
        net[2].weight.zero_()  # type: ignore[union-attr,operator]
    assert theoretical(net, torch.zeros(1, 1, 11, 11), ["3"])[0]["3"][0].extent == 5


def test_global_pooling_sees_everything_and_a_field_larger_than_the_image_has_its_own_size() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*[conv(9, first=i == 0) for i in range(3)])
            self.gate = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.gate(x * x.mean((2, 3), keepdim=True))

    fields = theoretical(Gated(), torch.zeros(1, 1, 12, 12), ["body.2", "gate"])[0]
    assert [side.extent for side in fields["body.2"]] == [25, 25], "the image is 12 pixels only"
    assert all(side.whole for side in fields["gate"])


def test_fields_are_the_same_on_hubels_kernels() -> None:
    net, x = nn.Sequential(conv(3, first=True), nn.ReLU(), conv(31), conv(3)), torch.zeros(1, 1, 48, 48)
    plain = theoretical(net, x, ["0", "2", "3"])[0]
    with hubel.enabled():
        assert theoretical(net, x, ["0", "2", "3"])[0] == plain


@pytest.mark.parametrize(("k", "n"), [(3, 4), (5, 3), (7, 2)])
def test_uniform_layers_have_the_sigma_of_their_theory(k: int, n: int) -> None:
    """Each layer adds the variance of a uniform distribution on k points, (k² − 1)/12 (Luo et al. 2016)."""
    net = nn.Sequential(*[nn.Conv2d(1, 1, k, padding=k // 2, bias=False) for _ in range(n)]).double()
    for layer in net:
        nn.init.constant_(layer.weight, 1 / k**2)  # type: ignore[arg-type]
    x = torch.randn(2, 1, 41, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    record = inspect.receptive_field(net, x, kernels=[f"{n - 1}:0"])
    for target in (str(n - 1), f"{n - 1}:0"):  # root mean square and mean of |.| are the same for one kernel
        row = record.row(target)
        for axis in ("sigma_y", "sigma_x"):
            assert row[axis].value == pytest.approx(math.sqrt(n * (k**2 - 1) / 12), abs=1e-6)
        assert (row["centre_y"], row["centre_x"], row["silent"]) == (pytest.approx(20), pytest.approx(20), 0)
    assert record.row(str(n - 1))["height"] == n * (k - 1) + 1


def test_a_gaussian_has_its_sigma_and_its_radii_whatever_its_scale() -> None:
    y, x = np.mgrid[-60:61, -60:61]
    for scale in (1e-6, 1.0, 1e6):
        found = field_of(scale * np.exp(-(x**2 + y**2) / (2 * 10.0**2)))
        assert found["sigma_y"] == pytest.approx(10, rel=1e-4)
        assert found["r50"] == pytest.approx(10 * math.sqrt(2 * math.log(2)), abs=0.15)
        assert found["r90"] == pytest.approx(10 * math.sqrt(2 * math.log(10)), abs=0.15)


def test_the_gradient_of_a_residual_branch_does_not_contain_what_is_added_to_it_in_place() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            out += 100 * x
            return out

    net = Block()
    record = inspect.receptive_field(net, torch.randn(2, 1, 9, 9), kernels=["conv:0"])
    expected = net.conv.weight[0, 0].abs().detach().numpy()
    assert np.allclose(record.arrays["conv:0"].data[3:6, 3:6], expected / expected.max(), atol=1e-3)


def test_images_without_a_gradient_are_counted() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    nn.init.ones_(net[0].weight)  # type: ignore[arg-type]
    x = torch.stack([torch.ones(1, 3, 3), -torch.ones(1, 3, 3)])
    row = inspect.receptive_field(net, x).row("0")
    assert row["silent"] == 1 and isinstance(row["r90"], Value) and row["r90"].value == 0
    nothing = inspect.receptive_field(net, x[1:])
    assert nothing.row("0")["silent"] == 1 and "r90" not in nothing.row("0")
    assert {"target": "0", "reason": "no image has a gradient there"} in nothing.uncovered


def test_without_images_the_theoretical_field_is_there() -> None:
    record = inspect.receptive_field(nn.Sequential(conv(3, first=True)), shape=(1, 9, 9))
    assert record.rows[0]["height"] == 3
    assert record.uncovered == [{"target": "effective", "reason": "the effective field needs images: none given"}]
    nothing = inspect.receptive_field(nn.Conv1d(1, 1, 3), torch.randn(1, 1, 9))
    assert nothing.status == "not_applicable"
    assert nothing.reason == "fields are drawn on images (C, H, W); received (1, 9)"


def test_a_patch_is_what_a_place_sees() -> None:
    field = (Side(5, 5, 2, -1), Side(5, 5, 2, -1))
    image = torch.arange(64.0).view(1, 8, 8)
    assert box(field, 0, 1, (8, 8)) == (0, 1, 4, 6)
    assert torch.equal(patch(image, field, 0, 1), image[:, 0:4, 1:6])
    assert box((Side(1, 1, 0, 0, True), field[1]), 3, 3, (8, 8)) == (0, 5, 8, 8)


@pytest.mark.parametrize("make", [lambda: nn.Softmax2d(), lambda: nn.GroupNorm(1, 2), lambda: nn.LayerNorm([2, 9, 9])])
def test_norms_over_places_see_them_all(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(conv(3, first=True), make(), conv(1))
    with watch(net, keep=False) as calls:
        net(torch.zeros(1, 1, 9, 9))
    assert calls[1].address == "2"
    whole = not isinstance(net[1], nn.Softmax2d)
    sides = theoretical(net, torch.zeros(1, 1, 9, 9), ["2"])[0].get("2")
    if isinstance(net[1], nn.LayerNorm):
        assert sides is None, "it takes this size only, so that its field cannot be told from a large one"
    else:
        assert sides is not None and sides[0].whole is whole


def test_fields_are_worked_out_once_where_they_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    real = receptive_field_module._theoretical

    def counted(net: nn.Module, x: Tensor, layers: Sequence[str]):
        asked.append(tuple(layers))
        return real(net, x, layers)

    monkeypatch.setattr(receptive_field_module, "_theoretical", counted)
    net, x = Sums(), torch.zeros(1, 1, 30, 30)
    plain = theoretical(net, x, ["a", "c"])[0]
    with receptive_field_module.remembering():
        assert theoretical(net, x, ["a"])[0] == {"a": plain["a"]}
        assert theoretical(net, x, ["a", "c", "nowhere"])[0] == plain
        assert theoretical(net, x, ["c", "nowhere"])[0] == {"c": plain["c"]}
    theoretical(net, x, ["a"])
    assert asked == [("a", "c"), ("a",), ("c", "nowhere"), ("a",)]


def test_a_gate_made_of_maxima_over_channels_keeps_to_its_place() -> None:
    """Spatial attention (Woo et al. 2018): mean and maximum over channels, a 7×7 convolution, a sigmoid, a product."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = conv(3, first=True), nn.Conv2d(2, 1, 7, padding=3), conv(1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            pooled = torch.cat([x.mean(1, keepdim=True), x.max(dim=1, keepdim=True).values], 1)
            return self.last(x * self.gate(pooled).sigmoid() + x.amax(1).unsqueeze(1))

    fields, assumed, _ = theoretical(Attention(), torch.zeros(1, 1, 24, 24), ["gate", "last"])
    assert not assumed and [side.extent for side in (*fields["gate"], *fields["last"])] == [9] * 4


def test_a_chain_is_what_torchscans_windows_add_up_to() -> None:
    torchscan = pytest.importorskip("torchscan")
    chain = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 5, padding=2)
    ).eval()
    size, step = 1, 1
    for layer in torchscan.crawl_module(chain, (3, 64, 64))["layers"][1:]:
        size += step * (int(layer["metrics"]["receptive_field"]["value"]) - 1)
        step *= int(layer["metrics"]["effective_stride"]["value"])
    row = inspect.receptive_field(chain, shape=(3, 64, 64)).row("3")
    assert (row["height"], row["width"], row["stride_y"]) == (size, size, step) == (21, 21, 4)
