"""Subclasses of torch's six convolution layers that compute through `hubel.conv*`, and differ in nothing else.

They have torch's names, so that a network prints as before.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hubel.ops import functional


class Conv1d(nn.Conv1d):
    """torch.nn.Conv1d on Hubel's kernels. (N, C, L) or (C, L)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv1d(*_padded(self, input, weight, bias))


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d on Hubel's kernels. (N, C, H, W) or (C, H, W)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(*_padded(self, input, weight, bias))


class Conv3d(nn.Conv3d):
    """torch.nn.Conv3d on Hubel's kernels. (N, C, D, H, W) or (C, D, H, W)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv3d(*_padded(self, input, weight, bias))


class ConvTranspose1d(nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d on Hubel's kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.conv_transpose1d(*_transposed(self, 1, input, output_size))


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on Hubel's kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.conv_transpose2d(*_transposed(self, 2, input, output_size))


class ConvTranspose3d(nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d on Hubel's kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.conv_transpose3d(*_transposed(self, 3, input, output_size))


def _padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
    """The arguments of the functional convolution; every padding mode but zeros pads the input beforehand."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return x, weight, bias, layer.stride, padding, layer.dilation, layer.groups


def _transposed(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
    ndim: int,
    x: Tensor,
    output_size: list[int] | None,
) -> tuple:
    # torch's own rule, whose signature says lists where the layers have tuples.
    rule: Any = layer._output_padding
    extra = rule(x, output_size, layer.stride, layer.padding, layer.kernel_size, ndim, layer.dilation)
    return x, layer.weight, layer.bias, layer.stride, layer.padding, extra, layer.groups, layer.dilation
