"""Residual networks: a stage learns what to add to its input.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385. The bottleneck's stride is in its
3×3 convolution, as in torchvision (the paper has it in the first 1×1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_out, rows


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, and the input added before the last ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, group_width: int) -> None:
        super().__init__()
        assert (groups, group_width) == (1, 64), "the basic block has one form only"
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1 to fewer channels, 3×3, 1×1 to four times as many, and the input added before the last ReLU.

    groups, group_width: of the 3×3 convolution at 64 channels; what makes ResNeXt and Wide ResNet of it.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, group_width: int) -> None:
        super().__init__()
        inner, outer = width * group_width // 64 * groups, width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.relu = ReLU()
        self.downsample = _shortcut(in_channels, outer, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """images: (N, in_channels, H, W), any size. Returns logits (N, num_classes).

    block: what a stage is made of; depths: how many of them in each of the four stages.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        groups: int = 1,
        group_width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        made = partial(block, groups=groups, group_width=group_width)
        e = block.expansion
        self.layer1 = _stage(made, 64, 64, e, depths[0], stride=1)
        self.layer2 = _stage(made, 64 * e, 128, e, depths[1], stride=2)
        self.layer3 = _stage(made, 128 * e, 256, e, depths[2], stride=2)
        self.layer4 = _stage(made, 256 * e, 512, e, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * e, num_classes)
        he_fan_out(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """None where the input can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _stage(
    made: Callable[..., nn.Module], in_channels: int, width: int, expansion: int, depth: int, stride: int
) -> nn.Sequential:
    first = made(in_channels, width, stride)
    return nn.Sequential(first, *(made(width * expansion, width, 1) for _ in range(depth - 1)))


def _row(name: str, parameters: int, factory: Callable[..., nn.Module], **paper: str | int) -> Network:
    of = {"year": 2015, "source": "He et al., Deep Residual Learning for Image Recognition", "arxiv": "1512.03385"}
    return Network(
        name=name,
        factory=factory,
        input=(3, 224, 224),
        smallest=(1, 1),
        num_classes=1000,
        parameters=parameters,
        names="torchvision",
        **(of | paper),  # type: ignore[arg-type]
    )


RESNETS = rows(
    _row("resnet18", 11_689_512, partial(ResNet, BasicBlock, (2, 2, 2, 2))),
    _row("resnet34", 21_797_672, partial(ResNet, BasicBlock, (3, 4, 6, 3))),
    _row("resnet50", 25_557_032, partial(ResNet, Bottleneck, (3, 4, 6, 3))),
    _row("resnet101", 44_549_160, partial(ResNet, Bottleneck, (3, 4, 23, 3))),
    _row("resnet152", 60_192_808, partial(ResNet, Bottleneck, (3, 8, 36, 3))),
    _row(
        "resnext50_32x4d",
        25_028_904,
        partial(ResNet, Bottleneck, (3, 4, 6, 3), groups=32, group_width=4),
        year=2016,
        source="Xie et al., Aggregated Residual Transformations for Deep Neural Networks",
        arxiv="1611.05431",
    ),
    _row(
        "wide_resnet50_2",
        68_883_240,
        partial(ResNet, Bottleneck, (3, 4, 6, 3), group_width=128),
        year=2016,
        source="Zagoruyko, Komodakis, Wide Residual Networks",
        arxiv="1605.07146",
    ),
)
