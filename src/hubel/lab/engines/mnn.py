"""MNN: converted from ONNX by its own converter, in its own sessions, precision high.

Input copied in before every run (it may reuse the input's memory) and output copied out: that converts between its
blocked layout and NCHW, and is in its figure; what the layer takes without that is timed on the session alone. Its
Winograd errs by more than 1e-5 at times; the table says where.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from hubel.lab.engines import onnx_graph
from hubel.lab.engines.door import Declined, Outputs, Tensors, library, quiet
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender, time_share


def mnn(case: Case, tensors: Tensors) -> Contender | Declined:
    library_ = library("MNN", "mnn")
    # The converter's compiled part; MNN.tools.mnnconvert around it would install packages when it is imported.
    converter = library("_tools", "mnn")
    x, _, _ = tensors.arrays()
    y = np.full(case.output_shape, np.nan, np.float32)
    with tempfile.TemporaryDirectory() as folder, quiet():
        onnx_file, file = Path(folder) / "net.onnx", Path(folder) / "net.mnn"
        onnx_file.write_bytes(onnx_graph.model(case, tensors).SerializeToString())
        converter.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(onnx_file), "--MNNModel", str(file), "--bizCode", "hubel"]
        )
        if not file.is_file():
            return Declined("its converter refuses the layer")
        interpreter = library_.Interpreter(str(file))
        session = interpreter.createSession(
            {"backend": "CPU", "precision": "high", "numThread": torch.get_num_threads()}
        )
    given, result = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    kind, order = library_.Halide_Type_Float, library_.Tensor_DimensionType_Caffe
    x_host = library_.Tensor(case.input_shape, kind, x, order)
    y_host = library_.Tensor(case.output_shape, kind, y, order)

    def call() -> None:
        given.copyFrom(x_host)
        interpreter.runSession(session)
        result.copyToHostTensor(y_host)

    def read(output: object) -> Outputs:
        return (torch.from_numpy(y_host.getNumpyData().copy()).reshape(case.output_shape),)

    def layer_share() -> float:
        return time_share(lambda: interpreter.runSession(session), call)

    return Contender("mnn", call, family="mnn", read=read, layer_share=layer_share)
