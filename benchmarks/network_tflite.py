"""A folded network as a TFLite file for LiteRT: channels last throughout, operators that XNNPACK takes.

There is a converter of Google's, but none that installs beside this torch. Images are NHWC from the input on; what
torch flattens is transposed to torch's order before. Paddings that TFLite does not know (SAME is lopsided at stride 2)
become a PAD of their own, as converters make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hubel.graph import Graph, Node
from hubel.graph.operators import OPERATORS
from hubel.lab.engines.door import library

FUSED = {None: "NONE", "relu": "RELU", "relu6": "RELU6"}


class Unmapped(Exception):
    """A node for which there is no mapping here."""


class Writer:
    """The one subgraph of a model. Images lie channels last; `shapes` are torch's."""

    def __init__(self, graph: Graph, x: tuple[int, ...]) -> None:
        self.schema = library("ai_edge_litert.schema_py_generated", "ai-edge-litert")
        self.graph, self.model, self.sub = graph, self.schema.ModelT(), self.schema.SubGraphT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [self.schema.BufferT()], []
        self.sub.tensors, self.sub.operators = [], []
        self.shapes: dict[str, tuple[int, ...]] = {n: v.shape for n, v in graph.constants.items()}
        # Values by name: their tensor's index. plain: 4-dimensional values that lie in the order of their axes.
        self.index: dict[str, int] = {}
        self.plain: set[str] = set()
        (name,) = graph.inputs
        self.shapes[name] = x
        self.index[name] = self.tensor(name, last(x))

    def tensor(self, name: str, shape: Sequence[int], data: np.ndarray | None = None) -> int:
        """A new tensor, a constant if it has data; its index."""
        found = self.schema.TensorT()
        found.name, found.shape, found.buffer = name, list(shape), 0
        integer = data is not None and data.dtype == np.int32
        found.type = self.schema.TensorType.INT32 if integer else self.schema.TensorType.FLOAT32
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            found.buffer = len(self.model.buffers) - 1
        self.sub.tensors.append(found)
        return len(self.sub.tensors) - 1

    def constant(self, data: Any) -> int:
        array = np.asarray(data, np.int32 if np.asarray(data).dtype.kind == "i" else np.float32)
        return self.tensor(f"constant_{len(self.sub.tensors)}", array.shape, array)

    def operator(
        self, code: str, inputs: Sequence[int], shape: Sequence[int], options: str = "", name: str = "", **given: Any
    ) -> int:
        """One operation; the index of what it makes. shape: as it lies in memory."""
        builtin = getattr(self.schema.BuiltinOperator, code)
        codes = [one.builtinCode for one in self.model.operatorCodes]
        if builtin not in codes:
            one = self.schema.OperatorCodeT()
            one.builtinCode, one.deprecatedBuiltinCode, one.version = builtin, min(builtin, 127), 1
            self.model.operatorCodes.append(one)
            codes.append(builtin)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs = codes.index(builtin), list(inputs)
        made = self.tensor(name or f"value_{len(self.sub.tensors)}", shape)
        operator.outputs = [made]
        if options:
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            for key, value in given.items():
                setattr(operator.builtinOptions, key, value)
        self.sub.operators.append(operator)
        return made

    def fused(self, node: Node) -> int:
        kind = node.get("activation")
        return getattr(self.schema.ActivationFunctionType, FUSED.get(kind, "NONE"))

    def activated(self, node: Node, made: int, shape: Sequence[int]) -> int:
        """Activations that no operator has in its options."""
        kind = node.get("activation")
        if kind in FUSED:
            return made
        if kind != "gelu":
            raise Unmapped(f"activation {kind}")
        return self.operator("GELU", [made], shape, "GeluOptions", approximate=False)

    def padded(self, made: int, shape: tuple[int, ...], pads: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, ...]]:
        """An image with zeros around it."""
        n, h, w, c = shape
        (top, bottom), (left, right) = pads
        wide = (n, h + top + bottom, w + left + right, c)
        return self.operator("PAD", [made, self.constant([[0, 0], *map(list, pads), [0, 0]])], wide, "PadOptions"), wide

    def written(self, name: str) -> bytes:
        self.sub.inputs = [self.index[next(iter(self.graph.inputs))]]
        self.sub.outputs = [self.index[name]]
        self.model.subgraphs = [self.sub]
        builder = library("flatbuffers").Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def flatbuffer(graph: Graph, x: tuple[int, ...]) -> bytes:
    """The model. x: the shape of its input, as torch has it. Raises Unmapped for a node that has no mapping."""
    writer = Writer(graph, x)
    for node in graph.nodes:
        if node.op not in MAPPING:
            raise Unmapped(node.op)
        shapes = [writer.shapes[name] for name in node.inputs if name]
        if node.op in ("conv", "linear"):
            shapes = [writer.shapes[name] if name else () for name in node.inputs]
        writer.shapes[node.name] = tuple(OPERATORS[node.op].shape(node, shapes))
        writer.index[node.name] = MAPPING[node.op](writer, node)
    return writer.written(graph.outputs[0])


