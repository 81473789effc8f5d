"""Inception v3: large kernels taken apart into small and one-dimensional ones.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567. Names are torchvision's,
so that its weights load; images are 299×299.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hubel.zoo.inception import TRANSFORM, ConvNormReLU, transform
from hubel.zoo.network import Network, he_fan_in, rows


class InceptionOutputs(NamedTuple):
    """What training gets with `aux_logits`: the scores, and those of the auxiliary classifier."""

    logits: torch.Tensor
    aux_logits: torch.Tensor


def _chain(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


class InceptionA(nn.Module):
    """35×35: 1×1, 5×5, two 3×3 in the place of another 5×5, pooling."""

    def __init__(self, in_channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormReLU(in_channels, 64)
        self.branch5x5_1 = ConvNormReLU(in_channels, 48)
        self.branch5x5_2 = ConvNormReLU(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormReLU(in_channels, 64)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, padding=1)
        self.avgpool = nn.AvgPool2d(3, stride=1, padding=1)
        self.branch_pool = ConvNormReLU(in_channels, pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.branch1x1(x)
        five = _chain(x, self.branch5x5_1, self.branch5x5_2)
        three = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)
        return torch.cat([one, five, three, _chain(x, self.avgpool, self.branch_pool)], 1)


class InceptionB(nn.Module):
    """35×35 to 17×17: strided 3×3, and pooling beside it."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNormReLU(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormReLU(in_channels, 64)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)
        return torch.cat([self.branch3x3(x), double, self.maxpool(x)], 1)


class InceptionC(nn.Module):
    """17×17: 7×7 kernels as 1×7 and 7×1."""

    def __init__(self, in_channels: int, inner: int) -> None:
        super().__init__()
        wide, high = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        self.branch1x1 = ConvNormReLU(in_channels, 192)
        self.branch7x7_1 = ConvNormReLU(in_channels, inner)
        self.branch7x7_2 = ConvNormReLU(inner, inner, wide[0], padding=wide[1])
        self.branch7x7_3 = ConvNormReLU(inner, 192, high[0], padding=high[1])
        self.branch7x7dbl_1 = ConvNormReLU(in_channels, inner)
        self.branch7x7dbl_2 = ConvNormReLU(inner, inner, high[0], padding=high[1])
        self.branch7x7dbl_3 = ConvNormReLU(inner, inner, wide[0], padding=wide[1])
        self.branch7x7dbl_4 = ConvNormReLU(inner, inner, high[0], padding=high[1])
        self.branch7x7dbl_5 = ConvNormReLU(inner, 192, wide[0], padding=wide[1])
        self.avgpool = nn.AvgPool2d(3, stride=1, padding=1)
        self.branch_pool = ConvNormReLU(in_channels, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3)
        double = _chain(x, self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3)
        double = _chain(double, self.branch7x7dbl_4, self.branch7x7dbl_5)
        return torch.cat([self.branch1x1(x), seven, double, _chain(x, self.avgpool, self.branch_pool)], 1)


class InceptionD(nn.Module):
    """17×17 to 8×8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNormReLU(in_channels, 192)
        self.branch3x3_2 = ConvNormReLU(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormReLU(in_channels, 192)
        self.branch7x7x3_2 = ConvNormReLU(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormReLU(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormReLU(192, 192, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = _chain(x, self.branch3x3_1, self.branch3x3_2)
        seven = _chain(x, self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        return torch.cat([three, seven, self.maxpool(x)], 1)


class InceptionE(nn.Module):
    """8×8: 1×3 and 3×1 beside each other, which widens instead of deepening."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormReLU(in_channels, 320)
        self.branch3x3_1 = ConvNormReLU(in_channels, 384)
        self.branch3x3_2a = ConvNormReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormReLU(in_channels, 448)
        self.branch3x3dbl_2 = ConvNormReLU(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormReLU(384, 384, (3, 1), padding=(1, 0))
        self.avgpool = nn.AvgPool2d(3, stride=1, padding=1)
        self.branch_pool = ConvNormReLU(in_channels, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.avgpool(x))]
        return torch.cat(parts, 1)


class Auxiliary(nn.Module):
    """A classifier at 17×17, which only training has. Needs a map of 17 pixels a side: images of 299."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv0 = ConvNormReLU(in_channels, 128)
        self.conv1 = ConvNormReLU(128, 768, 5)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.avgpool(self.conv1(self.conv0(self.pool(x)))).flatten(1))


class InceptionV3(nn.Module):
    """images: (N, in_channels, H, W), 75 pixels a side or more. Returns logits (N, num_classes).

    With aux_logits, training gets `InceptionOutputs` instead, and needs images of about 299 pixels a side.
    """

    # Published files hold the auxiliary classifier; a network without it leaves that aside.
    renamed: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        aux_logits: bool = True,
        dropout: float = 0.5,
        transform_input: bool = False,
    ) -> None:
        super().__init__()
        self.transform = transform(transform_input, in_channels)
        self.Conv2d_1a_3x3 = ConvNormReLU(in_channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        self.aux_logits = aux_logits
        if aux_logits:
            self.AuxLogits = Auxiliary(768, num_classes)
        else:
            self.renamed = ((r"AuxLogits\..*", ""),)
        he_fan_in(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | InceptionOutputs:
        x = self.transform(images)
        x = self.maxpool1(_chain(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(_chain(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d))
        middle = _chain(x, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e)
        x = self.avgpool(_chain(middle, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)).flatten(1)
        logits = self.fc(self.dropout(x))
        if self.training and self.aux_logits:
            return InceptionOutputs(logits, self.AuxLogits(middle))
        return logits


INCEPTIONS = rows(
    Network(
        name="inception_v3",
        factory=InceptionV3,
        input=(3, 299, 299),
        smallest=(75, 75),
        num_classes=1000,
        parameters=27_161_264,
        year=2015,
        source="Szegedy et al., Rethinking the Inception Architecture for Computer Vision",
        arxiv="1512.00567",
        names="torchvision",
        options={
            "aux_logits": "True (default) has the auxiliary classifier, and training gets (logits, aux_logits)",
            "transform_input": TRANSFORM,
            "dropout": "share of the numbers that training leaves out before the scores, 0.5",
        },
    )
)
