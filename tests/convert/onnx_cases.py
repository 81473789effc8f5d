"""ONNX models of a node or a few, written with onnx's helpers, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

X = (2, 4, 7, 6)
FLOAT, INT, BOOL = np.float32, np.int64, np.bool_


class Case(NamedTuple):
    """One node. inputs: an array is a constant, a shape is an input of the network, None is left out."""

    kind: str
    inputs: tuple[Any, ...] = (X,)
    attributes: dict[str, Any] = {}  # noqa: RUF012  (read only)
    opset: int = 17
    outputs: int = 1
    positive: bool = False

    def __str__(self) -> str:
        how = ",".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.kind}[{how}]@{self.opset}"


def w(*shape: int, seed: int = 0, low: float = -1.0) -> np.ndarray:
    """Weights between low and 1."""
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(FLOAT)


def ints(*values: int) -> np.ndarray:
    return np.array(values, INT)


def _pool(kind: str, *also: dict[str, Any]) -> list[Case]:
    base = {"kernel_shape": [3, 2], "strides": [2, 1]}
    return [Case(kind, (X,), base | more) for more in ({}, {"pads": [1, 0, 1, 0]}, {"pads": [0, 0, 1, 1]}, *also)]


CONV = {"kernel_shape": [3, 3]}
CASES = [
    *(
        Case("Conv", (X, w(6, 2 if "group" in how else 4, 3, 3), bias), CONV | how)
        for bias in (None, w(6))
        for how in (
            {"pads": [1, 1, 1, 1]},
            {"pads": [0, 1, 2, 1], "strides": [2, 2]},
            {"group": 2, "dilations": [2, 1]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
            {"auto_pad": "VALID"},
        )
    ),
    Case("Conv", ((2, 4, 9), w(6, 4, 3), w(6)), {"kernel_shape": [3], "pads": [1, 1]}),
    Case("Conv", ((1, 2, 4, 5, 6), w(3, 2, 2, 2, 2)), {"kernel_shape": [2, 2, 2]}),
    Case("ConvTranspose", (X, w(4, 3, 3, 3), w(6)), CONV | {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
    Case("ConvTranspose", (X, w(4, 5, 2, 2)), {"kernel_shape": [2, 2], "strides": [2, 2], "output_padding": [1, 0]}),
    Case("ConvTranspose", ((2, 4, 9), w(4, 5, 3)), {"kernel_shape": [3], "dilations": [2]}),
    Case("BatchNormalization", (X, w(4), w(4, seed=1), w(4, seed=2), w(4, low=0.1)), {"epsilon": 1e-3}),
    Case("BatchNormalization", ((3, 4), w(4), w(4, seed=1), w(4, seed=2), w(4, low=0.1))),
    Case("BatchNormalization", ((3, 4, 5), w(4), w(4, seed=1), w(4, seed=2), w(4, low=0.1)), {"momentum": 0.5}),
    Case("InstanceNormalization", (X, w(4), w(4, seed=1))),
    Case("LayerNormalization", (X, w(6), w(6, seed=1)), {"axis": -1}),
    Case("LayerNormalization", (X, w(7, 6)), {"axis": 2, "epsilon": 1e-3}),
    Case("GroupNormalization", (X, w(4), w(4, seed=1)), {"num_groups": 2}, 21),
    Case("LRN", (X,), {"size": 3, "alpha": 0.01, "beta": 0.7, "bias": 2.0}),
    Case("Gemm", ((3, 5), w(5, 4), w(4))),
    Case("Gemm", ((3, 5), w(4, 5), w(4)), {"transB": 1}),
    Case("Gemm", ((5, 3), w(5, 4), w(3, 4)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((3, 5), (5, 4))),
    Case("MatMul", ((2, 3, 5), w(5, 4))),
    Case("MatMul", ((2, 3, 5), (2, 5, 4))),
    Case("MatMul", (w(2, 3), (3, 4))),
    *_pool("MaxPool", {"ceil_mode": 1}, {"dilations": [2, 1]}, {"auto_pad": "SAME_UPPER"}),
    *_pool(
        "AveragePool", {"count_include_pad": 1, "pads": [0, 0, 1, 1]}, {"count_include_pad": 1, "pads": [1, 0, 1, 0]}
    ),
    Case("AveragePool", ((2, 4, 9),), {"kernel_shape": [3], "pads": [0, 1]}),
    Case("GlobalAveragePool"),
    Case("GlobalAveragePool", ((2, 3, 9),)),
    Case("GlobalMaxPool"),
    *(Case(kind) for kind in ("Relu", "Elu", "Selu", "Celu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "Softsign")),
    *(Case(kind) for kind in ("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Sign", "Floor", "Ceil", "Round", "Identity")),
    *(Case(kind, positive=True) for kind in ("Sqrt", "Log", "Reciprocal")),
    Case("Mish", (X,), {}, 18),
    Case("Gelu", (X,), {}, 20),
    Case("Gelu", (X,), {"approximate": "tanh"}, 20),
    Case("LeakyRelu", (X,), {"alpha": 0.2}),
    Case("Elu", (X,), {"alpha": 0.5}),
    Case("PRelu", (X, w(4, 1, 1))),
    Case("PRelu", (X, w(1))),
    Case("PRelu", (X, w(7, 6))),
    Case("HardSigmoid"),
    Case("HardSigmoid", (X,), {"alpha": 1 / 6, "beta": 0.5}),
    Case("Clip", (X, np.array(0, FLOAT), np.array(6, FLOAT))),
    Case("Clip", (X, np.array(-0.5, FLOAT))),
    Case("Clip", (X, None, np.array(0.5, FLOAT))),
    Case("Clip", (X,), {"min": -0.3, "max": 0.3}, 10),
    Case("Softmax", (X,), {"axis": 1}),
    Case("Softmax", (X,), {"axis": 1}, 11),
    Case("Softmax", (X,), {"axis": 3}, 11),
    Case("LogSoftmax", (X,), {"axis": 2}, 11),
    Case("LogSoftmax", (X,), {"axis": -1}),
    *(Case(kind, (X, other)) for kind in ("Add", "Sub", "Mul", "Div") for other in (X, w(4, 1, 1), w(1, low=0.5))),
    Case("Sub", (np.array([3.0], FLOAT), X)),
    Case("Pow", (X, np.array(2.0, FLOAT))),
    *(Case(kind, (X, X, w(6))) for kind in ("Min", "Max", "Sum")),
    *(Case(kind, (X, w(6))) for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(kind, (X,), {"axes": [2, 3]}, 11) for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    *(Case(kind, (X,), {"axes": [1], "keepdims": 0}, 11) for kind in ("ReduceProd", "ReduceL1", "ReduceL2")),
    Case("ReduceSumSquare", (X,), {}, 11),
    Case("ReduceMean", (X, ints(-1)), {"keepdims": 0}, 18),
    Case("ReduceSum", (X,), {"noop_with_empty_axes": 1}),
    Case("ArgMax", (X,), {"axis": 1, "keepdims": 0}),
    Case("Einsum", (X, w(6, 5)), {"equation": "nchw,wk->nchk"}),
    Case("Reshape", (X, ints(0, -1, 6))),
    Case("Reshape", (X, ints(2, 28, 6))),
    Case("Flatten"),
    Case("Flatten", (X,), {"axis": 3}),
    Case("Flatten", (X,), {"axis": 0}),
    Case("Transpose", (X,), {"perm": [0, 2, 3, 1]}),
    Case("Transpose"),
    Case("Squeeze", ((2, 1, 3, 1), ints(1))),
    Case("Squeeze", ((2, 1, 3, 1),)),
    Case("Squeeze", ((2, 1, 3, 1),), {"axes": [1, 3]}, 11),
    Case("Unsqueeze", (X, ints(0, -1))),
    Case("Unsqueeze", (X,), {"axes": [2]}, 11),
    Case("Concat", (X, w(2, 3, 7, 6), X), {"axis": 1}),
    Case("Split", (X,), {"axis": 2, "split": [3, 4]}, 11, 2),
    Case("Split", (X, ints(1, 3)), {"axis": 1}, 17, 2),
    Case("Split", (X,), {"axis": 1}, 17, 2),
    Case("Split", (X,), {"axis": 2, "num_outputs": 3}, 18, 3),
    Case("Slice", (X, ints(1, -4), ints(2**63 - 1, -1), ints(3, 2))),
    Case("Slice", (X, ints(0), ints(6), ints(2), ints(2))),
    Case("Slice", (X,), {"starts": [1], "ends": [3], "axes": [1]}, 9),
    Case("Gather", (X, np.array(-1, INT)), {"axis": 1}),
    Case("Gather", (X, np.array([[0, -1], [2, 1]], INT)), {"axis": 2}),
    Case("Expand", ((2, 1, 3), ints(4, 1, 5, 1))),
    Case("Tile", (X, ints(1, 2, 1, 3))),
    Case("Pad", (X, ints(0, 1, 2, 0, 0, 0, 1, 3), np.array(0.5, FLOAT))),
    Case("Pad", (X, ints(0, 0, 2, 1, 0, 0, 1, 3)), {"mode": "reflect"}),
    Case("Pad", (X, ints(0, 0, 2, 1, 0, 0, 1, 3)), {"mode": "edge"}),
    Case("Pad", (X, ints(1, 2, 0, 1), None, ints(3, -2)), {}, 18),
    Case("Pad", (X,), {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, 10),
    Case("Cast", (X,), {"to": 7}),
    Case("Where", (np.array([True, False, True, True, False, True]), X, w(1))),
    Case("DepthToSpace", (X,), {"blocksize": 2}),
    Case("DepthToSpace", (X,), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((2, 3, 4, 6),), {"blocksize": 2}),
    Case("Upsample", (X, np.array([1, 1, 2, 3], FLOAT)), {"mode": "nearest"}, 9),
    *(
        Case("Resize", (X, None, np.array([1, 1, *factors], FLOAT)), how)
        for factors in ((2, 3), (1.5, 2.5))
        for how in (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "linear"},
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"},
        )
    ),
    Case("Resize", (X, None, np.array([1, 1, 2, 3], FLOAT)), {"mode": "nearest"}),
    Case(
        "Resize", (X, None, None, ints(2, 4, 9, 12)), {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    ),
    Case("Resize", (X, np.array([1, 1, 2, 2], FLOAT)), {"mode": "nearest"}, 10),
    Case("Dropout"),
    *(
        Case("LSTM", ((5, 2, 3), w(d, 16, 3), w(d, 16, 4, seed=1), *more), {"hidden_size": 4} | way, outputs=3)
        for d, way in ((1, {}), (2, {"direction": "bidirectional"}))
        for more in ((), (w(d, 32, seed=2),), (w(d, 32, seed=2), None, w(d, 2, 4), w(d, 2, 4, seed=3)))
    ),
    Case("STFT", ((2, 50, 1), np.array(7, INT), w(16, low=0.1))),
    Case("STFT", ((2, 50, 1), np.array(8, INT), None, np.array(32, INT)), {"onesided": 0}),
]


def model(case: Case, path: Path) -> tuple[Path, list[np.ndarray]]:
    """The case as a file, and arrays for its inputs."""
    helper, to_proto = onnx.helper, onnx.numpy_helper.from_array
    names, inputs, constants, arrays = [], [], [], []
    for number, entry in enumerate(case.inputs):
        name = "" if entry is None else f"in{number}"
        names.append(name)
        if isinstance(entry, np.ndarray):
            constants.append(to_proto(entry, name))
        elif entry is not None:
            inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, entry))
            arrays.append(3 * w(*entry, seed=number + 10, low=0.1 if case.positive else -1))
    outputs = [f"out{number}" for number in range(case.outputs)]
    node = helper.make_node(case.kind, names, outputs, "the-node", **case.attributes)
    return write([node], inputs, outputs, path, constants, case.opset), arrays


def write(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[str],
    path: Path,
    constants: Sequence[Any] = (),
    opset: int = 17,
) -> Path:
    helper = onnx.helper
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "case", inputs, results, list(constants))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    made = onnx.shape_inference.infer_shapes(made)
    known = {value.name: value for value in made.graph.value_info}
    for result in made.graph.output:
        if result.name in known and not result.type.WhichOneof("value"):
            result.CopyFrom(known[result.name])
        if not result.type.WhichOneof("value"):
            result.type.CopyFrom(inputs[0].type)  # what onnx does not infer: norms, which keep the shape
    onnx.save(made, path)
    return path


def run(path: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of it, without its own rewriting of the graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {entry.name: array for entry, array in zip(session.get_inputs(), arrays, strict=True)})