def last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a channels-first image, as it lies channels last; of anything else, itself."""
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def _same(size: int, out: int, k: int, s: int, d: int, p: int) -> bool:
    """Whether TFLite's SAME is this padding."""
    total = max(0, (out - 1) * s + d * (k - 1) + 1 - size)
    return out == -(-size // s) and p == total // 2


def _conv(to: Writer, node: Node) -> int:
    if node["transposed"]:
        raise Unmapped("transposed convolution")
    x, out = to.shapes[node.inputs[0]], to.shapes[node.name]
    weight = to.graph.constants[node.inputs[1]]
    bias = to.graph.constants[node.operand(2)] if node.operand(2) else np.zeros(out[1], np.float32)
    kernel = weight.shape[2:]
    axes = zip(x[2:], out[2:], kernel, node["stride"], node["dilation"], node["padding"], strict=True)
    same = all(_same(*axis) for axis in axes)
    given, shape = to.index[node.inputs[0]], last(x)
    if not same and any(node["padding"]):
        given, shape = to.padded(given, shape, [(p, p) for p in node["padding"]])
    depthwise = 1 < node["groups"] == x[1]
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    options: dict[str, Any] = {
        "padding": to.schema.Padding.SAME if same else to.schema.Padding.VALID,
        "strideH": node["stride"][0], "strideW": node["stride"][1],
        "dilationHFactor": node["dilation"][0], "dilationWFactor": node["dilation"][1],
    }  # fmt: skip
    residual = node.operand(3)
    if not residual:
        options["fusedActivationFunction"] = to.fused(node)
    if depthwise:
        options["depthMultiplier"] = out[1] // x[1]
    name = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    operands = [given, to.constant(np.ascontiguousarray(weight.transpose(order))), to.constant(bias)]
    made = to.operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", operands, last(out), name, **options)
    if residual:
        made = _sum(to, node, made, residual, last(out))
    return to.activated(node, made, last(out))


def _sum(to: Writer, node: Node, made: int, other: str, shape: Sequence[int]) -> int:
    return to.operator(
        "ADD", [made, to.index[other]], shape, "AddOptions", fusedActivationFunction=to.fused(node)
    )  # fmt: skip


def _linear(to: Writer, node: Node) -> int:
    out, weight = to.shapes[node.name], to.graph.constants[node.inputs[1]]
    bias = to.graph.constants[node.operand(2)] if node.operand(2) else np.zeros(out[-1], np.float32)
    if len(out) == 4:
        to.plain.add(node.name)
    residual = node.operand(3)
    options = {"keepNumDims": len(out) > 2} | ({} if residual else {"fusedActivationFunction": to.fused(node)})
    operands = [to.index[node.inputs[0]], to.constant(weight), to.constant(bias)]
    made = to.operator("FULLY_CONNECTED", operands, out, "FullyConnectedOptions", **options)
    if residual:
        made = _sum(to, node, made, residual, out)
    return to.activated(node, made, out)


def _pool(to: Writer, node: Node) -> int:
    x, out = to.shapes[node.inputs[0]], to.shapes[node.name]
    given, shape = to.index[node.inputs[0]], last(x)
    mean = node["kind"] == "mean"
    if set(node["dilation"]) != {1} or (mean and node["divisor"]):
        raise Unmapped(str(node))
    axes = list(zip(x[2:], out[2:], node["kernel"], node["stride"], node["padding"], strict=True))
    same = all(_same(size, o, k, s, 1, p) for size, o, k, s, p in axes)
    # TFLite divides by what lies inside the image; with zeros of its own, by the whole window.
    if (mean and node["count_padding"] and any(node["padding"])) or not same:
        # Windows after maxima of a ReLU: zeros are as good as nothing. As far as the last window reaches.
        pads = [(p, max(0, (o - 1) * s + k - size - p)) for size, o, k, s, p in axes]
        if any(map(any, pads)):
            if mean and node["ceil"]:
                raise Unmapped(str(node))
            if not mean and not _positive(to, node.inputs[0]):
                raise Unmapped(f"{node}, of numbers that may be negative")
            given, shape = to.padded(given, shape, pads)
        same = False
    return to.operator(
        "AVERAGE_POOL_2D" if mean else "MAX_POOL_2D", [given], last(out), "Pool2DOptions",
        padding=to.schema.Padding.SAME if same else to.schema.Padding.VALID,
        filterHeight=node["kernel"][0], filterWidth=node["kernel"][1],
        strideH=node["stride"][0], strideW=node["stride"][1],
    )  # fmt: skip


def _positive(to: Writer, name: str) -> bool:
    """Whether a value is what a ReLU, or a maximum or joining of such, made."""
    node = to.graph.node(name)
    if node is None:
        return False
    if node.op == "concat" or (node.op == "pool" and node["kind"] == "max"):
        return all(_positive(to, one) for one in node.inputs)
    return node.get("activation") in ("relu", "relu6")


def _adaptive(to: Writer, node: Node) -> int:
    x, out = to.shapes[node.inputs[0]], to.shapes[node.name]
    if x == out:
        return to.index[node.inputs[0]]
    if out[2:] != (1, 1):
        raise Unmapped(str(node))
    operands = [to.index[node.inputs[0]], to.constant(np.array([1, 2], np.int32))]
    return to.operator("MEAN", operands, last(out), "ReducerOptions", keepDims=True)


def _flatten(to: Writer, node: Node) -> int:
    x, out = to.shapes[node.inputs[0]], to.shapes[node.name]
    given = to.index[node.inputs[0]]
    if len(x) == 4 and node.inputs[0] not in to.plain and max(x[2:]) > 1:
        given = to.operator("TRANSPOSE", [given, to.constant([0, 3, 1, 2])], x, "TransposeOptions")
    return to.operator("RESHAPE", [given, to.constant(list(out))], out, "ReshapeOptions", newShape=list(out))


def _concat(to: Writer, node: Node) -> int:
    if node["dim"] != 1 or len(to.shapes[node.name]) != 4:
        raise Unmapped(str(node))
    operands = [to.index[name] for name in node.inputs]
    return to.operator("CONCATENATION", operands, last(to.shapes[node.name]), "ConcatenationOptions", axis=3)


def _permute(to: Writer, node: Node) -> int:
    """Between channels first and last, where nothing has to move."""
    source = node.inputs[0]
    if node["dims"] == (0, 2, 3, 1) and source not in to.plain:
        to.plain.add(node.name)
    elif node["dims"] != (0, 3, 1, 2) or source not in to.plain:
        raise Unmapped(str(node))
    return to.index[source]


def _binary(to: Writer, node: Node) -> int:
    kinds = {"add": ("ADD", "AddOptions"), "mul": ("MUL", "MulOptions")}
    if node["kind"] not in kinds:
        raise Unmapped(str(node))
    plain = [name in to.plain for name in node.inputs if name not in to.graph.constants]
    if any(plain):
        if not all(plain):
            raise Unmapped(str(node))
        to.plain.add(node.name)
    operands = []
    for name in node.inputs:
        value = to.graph.constants.get(name)
        if value is not None:
            lies = value if value.ndim < 3 or any(plain) else value.reshape((1,) * (4 - value.ndim) + value.shape)
            operands.append(to.constant(lies if lies.ndim < 4 or any(plain) else lies.transpose(0, 2, 3, 1)))
        else:
            operands.append(to.index[name])
    shape = to.shapes[node.name]
    code, options = kinds[node["kind"]]
    made = to.operator(
        code, operands, shape if any(plain) else last(shape), options, fusedActivationFunction=to.fused(node)
    )
    return to.activated(node, made, shape if any(plain) else last(shape))


def _layer_norm(to: Writer, node: Node) -> int:
    source = node.inputs[0]
    shape = to.shapes[source]
    if len(shape) == 4 and source not in to.plain:
        raise Unmapped(str(node))
    if len(shape) == 4:
        to.plain.add(node.name)
    x, axis = to.index[source], to.constant([len(shape) - 1])
    one = (*shape[:-1], 1)
    mean = to.operator("MEAN", [x, axis], one, "ReducerOptions", keepDims=True)
    off = to.operator("SUB", [x, mean], shape, "SubOptions")
    square = to.operator("MUL", [off, off], shape, "MulOptions")
    spread = to.operator("MEAN", [square, axis], one, "ReducerOptions", keepDims=True)
    spread = to.operator("ADD", [spread, to.constant(np.float32(node["eps"]))], one, "AddOptions")
    made = to.operator("MUL", [off, to.operator("RSQRT", [spread], one)], shape, "MulOptions")
    for code, options, name in (("MUL", "MulOptions", node.operand(1)), ("ADD", "AddOptions", node.operand(2))):
        if name:
            made = to.operator(code, [made, to.constant(to.graph.constants[name])], shape, options)
    return made


MAPPING: dict[str, Callable[[Writer, Node], int]] = {
    "conv": _conv,
    "linear": _linear,
    "pool": _pool,
    "adaptive_pool": _adaptive,
    "flatten": _flatten,
    "concat": _concat,
    "permute": _permute,
    "binary": _binary,
    "layer_norm": _layer_norm,
}
