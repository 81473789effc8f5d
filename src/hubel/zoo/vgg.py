"""VGG: nothing but 3×3 convolutions and 2×2 pooling, deeper and deeper.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556. The forms
with batch norm are torchvision's.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_out, rows

# Convolutions in each of the five stages, which have 64, 128, 256, 512 and 512 channels; a pooling ends each.
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """images: (N, in_channels, H, W), 32 pixels a side or more. Returns logits (N, num_classes)."""

    def __init__(
        self,
        depths: tuple[int, ...],
        norm: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = in_channels
        for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                parts += [nn.Conv2d(channels, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), ReLU()]
                channels = width
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), ReLU(), nn.Dropout(dropout),
            nn.Linear(4096, 4096), ReLU(), nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )  # fmt: skip
        he_fan_out(self, linear=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def _row(name: str, parameters: int) -> Network:
    return Network(
        name=name,
        factory=partial(VGG, DEPTHS[name.removesuffix("_bn")], name.endswith("_bn")),
        input=(3, 224, 224),
        smallest=(32, 32),
        num_classes=1000,
        parameters=parameters,
        year=2014,
        source="Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition",
        arxiv="1409.1556",
        names="torchvision",
        options={"dropout": "share of the numbers that training leaves out between the linear layers, 0.5"},
    )


VGGS = rows(
    _row("vgg11", 132_863_336),
    _row("vgg11_bn", 132_868_840),
    _row("vgg13", 133_047_848),
    _row("vgg13_bn", 133_053_736),
    _row("vgg16", 138_357_544),
    _row("vgg16_bn", 138_365_992),
    _row("vgg19", 143_667_240),
    _row("vgg19_bn", 143_678_248),
)
