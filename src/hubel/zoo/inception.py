"""GoogLeNet: kernels of several sizes beside each other, with 1×1 convolutions to keep them cheap.

Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, in torchvision's form: batch norm after each
convolution, and 3×3 where the paper has 5×5. Inception v3 is in `inception_v3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from hubel.errors import ModelError
from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_in, rows


class GoogLeNetOutputs(NamedTuple):
    """What training gets with `aux_logits`: the scores, and those of the two auxiliary classifiers."""

    logits: torch.Tensor
    aux_logits2: torch.Tensor
    aux_logits1: torch.Tensor


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU: `conv`, `bn`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class FromImageNet(nn.Module):
    """Pixels normalised as ImageNet's (mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225) to -1 .. 1.

    What torchvision calls transform_input: its weights of both Inception networks come from TensorFlow and want that.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.register_buffer("scale", torch.tensor([d / 0.5 for d in deviation])[:, None, None], persistent=False)
        self.register_buffer("shift", torch.tensor([(m - 0.5) / 0.5 for m in mean])[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift


def transform(wanted: bool, in_channels: int) -> nn.Module:
    """The first step of an Inception network: pixels as they are, or brought to what TensorFlow's weights want."""
    if wanted and in_channels != 3:
        raise ModelError(
            f"transform_input is for images of three colours. Received: in_channels={in_channels}. Leave it out."
        )
    return FromImageNet() if wanted else nn.Identity()


TRANSFORM = "True for torchvision's weights: brings pixels normalised as ImageNet's to -1 .. 1; False"


class Inception(nn.Module):
    """Four branches, their maps behind each other: 1×1; 1×1 and 3×3, twice; pooling and 1×1."""

    def __init__(self, in_channels: int, one: int, to3: int, three: int, to5: int, five: int, pooled: int) -> None:
        super().__init__()
        self.branch1 = ConvNormReLU(in_channels, one)
        self.branch2 = nn.Sequential(ConvNormReLU(in_channels, to3), ConvNormReLU(to3, three, 3, padding=1))
        self.branch3 = nn.Sequential(ConvNormReLU(in_channels, to5), ConvNormReLU(to5, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvNormReLU(in_channels, pooled))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier in the middle of the network, which only training has: its gradient reaches the early layers."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.7) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvNormReLU(in_channels, 128)
        self.fc1 = nn.Linear(2048, 1024)
        self.relu = ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.avgpool(x)).flatten(1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


# Inputs, and the channels of the branches in `Inception`'s order; table 1 of the paper.
_MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """images: (N, in_channels, H, W), 15 pixels a side or more. Returns logits (N, num_classes).

    With aux_logits, training gets `GoogLeNetOutputs` instead.
    """

    # Published files hold the auxiliary classifiers; a network without them leaves these aside.
    renamed: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        aux_logits: bool = False,
        dropout: float = 0.2,
        transform_input: bool = False,
    ) -> None:
        super().__init__()
        self.transform = transform(transform_input, in_channels)
        self.conv1 = ConvNormReLU(in_channels, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvNormReLU(64, 64)
        self.conv3 = ConvNormReLU(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(*_MODULES["3a"])
        self.inception3b = Inception(*_MODULES["3b"])
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(*_MODULES["4a"])
        self.inception4b = Inception(*_MODULES["4b"])
        self.inception4c = Inception(*_MODULES["4c"])
        self.inception4d = Inception(*_MODULES["4d"])
        self.inception4e = Inception(*_MODULES["4e"])
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(*_MODULES["5a"])
        self.inception5b = Inception(*_MODULES["5b"])
        self.aux_logits = aux_logits
        if aux_logits:
            self.aux1 = Auxiliary(512, num_classes)
            self.aux2 = Auxiliary(528, num_classes)
        else:
            self.renamed = ((r"aux[12]\..*", ""),)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        he_fan_in(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | GoogLeNetOutputs:
        x = self.maxpool1(self.conv1(self.transform(images)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        at_4a = self.inception4a(x)
        at_4d = self.inception4d(self.inception4c(self.inception4b(at_4a)))
        x = self.maxpool4(self.inception4e(at_4d))
        x = self.avgpool(self.inception5b(self.inception5a(x))).flatten(1)
        logits = self.fc(self.dropout(x))
        if self.training and self.aux_logits:
            return GoogLeNetOutputs(logits, self.aux2(at_4d), self.aux1(at_4a))
        return logits


GOOGLENETS = rows(
    Network(
        name="googlenet",
        factory=GoogLeNet,
        input=(3, 224, 224),
        smallest=(15, 15),
        num_classes=1000,
        parameters=6_624_904,
        year=2014,
        source="Szegedy et al., Going Deeper with Convolutions; torchvision's form",
        arxiv="1409.4842",
        names="torchvision",
        options={
            "aux_logits": "True adds two auxiliary classifiers; training then gets (logits, aux_logits2, aux_logits1)",
            "transform_input": TRANSFORM,
            "dropout": "share of the numbers that training leaves out before the scores, 0.2",
        },
    )
)
