"""SqueezeNet: AlexNet's accuracy with a fiftieth of its parameters, by 1×1 kernels and no linear layer.

Iandola et al., arXiv 1602.07360. 1.1 is the authors' later form: the same accuracy for 2.4 times less computation.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, rows

# (squeezed, expanded) channels of a Fire module; "pool" halves the size.
_FIRES = ((16, 128), (16, 128), (32, 256), (32, 256), (48, 384), (48, 384), (64, 512), (64, 512))
Part = tuple[int, int] | Literal["pool"]
BODIES: dict[str, tuple[Part, ...]] = {
    "1.0": ("pool", *_FIRES[:3], "pool", *_FIRES[3:7], "pool", _FIRES[7]),
    "1.1": ("pool", *_FIRES[:2], "pool", *_FIRES[2:4], "pool", *_FIRES[4:]),
}
# kernel and channels of the first convolution
STEMS = {"1.0": (7, 96), "1.1": (3, 64)}


class Fire(nn.Module):
    """1×1 to few channels, then 1×1 and 3×3 beside each other, each to half of `expanded`."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.squeeze_activation = ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded // 2, 1)
        self.expand1x1_activation = ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded // 2, 3, padding=1)
        self.expand3x3_activation = ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        near = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([near, self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """images: (N, in_channels, H, W), 17 pixels a side or more. Returns logits (N, num_classes)."""

    def __init__(self, form: str, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        kernel, channels = STEMS[form]
        parts: list[nn.Module] = [nn.Conv2d(in_channels, channels, kernel, stride=2), ReLU()]
        for part in BODIES[form]:
            if part == "pool":
                parts.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            else:
                parts.append(Fire(channels, *part))
                channels = part[1]
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(channels, num_classes, 1), ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is self.classifier[1]:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images)).flatten(1)


def _row(form: str, parameters: int, smallest: int) -> Network:
    return Network(
        name=f"squeezenet{form.replace('.', '_')}",
        factory=partial(SqueezeNet, form),
        input=(3, 224, 224),
        smallest=(smallest, smallest),
        num_classes=1000,
        parameters=parameters,
        year=2016,
        source="Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
        arxiv="1602.07360",
        names="torchvision",
        options={"dropout": "share of the numbers that training leaves out before the scores, 0.5"},
    )


SQUEEZENETS = rows(_row("1.0", 1_248_424, 21), _row("1.1", 1_235_496, 17))
