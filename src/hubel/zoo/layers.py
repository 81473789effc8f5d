"""Parts that several networks share. Their parameters have torchvision's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

# In place, as torchvision's: nothing reads what went in, and training keeps one tensor less.
ReLU = partial(nn.ReLU, inplace=True)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: `0`, `1`, `2`. Padded so that stride 1 keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = ReLU,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        padding = (kernel_size - 1) // 2
        parts: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
            norm(out_channels),
        ]
        super().__init__(*parts, *([] if activation is None else [activation()]))


class SqueezeExcitation(nn.Module):
    """Weighs each map by what all maps hold on the average (Hu et al. 2017, arXiv 1709.01507).

    x: (N, channels, H, W), and so is the result. squeezed: channels between the two 1×1 convolutions.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        scale: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation()
        self.scale_activation = scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class StochasticDepth(nn.Module):
    """In training, leaves out a residual branch for some images, and scales it for the others (arXiv 1603.09382).

    p: share of the images whose branch is left out. x: (N, ...).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def divisible(channels: float, by: int = 8) -> int:
    """`channels` rounded to a multiple of `by`, never to less than nine tenths of it (MobileNet's authors' rule)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded
