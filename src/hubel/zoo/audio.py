"""A small network that hears words: depthwise separable convolutions on a log-mel spectrogram.

Zhang, Suda, Lai, Chandra, "Hello Edge: Keyword Spotting on Microcontrollers", arXiv 1711.07128: DS-CNN-S, on 40 log-mel
bands instead of 10 cepstral coefficients; the number of parameters does not depend on that. The spectrogram is the
first layer, so that the network takes a sound as it is.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from hubel.errors import ModelError
from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_out, rows

# The floor of the energy in a band, in the sound's own units squared: silence has a logarithm.
FLOOR = 1e-6


class LogMel(nn.Module):
    """The logarithm of a sound's energy in bands as wide as the ear's. (N, C, samples) → (N, C, frames, bands).

    rate: samples a second. window, hop: of the Fourier transforms, in samples. bands: triangles on the mel scale
    2595 · log10(1 + f / 700) (O'Shaughnessy 1987), from 20 Hz to rate / 2, each of height 1. It learns nothing; its
    tables are no part of the state dict.
    """

    hann: torch.Tensor
    filters: torch.Tensor

    def __init__(self, rate: int = 16_000, window: int = 640, hop: int = 320, bands: int = 40) -> None:
        super().__init__()
        if bands < 1 or hop < 1 or window < 2 or rate < 50:
            raise ModelError(
                "A spectrogram has positive sizes: rate >= 50, window >= 2, hop >= 1, bands >= 1. Received: "
                f"rate={rate}, window={window}, hop={hop}, bands={bands}. Write 16000, 640, 320, 40."
            )
        self.rate, self.window, self.hop, self.bands = rate, window, hop, bands
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", mel_filters(rate, window, bands), persistent=False)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        N, C, T = sound.shape
        spectrum = torch.stft(
            sound.reshape(N * C, T), self.window, self.hop, window=self.hann, center=False, return_complex=True
        )
        # (N·C, frequencies, frames) → (N·C, frames, bands)
        power = torch.view_as_real(spectrum).square().sum(-1)
        energy = power.transpose(1, 2) @ self.filters
        return torch.log(energy.clamp(min=FLOOR)).reshape(N, C, -1, self.bands)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, window={self.window}, hop={self.hop}, bands={self.bands}"


def mel_filters(rate: int, window: int, bands: int) -> torch.Tensor:
    """Triangles over the frequencies of a Fourier transform, evenly spaced in mel. (window // 2 + 1, bands)."""

    hertz = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    frequencies = 2595 * torch.log10(1 + hertz / 700)
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (20, rate / 2))
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - left) / (centre - left)
    falling = (right - frequencies[:, None]) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


class Separable(nn.Module):
    """Depthwise 3×3, then 1×1, each with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = ReLU(), ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(x)))


class DSCNN(nn.Module):
    """sound: (N, in_channels, samples), at `rate` samples a second. Returns logits (N, num_classes), one a word.

    in_channels: of the sound; two for stereo.
    """

    def __init__(
        self,
        num_classes: int = 12,
        in_channels: int = 1,
        rate: int = 16_000,
        window: int = 640,
        hop: int = 320,
        bands: int = 40,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.spectrogram = LogMel(rate, window, hop, bands)
        self.conv = nn.Conv2d(in_channels, 64, (10, 4), stride=2, padding=(5, 1))
        self.bn = nn.BatchNorm2d(64)
        self.relu = ReLU()
        self.blocks = nn.Sequential(*(Separable(64) for _ in range(4)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, num_classes)
        he_fan_out(self)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(self.spectrogram(sound))))
        return self.fc(self.dropout(self.avgpool(self.blocks(x)).flatten(1)))


AUDIO = rows(
    Network(
        name="ds_cnn",
        factory=DSCNN,
        input=(1, 16_000),
        smallest=(640,),
        num_classes=12,
        parameters=23_756,
        year=2017,
        source="Zhang et al., Hello Edge: Keyword Spotting on Microcontrollers; on log-mel bands",
        arxiv="1711.07128",
        options={
            "rate": "samples a second, 16000",
            "window": "of the Fourier transforms, 640 samples",
            "hop": "from one transform to the next, 320 samples",
            "bands": "on the mel scale, 40",
            "dropout": "share of the numbers that training leaves out before the scores, 0.2",
        },
    )
)
