"""Single families of the zoo by their own definitions: LeNet's layers, the spectrogram, padding, initial weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hubel import zoo
from hubel.errors import ModelError
from hubel.zoo.audio import LogMel, mel_filters
from hubel.zoo.crnn import LSTM
from hubel.zoo.efficientnet import SamePadding
from hubel.zoo.layers import StochasticDepth, divisible


def test_lenet5_has_the_layers_of_the_paper() -> None:
    net = zoo.build("lenet5", seed=0)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in net.named_children()}
    with_weights = {name: count for name, count in counts.items() if count}
    assert with_weights == {"conv1": 156, "conv2": 2416, "fc1": 48120, "fc2": 10164, "fc3": 850}


def test_lenet5_pads_28_to_the_papers_32() -> None:
    net = zoo.build("lenet5", seed=0)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    conv1 = net.get_submodule("conv1")
    assert isinstance(conv1, nn.Conv2d)
    by_hand = F.conv2d(F.pad(x, (2, 2, 2, 2)), conv1.weight, conv1.bias)
    torch.testing.assert_close(conv1(x), by_hand)


@pytest.mark.parametrize("side", [12, 29, 32, 47])
def test_lenet5_takes_images_of_the_size_it_is_built_for(side: int) -> None:
    assert zoo.build("lenet5", image_size=side, seed=0)(torch.zeros(1, 1, side, side)).shape == (1, 10)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_he_initialisation_has_the_variance_it_promises(activation: str) -> None:
    fc1 = zoo.build("lenet5", seed=0, activation=activation).get_submodule("fc1")
    assert isinstance(fc1, nn.Linear)
    gain = {"relu": math.sqrt(2), "tanh": 5 / 3}[activation]
    # 48,000 normal numbers: their standard deviation is known to 0.3 %, so 2 % is six standard errors.
    assert fc1.weight.std().item() == pytest.approx(gain / math.sqrt(400), rel=0.02)
    assert not fc1.bias.any()


@pytest.mark.parametrize(
    ("name", "layer", "deviation"),
    [
        ("resnet18", "layer4.0.conv1", math.sqrt(2 / (512 * 9))),
        ("mobilenet_v1", "blocks.4.1.conv_dw", math.sqrt(2 / 9)),  # depthwise: one output an input
        ("densenet121", "features.denseblock4.denselayer16.conv1", math.sqrt(2 / 992)),
        ("squeezenet1_1", "features.12.expand3x3", math.sqrt(2 / (64 * 9))),
        ("dcgan_generator", "main.3", 0.02),
        ("vit_tiny", "blocks.0.attn.qkv", 0.02),
        ("googlenet", "inception5b.branch2.1.conv", math.sqrt(2 / (192 * 9))),
    ],
)
def test_weights_start_as_their_paper_says(name: str, layer: str, deviation: float) -> None:
    weight = zoo.build(name, seed=0).get_parameter(f"{layer}.weight")
    # The deviation of a sample of n is known to 1 / √2n: four of these.
    assert weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 3, 2), (225, 3, 2), (15, 5, 2), (7, 3, 3), (8, 5, 4)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    conv = SamePadding(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size + 1)
    results = [-(-n // stride) for n in (size, size + 1)]
    # TensorFlow's rule, a side at a time: as much as the last window lacks, the smaller half in front.
    lacking = [max((out - 1) * stride + kernel - n, 0) for out, n in zip(results, (size, size + 1), strict=True)]
    (top, left), (below, right) = (n // 2 for n in lacking), (n - n // 2 for n in lacking)
    expected = F.conv2d(F.pad(x, (left, right, top, below)), conv.weight, stride=stride)
    assert list(conv(x).shape[2:]) == results
    torch.testing.assert_close(conv(x), expected)


def test_lite0_pads_as_its_weights_want_it() -> None:
    state = zoo.build("efficientnet_lite0", seed=0).state_dict()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        symmetric, same = (
            zoo.build("efficientnet_lite0", weights=state, origin=origin).eval()(x)
            for origin in ("pytorch", "tensorflow")
        )
    assert symmetric.shape == same.shape and not torch.allclose(symmetric, same)


def test_a_spectrogram_by_its_definition() -> None:
    """Windows, a plain sum for each frequency, triangles on the mel scale, a logarithm: in float64."""
    rate, window, hop, bands = 8000, 64, 24, 6
    layer = LogMel(rate, window, hop, bands)
    sound = torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(0))
    found = layer(sound)
    frames = (200 - window) // hop + 1
    assert found.shape == (2, 3, frames, bands)
    n = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / window)
    k = torch.arange(window // 2 + 1, dtype=torch.float64)
    wave = torch.exp(-2j * math.pi * k[:, None] * n[None] / window)
    for frame in range(frames):
        piece = sound[..., frame * hop : frame * hop + window].double() * hann
        power = (piece.to(torch.complex128) @ wave.T).abs() ** 2
        energy = power @ mel_filters(rate, window, bands).double()
        torch.testing.assert_close(found[:, :, frame], energy.clamp(min=1e-6).log().float(), rtol=1e-4, atol=1e-4)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    layer = LogMel()
    seconds = torch.arange(16_000) / 16_000
    edges = [2595 * math.log10(1 + f / 700) for f in (20, 8000)]
    for hertz in (200, 1000, 3000):
        loudest = int(layer(torch.sin(2 * math.pi * hertz * seconds)[None, None]).mean((0, 1, 2)).argmax())
        band = (2595 * math.log10(1 + hertz / 700) - edges[0]) / (edges[1] - edges[0]) * 41 - 1
        assert abs(loudest - band) < 1


def test_mel_filters_are_triangles_of_height_one_that_overlap_by_half() -> None:
    filters = mel_filters(16_000, 4096, 40)
    assert filters.min() == 0 and (filters.max(0).values > 0.9).all()
    inner = filters[(filters.argmax(0)[0]) : (filters.argmax(0)[-1])].sum(1)
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=0, atol=1e-5)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_images() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    y = layer(torch.ones(4000, 2, 3))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y.amin((1, 2)) == y.amax((1, 2))).all()
    # The mean of 4000 draws has a standard deviation of 0.0091: four of these.
    assert y.mean().item() == pytest.approx(1, abs=0.037)
    assert torch.equal(layer.eval()(y), y)


def test_channels_are_rounded_as_mobilenets_are() -> None:
    assert [divisible(n) for n in (1, 11, 12, 18, 30, 72 // 4, 88 // 4)] == [8, 16, 16, 24, 32, 24, 24]


def test_inceptions_bring_imagenets_pixels_to_what_tensorflows_weights_want() -> None:
    state = zoo.build("googlenet", seed=0).state_dict()
    plain, with_it = (zoo.build("googlenet", weights=state, transform_input=wanted).eval() for wanted in (False, True))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        torch.testing.assert_close(with_it((pixels - mean) / deviation), plain(2 * pixels - 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="transform_input is for images of three colours. Received: in_channels=1"):
        zoo.build("inception_v3", in_channels=1, transform_input=True)


def test_crnns_lstm_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(5, 7, bidirectional=True)
    ours = LSTM(5, 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x)[0], rtol=0, atol=0)
