"""Analyses of one idea each, against networks whose answer is known."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel import inspect
from hubel.errors import DataError, ModelError
from hubel.inspect.checkerboard import phases_of
from hubel.inspect.effects import spearman
from hubel.inspect.layers import layers_of
from hubel.inspect.similarity import cka
from hubel.inspect.tuning_curves import wave


def linear(kernels: Tensor, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(kernels.shape[1], kernels.shape[0], tuple(kernels.shape[2:]), bias=False, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.copy_(kernels)
    return layer


# --- checkerboard


def test_all_ones_of_size_three_and_stride_two() -> None:
    """In one dimension the phases get 2 and 1 terms; in two, 4, 2, 2, 1."""
    for layer in (nn.ConvTranspose2d(1, 1, 3, 2, bias=False), nn.Conv2d(1, 1, 3, 2, bias=False)):
        nn.init.ones_(layer.weight)
        record = inspect.checkerboard(nn.Sequential(layer))
        assert record.arrays["0"].data.tolist() == [[4, 2, 2, 1]]
        row = record.rows[0]
        expected = np.std([4, 2, 2, 1]) / math.sqrt(np.mean(np.square([4, 2, 2, 1])))
        assert row["variation"] == pytest.approx(expected) == row["overlap_variation"]
        assert row["kernel_mod_stride"] == 1 and row["transposed"] == int(isinstance(layer, nn.ConvTranspose2d))
    even = inspect.checkerboard(nn.Sequential(nn.ConvTranspose2d(1, 1, 4, 2)))
    assert even.rows[0]["overlap_variation"] == 0 and even.rows[0]["kernel_mod_stride"] == 0


def test_phases_are_what_ones_become_inside() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 5, 3, groups=2, bias=False)
    y = layer(torch.ones(1, 4, 9, 9))[0, :, 12:15, 12:15].detach().numpy().reshape(6, 9)
    assert np.allclose(phases_of(layers_of(nn.Sequential(layer))["0"]), y, atol=1e-5)
    record = inspect.checkerboard(nn.Sequential(nn.Conv2d(1, 1, 3)))
    assert (record.status, record.reason) == ("not_applicable", "no convolution of the network has a stride above 1")


# --- similarity


def test_cka_of_the_same_features_is_one_and_of_noise_about_zero() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 300)), rng.normal(size=(64, 300))
    turn = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    assert cka(x, x) == pytest.approx(1) and cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert abs(cka(x, y)) < 0.1, "the biased estimate is 0.8 here"
    assert min(cka(rng.normal(size=(16, 4)), rng.normal(size=(16, 4))) for _ in range(20)) < 0, "it is not clipped"


def test_cka_agrees_with_pytorch_cka() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its plots' imports
        package = pytest.importorskip("cka")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(70, 9))
    y = x[:, :5] + 0.5 * rng.normal(size=(70, 5))
    other = float(package.cka_from_features(torch.tensor(x), torch.tensor(y)).squeeze())
    assert cka(x, y) == pytest.approx(other, abs=1e-5)


def test_similarity_of_layers_and_too_few_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        net[2].weight.copy_(torch.eye(8).view(8, 8, 1, 1))  # type: ignore[union-attr,operator]
    record = inspect.similarity(net, torch.randn(64, 1, 6, 6))
    table = record.arrays["cka"].data
    assert np.allclose(np.diag(table), 1) and np.allclose(table, table.T)
    assert record.row("0")["next"] == pytest.approx(1, abs=1e-4) and record.row("3")["next"] is None
    few = inspect.similarity(net, torch.randn(63, 1, 6, 6))
    assert few.status == "insufficient_data"
    assert few.reason == "CKA is estimated from 64 images or more; there are 63"


# --- tuning curves


def gabor(angle: float, frequency: float, size: int = 15, phase: float = 0.0) -> Tensor:
    fx, fy = wave(angle, frequency)
    y, x = np.mgrid[:size, :size] - size // 2
    window = np.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2))
    picture = window * np.cos(2 * np.pi * (fx * x + fy * y) + phase)
    return torch.tensor(picture - picture.mean(), dtype=torch.float32)[None]


PLANTED = [(0.0, 0.15), (30.0, 0.2), (90.0, 0.1), (135.0, 0.25), (165.0, 0.15)]


@pytest.mark.parametrize("gratings", [False, True])
def test_planted_angles_and_frequencies_are_found(gratings: bool) -> None:
    net = nn.Sequential(linear(torch.stack([gabor(*planted) for planted in PLANTED])), nn.ReLU())
    x = torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    record = inspect.tuning_curves(net, x, gratings=gratings, angles=12, frequencies=9)
    grid = record.arrays["frequencies"].data
    for row, (angle, frequency) in zip(record.rows, PLANTED, strict=True):
        off = abs((row["angle"] - angle + 90) % 180 - 90)
        assert off <= 7.5, (row, angle)
        step = math.sqrt(grid[1] / grid[0])  # half a step of the geometric grid
        assert 1 / step - 0.01 <= row["frequency"] / frequency <= step + 0.01, (row, frequency)
        assert row["untuned"] == 0 and row["by_weights"] == int(not gratings)


def test_stripes_that_stand_have_ninety_degrees() -> None:
    edge = torch.tensor([[-1.0, 0, 1]] * 3)
    record = inspect.tuning_curves(
        nn.Sequential(linear(torch.stack([edge[None], edge.T[None]]))), torch.randn(1, 1, 9, 9)
    )
    assert [round(row["angle"]) % 180 for row in record.rows] == [90, 0]


def test_a_round_kernel_and_a_flat_one_are_untuned() -> None:
    y, x = np.mgrid[:9, :9] - 4
    spot = np.exp(-(x**2 + y**2) / 4) - 0.5 * np.exp(-(x**2 + y**2) / 8)
    kernels = torch.stack([torch.tensor(spot, dtype=torch.float32), torch.zeros(9, 9)])[:, None]
    for gratings in (False, True):
        record = inspect.tuning_curves(
            nn.Sequential(linear(kernels), nn.ReLU()), torch.randn(2, 1, 32, 32), gratings=gratings
        )
        assert [row["untuned"] for row in record.rows] == [1, 1]
        assert all(row["angle"] is None for row in record.rows)


def test_hues_of_planted_colours() -> None:
    colours = torch.eye(3).view(3, 3, 1, 1) - 1 / 3
    net = nn.Sequential(nn.Conv2d(3, 3, 1), linear(colours), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))  # type: ignore[union-attr,operator]
        net[0].bias.zero_()  # type: ignore[union-attr,operator]
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    record = inspect.tuning_curves(net, x, hues=12)
    for k, hue in enumerate((0, 120, 240)):
        assert abs((record.row(f"1:{k}")["hue"] - hue + 180) % 360 - 180) <= 15
    assert record.row("1:0")["hue_selectivity"] > 0.5


# --- shift, edges


def test_a_network_without_strides_and_borders_is_consistent_and_one_that_looks_at_a_place_is_not() -> None:
    class Sums(nn.Module):
        def __init__(self, step: int) -> None:
            super().__init__()
            self.conv, self.step = linear(torch.randn(3, 1, 1, 1)), step

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)[..., 2 :: self.step, 2 :: self.step].amax((2, 3))

    torch.manual_seed(0)
    steady, jumpy = Sums(1), Sums(100)
    x = torch.randn(64, 1, 24, 24)
    rows = {name: inspect.shift(net, x, largest=4).rows for name, net in (("steady", steady), ("jumpy", jumpy))}
    assert [row["shift"] for row in rows["steady"]] == [0, 1, 2, 4]
    assert rows["jumpy"][0]["consistency"].value == 1
    assert rows["steady"][1]["consistency"].value > 0.8 > rows["jumpy"][3]["consistency"].value
    assert rows["jumpy"][1]["accuracy"] is None and rows["jumpy"][3]["margin_change"].lo > 0
    labelled = inspect.shift(steady, x, steady(x).argmax(1), largest=1).rows[0]
    assert labelled["accuracy"].how == "wilson"


def test_without_padding_borders_are_not_felt_and_with_it_as_far_as_the_kernels_reach() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 21, 21) + 1
    none = inspect.edges(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), x)
    assert all(row["reach"] == 0 and row["border"] < 1e-6 and row["untouched"] == 1 for row in none.rows)
    padded = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False))
    for layer in padded:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    record = inspect.edges(padded, x)
    assert [row["reach"] for row in record.rows] == [1, 2]
    # The outermost ring of a 3×3 box has 6 of 9 terms, corners 4: the root mean square of what is missing.
    expected = math.sqrt((76 * (3 / 9) ** 2 + 4 * (5 / 9) ** 2) / 80)
    assert record.rows[0]["border"] == pytest.approx(expected, rel=1e-5)
    assert record.arrays["0"].data[1:].max() < 1e-6 and record.rows[0]["untouched"] == pytest.approx(19**2 / 21**2)


# --- contributions


def test_contributions_of_a_linear_network_are_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    x = torch.randn(30, 1, 8, 8)
    record = inspect.contributions(net, x, pictured=(3, 5), sample=6)
    features, head = net[:3](x).detach(), net[3].weight.detach()  # type: ignore[union-attr,operator]
    for row, n in enumerate((3, 5)):
        first, second = net(x)[n].topk(2).indices.tolist()
        expected = (features[n] - features.mean(0)) * (head[first] - head[second])  # type: ignore[index]
        assert np.allclose(record.arrays["0"].data[row], expected.numpy(), atol=1e-6)
        assert (record.arrays["answer"].data[row], record.arrays["runner_up"].data[row]) == (first, second)
    assert record.rows[0]["target"] == "(image 3)" and record.rows[0]["agreement"].value == pytest.approx(1)
    assert [row["rank"] for row in record.rows[2:]] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(DataError, match="Pictured images are numbers of images, from 0. Received: 30 of 30."):
        inspect.contributions(net, x, pictured=(30,))
    single = inspect.contributions(nn.Sequential(net[0], net[1], net[2], nn.Linear(6, 1)), x)
    assert single.reason == "a margin needs two scores; the network gives one"


# --- attribution


class Found(nn.Module):
    """Two classes of images: which of two shapes lies somewhere in the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu_(self.conv1(x))))
        return self.head(x.amax((2, 3)))


