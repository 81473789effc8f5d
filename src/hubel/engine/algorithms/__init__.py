"""Ways to do a convolution, one file each, and the table of them.

An algorithm is a module with

    NAME
    propose(problem, machine, policy) -> Plan | Refusal
    emit(plan) -> {kernel name: function that writes its IR}
    bind(plan, x strides, w strides, y strides) -> Bound

and, where they hold, ANY_EDGES (it stores every dtype and does epilogues) and CHANNELS_LAST (it reads and writes
tensors of this layout as they lie: others gather number by number, which `choose` counts).
"""

from __future__ import annotations

from types import ModuleType

from hubel.engine.algorithms import (
    channels,
    depthwise,
    depthwise_channels,
    depthwise_weight_channels,
    depthwise_weight_gradient,
    direct,
    fft,
    fft_weight_gradient,
    grouped,
    images,
    outer_products,
    pointwise,
    pointwise_channels,
    pointwise_weight_gradient,
    weight_gradient,
    winograd,
    winograd_weight_gradient,
)

ALGORITHMS: dict[str, ModuleType] = {
    depthwise.NAME: depthwise,
    depthwise_channels.NAME: depthwise_channels,
    depthwise_weight_gradient.NAME: depthwise_weight_gradient,
    depthwise_weight_channels.NAME: depthwise_weight_channels,
    winograd.NAME: winograd,
    fft.NAME: fft,
    pointwise.NAME: pointwise,
    pointwise_channels.NAME: pointwise_channels,
    grouped.NAME: grouped,
    images.NAME: images,
    channels.NAME: channels,
    direct.NAME: direct,
    winograd_weight_gradient.NAME: winograd_weight_gradient,
    fft_weight_gradient.NAME: fft_weight_gradient,
    pointwise_weight_gradient.NAME: pointwise_weight_gradient,
    outer_products.NAME: outer_products,
    weight_gradient.NAME: weight_gradient,
}
