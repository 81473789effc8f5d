"""Layers that are left to torch while everything else runs on Hubel: for bisecting, and for whoever knows better.

A layer is known by its weight: a call whose weight was excluded goes to torch's kernels, forward and backward. Under
autocast torch hands its kernels a converted copy, which is not known; exclude there with `hubel.disable()`.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from hubel.errors import ModelError
from hubel.ops import native

REASON = "the layer was excluded"

# By identity: tensors have no equality of their own.
_weights: dict[int, weakref.ref[Tensor]] = {}

# What the calls ask; falsy as long as nothing is excluded.
excluded = _weights


def exclude(layers: nn.Module) -> int:
    """Leave the convolutions in `layers` to torch from now on, forward and backward; returns how many.

    Raises ModelError if there are none.
    """
    weights = _convolution_weights(layers)
    if not weights:
        raise ModelError(
            f"What is excluded is a layer with convolutions. Received: {type(layers).__name__} without any. Pass the "
            "convolution, or a module that contains it."
        )
    for weight in weights:
        key = id(weight)
        _weights[key] = weakref.ref(weight, lambda _, key=key: _weights.pop(key, None))
        native.drop(key)
    return len(weights)


def include(layers: nn.Module) -> int:
    """Take back `exclude` for the convolutions in `layers`; returns how many it was true for."""
    return sum(_weights.pop(id(weight), None) is not None for weight in _convolution_weights(layers))


def _convolution_weights(layers: nn.Module) -> list[Tensor]:
    found = {id(m.weight): m.weight for m in layers.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    return list(found.values())
