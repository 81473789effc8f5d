"""ONNX operators over time: an LSTM becomes torch's layer, a Fourier transform of windows torch's function."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from hubel.convert import onnx_functions as functions
from hubel.convert.onnx_layers import parameter
from hubel.convert.onnx_shapes import fixed
from hubel.convert.onnx_values import Builder, Operator, Value

_ACTIVATIONS = ("sigmoid", "tanh", "tanh")


def lstm(
    b: Builder,
    op: Operator,
    x: Value,
    weight: Value,
    recurrent: Value,
    bias: Value = None,
    lengths: Value = None,
    hidden: Value = None,
    cell: Value = None,
    peepholes: Value = None,
) -> Any:
    """x: (steps, N, inputs). Returns (steps, directions, N, H), and the last states (directions, N, H)."""
    if not isinstance(weight, Tensor) or not isinstance(recurrent, Tensor):
        raise op.refuse("whose weights are computed from the input")
    if not (bias is None or isinstance(bias, Tensor)) or lengths is not None or peepholes is not None:
        raise op.refuse("with computed biases, lengths of the sequences, or peepholes")
    activations = [name.lower() for name in op.get("activations") or _ACTIVATIONS * len(weight)]
    plain = not any(op.get(name) for name in ("clip", "input_forget", "layout"))
    direction = op.get("direction", "forward")
    if not plain or direction == "reverse" or activations != list(_ACTIVATIONS * len(weight)):
        raise op.refuse("with clip, input_forget, layout, other activations, or backwards only")
    both = direction == "bidirectional"
    if (hidden is None) != (cell is None) or len(weight) != 1 + both:
        raise op.refuse("with one state of two, or weights for another number of directions")
    H = op.get("hidden_size", recurrent.shape[2])

    def make() -> nn.Module:
        layer = nn.LSTM(weight.shape[2], H, bias=bias is not None, bidirectional=both, device="meta")
        for number in range(1 + both):
            end = "_reverse" if number else ""
            setattr(layer, f"weight_ih_l0{end}", parameter(_torch_order(weight[number])))
            setattr(layer, f"weight_hh_l0{end}", parameter(_torch_order(recurrent[number])))
            if bias is not None:
                inner, outer = bias[number].chunk(2)
                setattr(layer, f"bias_ih_l0{end}", parameter(_torch_order(inner)))
                setattr(layer, f"bias_hh_l0{end}", parameter(_torch_order(outer)))
        return layer

    states = () if hidden is None else ((hidden, cell),)
    result = b.layer(make, weight, (id(recurrent), id(bias), both), x, *states)
    steps = b.call(functions.by_direction, b.call(operator.getitem, result, 0), 1 + both)
    last = b.call(operator.getitem, result, 1)
    return steps, b.call(operator.getitem, last, 0), b.call(operator.getitem, last, 1)


def _torch_order(gates: Tensor) -> Tensor:
    """ONNX has the gates as input, output, forget, cell; torch as input, forget, cell, output. (4H, ...)"""
    i, o, f, c = gates.chunk(4)
    return torch.cat([i, f, c, o])


def stft(b: Builder, op: Operator, signal: Value, step: Value, window: Value = None, length: Value = None) -> Value:
    hop = fixed(b, op, step, "step")
    size = fixed(b, op, length, "length") if window is None else None
    if window is not None and not isinstance(window, Tensor):
        raise op.refuse("whose window is computed from the input")
    n = len(window) if isinstance(window, Tensor) else size
    return b.call(functions.short_time_fourier, signal, n, hop, window, bool(op.get("onesided", 1)))


SEQUENCES: dict[str, Any] = {"LSTM": lstm, "STFT": stft}
