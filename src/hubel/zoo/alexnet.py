"""AlexNet, in the form with one tower of 2014, as torchvision has it.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997. Sixty of its sixty-one
million parameters are in the three linear layers.
"""

from __future__ import annotations

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, rows


class AlexNet(nn.Module):
    """images: (N, in_channels, H, W), 63 pixels a side or more. Returns logits (N, num_classes)."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=2), ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(256 * 6 * 6, 4096), ReLU(),
            nn.Dropout(dropout), nn.Linear(4096, 4096), ReLU(),
            nn.Linear(4096, num_classes),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


ALEXNETS = rows(
    Network(
        name="alexnet",
        factory=AlexNet,
        input=(3, 224, 224),
        smallest=(63, 63),
        num_classes=1000,
        parameters=61_100_840,
        year=2014,
        source="Krizhevsky, One weird trick for parallelizing convolutional neural networks",
        arxiv="1404.5997",
        names="torchvision",
        options={"dropout": "share of the numbers that training leaves out before the linear layers, 0.5"},
    )
)
