"""ONNX operators with weights, and pooling: they become the layers and functions that torch has for them."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.convert import onnx_functions as functions
from hubel.convert.onnx_values import Builder, Operator, Value

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CONV_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=value.is_floating_point())


class Window:
    """kernel, stride, dilation and padding of a window operator; `around` is what F.pad must add first."""

    def __init__(self, op: Operator, kernel: tuple[int, ...]) -> None:
        n = len(kernel)
        self.kernel = kernel
        self.stride = tuple(op.get("strides") or (1,) * n)
        self.dilation = tuple(op.get("dilations") or (1,) * n)
        self.auto = op.get("auto_pad", "NOTSET")
        if self.auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise op.refuse(f"with auto_pad {self.auto}")
        pads = tuple(op.get("pads") or (0,) * 2 * n) if self.auto == "NOTSET" else (0,) * 2 * n
        if len(pads) != 2 * n or len(self.stride) != n or len(self.dilation) != n:
            raise op.refuse(f"whose kernel has {n} dimensions and its pads, strides or dilations others")
        self.same_size = self.auto.startswith("SAME")
        begin, end = pads[:n], pads[n:]
        self.padding = begin if begin == end else (0,) * n
        # F.pad counts from the last dimension
        self.around = tuple(p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair)
        self.symmetric = begin == end

    def pad(self, b: Builder, x: Value, value: float = 0.0) -> Value:
        """`x` with the padding that the operator cannot do itself."""
        if self.same_size:
            upper = self.auto == "SAME_UPPER"
            return b.call(functions.pad_same, x, self.kernel, self.stride, self.dilation, upper, value)
        return x if self.symmetric else b.call(F.pad, x, self.around, "constant", value)


def conv(b: Builder, op: Operator, x: Value, weight: Value, bias: Value = None) -> Value:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise op.refuse("whose weights are computed from the input")
    n = weight.dim() - 2
    if n not in _CONVS:
        raise op.refuse(f"of {n} dimensions")
    window, groups = Window(op, tuple(weight.shape[2:])), op.get("group", 1)
    if (bias is not None and len(bias) != len(weight)) or groups < 1 or len(weight) % groups:
        raise op.refuse(f"whose weights {list(weight.shape)}, bias and {groups} groups do not fit")
    x = window.pad(b, x)
    make = partial(_conv, _CONVS[n], weight, bias, window, groups)
    return b.layer(make, weight, (id(bias), window.stride, window.padding, window.dilation, groups), x)


def _conv(kind: Any, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> nn.Module:
    o, i = weight.shape[:2]
    made = kind(
        i * groups, o, window.kernel, window.stride, window.padding, window.dilation, groups, bias=False, device="meta"
    )
    return _filled(made, weight, bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = parameter(weight)
    layer.bias = None if bias is None else parameter(bias)
    return layer


def conv_transpose(b: Builder, op: Operator, x: Value, weight: Value, bias: Value = None) -> Value:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise op.refuse("whose weights are computed from the input")
    n = weight.dim() - 2
    window, groups = Window(op, tuple(weight.shape[2:])), op.get("group", 1)
    if n not in _TRANSPOSED or op.get("output_shape") or not window.symmetric or window.same_size:
        raise op.refuse("with output_shape, auto_pad or a padding that differs between the sides")
    extra = tuple(op.get("output_padding") or (0,) * n)

    def make() -> nn.Module:
        i, o = weight.shape[:2]
        kind, how = _TRANSPOSED[n], (window.kernel, window.stride, window.padding, extra, groups, False)
        return _filled(kind(i, o * groups, *how, window.dilation, device="meta"), weight, bias)  # type: ignore[arg-type]

    return b.layer(make, weight, (id(bias), window.stride, window.padding, window.dilation, extra, groups), x)


def batch_norm(b: Builder, op: Operator, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Value:
    tensors = (scale, bias, mean, variance)
    if op.get("training_mode", 0) or len([name for name in op.outputs if name]) > 1:
        raise op.refuse("in training mode")
    epsilon, momentum = op.get("epsilon", 1e-5), 1 - op.get("momentum", 0.9)
    kind = _NORMS.get(b.ranks.get(op.outputs[0], 0))
    if kind is None or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return b.call(F.batch_norm, x, mean, variance, scale, bias, False, momentum, epsilon)
    gamma, beta, mu, sigma = (tensor for tensor in tensors if isinstance(tensor, Tensor))

    if {tuple(tensor.shape) for tensor in (beta, mu, sigma)} != {tuple(gamma.shape)}:
        raise op.refuse("whose scale, bias, mean and variance have several lengths")

    def make() -> nn.Module:
        norm = kind(len(gamma), epsilon, momentum, device="meta")
        norm.running_mean, norm.running_var = mu, sigma
        norm.num_batches_tracked = torch.tensor(0)
        return _filled(norm, gamma, beta)

    return b.layer(make, gamma, (id(beta), id(mu), id(sigma), epsilon), x)


def instance_norm(b: Builder, op: Operator, x: Value, scale: Value, bias: Value) -> Value:
    return b.call(F.instance_norm, x, None, None, scale, bias, True, 0.1, op.get("epsilon", 1e-5))


def layer_norm(b: Builder, op: Operator, x: Value, scale: Value, bias: Value = None) -> Value:
    axis, rank = op.get("axis", -1), b.ranks.get(op.outputs[0])
    if not isinstance(scale, Tensor) or len([name for name in op.outputs if name]) > 1:
        raise op.refuse("with a computed scale or a second result")
    last = -axis if axis < 0 else (rank or 0) - axis
    if last != scale.dim():
        raise op.refuse(f"whose axis {axis} and scale of shape {list(scale.shape)} do not say the same")
    return b.call(F.layer_norm, x, tuple(scale.shape), scale, bias, op.get("epsilon", 1e-5))


def group_norm(b: Builder, op: Operator, x: Value, scale: Value, bias: Value) -> Value:
    if op.opset < 21:
        raise op.refuse("in its first form, of opset 18, whose scales are a group's")
    return b.call(F.group_norm, x, op.get("num_groups"), scale, bias, op.get("epsilon", 1e-5))


def local_response_norm(b: Builder, op: Operator, x: Value) -> Value:
    alpha, beta, k = op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0)
    return b.call(F.local_response_norm, x, op.get("size"), alpha, beta, k)


def gemm(b: Builder, op: Operator, x: Value, y: Value, z: Value = None) -> Value:
    """alpha · x · y + beta · z: a linear layer where it is one."""
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    turned = bool(op.get("transB", 0))
    plain = alpha == 1 and (beta == 1 or z is None) and not op.get("transA", 0)
    if plain and isinstance(y, Tensor) and y.dim() == 2 and (z is None or (isinstance(z, Tensor) and z.dim() == 1)):
        return _linear(b, x, y, z, turned)
    left = b.call(torch.t, x) if op.get("transA", 0) else x
    product = b.call(torch.matmul, left, b.call(torch.t, y) if turned else y)
    product = product if alpha == 1 else b.call(operator.mul, product, alpha)
    if z is None:
        return product
    return b.call(operator.add, product, z if beta == 1 else b.call(operator.mul, z, beta))


def matmul(b: Builder, op: Operator, x: Value, y: Value) -> Value:
    if isinstance(y, Tensor) and y.dim() == 2 and not isinstance(x, Tensor):
        return _linear(b, x, y, None, False)
    return b.call(torch.matmul, x, y)


def _linear(b: Builder, x: Value, weight: Tensor, bias: Value, turned: bool) -> Value:
    if isinstance(bias, Tensor) and bias.shape != weight.shape[: 1 if turned else None][-1:]:
        return b.call(operator.add, _linear(b, x, weight, None, turned), bias)

    def make() -> nn.Module:
        w = weight if turned else weight.t().contiguous()
        return _filled(nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta"), w, bias)  # type: ignore[arg-type]

    return b.layer(make, weight, (id(bias), turned), x)


def max_pool(b: Builder, op: Operator, x: Value) -> Value:
    kernel = tuple(op.get("kernel_shape"))
    if len(kernel) not in _MAX_POOLS or op.get("storage_order", 0) or len([name for name in op.outputs if name]) > 1:
        raise op.refuse("with a second result or in column-major order")
    window, ceil = Window(op, kernel), bool(op.get("ceil_mode", 0))
    small = all(2 * p <= k for p, k in zip(window.padding, kernel, strict=True))
    if not small:
        raise op.refuse(f"whose padding {window.padding} is more than half of its kernel {kernel}")
    x = window.pad(b, x, float("-inf"))
    return b.call(_MAX_POOLS[len(kernel)], x, kernel, window.stride, window.padding, window.dilation, ceil)


def average_pool(b: Builder, op: Operator, x: Value) -> Value:
    kernel = tuple(op.get("kernel_shape"))
    n = len(kernel)
    window, ceil, counted = Window(op, kernel), bool(op.get("ceil_mode", 0)), bool(op.get("count_include_pad", 0))
    if n not in _AVERAGE_POOLS or any(d != 1 for d in window.dilation) or (window.same_size and not counted):
        raise op.refuse("with dilations, or auto_pad whose padding does not count")
    if window.symmetric and not window.same_size:
        return b.call(_AVERAGE_POOLS[n], x, kernel, window.stride, window.padding, ceil, counted)
    if counted:
        return b.call(_AVERAGE_POOLS[n], window.pad(b, x), kernel, window.stride, 0, ceil, True)
    return b.call(functions.average_of_what_is_there, x, window.around, kernel, window.stride, ceil)


def global_average_pool(b: Builder, op: Operator, x: Value) -> Value:
    if b.ranks.get(op.outputs[0]) == 4:
        return b.call(F.adaptive_avg_pool2d, x, 1)
    return b.call(functions.over_space, "ReduceMean", x)


def global_max_pool(b: Builder, op: Operator, x: Value) -> Value:
    return b.call(functions.over_space, "ReduceMax", x)


LAYERS: dict[str, Any] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "Gemm": gemm,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}
