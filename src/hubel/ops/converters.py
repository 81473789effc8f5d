"""What each of torch's operators is in a network of ours. `CONVERT` is written out; a converter may decline."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node as FxNode

from hubel.engine.spec import ConvSpec
from hubel.errors import HubelError
from hubel.ops import library
from hubel.ops.capture import Capture, Declined, array_of, same_shape, shape_of

aten = torch.ops.aten

Arguments = dict[str, Any]
Converter = Callable[[Capture, FxNode, Arguments], Any]


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    """One whole number for each of `count` dimensions."""
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    numbers = numbers * count if len(numbers) == 1 else numbers
    if len(numbers) != count or not all(isinstance(n, int) for n in numbers):
        raise Declined
    return numbers


def _conv(c: Capture, node: FxNode, a: Arguments) -> str:
    x, w = a["input"], a["weight"]
    weight = shape_of(w)
    axes = len(weight) - 2
    if len(shape_of(x)) != len(weight) or not all(isinstance(n, int) for n in weight):
        raise Declined
    transposed = a.get("transposed", "output_padding" in a)
    stride, dilation = _numbers(a["stride"], axes), _numbers(a["dilation"], axes)
    padding, extra = a["padding"], _numbers(a.get("output_padding", 0), axes)
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight[2:], strict=True)]
        if any(total % 2 for total in totals):
            raise Declined
        padding = tuple(total // 2 for total in totals)
    padding = _numbers(padding, axes)
    groups = a["groups"]
    try:
        # Sizes large enough for any kernel: what cannot be now can never be.
        size = tuple(d * k + p + s + 8 for d, k, p, s in zip(dilation, weight[2:], padding, stride, strict=True))
        if transposed:
            ConvSpec.for_transposed(
                1, weight[0], weight[1] * groups, size, weight[2:], stride, padding, extra, dilation, groups
            )
        else:
            ConvSpec(1, weight[1] * groups, weight[0], size, weight[2:], stride, padding, dilation, groups)
    except HubelError:
        raise Declined from None
    bias = a.get("bias")
    inputs = (c.tensor(x), c.tensor(w), *((c.tensor(bias),) if bias is not None else ()))
    if any(name not in c.constants for name in inputs[1:]):
        raise Declined  # weights are packed once
    return c.add(
        "conv", inputs, node.name, stride=stride, padding=padding, dilation=dilation, groups=groups,
        transposed=bool(transposed), output_padding=extra,
    )  # fmt: skip


def _batch_norm(c: Capture, node: FxNode, a: Arguments) -> str:
    if a.get("training"):
        raise Declined
    names = [c.tensor(a[n]) if a.get(n) is not None else "" for n in ("input", "weight", "bias")]
    statistics = [c.tensor(a[n]) for n in ("running_mean", "running_var")]
    if any(name and name not in c.constants for name in [*names[1:], *statistics]):
        raise Declined
    return c.add("batch_norm", (*names, *statistics), node.name, eps=float(a["eps"]))


def _alone(make: Converter) -> Converter:
    """For operators with two more results, which nobody reads in evaluation: (the result, None, None)."""

    def parts(c: Capture, node: FxNode, a: Arguments) -> tuple[Any, ...]:
        if any(user.args[1] != 0 for user in node.users):
            raise Declined
        return (make(c, node, a), None, None)

    return parts


def _linear(c: Capture, node: FxNode, a: Arguments) -> str:
    bias = a.get("bias")
    inputs = (c.tensor(a["input"]), c.tensor(a["weight"]), *((c.tensor(bias),) if bias is not None else ()))
    if any(name not in c.constants for name in inputs[1:]) or len(shape_of(a["input"])) < 2:
        raise Declined
    return c.add("linear", inputs, node.name)


def _transposed_constant(c: Capture, node: Any) -> str:
    """The constant of which this is the transpose."""
    swaps = {aten.t.default: None, aten.permute.default: [1, 0], aten.transpose.int: None}
    if not isinstance(node, FxNode) or node.target not in swaps or len(shape_of(node)) != 2:
        raise Declined
    if swaps[node.target] is not None and list(node.args[1]) != swaps[node.target]:  # type: ignore[arg-type]
        raise Declined
    name = c.tensor(node.args[0])
    if name not in c.constants:
        raise Declined
    return name


def _addmm(c: Capture, node: FxNode, a: Arguments) -> str:
    if a["beta"] != 1 or a["alpha"] != 1 or len(shape_of(a["self"])) != 1:
        raise Declined
    bias = c.tensor(a["self"])
    if bias not in c.constants:
        raise Declined
    return c.add("linear", (c.tensor(a["mat1"]), _transposed_constant(c, a["mat2"]), bias), node.name)


def _mm(c: Capture, node: FxNode, a: Arguments) -> str:
    return c.add("linear", (c.tensor(a["self"]), _transposed_constant(c, a["mat2"])), node.name)


def _activation(name: str) -> Converter:
    def make(c: Capture, node: FxNode, a: Arguments) -> str:
        kind = name
        if name == "gelu" and a.get("approximate") == "tanh":
            kind = "gelu_tanh"
        slope = float(a["negative_slope"]) if name == "leaky_relu" else 0.01
        return c.add("activation", (c.tensor(a["self"]),), node.name, activation=kind, slope=slope)

    return make


def _clamp(c: Capture, node: FxNode, a: Arguments) -> str:
    low, high = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
    kind = {(0, 6): "relu6", (0, None): "relu"}.get((low, high))
    if kind is None:
        raise Declined
    return c.add("activation", (c.tensor(a["self"]),), node.name, activation=kind, slope=0.01)


def _hardsigmoid(c: Capture, node: FxNode, a: Arguments) -> str:
    """relu6(x + 3) ∕ 6"""
    three, six = (c.constant(f"{node.name}.{n}", np.array(v, np.float32)) for n, v in (("three", 3), ("six", 6)))
    shifted = c.add("binary", (c.tensor(a["self"]), three), kind="add", activation="relu6", slope=0.01)
    return c.add("binary", (shifted, six), node.name, kind="div")


def _binary(kind: str) -> Converter:
    def make(c: Capture, node: FxNode, a: Arguments) -> str:
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            raise Declined
        names, tensors = [], []
        for value in (a["self"], a["other"]):
            if isinstance(value, FxNode) and isinstance(value.meta.get("val"), Tensor):
                names.append(c.tensor(value))
                tensors.append(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                names.append(c.constant(f"{node.name}.number", np.array(value, np.float32)))
            else:
                raise Declined
        same = len(tensors) == 2 and same_shape(*tensors)
        return c.add("binary", tuple(names), node.name, kind=kind, same=same)

    return make


def _pool(kind: str, axes: int) -> Converter:
    def make(c: Capture, node: FxNode, a: Arguments) -> str:
        x = a["self"]
        if len(shape_of(x)) != axes + 2:
            raise Declined
        kernel = _numbers(a["kernel_size"], axes)
        stride = _numbers(a["stride"], axes) if a["stride"] else kernel
        divisor = a.get("divisor_override") or 0
        return c.add(
            "pool", (c.tensor(x),), node.name, kind=kind, kernel=kernel, stride=stride,
            padding=_numbers(a["padding"], axes), dilation=_numbers(a.get("dilation", 1), axes),
            ceil=bool(a["ceil_mode"]), count_padding=bool(a.get("count_include_pad", True)), divisor=divisor,
        )  # fmt: skip

    return make


def _pool_with_indices(c: Capture, node: FxNode, a: Arguments) -> tuple[Any, ...]:
    if any(user.args[1] != 0 for user in node.users):
        raise Declined
    return (_pool("max", 2)(c, node, a), None)


def _adaptive_pool(c: Capture, node: FxNode, a: Arguments) -> str:
    x, size = a["self"], tuple(a["output_size"])
    if len(shape_of(x)) != len(size) + 2 or not all(n is None or isinstance(n, int) for n in size):
        raise Declined
    return c.add("adaptive_pool", (c.tensor(x),), node.name, size=size)


def _mean(c: Capture, node: FxNode, a: Arguments) -> str:
    """The mean over all of an image's pixels is pooling to one."""
    x, rank = a["self"], len(shape_of(a["self"]))
    dims = sorted(d % rank for d in a["dim"] or range(rank))
    if rank not in (3, 4) or dims != list(range(2, rank)) or a.get("dtype") not in (None, torch.float32):
        raise Declined
    pooled = c.add("adaptive_pool", (c.tensor(x),), node.name, size=(1,) * (rank - 2))
    return pooled if a["keepdim"] else c.add("flatten", (pooled,), node.name, start=1, end=rank - 1)


