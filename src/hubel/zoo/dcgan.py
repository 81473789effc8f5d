"""DCGAN: transposed convolutions that draw, and strided ones that judge.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", arXiv 1511.06434. Names and sizes are those of PyTorch's example, `main.0.weight` and on.
"""

from __future__ import annotations

import torch
from torch import nn

from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, rows


def _draw(net: nn.Module) -> None:
    """As the paper: weights from a normal of standard deviation 0.02, batch norms around 1."""
    for module in net.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1, std=0.02)


class Generator(nn.Module):
    """noise: (N, in_channels, 1, 1). Returns images (N, channels, 64, 64) between -1 and 1."""

    def __init__(self, in_channels: int = 100, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inside = in_channels
        for times in (8, 4, 2, 1):
            stride, padding = (1, 0) if times == 8 else (2, 1)
            out = width * times
            parts += [
                nn.ConvTranspose2d(inside, out, 4, stride, padding, bias=False), nn.BatchNorm2d(out), ReLU()
            ]  # fmt: skip
            inside = out
        parts += [nn.ConvTranspose2d(inside, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*parts)
        _draw(self)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.main(noise)


class Discriminator(nn.Module):
    """images: (N, in_channels, 64, 64). Returns logits (N, num_classes): above 0, the image looks real.

    The example ends in a sigmoid; without it, use `binary_cross_entropy_with_logits`.
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inside = in_channels
        for times in (1, 2, 4, 8):
            out = width * times
            norm = [] if times == 1 else [nn.BatchNorm2d(out)]
            parts += [nn.Conv2d(inside, out, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2, inplace=True)]
            inside = out
        parts.append(nn.Conv2d(inside, num_classes, 4, bias=False))
        self.main = nn.Sequential(*parts)
        _draw(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images).flatten(1)


_PAPER = {
    "year": 2015,
    "source": "Radford et al., Unsupervised Representation Learning with Deep Convolutional GANs",
    "arxiv": "1511.06434",
    "names": "examples",
}

DCGANS = rows(
    Network(
        name="dcgan_generator",
        factory=Generator,
        input=(100, 1, 1),
        smallest=(1, 1),
        num_classes=None,
        parameters=3_576_704,
        output="image",
        options={"channels": "of the images it makes, 3", "width": "channels before the last layer, 64"},
        **_PAPER,
    ),
    Network(
        name="dcgan_discriminator",
        factory=Discriminator,
        input=(3, 64, 64),
        smallest=(64, 64),
        num_classes=1,
        parameters=2_765_568,
        options={"width": "channels after the first layer, 64"},
        **_PAPER,
    ),
)