def shapes(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = 0.3 * torch.randn(n, 1, 16, 16, generator=generator), torch.arange(n) % 2
    at = torch.randint(2, 12, (n, 2), generator=generator)
    for image, label, (row, column) in zip(x, y.tolist(), at.tolist(), strict=True):
        shape = image[0, row : row + 3, column : column + 3]
        shape[1 if label else slice(None), slice(None) if label else 1] += 2  # a lying or a standing bar
    return x, y


def test_attribution_of_a_trained_network_is_not_that_of_a_random_one() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    (x, y), net = shapes(128), Found()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    assert (net(x).argmax(1) == y).float().mean() > 0.95
    images = tuple(range(24))
    trained = inspect.attribution(net, x, pictured=images)
    assert all(row["difference"] < 0.1 for row in trained.rows)
    correlations = []
    for seed in range(3):
        torch.manual_seed(100 + seed)
        other = inspect.attribution(Found(), x, pictured=images)
        for i in images:
            pair = [record.arrays["integrated"].data[i].ravel() for record in (trained, other)]
            correlations.append(spearman(*pair).value)
    assert abs(np.mean(np.array(correlations, dtype=float))) < 0.2
    assert trained.arrays["grad_cam"].data.shape == (24, 16, 16) and trained.arrays["grad_cam"].data.min() >= 0


class Heard(Found):
    """The same, of a sound: its samples are laid out as an image on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), 1, 16, 16))


def test_attribution_of_a_sound_has_no_map_of_a_layer() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    images, _ = shapes(4)
    seen, heard = Found(), Heard()
    heard.load_state_dict(seen.state_dict())
    of_image = inspect.attribution(seen, images)
    of_sound = inspect.attribution(heard, images.flatten(2))
    assert of_sound.status == "ok" and list(of_sound.arrays) == ["integrated"]
    assert [item["reason"] for item in of_sound.uncovered] == ["its maps do not lie on the input"]
    np.testing.assert_allclose(
        of_sound.arrays["integrated"].data.reshape(1, 1, 16, 16), of_image.arrays["integrated"].data, atol=1e-6
    )


def test_without_captum_the_record_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    record = inspect.attribution(Found(), torch.randn(2, 1, 8, 8))
    assert record.status == "not_applicable"
    assert record.reason == "attribution needs Captum, which is not installed: pip install 'hubel[attribution]'"


# --- training history


def test_snapshots_follow_a_training() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Conv2d(3, 2, 1))
    start = net[0].weight.detach().clone()  # type: ignore[union-attr,operator]
    snapshots = inspect.Snapshots(net, every=2)
    for _ in range(5):
        with torch.no_grad():
            net[0].weight += 0.1 * start  # type: ignore[union-attr,operator]
        snapshots(epoch=1)
    record = inspect.training_history(net, snapshots=snapshots)
    assert record.arrays["steps"].data.tolist() == [0, 2, 4]
    assert np.allclose(record.arrays["0:drift"].data, [0, 0.2, 0.4], atol=1e-6)
    assert np.allclose(record.arrays["kernels"].data[2], 1.4 * start.numpy(), atol=1e-6)
    row = record.row("0@4")
    assert row["cosine"] == pytest.approx(1) and row["speed"] == pytest.approx(0.1, abs=1e-6)
    assert record.row("1@4")["drift"] == 0
    assert inspect.training_history(net).status == "not_applicable"
    with pytest.raises(DataError, match="Snapshots are taken every so many steps, 1 at least. Received: every=0."):
        inspect.Snapshots(net, every=0)
    with pytest.raises(ModelError, match="Snapshots are of convolutions. Received: Flatten, which has none."):
        inspect.Snapshots(nn.Flatten())
