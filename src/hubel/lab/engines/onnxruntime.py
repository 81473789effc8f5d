"""ONNX Runtime's CPU provider: a graph of one node, every optimisation on, input and output bound beforehand.

Channels first outside; inside it may block channels, and converting in and out is in its figure.
"""

from __future__ import annotations

import torch

from hubel.lab.engines import onnx_graph
from hubel.lab.engines.door import Declined, Outputs, Tensors, library
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

# Its idle threads spin for 50 ms.
SPINS = 0.06


def onnxruntime(case: Case, tensors: Tensors) -> Contender | Declined:
    ort = library("onnxruntime")
    model = onnx_graph.model(case, tensors).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x, _, _ = tensors.arrays()
    y = torch.full(case.output_shape, torch.nan)
    given, result = ort.OrtValue.ortvalue_from_numpy(x), ort.OrtValue.ortvalue_from_numpy(y.numpy())
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", result)

    def call() -> object:
        session.run_with_iobinding(binding)
        return result

    def read(output: object) -> Outputs:
        return (torch.from_numpy(result.numpy()),)

    return Contender("onnxruntime", call, family="onnxruntime", read=read, pause=SPINS)
