"""The operators of a network: how many operands, which attributes, and the shape of what they make.

`OPERATORS` is written out; a file that names another operator or attribute is refused. A shape function takes the node
with its attributes as numbers and the shapes of its operands, and raises ModelError where they do not fit. Two
operators are special: `size` and `whole` make whole numbers from shapes, and `torch` stands for an operator of torch's
that runs in place, whose shapes its host knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from hubel.engine.between import BINARY, Windows
from hubel.engine.epilogue import ACTIVATIONS, Epilogue
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import ModelError, SpecError, UnsupportedError
from hubel.graph.network import Node, resolved

Shape = tuple[int, ...]
# Of a tensor: beyond, its bytes are no 64-bit number.
MOST_NUMBERS = 2**40
# Pixels from one end of a pooling window to the other: kernels count them, and some make room for them.
MOST_REACH = 2**31


@dataclass(frozen=True)
class Operator:
    """operands: the least and the most. attributes: what each may be; all must be given but those in `optional`."""

    operands: tuple[int, int]
    attributes: Mapping[str, str]
    shape: Callable[[Node, Sequence[Shape]], Shape]
    optional: frozenset[str] = frozenset()


def convolution(node: Node, shapes: Sequence[Shape]) -> tuple[ConvSpec, bool]:
    """What a `conv` computes, and whether it is transposed: then it is the input gradient of that convolution."""
    x, w = shapes[0], shapes[1]
    _require(3 <= len(x) <= 5 and len(w) == len(x), node, shapes, "takes images of 1 to 3 dimensions")
    groups = node["groups"]
    kernel, size = w[2:], x[2:]
    if node["transposed"]:
        _require(w[0] == x[1], node, shapes, "needs as many channels as its weight has")
        extra = node["output_padding"]
        spec = ConvSpec.for_transposed(
            x[0], x[1], w[1] * groups, size, kernel, node["stride"], node["padding"], extra, node["dilation"], groups
        )
        return spec, True
    _require(w[1] * groups == x[1], node, shapes, "needs as many channels as its weight has")
    spec = ConvSpec(x[0], x[1], w[0], size, kernel, node["stride"], node["padding"], node["dilation"], groups)
    return spec, False


def problem_of(node: Node, spec: ConvSpec, transposed: bool) -> Problem:
    """What a `conv` or `linear` asks of the engine, for tensors in planes."""
    bias, residual, activation = bool(node.operand(2)), bool(node.operand(3)), node.get("activation", "")
    epilogue = None
    if activation or residual:
        epilogue = Epilogue(False, residual, activation, node.get("slope", 0.01))
    elif transposed and bias:
        # An input gradient has no bias of its own; a scale of one has a shift.
        epilogue = Epilogue(True)
    direction = Direction.INPUT_GRADIENT if transposed else Direction.FORWARD
    return Problem(spec, direction, bias and not transposed, epilogue=epilogue)


def _conv(node: Node, shapes: Sequence[Shape]) -> Shape:
    spec, transposed = convolution(node, shapes)
    out = spec.input_shape if transposed else spec.output_shape
    if node.operand(3):
        _require(shapes[3] == out, node, shapes, f"adds a tensor like its output, {out}")
    if node.operand(2):
        _require(shapes[2] == (out[1],), node, shapes, f"takes a bias of {out[1]} numbers")
    return out


def _linear(node: Node, shapes: Sequence[Shape]) -> Shape:
    x, w = shapes[0], shapes[1]
    _require(len(w) == 2 and len(x) >= 1 and x[-1] == w[1], node, shapes, "needs as many features as its weight has")
    out = (*x[:-1], w[0])
    if node.operand(2):
        _require(shapes[2] == (w[0],), node, shapes, f"takes a bias of {w[0]} numbers")
    if node.operand(3):
        _require(shapes[3] == out, node, shapes, f"adds a tensor like its output, {out}")
    return out


def _same(node: Node, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _per_channel(node: Node, shapes: Sequence[Shape]) -> Shape:
    x = shapes[0]
    _require(len(x) >= 2, node, shapes, "takes images with channels")
    for name, shape in zip(node.inputs[1:], shapes[1:], strict=True):
        _require(not name or shape == (x[1],), node, shapes, f"takes {x[1]} numbers, one a channel")
    return x


def _layer_norm(node: Node, shapes: Sequence[Shape]) -> Shape:
    x = _last_axis(node, shapes)
    for name, shape in zip(node.inputs[1:], shapes[1:], strict=True):
        _require(not name or shape == x[-1:], node, shapes, "takes one number a feature")
    return x


def _broadcast(node: Node, shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    out = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        _require(len(wide) <= 1, node, shapes, "takes shapes that broadcast")
        out.append(wide.pop() if wide else 1)
    return tuple(out)


def windows(node: Node, x: Shape) -> tuple[Windows, Windows]:
    """The windows of a `pool` along y and x of images of this shape."""
    _require(len(x) in (3, 4), node, [x], "takes images of 1 or 2 dimensions")
    sizes = x[2:] if len(x) == 4 else (1, x[2])
    axes = []
    if node.op == "adaptive_pool":
        wanted = node["size"] if len(x) == 4 else (1, *node["size"])
        for size, outputs in zip(sizes, wanted, strict=True):
            axes.append(Windows.adaptive(size, size if outputs is None else outputs))
    else:
        settings = [node[n] for n in ("kernel", "stride", "padding", "dilation")]
        if len(x) == 3:
            settings = [(1, *s) if i != 2 else (0, *s) for i, s in enumerate(settings)]
        for size, k, s, p, d in zip(sizes, *settings, strict=True):
            _require(k >= 1 and s >= 1 and d >= 1 and 0 <= 2 * p <= k, node, [x], "pads by half a window")
            _require(k * d < MOST_REACH, node, [x], f"has windows of less than {MOST_REACH:.0e} pixels")
            axes.append(Windows.sliding(size, k, s, p, d, node["ceil"], node["count_padding"]))
    for axis in axes:
        _require(axis.outputs >= 1, node, [x], "needs windows that fit")
    return axes[0], axes[1]


def _pool(node: Node, shapes: Sequence[Shape]) -> Shape:
    y, x = windows(node, shapes[0])
    return (*shapes[0][:2], *((y.outputs, x.outputs) if len(shapes[0]) == 4 else (x.outputs,)))


def _concat(node: Node, shapes: Sequence[Shape]) -> Shape:
    axis, first = node["dim"], shapes[0]
    _require(0 <= axis < len(first), node, shapes, "joins along an axis that there is")
    for shape in shapes:
        same = len(shape) == len(first) and shape[:axis] + shape[axis + 1 :] == first[:axis] + first[axis + 1 :]
        _require(same, node, shapes, "takes shapes that differ along its axis only")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _slice(node: Node, shapes: Sequence[Shape]) -> Shape:
    x, axis = shapes[0], node["dim"]
    _require(0 <= axis < len(x), node, shapes, "cuts along an axis that there is")
    first, last = bounds(node, x[axis])
    return (*x[:axis], last - first, *x[axis + 1 :])


def bounds(node: Node, size: int) -> tuple[int, int]:
    """Where a `slice` of an axis of this size begins and ends."""
    first, last, _ = slice(node["start"], node["end"]).indices(size)
    return first, max(first, last)


def _reshape(node: Node, shapes: Sequence[Shape]) -> Shape:
    numbers, wanted = prod(shapes[0]), list(node["shape"])
    free = [i for i, size in enumerate(wanted) if size == -1]
    _require(len(free) <= 1, node, shapes, "leaves at most one size open")
    if free:
        known = prod(size for size in wanted if size != -1)
        _require(known > 0 and numbers % known == 0, node, shapes, "keeps the number of numbers")
        wanted[free[0]] = numbers // known
    _require(prod(wanted) == numbers and min(wanted, default=1) >= 0, node, shapes, "keeps the number of numbers")
    return tuple(wanted)


def _flatten(node: Node, shapes: Sequence[Shape]) -> Shape:
    x, first, last = shapes[0], node["start"], node["end"]
    _require(0 <= first <= last < len(x), node, shapes, "joins axes that there are")
    return (*x[:first], prod(x[first : last + 1]), *x[last + 1 :])


def _permute(node: Node, shapes: Sequence[Shape]) -> Shape:
    order = node["dims"]
    _require(sorted(order) == list(range(len(shapes[0]))), node, shapes, "puts all axes in another order")
    return tuple(shapes[0][i] for i in order)


def _last_axis(node: Node, shapes: Sequence[Shape]) -> Shape:
    _require(len(shapes[0]) >= 1 and shapes[0][-1] >= 1, node, shapes, "runs along the last axis")
    return shapes[0]


def _no_shape(node: Node, shapes: Sequence[Shape]) -> Shape:
    raise AssertionError(f"{node.op} has no shape of its own")


# What an attribute may be. A Ref may stand wherever a whole number may.
_CONV = {"stride": "sizes", "padding": "sizes", "dilation": "sizes", "groups": "whole", "transposed": "flag",
         "output_padding": "sizes"}  # fmt: skip
_ACT = {"activation": "activation", "slope": "number"}
_ENDS = frozenset(_ACT)
_POOL = {"kind": "pooling", "kernel": "sizes", "stride": "sizes", "padding": "sizes", "dilation": "sizes",
         "ceil": "flag", "count_padding": "flag", "divisor": "whole"}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    "conv": Operator((2, 4), _CONV | _ACT, _conv, _ENDS),
    "linear": Operator((2, 4), _ACT, _linear, _ENDS),
    "batch_norm": Operator((5, 5), {"eps": "number"}, _per_channel),
    "affine": Operator((3, 3), _ACT, _per_channel, _ENDS),
    "layer_norm": Operator((1, 3), {"eps": "number"}, _layer_norm),
    "softmax": Operator((1, 1), {}, _last_axis),
    "activation": Operator((1, 1), _ACT, _same),
    "binary": Operator((2, 2), {"kind": "binary", "same": "flag"} | _ACT, _broadcast, _ENDS | {"same"}),
    "pool": Operator((1, 1), _POOL, _pool),
    "adaptive_pool": Operator((1, 1), {"size": "sizes"}, _pool),
    "concat": Operator((1, 4096), {"dim": "whole"}, _concat),
    "slice": Operator((1, 1), {"dim": "whole", "start": "end", "end": "end"}, _slice),
    "reshape": Operator((1, 1), {"shape": "sizes"}, _reshape),
    "flatten": Operator((1, 1), {"start": "whole", "end": "whole"}, _flatten),
    "permute": Operator((1, 1), {"dims": "sizes"}, _permute),
    "size": Operator((1, 1), {"dim": "whole"}, _no_shape),
    "whole": Operator((0, 0), {"kind": "arithmetic", "of": "sizes"}, _no_shape),
    "torch": Operator((0, 4096), {"target": "text", "arguments": "any", "keywords": "any"}, _no_shape),
    "item": Operator((1, 1), {"index": "whole"}, _no_shape),
}

ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "max": max,
    "min": min,
}


def shape_of(node: Node, shapes: Sequence[Shape], numbers: Mapping[str, int]) -> Shape:
    """The shape of what a node makes. Raises ModelError where its operands do not fit, or are too large to exist."""
    known = replace(node, attributes=resolved(node.attributes, numbers))
    try:
        shape = OPERATORS[node.op].shape(known, shapes)
    except (SpecError, UnsupportedError) as error:
        raise ModelError(f"{node.name}: {error}") from error
    if prod(shape) > MOST_NUMBERS:
        raise ModelError(f"a tensor of a network has at most {MOST_NUMBERS:.0e} numbers. Received: {shape} of {node}.")
    return shape


def whole_number(node: Node, shapes: Mapping[str, Shape], numbers: Mapping[str, int]) -> int:
    """What a `size` or a `whole` computes."""
    if node.op == "size":
        return shapes[node.inputs[0]][node["dim"]]
    first, *rest = resolved(tuple(node["of"]), numbers)
    for number in rest:
        first = ARITHMETIC[node["kind"]](first, number)
    return first


def check_attributes(node: Node) -> None:
    """Raises ModelError for an operator, an attribute or a kind of value that is not in the table."""
    operator = OPERATORS.get(node.op)
    if operator is None:
        raise ModelError(f"a node is one of {', '.join(OPERATORS)}. Received: {node.op!r}, of {node.name!r}.")
    least, most = operator.operands
    if not least <= len(node.inputs) <= most:
        raise ModelError(f"{node.op} takes {least} to {most} operands. Received: {len(node.inputs)}, in {node.name!r}.")
    for name, value in node.attributes.items():
        kind = operator.attributes.get(name)
        if kind is None or not _KINDS[kind](value):
            raise ModelError(f"{node.op} takes {dict(operator.attributes)}. Received: {name}={value!r}, {node.name!r}.")
    missing = operator.attributes.keys() - node.attributes.keys() - operator.optional
    if missing:
        raise ModelError(f"{node.op} needs {', '.join(sorted(missing))}. Received: none, in {node.name!r}.")


def _is_whole(value: Any) -> bool:
    from hubel.graph.network import Ref

    return isinstance(value, Ref) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "whole": _is_whole,
    "sizes": lambda v: isinstance(v, tuple) and len(v) < 64 and all(n is None or _is_whole(n) for n in v),
    "end": lambda v: v is None or _is_whole(v),
    "flag": lambda v: isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "text": lambda v: isinstance(v, str),
    "any": lambda v: True,
    "activation": lambda v: isinstance(v, str) and (v == "" or v in ACTIVATIONS),
    "binary": lambda v: isinstance(v, str) and v in BINARY,
    "arithmetic": lambda v: isinstance(v, str) and v in ARITHMETIC,
    "pooling": lambda v: v in ("max", "mean"),
}


def _require(holds: bool, node: Node, shapes: Sequence[Shape], rule: str) -> None:
    if not holds:
        raise ModelError(f"{node.op} {rule}. Received: shapes {', '.join(map(str, shapes))}, in {node.name!r}.")
