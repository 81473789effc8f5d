"""The engines that run a whole network, each as its users drive it, on the same weights: what `networks.py` times.

    hubel.Session, hubel compiled            a Session; torch.compile(net, backend="hubel")
    torch, torch channels-last               eager
    inductor, inductor channels-last         torch.compile with Inductor, frozen
    onnxruntime, openvino                    the exported network, tensors bound beforehand
    ncnn                                     converted by pnnx from a trace, float32 throughout; one image
    mnn                                      the exported network by its own converter, precision high
    litert                                   our own TFLite file of the folded network, on XNNPACK (network_tflite.py)

What an engine computed is read once and held against float64 before it is timed.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network_tflite import Unmapped, flatbuffer
from torch import Tensor, nn

import hubel
from hubel.lab.engines.door import library, quiet
from hubel.lab.engines.ncnn import HALF_PRECISION
from hubel.lab.timing import Contender

Made = dict[str, Contender]
# Networks compiled from one forward() share a list of guards, and every call would pay for those of the others that
# fail first: 4 ms a call of MobileNet v2, with three of them. A user compiles one.
ALONE: Any = {"isolate_recompiles": True}


class Declined(Exception):
    """Why an engine has no figure for a network."""


@dataclass
class Task:
    """A network in evaluation mode, an input, and the files that engines are made of, written when first asked for."""

    net: nn.Module
    x: Tensor
    folder: Path

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    @cached_property
    def onnx(self) -> Path:
        path = self.folder / "net.onnx"
        with silent():
            torch.onnx.export(self.net, (self.x,), str(path), dynamo=True, external_data=False, verbose=False)
        return path

    @cached_property
    def session(self) -> hubel.Session:
        return hubel.Session(self.net, self.x)

    @cached_property
    def channels_last(self) -> tuple[nn.Module, Tensor]:
        net: Any = copy.deepcopy(self.net)
        return net.to(memory_format=torch.channels_last), self.x.to(memory_format=torch.channels_last)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing that an exporter says about itself reaches the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _session(task: Task) -> Made:
    run, x = task.session, task.x
    return {"hubel.Session": Contender("hubel.Session", lambda: run(x))}


def _hubel_compiled(task: Task) -> Made:
    run, x = torch.compile(copy.deepcopy(task.net), backend="hubel", **ALONE), task.x
    return {"hubel compiled": Contender("hubel compiled", lambda: run(x))}


def _torch(task: Task) -> Made:
    net, x = task.net, task.x
    last, x_last = task.channels_last
    return {
        "torch": Contender("torch", lambda: net(x)),
        "torch channels-last": Contender("torch channels-last", lambda: last(x_last)),
    }


def _inductor(task: Task) -> Made:
    import torch._inductor.config as inductor

    found = {}
    last, x_last = task.channels_last
    for name, net, x in (("inductor", task.net, task.x), ("inductor channels-last", last, x_last)):
        run = torch.compile(copy.deepcopy(net), **ALONE)
        with inductor.patch(freezing=True):
            run(x)
        found[name] = Contender(name, lambda run=run, x=x: run(x))
    return found


def _onnxruntime(task: Task) -> Made:
    ort = library("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(task.onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(task.x.numpy()))
    binding.bind_output(session.get_outputs()[0].name)

    def read(_: object) -> tuple[Tensor]:
        return (torch.from_numpy(binding.copy_outputs_to_cpu()[0]),)

    # Its threads spin some 50 ms after a call, and longer than a layer's would.
    call = lambda: session.run_with_iobinding(binding)  # noqa: E731
    return {"onnxruntime": Contender("onnxruntime", call, family="onnxruntime", read=read, pause=0.1)}


def _openvino(task: Task) -> Made:
    ov = library("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
        "NUM_STREAMS": 1,
    }
    with silent():
        request = ov.Core().compile_model(ov.convert_model(task.onnx), "CPU", settings).create_infer_request()
    given = np.ascontiguousarray(task.x.numpy())
    request.set_input_tensor(ov.Tensor(given, shared_memory=True))

    def call() -> Any:
        request.infer()
        return given

    def read(_: object) -> tuple[Tensor]:
        return (torch.from_numpy(request.get_output_tensor().data.copy()),)

    return {"openvino": Contender("openvino", call, family="openvino", read=read)}


def _ncnn(task: Task) -> Made:
    if len(task.x) != 1:
        raise Declined("one image at a time, no batches")
    ncnn, pnnx = library("ncnn"), library("pnnx")
    text, weights = task.folder / "net.param", task.folder / "net.bin"
    files = {f"{kind}{end}": str(task.folder / f"pnnx.{kind}.{end}") for kind in ("ncnn", "pnnx") for end in ("py",)}
    with silent():
        pnnx.export(
            task.net, str(task.folder / "net.pt"), (task.x,), ncnnparam=str(text), ncnnbin=str(weights), fp16=False,
            pnnxparam=str(task.folder / "pnnx.param"), pnnxbin=str(task.folder / "pnnx.bin"),
            pnnxonnx=str(task.folder / "pnnx.onnx"), check_trace=False, **files,
        )  # fmt: skip
    net = ncnn.Net()
    net.opt.num_threads = task.threads
    for option in HALF_PRECISION:
        setattr(net.opt, option, False)
    if not text.is_file() or net.load_param(str(text)) or net.load_model(str(weights)):
        raise Declined("pnnx or ncnn refuses the network")
    x = ncnn.Mat(np.ascontiguousarray(task.x[0].numpy()))

    def call() -> object:
        extractor = net.create_extractor()
        extractor.input("in0", x)
        return extractor.extract("out0")[1]

    def read(output: object) -> tuple[Tensor]:
        return (torch.from_numpy(np.array(output))[None],)

    return {"ncnn": Contender("ncnn", call, family="ncnn", read=read)}


def _mnn(task: Task) -> Made:
    mnn, converter = library("MNN", "mnn"), library("_tools", "mnn")
    file = task.folder / "net.mnn"
    with silent():
        converter.mnnconvert(
            ["mnnconvert", "-f", "ONNX", "--modelFile", str(task.onnx), "--MNNModel", str(file), "--bizCode", "hubel"]
        )
        if not file.is_file():
            raise Declined("its converter refuses the network")
        interpreter = mnn.Interpreter(str(file))
        session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": task.threads})
    given, result = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    kind, order = mnn.Halide_Type_Float, mnn.Tensor_DimensionType_Caffe
    x, y = task.x.numpy(), np.full(result.getShape(), np.nan, np.float32)
    x_host, y_host = mnn.Tensor(x.shape, kind, x, order), mnn.Tensor(y.shape, kind, y, order)

    def call() -> None:
        given.copyFrom(x_host)
        interpreter.runSession(session)
        result.copyToHostTensor(y_host)

    def read(_: object) -> tuple[Tensor]:
        return (torch.from_numpy(y_host.getNumpyData().copy()).reshape(y.shape),)

    # The interpreter owns what the session reads.
    call.kept = interpreter, x, y  # type: ignore[attr-defined]
    return {"mnn": Contender("mnn", call, family="mnn", read=read)}


def _litert(task: Task) -> Made:
    interpreters = library("ai_edge_litert.interpreter", "ai-edge-litert")
    try:
        model = flatbuffer(task.session.graph, tuple(task.x.shape))
    except Unmapped as reason:
        raise Declined(f"not in our TFLite mapping: {reason}") from None
    with quiet():
        interpreter = interpreters.Interpreter(model_content=model, num_threads=task.threads)
        interpreter.allocate_tensors()
    left = [part["op_name"] for part in interpreter._get_ops_details()]
    if left.count("DELEGATE") == 0:
        raise Declined("XNNPACK leaves the network to TFLite's own kernels")
    given, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    x = task.x.numpy()
    interpreter.set_tensor(given, np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x)

    def read(_: object) -> tuple[Tensor]:
        return (torch.from_numpy(interpreter.get_tensor(result)),)

    return {"litert": Contender("litert", interpreter.invoke, family="litert", read=read)}


# Hubel's own first; the others in the groups that the ratios are taken over.
ENGINES: dict[str, Callable[[Task], Made]] = {
    "session": _session,
    "compiled": _hubel_compiled,
    "torch": _torch,
    "inductor": _inductor,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "ncnn": _ncnn,
    "mnn": _mnn,
    "litert": _litert,
}
PEERS = ("onnxruntime", "openvino", "ncnn", "mnn", "litert")
EAGER = ("torch", "torch channels-last")
INDUCTOR = ("inductor", "inductor channels-last")


@contextmanager
def contenders(net: nn.Module, x: Tensor, engines: Sequence[str]) -> Iterator[tuple[Made, dict[str, str]]]:
    """The contenders of these engines, and the reasons of those that have none."""
    made: Made = {}
    declined: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = Task(net, x, Path(folder))
        for engine in engines:
            try:
                made |= ENGINES[engine](task)
            except Exception as failure:  # a peer may fail in any way; the others still run
                reason = f"{failure}".splitlines()[0] if str(failure) else type(failure).__name__
                declined[engine] = reason if isinstance(failure, Declined) else f"failed: {reason}"
        yield made, declined
