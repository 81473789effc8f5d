"""A case as an ONNX model of one node, for the engines that read ONNX."""

from __future__ import annotations

from typing import Any

from hubel.lab.engines.door import Tensors, library
from hubel.lab.shapes import Case

# What every engine in use reads: opset 17 is of 2022.
OPSET, IR_VERSION = 17, 9


def model(case: Case, tensors: Tensors) -> Any:
    """An onnx.ModelProto: input "x", output "y", one Conv or ConvTranspose with its weights inside."""
    onnx = library("onnx")
    helper, to_proto = onnx.helper, onnx.numpy_helper.from_array
    spec, (_, w, b) = case.spec, tensors.arrays()
    attributes = {
        "kernel_shape": list(spec.kernel_size),
        "strides": list(spec.stride),
        "pads": list(spec.padding) * 2,
        "dilations": list(spec.dilation),
        "group": spec.groups,
    }
    if case.transposed:
        attributes["output_padding"] = list(case.output_padding)
    constants = [to_proto(w, "w")] + ([] if b is None else [to_proto(b, "b")])
    operator = "ConvTranspose" if case.transposed else "Conv"
    node = helper.make_node(operator, ["x", *(constant.name for constant in constants)], ["y"], **attributes)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "convolution",
        [tensor("x", onnx.TensorProto.FLOAT, case.input_shape)],
        [tensor("y", onnx.TensorProto.FLOAT, case.output_shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
