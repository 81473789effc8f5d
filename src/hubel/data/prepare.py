"""Pixels into the shape that a network is made for."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from hubel.data.dataset import Dataset
from hubel.errors import DataError


def resize(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """The same images at (height, width): scaled to cover it, smoothed where that shrinks, and cut to its middle.

    Unchanged, and not copied, if they have that size already. DataError if a side is not positive.
    """
    if min(size) < 1:
        raise DataError(f"An image size is two positive numbers. Received: {size}. Pass (height, width), each >= 1.")
    H, W = dataset.images.shape[-2:]
    if tuple(size) == (H, W):
        return dataset
    factor = max(size[0] / H, size[1] / W)
    scaled = (max(size[0], round(H * factor)), max(size[1], round(W * factor)))
    images = F.interpolate(dataset.images, scaled, mode="bilinear", antialias=True, align_corners=False)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    images = images[..., top : top + size[0], left : left + size[1]].contiguous()
    return replace(dataset, images=images)


def shifted(padded: torch.Tensor, rows: torch.Tensor, by: int, generator: torch.Generator) -> torch.Tensor:
    """A batch of images, each moved by up to `by` pixels in either direction; the rim that appears is black.

    padded: all images with `by` pixels of padding on each side, (N, C, H + 2·by, W + 2·by); rows: which of them, (B,).
    A window that starts at (by, by) is the image itself. Returns (B, C, H, W), a copy.
    """
    if by == 0:
        return padded[rows]
    H, W = padded.shape[2] - 2 * by, padded.shape[3] - 2 * by
    windows = padded.unfold(2, H, 1).unfold(3, W, 1)
    top, left = torch.randint(0, 2 * by + 1, (2, len(rows)), generator=generator)
    return windows[rows, :, top, left]
