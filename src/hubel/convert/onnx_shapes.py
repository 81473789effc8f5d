"""ONNX operators that move numbers about, and those of sizes."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hubel.convert import onnx_functions as functions
from hubel.convert.onnx_values import Builder, Operator, Value, bounded

# Numbers of ONNX's TensorProto.DataType.
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def tensor(b: Builder, value: Value) -> Value:
    """`value` as a tensor, where an operator of numbers is given sizes."""
    return b.call(functions.as_tensor, value) if b.is_sizes(value) else value


def fixed(b: Builder, op: Operator, value: Value, what: str) -> Any:
    """A constant as Python numbers; None stays None."""
    if value is not None and not isinstance(value, Tensor):
        raise op.refuse(f"whose {what} is computed from the input")
    return b.numbers(value)


def from_sizes(b: Builder, op: Operator, value: Value, what: str) -> Any:
    """A constant or sizes, as they can be handed to a function of torch."""
    if value is None or isinstance(value, Tensor) or b.is_sizes(value):
        return b.numbers(value)
    raise op.refuse(f"whose {what} is computed from the numbers of the input, not from its sizes")


def constant(b: Builder, op: Operator) -> Value:
    for name, dtype in (("value", None), ("value_float", torch.float32), ("value_floats", torch.float32),
                        ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
        if name in op.attributes:
            value = op.attributes[name]
            return b.constant(op.outputs[0], value if dtype is None else torch.tensor(value, dtype=dtype))
    raise op.refuse("which holds neither numbers nor a tensor")


def constant_of_shape(b: Builder, op: Operator, shape: Value) -> Value:
    value = op.get("value", torch.zeros(1))
    sizes = from_sizes(b, op, shape, "shape")
    if isinstance(shape, Tensor):
        bounded(sizes, op)
        return torch.full(sizes, value.item(), dtype=value.dtype)
    return b.call(torch.full, sizes, value.item(), dtype=value.dtype)


def shape(b: Builder, op: Operator, x: Value) -> Value:
    if isinstance(x, Tensor):
        sizes: Any = torch.tensor(x.shape, dtype=torch.int64)
        return sizes[op.get("start", 0) : op.get("end")]
    sizes = b.sizes(getattr, x, "shape")
    if "start" in op.attributes or "end" in op.attributes:
        sizes = b.sizes(operator.getitem, sizes, slice(op.get("start"), op.get("end")))
    return sizes


def size(b: Builder, op: Operator, x: Value) -> Value:
    return b.sizes(functions.product, b.sizes(getattr, x, "shape"))


def reshape(b: Builder, op: Operator, x: Value, to: Value) -> Value:
    sizes = from_sizes(b, op, to, "shape")
    if isinstance(to, Tensor) and 0 not in sizes:
        return b.call(torch.reshape, tensor(b, x), sizes)
    return b.call(functions.reshape, tensor(b, x), sizes, bool(op.get("allowzero", 0)))


def flatten(b: Builder, op: Operator, x: Value) -> Value:
    axis = op.get("axis", 1)
    return b.call(torch.flatten, x, 1) if axis == 1 else b.call(functions.flatten, x, axis)


def transpose(b: Builder, op: Operator, x: Value) -> Value:
    order = op.get("perm")
    if order is None:
        return b.call(torch.Tensor.permute, x, tuple(reversed(range(_rank(b, op, op.outputs[0])))))
    return b.call(torch.permute, x, tuple(order))


def squeeze(b: Builder, op: Operator, x: Value, axes: Value = None) -> Value:
    places = op.get("axes") if axes is None else fixed(b, op, axes, "axes")
    if b.is_sizes(x):
        return b.sizes(operator.getitem, x, 0)
    return b.call(functions.squeeze, x, None if places is None else _many(places))


def unsqueeze(b: Builder, op: Operator, x: Value, axes: Value = None) -> Value:
    places = op.get("axes") if axes is None else fixed(b, op, axes, "axes")
    if b.is_sizes(x):
        return b.sizes(functions.joined, (x,))
    return b.call(functions.unsqueeze, x, _many(places))


def concat(b: Builder, op: Operator, *parts: Value) -> Value:
    if any(b.is_sizes(part) for part in parts):
        return b.sizes(functions.joined, tuple(from_sizes(b, op, part, "parts") for part in parts))
    return b.call(torch.cat, tuple(parts), op.get("axis", 1))


def split(b: Builder, op: Operator, x: Value, sizes: Value = None) -> Any:
    axis = op.get("axis", 0)
    lengths = op.get("split") if sizes is None else fixed(b, op, sizes, "lengths")
    if lengths is None:
        parts = b.call(functions.split_evenly, x, op.get("num_outputs", len(op.outputs)), axis)
    else:
        parts = b.call(torch.split, x, list(lengths), axis)
    return tuple(b.call(operator.getitem, parts, place) for place in range(len(op.outputs)))


def sliced(
    b: Builder,
    op: Operator,
    x: Value,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> Value:
    if starts is None:
        begin, end, along, by = op.get("starts"), op.get("ends"), op.get("axes"), None
    else:
        begin, end = (from_sizes(b, op, value, "limits") for value in (starts, ends))
        along, by = fixed(b, op, axes, "axes"), fixed(b, op, steps, "steps")
    if b.is_sizes(x):
        return b.sizes(operator.getitem, x, slice(_one(begin), _one(end), _one(by)))
    if by is not None and min(_many(by)) < 1:
        raise op.refuse("with negative steps")
    along = None if along is None else _many(along)
    return b.call(functions.sliced, x, begin, end, along, None if by is None else _many(by))


def gather(b: Builder, op: Operator, x: Value, indices: Value) -> Value:
    axis = op.get("axis", 0)
    if b.is_sizes(x):
        return b.sizes(functions.picked, x, fixed(b, op, indices, "indices"))
    if isinstance(indices, Tensor) and indices.dim() == 0:
        return b.call(torch.select, x, axis, int(indices))
    return b.call(functions.gather, x, tensor(b, indices), axis)


def expand(b: Builder, op: Operator, x: Value, to: Value) -> Value:
    sizes = from_sizes(b, op, to, "shape")
    if isinstance(to, Tensor) and isinstance(x, Tensor):
        bounded(sizes, op)
    return b.call(functions.expand, x, sizes)


def tile(b: Builder, op: Operator, x: Value, repeats: Value) -> Value:
    times = from_sizes(b, op, repeats, "repeats")
    if isinstance(x, Tensor) and isinstance(repeats, Tensor):
        bounded((*times, x.numel()), op)
    return b.call(torch.tile, x, times)


def pad(b: Builder, op: Operator, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Value:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(op.get("mode", "constant"))
    around = op.get("pads") if pads is None else from_sizes(b, op, pads, "pads")
    fill = op.get("value", 0.0) if value is None else fixed(b, op, value, "value")
    if mode is None:
        raise op.refuse(f"with mode {op.get('mode')}")
    along = fixed(b, op, axes, "axes")
    if isinstance(x, Tensor) and isinstance(around, tuple | list):
        bounded((x.numel(), 1 + sum(map(abs, around))), op)
    return b.call(functions.padded, x, around, along, mode, _one(fill))


def cast(b: Builder, op: Operator, x: Value) -> Value:
    dtype = DTYPES.get(op.get("to"))
    if dtype is None:
        raise op.refuse(f"to ONNX's type {op.get('to')}")
    if b.is_sizes(x) and dtype in WHOLE:
        return x
    return b.call(torch.Tensor.to, tensor(b, x), dtype)


def numbers(b: Builder, op: Operator, start: Value, limit: Value, step: Value) -> Value:
    values = [from_sizes(b, op, value, "limits") for value in (start, limit, step)]
    if all(isinstance(value, int | float) for value in values):
        bounded([(values[1] - values[0]) / (values[2] or 1)], op)
    return b.call(torch.arange, *values)


def resize(b: Builder, op: Operator, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Value:
    how = op.get("coordinate_transformation_mode", "half_pixel")
    if op.opset == 10:
        scales, how = roi, "asymmetric"
    mode, align = _interpolation(op, how)
    rank = _rank(b, op, op.outputs[0])
    refused = op.get("axes") or op.get("antialias", 0) or op.get("exclude_outside", 0)
    if refused or op.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.refuse("with axes, antialias, exclude_outside or an aspect ratio to be kept")
    mode = {3: {"linear": "linear"}, 4: {"linear": "bilinear", "cubic": "bicubic"}, 5: {"linear": "trilinear"}}.get(
        rank, {}
    ).get(mode, mode)
    if sizes is not None:
        return b.call(functions.resized, x, from_sizes(b, op, sizes, "sizes"), mode, align)
    factors = fixed(b, op, scales, "scales")
    if not factors or len(factors) != rank or factors[:2] != (1.0, 1.0):
        raise op.refuse(f"with scales {factors}: batch and channels keep their size")
    whole = all(float(factor).is_integer() for factor in factors)
    if mode == "nearest-exact" and whole:
        mode = "nearest"
    return b.call(F.interpolate, x, scale_factor=list(factors[2:]), mode=mode, align_corners=align)


def _interpolation(op: Operator, how: str) -> tuple[str, bool | None]:
    """ONNX's mode and coordinates as torch's mode and `align_corners`."""
    kind, nearest = op.get("mode", "nearest"), op.get("nearest_mode", "round_prefer_floor")
    centred = how in ("half_pixel", "pytorch_half_pixel")
    if kind == "nearest" and how == "asymmetric" and (nearest == "floor" or op.opset == 10):
        return "nearest", None
    if kind == "nearest" and centred and nearest.startswith("round"):
        # Half way between two pixels the two kinds of rounding differ; whole factors never come there.
        return "nearest-exact", None
    if kind in ("linear", "cubic") and (centred or how == "align_corners") and op.get("cubic_coeff_a", -0.75) == -0.75:
        return kind, how == "align_corners"
    raise op.refuse(f"with mode {kind}, {how}, {nearest}")


def upsample(b: Builder, op: Operator, x: Value, scales: Value = None) -> Value:
    factors = op.get("scales") if scales is None else fixed(b, op, scales, "scales")
    if op.get("mode", "nearest") != "nearest" or not factors or tuple(factors[:2]) != (1.0, 1.0):
        raise op.refuse("which is not nearest, or scales batch or channels")
    return b.call(F.interpolate, x, scale_factor=list(factors[2:]), mode="nearest")


def depth_to_space(b: Builder, op: Operator, x: Value) -> Value:
    return b.call(functions.depth_to_space, x, op.get("blocksize"), op.get("mode", "DCR") == "CRD")


def space_to_depth(b: Builder, op: Operator, x: Value) -> Value:
    return b.call(functions.space_to_depth, x, op.get("blocksize"))


def _rank(b: Builder, op: Operator, name: str) -> int:
    if name not in b.ranks:
        raise op.refuse("whose number of dimensions cannot be told from the file")
    return b.ranks[name]


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def _many(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


SHAPES: dict[str, Any] = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": sliced,
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "Cast": cast,
    "Range": numbers,
    "Resize": resize,
    "Upsample": upsample,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
