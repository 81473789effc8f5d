"""ConvNeXt: a convolutional network with a transformer's proportions: 7×7 depthwise, then two linear layers a pixel.

Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545. Names are torchvision's.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from hubel.zoo.layers import StochasticDepth
from hubel.zoo.network import Network, rows, truncated_normal

EPSILON = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel. (N, C, H, W) → (N, C, H, W)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Dimensions in another order, as a layer."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.order)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.order))


class Block(nn.Module):
    """Depthwise 7×7, layer norm, linear to four times the channels and back; scaled, and added to its input."""

    def __init__(self, channels: int, drop: float, scale: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=EPSILON),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), scale))
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.stochastic_depth(self.layer_scale * self.block(x))


class ConvNeXt(nn.Module):
    """images: (N, in_channels, H, W), 32 pixels a side or more. Returns logits (N, num_classes).

    depths, widths: blocks and channels of the four stages. drop_path: share of the images whose branch the last block
    leaves out in training; earlier blocks leave out fewer. layer_scale: what each branch is multiplied with at first.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.1,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        norm = partial(LayerNorm2d, eps=EPSILON)
        parts: list[nn.Module] = []
        channels, number = in_channels, 0
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if stage == 0:
                parts.append(nn.Sequential(nn.Conv2d(channels, width, 4, stride=4), norm(width)))
            else:
                parts.append(nn.Sequential(norm(channels), nn.Conv2d(channels, width, 2, stride=2)))
            blocks = []
            for _ in range(depth):
                blocks.append(Block(width, drop_path * number / (sum(depths) - 1), layer_scale))
                number += 1
            parts.append(nn.Sequential(*blocks))
            channels = width
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(norm(channels), nn.Flatten(1), nn.Linear(channels, num_classes))
        truncated_normal(self, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)))


CONVNEXTS = rows(
    Network(
        name="convnext_tiny",
        factory=partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768)),
        input=(3, 224, 224),
        smallest=(32, 32),
        num_classes=1000,
        parameters=28_589_128,
        year=2022,
        source="Liu et al., A ConvNet for the 2020s",
        arxiv="2201.03545",
        names="torchvision",
        options={
            "drop_path": "share of the images whose branch the last block leaves out in training, 0.1",
            "layer_scale": "what each branch is multiplied with at first, 1e-6",
        },
    )
)
