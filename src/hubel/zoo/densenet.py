"""DenseNet: each layer reads all maps that were made before it in its block, and adds 32.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", arXiv 1608.06993.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_in, rows


class DenseLayer(nn.Module):
    """1×1 to 128 maps, 3×3 to 32; returns its input with these behind it. (N, C, H, W) → (N, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = ReLU()
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = ReLU()
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.dropout(self.conv2(self.relu2(self.norm2(y))))], 1)


class DenseNet(nn.Module):
    """images: (N, in_channels, H, W), 29 pixels a side or more. Returns logits (N, num_classes).

    depths: layers of each block. Between blocks, half of the maps at half the size.
    """

    # torchvision's files of 2017 write norm.1 for norm1.
    renamed: ClassVar = ((r"(denselayer\d+)\.(norm|relu|conv)\.([12])\.", r"\1.\2\3."),)

    def __init__(
        self,
        depths: tuple[int, ...],
        growth: int = 32,
        stem: int = 64,
        bottleneck: int = 4,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(stem),
            relu0=ReLU(),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = stem
        for block, depth in enumerate(depths, 1):
            if block > 1:
                parts[f"transition{block - 1}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(channels),
                        relu=ReLU(),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2),
                    )
                )
                channels //= 2
            parts[f"denseblock{block}"] = nn.Sequential(
                OrderedDict(
                    (f"denselayer{n + 1}", DenseLayer(channels + n * growth, growth, bottleneck, dropout))
                    for n in range(depth)
                )
            )
            channels += depth * growth
        parts[f"norm{len(depths) + 1}"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.relu = ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        he_fan_in(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.relu(self.features(images))).flatten(1))


DENSENETS = rows(
    Network(
        name="densenet121",
        factory=partial(DenseNet, (6, 12, 24, 16)),
        input=(3, 224, 224),
        smallest=(29, 29),
        num_classes=1000,
        parameters=7_978_856,
        year=2016,
        source="Huang et al., Densely Connected Convolutional Networks",
        arxiv="1608.06993",
        names="torchvision",
        options={"dropout": "share of each layer's numbers that training leaves out, 0"},
    )
)
