"""ONNX Runtime's CPU provider: a graph of one node, every optimisation on, input and output bound beforehand.

Channels first outside; inside it may block channels, and converting in and out is in its figure. What the layer takes
without that is told by its own profiler, node by node.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from hubel.lab.engines import onnx_graph
from hubel.lab.engines.door import Declined, Outputs, Tensors, library
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

# Its idle threads spin for 50 ms.
SPINS = 0.06
# Calls under its profiler.
PROFILED = 15


def onnxruntime(case: Case, tensors: Tensors) -> Contender | Declined:
    ort = library("onnxruntime")
    model = onnx_graph.model(case, tensors).SerializeToString()
    session = ort.InferenceSession(model, _options(ort), providers=["CPUExecutionProvider"])
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

    def layer_share() -> float:
        return _layer_share(ort, model, given)

    return Contender("onnxruntime", call, family="onnxruntime", read=read, pause=SPINS, layer_share=layer_share)


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def _layer_share(ort: Any, model: bytes, given: Any) -> float:
    """The convolution's share of the time of all nodes."""
    options = _options(ort)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED):
            session.run_with_ort_values(None, {"x": given})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    layer = sum(event["dur"] for event in nodes if "Conv" in event["args"]["op_name"])
    return layer / (sum(event["dur"] for event in nodes) or 1) or 1.0