def _concat(c: Capture, node: FxNode, a: Arguments) -> str:
    tensors = a["tensors"]
    rank = len(shape_of(node))
    if any(len(shape_of(t)) != rank for t in tensors):
        raise Declined
    return c.add("concat", tuple(c.tensor(t) for t in tensors), node.name, dim=a["dim"] % rank)


def _flatten(c: Capture, node: FxNode, a: Arguments) -> str:
    rank = len(shape_of(a["self"]))
    if not rank:
        raise Declined
    return c.add("flatten", (c.tensor(a["self"]),), node.name, start=a["start_dim"] % rank, end=a["end_dim"] % rank)


def _linear_in_place(c: Capture, node: FxNode, rows: Any) -> str:
    """A linear layer whose rows torch makes of a larger tensor and lays out again as they were: of that tensor itself.
    Nothing where `node` is another reshape.
    """
    if not isinstance(rows, FxNode) or rows.target not in (aten.addmm.default, aten.mm.default):
        return ""
    layer = next((made for made in reversed(c.nodes) if made.name == c.names.get(rows)), None)
    flat = rows.args[1 if rows.target is aten.addmm.default else 0]
    if layer is None or layer.op != "linear" or not isinstance(flat, FxNode):
        return ""
    whole = flat.args[0]
    if flat.target not in (aten.view.default, aten.reshape.default) or not isinstance(whole, FxNode):
        return ""
    before, after = ([str(size) for size in shape_of(value)] for value in (whole, node))
    if before[:-1] != after[:-1] or before[-1] != str(shape_of(flat)[-1]):
        return ""
    return c.add("linear", (c.tensor(whole), *layer.inputs[1:]), node.name)


