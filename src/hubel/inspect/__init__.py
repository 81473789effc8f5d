"""The microscope: one analysis a file. Each takes any nn.Module and returns a Record, never a figure.

    kernels        the weights: how strong, how smooth, how far training moved them      a net
    feature_maps   the activations, from the input to the scores                         a net and images
    one_number     one number of a map, made by hand: patch · kernel + bias              a net and one image
    ablation       remove one kernel: scores before and after                            a net and images, labels if any

The keys of ANALYSES are the words of `hubel report --only` and the names of these functions.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.inspect.ablation import ablation, without
from hubel.inspect.feature_maps import feature_maps
from hubel.inspect.hooks import Call, watch
from hubel.inspect.kernels import kernels
from hubel.inspect.layers import Layer, layers_of
from hubel.inspect.one_number import one_number
from hubel.records import Record

ANALYSES: dict[str, Callable[..., Record]] = {
    "kernels": kernels,
    "feature_maps": feature_maps,
    "one_number": one_number,
    "ablation": ablation,
}

__all__ = [
    "ANALYSES", "kernels", "feature_maps", "one_number", "ablation",
    "without", "watch", "layers_of", "Call", "Layer",
]  # fmt: skip
