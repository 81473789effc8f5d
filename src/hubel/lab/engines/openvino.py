"""OpenVINO's CPU plugin: a model of one operator built with its opset, tensors shared, latency hint, one stream.

Twice: channels first, converting inside, and channels last (through PrePostProcessor) as it computes. What the layer
takes without converting is told by its own profiler, node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hubel.lab.engines.door import (
    Declined,
    Outputs,
    Tensors,
    channels_first,
    channels_last_order,
    library,
    quiet,
)  # fmt: skip
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

# Calls under its profiler.
PROFILED = 15
LAYOUTS = {2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def openvino(case: Case, tensors: Tensors) -> Contender | Declined:
    ov = library("openvino")
    x, _, _ = tensors.arrays()
    y = np.full(case.output_shape, np.nan, np.float32)
    run = _call(_request(ov, _model(case, tensors), x, y), x, y)

    def read(output: object) -> Outputs:
        return (torch.from_numpy(y),)

    def layer_share() -> float:
        return _layer_share(_request(ov, _model(case, tensors), x, y, PERF_COUNT=True))

    return Contender("openvino", run, family="openvino", read=read, layer_share=layer_share)


def openvino_channels_last(case: Case, tensors: Tensors) -> Contender | Declined:
    ov = library("openvino")
    if case.spec.ndim not in LAYOUTS:
        return Declined("no channels-last layout of one dimension")
    first, last = LAYOUTS[case.spec.ndim]
    processor = library("openvino.preprocess", "openvino").PrePostProcessor(_model(case, tensors))
    for end in (processor.input(), processor.output()):
        end.tensor().set_layout(ov.Layout(last))
        end.model().set_layout(ov.Layout(first))
    order = channels_last_order(case.spec.ndim)
    x = np.ascontiguousarray(tensors.arrays()[0].transpose(order))
    y = np.full([case.output_shape[axis] for axis in order], np.nan, np.float32)
    run = _call(_request(ov, processor.build(), x, y), x, y)

    def read(output: object) -> Outputs:
        return (channels_first(torch.from_numpy(y)),)

    return Contender("openvino channels-last", run, family="openvino", read=read)


def _request(ov: Any, model: Any, x: np.ndarray, y: np.ndarray, **more: object) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        **more,
    }
    with quiet():
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    request.set_output_tensor(ov.Tensor(y, shared_memory=True))
    return request


def _call(request: Any, *alive: np.ndarray) -> Callable[[], object]:
    """What runs the request; keeps the arrays alive, which the request only points to."""

    def call() -> object:
        request.infer()
        return alive

    return call


def _layer_share(request: Any) -> float:
    """The convolution's share of the time of all nodes, by OpenVINO's own profiler."""
    layer = every = 0.0
    for _ in range(PROFILED):
        request.infer()
        for node in request.get_profiling_info():
            seconds = node.real_time.total_seconds()
            every += seconds
            layer += seconds * ("Convolution" in node.node_type or "Deconvolution" in node.node_type)
    return layer / every if layer else 1.0


def _model(case: Case, tensors: Tensors) -> Any:
    ov, opset = library("openvino"), library("openvino.opset13", "openvino")
    spec, (_, w, b) = case.spec, tensors.arrays()
    if spec.groups > 1:
        # (groups, channels of a group, ...) instead of (channels, ...)
        w = w.reshape(spec.groups, w.shape[0] // spec.groups, *w.shape[1:])
    parameter = opset.parameter(case.input_shape, np.float32)
    weights, pads = opset.constant(w), list(spec.padding)
    grouped, stride, dilation = spec.groups > 1, list(spec.stride), list(spec.dilation)
    if case.transposed:
        operator = opset.group_convolution_backprop_data if grouped else opset.convolution_backprop_data
        beyond = list(case.output_padding)
        result = operator(
            parameter,
            weights,
            strides=stride,
            pads_begin=pads,
            pads_end=pads,
            dilations=dilation,
            output_padding=beyond,
        )
    else:
        operator = opset.group_convolution if grouped else opset.convolution
        result = operator(parameter, weights, stride, pads, pads, dilation)
    if b is not None:
        result = opset.add(result, opset.constant(b.reshape(1, -1, *(1,) * spec.ndim)))
    return ov.Model([result], [parameter], "convolution")