def _reshape(c: Capture, node: FxNode, a: Arguments) -> str:
    rows = _linear_in_place(c, node, a["self"])
    if rows:
        return rows
    sizes = tuple(c.whole(n) for n in (a["size"] if "size" in a else a["shape"]))
    return c.add("reshape", (c.tensor(a["self"]),), node.name, shape=sizes)


def _unsqueeze(c: Capture, node: FxNode, a: Arguments) -> str:
    """An axis more or less of size 1; sizes are read from the operand."""
    x = a["self"]
    name, rank = c.tensor(x), len(shape_of(node))
    known = shape_of(x)
    sizes: list[Any] = [
        n if isinstance(n, int) else _size_of(c, name, i) for i, n in enumerate(known)
    ]  # fmt: skip
    if node.target is aten.unsqueeze.default:
        sizes.insert(a["dim"] % rank, 1)
    else:
        dims = [a["dim"]] if isinstance(a["dim"], int) else list(a["dim"])
        drop = {d % len(known) for d in dims}
        if any(known[d] != 1 for d in drop):
            raise Declined
        sizes = [n for i, n in enumerate(sizes) if i not in drop]
    return c.add("reshape", (name,), node.name, shape=tuple(sizes))


def _size_of(c: Capture, name: str, axis: int) -> Any:
    from hubel.graph import Ref

    return Ref(c.add("size", (name,), f"{name}_size{axis}", dim=axis))


def _permute(c: Capture, node: FxNode, a: Arguments) -> str:
    rank = len(shape_of(a["self"]))
    if node.target is aten.permute.default:
        order = [d % rank for d in a["dims"]]
    else:
        order = list(range(rank))
        if node.target is aten.transpose.int:
            i, j = a["dim0"] % rank, a["dim1"] % rank
            order[i], order[j] = order[j], order[i]
        else:
            order.reverse()
    name = c.tensor(a["self"])
    return c.add("permute", (name,), node.name, dims=tuple(order))


def _slice(c: Capture, node: FxNode, a: Arguments) -> str:
    if a.get("step", 1) != 1:
        raise Declined
    rank = len(shape_of(a["self"]))
    start, end = (None if a[n] is None else c.whole(a[n]) for n in ("start", "end"))
    if isinstance(end, int) and end >= 2**62:
        end = None
    return c.add("slice", (c.tensor(a["self"]),), node.name, dim=a["dim"] % rank, start=start or 0, end=end)


def _select(c: Capture, node: FxNode, a: Arguments) -> str:
    x, index = a["self"], a["index"]
    name, known = c.tensor(x), shape_of(x)
    axis = a["dim"] % len(known)
    if not isinstance(index, int):
        raise Declined
    cut = c.add("slice", (name,), node.name, dim=axis, start=index, end=index + 1 if index != -1 else None)
    sizes = [n if isinstance(n, int) else _size_of(c, name, i) for i, n in enumerate(known) if i != axis]
    return c.add("reshape", (cut,), node.name, shape=tuple(sizes))


def _pieces(c: Capture, node: FxNode, a: Arguments) -> tuple[str, ...]:
    """chunk and split: a slice for each part."""
    x, rank = a["self"], len(shape_of(a["self"]))
    axis, name = a["dim"] % rank, c.tensor(a["self"])
    parts = [value.shape[axis] for value in node.meta["val"]]
    if not all(isinstance(n, int) for n in [*parts, shape_of(x)[axis]]):
        raise Declined
    starts = np.cumsum([0, *parts]).tolist()
    return tuple(
        c.add("slice", (name,), node.name, dim=axis, start=first, end=last)
        for first, last in itertools.pairwise(starts)
    )


