"""MobileNets: depthwise convolutions see, 1×1 convolutions mix.

v1: Howard et al., arXiv 1704.04861, in timm's names. v2: Sandler et al., arXiv 1801.04381. v3: Howard et al., arXiv
1905.02244; both in torchvision's names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from hubel.zoo.layers import ConvNormAct, ReLU, SqueezeExcitation, divisible
from hubel.zoo.network import Network, he_fan_out, rows

ReLU6 = partial(nn.ReLU6, inplace=True)
Hardswish = partial(nn.Hardswish, inplace=True)


class Separable(nn.Module):
    """v1's block: depthwise 3×3, then 1×1, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = ReLU()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.act2(self.bn2(self.conv_pw(x)))


class MobileNetV1(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes)."""

    # (blocks, output channels); every stage but the first halves the size
    STAGES = ((1, 64), (2, 128), (2, 256), (6, 512), (2, 1024))

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(in_channels, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = ReLU()
        stages, channels = [], 32
        for number, (depth, width) in enumerate(self.STAGES):
            first = Separable(channels, width, stride=1 if number == 0 else 2)
            stages.append(nn.Sequential(first, *(Separable(width, width, 1) for _ in range(depth - 1))))
            channels = width
        self.blocks = nn.Sequential(*stages)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        he_fan_out(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(images))))
        return self.classifier(self.global_pool(x).flatten(1))


class LinearBottleneck(nn.Module):
    """v2's block: 1×1 to `expand` times the channels, depthwise 3×3, 1×1 without an activation; added to its input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = in_channels * expand
        widen = [] if expand == 1 else [ConvNormAct(in_channels, inner, 1, activation=ReLU6)]
        self.conv = nn.Sequential(
            *widen,
            ConvNormAct(inner, inner, 3, stride, groups=inner, activation=ReLU6),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.added = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.added else self.conv(x)


class MobileNetV2(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes)."""

    # (expansion, output channels, blocks, stride of the first)
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        parts: list[nn.Module] = [ConvNormAct(in_channels, 32, stride=2, activation=ReLU6)]
        channels = 32
        for expand, width, depth, stride in self.STAGES:
            for number in range(depth):
                parts.append(LinearBottleneck(channels, width, stride if number == 0 else 1, expand))
                channels = width
        parts.append(ConvNormAct(channels, 1280, 1, activation=ReLU6))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))
        he_fan_out(self, linear=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


class Bneck(NamedTuple):
    """A line of v3's tables: kernel, expanded and output channels, squeeze-and-excitation, hard swish, stride."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    swish: bool
    stride: int


LARGE = (
    Bneck(3, 16, 16, False, False, 1),
    Bneck(3, 64, 24, False, False, 2),
    Bneck(3, 72, 24, False, False, 1),
    Bneck(5, 72, 40, True, False, 2),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(3, 240, 80, False, True, 2),
    Bneck(3, 200, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 480, 112, True, True, 1),
    Bneck(3, 672, 112, True, True, 1),
    Bneck(5, 672, 160, True, True, 2),
    Bneck(5, 960, 160, True, True, 1),
    Bneck(5, 960, 160, True, True, 1),
)
SMALL = (
    Bneck(3, 16, 16, True, False, 2),
    Bneck(3, 72, 24, False, False, 2),
    Bneck(3, 88, 24, False, False, 1),
    Bneck(5, 96, 40, True, True, 2),
    Bneck(5, 240, 40, True, True, 1),
    Bneck(5, 240, 40, True, True, 1),
    Bneck(5, 120, 48, True, True, 1),
    Bneck(5, 144, 48, True, True, 1),
    Bneck(5, 288, 96, True, True, 2),
    Bneck(5, 576, 96, True, True, 1),
    Bneck(5, 576, 96, True, True, 1),
)
# v3 was trained with these, and published weights are of no use without them.
_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


class InvertedResidual(nn.Module):
    """v3's block: v2's, with the kernel and activation of a line of the table, and perhaps a squeeze-and-excitation."""

    def __init__(self, in_channels: int, line: Bneck) -> None:
        super().__init__()
        activation: Callable[[], nn.Module] = Hardswish if line.swish else ReLU
        inner, k = line.expanded, line.kernel
        parts: list[nn.Module] = []
        if inner != in_channels:
            parts.append(ConvNormAct(in_channels, inner, 1, activation=activation, norm=_norm))
        parts.append(ConvNormAct(inner, inner, k, line.stride, groups=inner, activation=activation, norm=_norm))
        if line.squeeze:
            parts.append(SqueezeExcitation(inner, divisible(inner // 4), nn.ReLU, nn.Hardsigmoid))
        parts.append(ConvNormAct(inner, line.out, 1, activation=None, norm=_norm))
        self.block = nn.Sequential(*parts)
        self.added = line.stride == 1 and in_channels == line.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.added else self.block(x)


class MobileNetV3(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes).

    table: its blocks; last: width of the layer before the scores.
    """

    def __init__(
        self,
        table: tuple[Bneck, ...],
        last: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = [ConvNormAct(in_channels, 16, stride=2, activation=Hardswish, norm=_norm)]
        channels = 16
        for line in table:
            parts.append(InvertedResidual(channels, line))
            channels = line.out
        parts.append(ConvNormAct(channels, 6 * channels, 1, activation=Hardswish, norm=_norm))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last), Hardswish(), nn.Dropout(dropout), nn.Linear(last, num_classes)
        )
        he_fan_out(self, linear=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


_IMAGES = {"input": (3, 224, 224), "smallest": (1, 1), "num_classes": 1000}
_DROPOUT = {"dropout": "share of the numbers that training leaves out before the scores, 0.2"}
_V3 = {
    **_IMAGES,
    "year": 2019,
    "source": "Howard et al., Searching for MobileNetV3",
    "arxiv": "1905.02244",
    "names": "torchvision",
    "options": _DROPOUT,
}

MOBILENETS = rows(
    Network(
        name="mobilenet_v1",
        factory=MobileNetV1,
        parameters=4_231_976,
        year=2017,
        source="Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        arxiv="1704.04861",
        names="timm",
        **_IMAGES,
    ),
    Network(
        name="mobilenet_v2",
        factory=MobileNetV2,
        parameters=3_504_872,
        year=2018,
        source="Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        arxiv="1801.04381",
        names="torchvision",
        options=_DROPOUT,
        **_IMAGES,
    ),
    Network(name="mobilenet_v3_large", factory=partial(MobileNetV3, LARGE, 1280), parameters=5_483_032, **_V3),
    Network(name="mobilenet_v3_small", factory=partial(MobileNetV3, SMALL, 1024), parameters=2_542_856, **_V3),
)
