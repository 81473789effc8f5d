"""What lies between convolutions: sums, products and activations of whole tensors, pooling, means, copies.

Kernels of the same vocabulary and ABI as a convolution's, for tensors with any strides. They choose nothing and are
chosen by nobody: `graph` puts them between convolutions where no convolution can do their work on the way, `ops` into
training graphs.

    maps        elementwise: copy, add, multiply, scale and shift, activations; with broadcasting
    pooling     maxima and averages over windows
    rows        softmax and layer norm over rows
    batch_norm  batch norm in training, with the activation behind it, forward and backward
    dense       fully connected layers in training, forward and backward
"""

from hubel.engine.between.batch_norm import batch_norm_gradients, batch_normed
from hubel.engine.between.dense import dense_input_gradient, dense_outputs, dense_weight_gradient
from hubel.engine.between.maps import BINARY, mapped
from hubel.engine.between.pooling import Windows, pooled
from hubel.engine.between.rows import layer_normed, softmaxed
from hubel.engine.between.work import Work

__all__ = [
    "BINARY",
    "Windows",
    "Work",
    "batch_norm_gradients",
    "batch_normed",
    "dense_input_gradient",
    "dense_outputs",
    "dense_weight_gradient",
    "layer_normed",
    "mapped",
    "pooled",
    "softmaxed",
]
