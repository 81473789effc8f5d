"""Drop-in layers: torch's convolutions on Hubel's kernels, with the same parameters, state dicts and reprs."""

from hubel.nn.layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from hubel.nn.swap import restore, swap

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "swap", "restore",
]  # fmt: skip
