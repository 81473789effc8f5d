"""EfficientNet B0, and Lite0, the form without squeeze-and-excitation that runs well on small devices.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946. B0 has
torchvision's names; Lite0, which torchvision lacks, has timm's.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hubel.errors import unknown
from hubel.zoo.layers import ConvNormAct, SqueezeExcitation, StochasticDepth
from hubel.zoo.network import Network, he_fan_out, rows

SiLU = partial(nn.SiLU, inplace=True)
ReLU6 = partial(nn.ReLU6, inplace=True)
# TensorFlow pads on one side more than on the other, and has another epsilon in its batch norms.
ORIGINS = {"pytorch": 1e-5, "tensorflow": 1e-3}


class Stage(NamedTuple):
    """A line of table 1 of the paper: expansion, kernel, stride of the first block, output channels, blocks."""

    expand: int
    kernel: int
    stride: int
    out: int
    depth: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class MBConv(nn.Module):
    """1×1 to more channels, depthwise, squeeze-and-excitation, 1×1 to fewer; added to its input where that fits."""

    def __init__(self, in_channels: int, line: Stage, stride: int, drop: float) -> None:
        super().__init__()
        inner = in_channels * line.expand
        widen = [] if line.expand == 1 else [ConvNormAct(in_channels, inner, 1, activation=SiLU)]
        self.block = nn.Sequential(
            *widen,
            ConvNormAct(inner, inner, line.kernel, stride, groups=inner, activation=SiLU),
            SqueezeExcitation(inner, max(1, in_channels // 4), SiLU),
            ConvNormAct(inner, line.out, 1, activation=None),
        )
        self.added = stride == 1 and in_channels == line.out
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.stochastic_depth(self.block(x)) if self.added else self.block(x)


class EfficientNet(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes).

    drop_path: share of the images whose branch the last block leaves out in training; earlier blocks leave out fewer.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [ConvNormAct(in_channels, 32, 3, stride=2, activation=SiLU)]
        channels, number, blocks = 32, 0, sum(line.depth for line in STAGES)
        for line in STAGES:
            stage = []
            for first in range(line.depth):
                drop = drop_path * number / blocks
                stage.append(MBConv(channels, line, line.stride if first == 0 else 1, drop))
                channels, number = line.out, number + 1
            stages.append(nn.Sequential(*stage))
        stages.append(ConvNormAct(channels, 1280, 1, activation=SiLU))
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))
        he_fan_out(self, linear=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


class SamePadding(nn.Conv2d):
    """A convolution padded as TensorFlow pads: ceil(size / stride) results, the odd pixel below and to the right."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        (H, W), (k, _), (s, _) = input.shape[-2:], self.kernel_size, self.stride
        high, wide = (max((-(-size // s) - 1) * s + k - size, 0) for size in (H, W))
        padded = F.pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, origin: str) -> nn.Conv2d:
    # At stride 1 both ways of padding are one.
    kind = SamePadding if origin == "tensorflow" and stride > 1 else nn.Conv2d
    around = 0 if kind is SamePadding else (kernel - 1) // 2
    return kind(in_channels, out_channels, kernel, stride, around, groups=groups, bias=False)


class LiteSeparable(nn.Module):
    """Lite0's first block: depthwise, then 1×1 without an activation."""

    def __init__(self, in_channels: int, line: Stage, stride: int, origin: str) -> None:
        super().__init__()
        self.conv_dw = _conv(in_channels, in_channels, line.kernel, stride, in_channels, origin)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = ReLU6()
        self.conv_pw = nn.Conv2d(in_channels, line.out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(line.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))


class LiteBlock(nn.Module):
    """1×1 to six times the channels, depthwise, 1×1 without an activation; added to its input where that fits."""

    def __init__(self, in_channels: int, line: Stage, stride: int, origin: str) -> None:
        super().__init__()
        inner = in_channels * line.expand
        self.conv_pw = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = ReLU6()
        self.conv_dw = _conv(inner, inner, line.kernel, stride, inner, origin)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = ReLU6()
        self.conv_pwl = nn.Conv2d(inner, line.out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(line.out)
        self.added = stride == 1 and in_channels == line.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.act2(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.added else y


class EfficientNetLite(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes).

    origin: where its weights were trained. TensorFlow's want its "same" padding and its epsilon of 0.001.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        origin: Literal["pytorch", "tensorflow"] = "pytorch",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if origin not in ORIGINS:
            raise unknown("origin", origin, ORIGINS)
        self.conv_stem = _conv(in_channels, 32, 3, 2, 1, origin)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = ReLU6()
        stages, channels = [], 32
        for line in STAGES:
            stage = []
            for first in range(line.depth):
                block = LiteSeparable if line.expand == 1 else LiteBlock
                stage.append(block(channels, line, line.stride if first == 0 else 1, origin))
                channels = line.out
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.act2 = ReLU6()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = ORIGINS[origin]
        he_fan_out(self, linear=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(images))))
        x = self.act2(self.bn2(self.conv_head(x)))
        return self.classifier(self.dropout(self.global_pool(x).flatten(1)))


_DROPOUT = "share of the numbers that training leaves out before the scores, 0.2"

EFFICIENTNETS = rows(
    Network(
        name="efficientnet_b0",
        factory=EfficientNet,
        input=(3, 224, 224),
        smallest=(1, 1),
        num_classes=1000,
        parameters=5_288_548,
        year=2019,
        source="Tan, Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
        arxiv="1905.11946",
        names="torchvision",
        options={
            "dropout": _DROPOUT,
            "drop_path": "share of the images whose branch the last block leaves out in training, 0.2",
        },
    ),
    Network(
        name="efficientnet_lite0",
        factory=EfficientNetLite,
        input=(3, 224, 224),
        smallest=(1, 1),
        num_classes=1000,
        parameters=4_652_008,
        year=2020,
        source="EfficientNet-Lite of the TensorFlow authors, after Tan, Le 2019",
        arxiv="1905.11946",
        names="timm",
        options={"origin": "pytorch (default) or tensorflow, of the weights", "dropout": _DROPOUT},
    ),
)
