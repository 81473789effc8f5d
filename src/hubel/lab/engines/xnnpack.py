"""XNNPACK through LiteRT: a TFLite flatbuffer of one operator, channels last inside and out, nothing converted.

TFLite knows the paddings SAME and VALID only. Where torch's is neither, the input is padded beforehand and not timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hubel.lab.engines.door import Declined, Outputs, Tensors, channels_first, library, quiet
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender


@dataclass(frozen=True)
class _Operator:
    """Name in TFLite's schema, its options, and constants in the order of its inputs (None: the input itself)."""

    name: str
    options: Any
    inputs: list[np.ndarray | None]


def xnnpack(case: Case, tensors: Tensors) -> Contender | Declined:
    interpreters = library("ai_edge_litert.interpreter", "ai-edge-litert")
    schema = library("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    spec = case.spec
    if spec.ndim == 3:
        return Declined("XNNPACK has no 3-D convolution")
    x, w, b = tensors.arrays()
    x, w = _two_dimensions(x), _two_dimensions(w)
    bias = np.zeros(case.output_shape[1], np.float32) if b is None else b
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    same = _same(case)
    if case.transposed:
        if same is None:
            return Declined("TFLite has no such padding of a transposed convolution")
        if spec.groups > 1 or set(spec.dilation) != {1}:
            return Declined("XNNPACK's transposed convolutions are dense and not dilated")
        operator = _transposed(schema, case, w, bias, same)
    else:
        if not same:
            pads = (0,) * (2 - spec.ndim) + spec.padding
            x = np.pad(x, [(0, 0), *((p, p) for p in pads), (0, 0)])
        operator = _forward(schema, case, w, bias, bool(same))
    y_shape = _channels_last_shape(case.output_shape)
    model = _flatbuffer(schema, operator, x.shape, y_shape)
    with quiet():
        interpreter = interpreters.Interpreter(model_content=model, num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
    taken = [part["op_name"] for part in interpreter._get_ops_details()]
    if "DELEGATE" not in taken:
        return Declined("XNNPACK leaves this layer to TFLite's own kernel")
    given, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.set_tensor(given, x)

    def read(output: object) -> Outputs:
        y = channels_first(torch.from_numpy(interpreter.get_tensor(result)))
        return (y.reshape(case.output_shape),)

    return Contender("xnnpack", interpreter.invoke, family="xnnpack", read=read)


def _two_dimensions(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 3 else array


def _channels_last_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, channels, *size = shape
    return (batch, *([1] * (2 - len(size))), *size, channels)


def _same(case: Case) -> bool | None:
    """True: TFLite's SAME is this padding; False: VALID is, once the input is padded; None: neither will do."""
    spec = case.spec
    small, large = (spec.output_size, spec.input_size)
    reach = [d * (k - 1) + 1 for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    steps = [-(-size // s) for size, s in zip(large, spec.stride, strict=True)]
    padded = [max(0, (o - 1) * s + r - i) for o, s, r, i in zip(small, spec.stride, reach, large, strict=True)]
    if list(small) == steps and all(p == total // 2 for p, total in zip(spec.padding, padded, strict=True)):
        return True
    if not case.transposed:
        return False
    return False if not any(spec.padding) and not any(case.output_padding) else None


def _put(options: Any, case: Case, same: bool, schema: Any) -> Any:
    stride_h, stride_w = (1,) * (2 - case.spec.ndim) + case.spec.stride
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH, options.strideW = stride_h, stride_w
    return options


def _forward(schema: Any, case: Case, w: np.ndarray, bias: np.ndarray, same: bool) -> _Operator:
    spec = case.spec
    depthwise = 1 < spec.groups == spec.in_channels
    name = "DepthwiseConv2D" if depthwise else "Conv2D"
    options = _put(getattr(schema, f"{name}OptionsT")(), case, same, schema)
    options.dilationHFactor, options.dilationWFactor = (1,) * (2 - spec.ndim) + spec.dilation
    if depthwise:
        options.depthMultiplier = spec.out_channels // spec.groups
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    weights = np.ascontiguousarray(w.transpose(order))
    return _Operator(name, options, [None, weights, bias])


def _transposed(schema: Any, case: Case, w: np.ndarray, bias: np.ndarray, same: bool) -> _Operator:
    options = _put(schema.TransposeConvOptionsT(), case, same, schema)
    shape = np.array(_channels_last_shape(case.output_shape), np.int32)
    return _Operator("TransposeConv", options, [shape, np.ascontiguousarray(w.transpose(1, 2, 3, 0)), None, bias])


_CODES = {"Conv2D": "CONV_2D", "DepthwiseConv2D": "DEPTHWISE_CONV_2D", "TransposeConv": "TRANSPOSE_CONV"}
# The operators' versions that have what is used here: dilation, a bias.
_VERSIONS = {"Conv2D": 1, "DepthwiseConv2D": 2, "TransposeConv": 3}


def _flatbuffer(schema: Any, operator: _Operator, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> bytes:
    model, graph, one = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []

    def tensor(name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        found = schema.TensorT()
        found.name, found.shape, found.buffer = name, list(shape), 0
        integers = data is not None and data.dtype == np.int32
        found.type = schema.TensorType.INT32 if integers else schema.TensorType.FLOAT32
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            found.buffer = len(model.buffers) - 1
        graph.tensors.append(found)
        return len(graph.tensors) - 1

    x, y = tensor("x", x_shape), tensor("y", y_shape)
    graph.inputs, graph.outputs, graph.operators = [x], [y], [one]
    one.inputs = [x if data is None else tensor("constant", data.shape, data) for data in operator.inputs]
    one.outputs, one.opcodeIndex, one.builtinOptions = [y], 0, operator.options
    one.builtinOptionsType = getattr(schema.BuiltinOptions, f"{operator.name}Options")
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, _CODES[operator.name])
    code.version = _VERSIONS[operator.name]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = library("flatbuffers").Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
