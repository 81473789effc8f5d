"""torch's arguments, read: which convolution they ask for, or why torch is handed the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hubel.engine.spec import ConvSpec
from hubel.errors import SpecError, UnsupportedError
from hubel.ops.strides import Config

# The dtypes that tensors may have, and what problems call them. Sums are float32.
STORED = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_CPU = torch.device("cpu")
_DISPATCH = "__torch_dispatch__"
_PLAIN_TYPES = frozenset({Tensor, nn.Parameter, nn.Buffer})


class Handed(Exception):
    """This call is torch's; the message is the reason that the log shows."""


# What makes a call torch's: our own reasons, an impossible convolution (torch's checks raise), the engine's refusal.
REASONS = (Handed, SpecError, UnsupportedError)


@dataclass(frozen=True)
class Request:
    """What is asked for. Of a transposed convolution, `spec` is the convolution whose input gradient it is.

    beyond: zeros to add after a transposed convolution's input, one number a dimension. torch allows output_padding up
    to the dilation; whole strides of it are outputs that further, absent inputs would reach.
    """

    spec: ConvSpec
    transposed: bool
    beyond: tuple[int, ...]


def request(x_shape: Sequence[int], w_shape: Sequence[int], config: Config) -> Request:
    """Raises `SpecError` where there is no such convolution, `UnsupportedError` where it has nothing to compute."""
    stride, padding, dilation, transposed, output_padding, groups = one_a_dimension(config, len(x_shape) - 2)
    if not 3 <= len(x_shape) <= 5 or len(x_shape) != len(w_shape):
        raise SpecError(
            "input and weight must both have 3, 4 or 5 dimensions: batch, channels and 1, 2 or 3 sizes. "
            f"Received: {tuple(x_shape)} and {tuple(w_shape)}. Give each its batch and channel dimension."
        )
    n, c, *size = x_shape
    kernel = tuple(w_shape[2:])
    if min(n, c, groups, *w_shape) < 1:
        raise UnsupportedError("a tensor is empty")
    beyond = (0,) * len(size)
    if transposed:
        if all(e < max(s, d) for e, s, d in zip(output_padding, stride, dilation, strict=True)) and min(stride) > 0:
            beyond = tuple(e // s for e, s in zip(output_padding, stride, strict=True))
            output_padding = tuple(e % s for e, s in zip(output_padding, stride, strict=True))
        size = [i + more for i, more in zip(size, beyond, strict=True)]
        spec = ConvSpec.for_transposed(
            n, c, w_shape[1] * groups, size, kernel, stride, padding, output_padding, dilation, groups
        )
    else:
        spec = ConvSpec(n, c, w_shape[0], size, kernel, stride, padding, dilation, groups)
    if tuple(w_shape) != spec.weight_shape:
        raise SpecError(
            f"the weight must have the shape {spec.weight_shape}. Received: {tuple(w_shape)} for an input of shape "
            f"{tuple(x_shape)} and groups={groups}. Make the input's channels and the weight's agree."
        )
    return Request(spec, transposed, beyond)


def describe(x: Tensor, w: Tensor, bias: bool, config: Config) -> str:
    """One call in a log: the problem's text where there is one, the shapes otherwise."""
    dtype = str(x.dtype).removeprefix("torch.")
    try:
        text = str(request(x.shape, w.shape, config).spec)
    except REASONS:
        text = f"{tuple(x.shape)} * {tuple(w.shape)}"
    text += "/transposed" if config[3] else ""
    return text + ("/bias" if bias else "") + ("" if dtype == "float32" else f"/{dtype}")


def check_tensors(*tensors: Tensor) -> None:
    """Raises `Handed` unless all are dense, non-empty tensors on the CPU, of one dtype that Hubel stores."""
    for t in tensors:
        if t.dtype not in STORED:
            raise Handed(f"the dtype is {t.dtype}; Hubel stores {', '.join(map(str, STORED))}")
        if t.dtype != tensors[0].dtype:
            raise Handed(f"the dtypes are {tensors[0].dtype} and {t.dtype}; Hubel reads tensors of one dtype")
        if t.device != _CPU or t.layout != torch.strided:
            raise Handed(f"a tensor is {t.layout} on {t.device}; Hubel reads dense tensors on the CPU")
        if type(t) not in _PLAIN_TYPES and getattr(type(t), _DISPATCH) is not getattr(Tensor, _DISPATCH):
            raise Handed(f"a tensor is a {type(t).__name__}, which has operators of its own")
        if not t.numel():
            raise Handed("a tensor is empty")


def one_a_dimension(config: Config, ndim: int) -> Config:
    """torch takes one number for all dimensions in every list. Raises `Handed` for any other length."""

    def expanded(numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(numbers) not in (1, ndim):
            raise Handed("a parameter has not one number a dimension; torch says so")
        return numbers * ndim if len(numbers) == 1 else numbers

    stride, padding, dilation, transposed, output_padding, groups = config
    return expanded(stride), expanded(padding), expanded(dilation), transposed, expanded(output_padding), groups