def _same(c: Capture, node: FxNode, a: Arguments) -> str:
    """Operators that return what they read: dropout in evaluation, copies."""
    if a.get("train") or a.get("training"):
        raise Declined
    before, after = node.args[0], node.meta["val"]
    if not isinstance(before, FxNode):
        raise Declined
    if not isinstance(after, Tensor) or before.meta["val"].dtype != after.dtype:
        raise Declined
    return c.value(before)


def _layer_norm(c: Capture, node: FxNode, a: Arguments) -> str:
    if len(a["normalized_shape"]) != 1:
        raise Declined
    given = [a.get(n) for n in ("weight", "bias")]
    names = [c.tensor(g) if g is not None else "" for g in given]
    if any(name and name not in c.constants for name in names):
        raise Declined
    return c.add("layer_norm", (c.tensor(a["input"]), *names), node.name, eps=float(a["eps"]))


def _softmax(c: Capture, node: FxNode, a: Arguments) -> str:
    rank = len(shape_of(a["self"]))
    if a.get("dtype") is not None or not rank or a.get("half_to_float") or a["dim"] % rank != rank - 1:
        raise Declined
    return c.add("softmax", (c.tensor(a["self"]),), node.name)


def constant_tensor(c: Capture, name: str, tensor: Tensor) -> str:
    """A tensor of the network under its own name."""
    return c.constant(name, array_of(tensor))


def _both(operators: str, make: Converter) -> dict[Any, Converter]:
    """The converter for operators and, where torch has them, their in-place forms."""
    table: dict[Any, Converter] = {}
    for name in operators.split():
        packet, overload = name.split(".")
        table[getattr(getattr(aten, packet), overload)] = make
        inplace = getattr(aten, f"{packet}_", None)
        if inplace is not None and overload in inplace.overloads():
            table[getattr(inplace, overload)] = make
    return table


# Operators that always return memory of their own, or what they wrote to.
_COMPUTING: dict[Any, Converter] = {
    **_both(
        "conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding "
        "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default", _conv,
    ),
    # What layers of `hubel.nn` and `hubel.conv*` call; its arguments are aten's.
    library.convolution: _conv,
    **_both("batch_norm.default", _batch_norm),
    **_both("_native_batch_norm_legit_no_training.default", _alone(_batch_norm)),
    **_both("linear.default", _linear),
    **_both("addmm.default", _addmm),
    **_both("mm.default", _mm),
    **_both("relu.default", _activation("relu")),
    **_both("relu6.default", _activation("relu6")),
    **_both("leaky_relu.default", _activation("leaky_relu")),
    **_both("silu.default", _activation("silu")),
    **_both("hardswish.default", _activation("hardswish")),
    **_both("gelu.default", _activation("gelu")),
    **_both("sigmoid.default", _activation("sigmoid")),
    **_both("tanh.default", _activation("tanh")),
    **_both("hardtanh.default clamp.default clamp_min.default", _clamp),
    **_both("hardsigmoid.default", _hardsigmoid),
    **_both("add.Tensor add.Scalar", _binary("add")),
    **_both("sub.Tensor sub.Scalar", _binary("sub")),
    **_both("mul.Tensor mul.Scalar", _binary("mul")),
    **_both("div.Tensor div.Scalar", _binary("div")),
    **_both("maximum.default", _binary("maximum")),
    **_both("max_pool1d.default", _pool("max", 1)),
    **_both("max_pool2d.default", _pool("max", 2)),
    **_both("max_pool2d_with_indices.default", _pool_with_indices),
    **_both("avg_pool1d.default", _pool("mean", 1)),
    **_both("avg_pool2d.default", _pool("mean", 2)),
    **_both("adaptive_avg_pool1d.default adaptive_avg_pool2d.default _adaptive_avg_pool2d.default", _adaptive_pool),
    **_both("mean.dim", _mean),
    **_both("cat.default", _concat),
    **_both("layer_norm.default", _layer_norm),
    **_both("native_layer_norm.default", _alone(_layer_norm)),
    **_both("softmax.int _softmax.default", _softmax),
}  # fmt: skip
FRESH = frozenset(_COMPUTING)
CONVERT: dict[Any, Converter] = {
    **_COMPUTING,
    **_both("flatten.using_ints", _flatten),
    **_both("view.default reshape.default _unsafe_view.default", _reshape),
    **_both("unsqueeze.default squeeze.dim squeeze.dims", _unsqueeze),
    **_both("permute.default transpose.int t.default", _permute),
    **_both("slice.Tensor", _slice),
    **_both("select.int", _select),
    **_both("chunk.default split.Tensor split_with_sizes.default", _pieces),
    **_both(
        "dropout.default feature_dropout.default alpha_dropout.default contiguous.default clone.default alias.default "
        "detach.default _to_copy.default", _same,
    ),
}  # fmt: skip
