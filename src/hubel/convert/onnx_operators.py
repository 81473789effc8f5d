"""OPERATORS: every ONNX operator that is read, and what it becomes. Here the ones that work number by number.

A handler takes the builder, the operator and its inputs (None for one that is left out), and returns its output, or a
tuple of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hubel.convert import onnx_functions as functions
from hubel.convert.onnx_layers import LAYERS
from hubel.convert.onnx_sequences import SEQUENCES
from hubel.convert.onnx_shapes import SHAPES, fixed, tensor
from hubel.convert.onnx_values import Builder, Operator, Value

Handler = Callable[..., Any]


def _one(function: Callable[..., Any], **defaults: float) -> Handler:
    """An operator of one tensor. defaults: the attributes that the function takes, in its order."""

    def handler(b: Builder, op: Operator, x: Value) -> Value:
        return b.call(function, tensor(b, x), *(op.get(name, value) for name, value in defaults.items()))

    return handler


def _two(function: Callable[..., Any]) -> Handler:
    """An operator of two tensors. Sums, differences, products and quotients of sizes are sizes again."""

    def handler(b: Builder, op: Operator, x: Value, y: Value) -> Value:
        sized = [b.is_sizes(side) for side in (x, y)]
        if any(sized) and op.kind in functions.SIZES_MATH and all(_whole(b, side) for side in (x, y)):
            return b.sizes(functions.sizes_math, op.kind, b.numbers(x), b.numbers(y))
        return b.call(function, *_plain(b, tensor(b, x), tensor(b, y)))

    return handler


def _whole(b: Builder, value: Value) -> bool:
    """Whether a value is sizes, or a constant that can be computed with them."""
    return b.is_sizes(value) or (isinstance(value, Tensor) and not value.is_floating_point() and value.dim() <= 1)


def _plain(b: Builder, *values: Value) -> list[Any]:
    """Constants of one number as Python's numbers, where a tensor stands beside them."""
    if all(isinstance(value, Tensor) for value in values):
        return list(values)
    return [v.item() if isinstance(v, Tensor) and v.numel() == 1 and v.dim() <= 1 else v for v in values]


def _folded(function: Callable[..., Any]) -> Handler:
    """An operator of any number of tensors, two at a time."""

    def handler(b: Builder, op: Operator, first: Value, *rest: Value) -> Value:
        for other in rest:
            first = b.call(function, first, other)
        return first

    return handler


def reduction(b: Builder, op: Operator, x: Value, axes: Value = None) -> Value:
    places = op.get("axes") if axes is None else fixed(b, op, axes, "axes")
    places = (places,) if isinstance(places, int) else places
    keep, unchanged = bool(op.get("keepdims", 1)), bool(op.get("noop_with_empty_axes", 0))
    return b.call(functions.reduce, op.kind, tensor(b, x), places and tuple(places), keep, unchanged)


def clip(b: Builder, op: Operator, x: Value, low: Value = None, high: Value = None) -> Value:
    least = op.get("min") if low is None else fixed(b, op, low, "limits")
    most = op.get("max") if high is None else fixed(b, op, high, "limits")
    if (least, most) == (0, 6):
        return b.call(F.relu6, x)
    if least is None and most is None:
        return x
    return b.call(torch.clamp, x, least, most)


def hard_sigmoid(b: Builder, op: Operator, x: Value) -> Value:
    alpha, beta = op.get("alpha", 0.2), op.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return b.call(F.hardsigmoid, x)
    return b.call(torch.clamp, b.call(operator.add, b.call(operator.mul, x, alpha), beta), 0, 1)


def softmax(b: Builder, op: Operator, x: Value) -> Value:
    axis = op.get("axis", 1 if op.opset < 13 else -1)
    rank = b.ranks.get(op.outputs[0])
    log = op.kind == "LogSoftmax"
    if op.opset < 13 and axis != -1 and (rank is None or axis != rank - 1):
        return b.call(functions.softmax_of_rest, x, axis, log)
    return b.call(F.log_softmax if log else F.softmax, x, axis)


def prelu(b: Builder, op: Operator, x: Value, slope: Value) -> Value:
    """A slope for each channel, or for all."""
    if isinstance(slope, Tensor) and (slope.numel() == 1 or slope.numel() == max(slope.shape[:1], default=1)):
        return b.call(F.prelu, x, slope.flatten())
    return b.call(torch.where, b.call(operator.gt, x, 0), x, b.call(operator.mul, slope, x))


def gelu(b: Builder, op: Operator, x: Value) -> Value:
    return b.call(F.gelu, x, approximate=op.get("approximate", "none"))


def arg_max(b: Builder, op: Operator, x: Value) -> Value:
    if op.get("select_last_index", 0):
        raise op.refuse("with select_last_index")
    return b.call(torch.argmax, x, op.get("axis", 0), bool(op.get("keepdims", 1)))


def einsum(b: Builder, op: Operator, *parts: Value) -> Value:
    return b.call(torch.einsum, op.get("equation"), *parts)


def where(b: Builder, op: Operator, condition: Value, x: Value, y: Value) -> Value:
    return b.call(torch.where, condition, *_plain(b, tensor(b, x), tensor(b, y)))


def identity(b: Builder, op: Operator, x: Value, *_: Value) -> Value:
    """Dropout too: a network that is read is to be run, not trained further with this file's seeds."""
    if len([name for name in op.outputs if name]) > 1:
        raise op.refuse("with a second result")
    return x


OPERATORS: dict[str, Handler] = {
    **LAYERS,
    **SHAPES,
    **SEQUENCES,
    "Relu": _one(torch.relu),
    "LeakyRelu": _one(F.leaky_relu, alpha=0.01),
    "Elu": _one(F.elu, alpha=1.0),
    "Celu": _one(F.celu, alpha=1.0),
    "Selu": _one(F.selu),
    "PRelu": prelu,
    "Sigmoid": _one(torch.sigmoid),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _one(F.hardswish),
    "Tanh": _one(torch.tanh),
    "Softplus": _one(F.softplus),
    "Softsign": _one(F.softsign),
    "Mish": _one(F.mish),
    "Gelu": gelu,
    "Clip": clip,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Add": _two(operator.add),
    "Sub": _two(operator.sub),
    "Mul": _two(operator.mul),
    "Div": _two(functions.divide),
    "Pow": _two(torch.pow),
    "Min": _folded(torch.minimum),
    "Max": _folded(torch.maximum),
    "Sum": _folded(operator.add),
    "Equal": _two(torch.eq),
    "Greater": _two(torch.gt),
    "GreaterOrEqual": _two(torch.ge),
    "Less": _two(torch.lt),
    "LessOrEqual": _two(torch.le),
    "And": _two(torch.logical_and),
    "Or": _two(torch.logical_or),
    "Not": _one(torch.logical_not),
    "Where": where,
    "Abs": _one(torch.abs),
    "Neg": _one(torch.neg),
    "Sqrt": _one(torch.sqrt),
    "Reciprocal": _one(torch.reciprocal),
    "Exp": _one(torch.exp),
    "Log": _one(torch.log),
    "Erf": _one(torch.erf),
    "Sin": _one(torch.sin),
    "Cos": _one(torch.cos),
    "Sign": _one(torch.sign),
    "Floor": _one(torch.floor),
    "Ceil": _one(torch.ceil),
    "Round": _one(torch.round),
    "ReduceMean": reduction,
    "ReduceSum": reduction,
    "ReduceMax": reduction,
    "ReduceMin": reduction,
    "ReduceProd": reduction,
    "ReduceL1": reduction,
    "ReduceL2": reduction,
    "ReduceSumSquare": reduction,
    "ArgMax": arg_max,
    "Einsum": einsum,
    "Identity": identity,
    "Dropout": identity,
}
