"""torch and Hubel through torch's own operators, in both layouts, and Hubel on float32 beside other dtypes.

The same call for both: F.conv2d and its kin (forward) or aten::convolution_backward (gradients) through torch's
dispatcher, outputs allocated by torch on every call, weights an nn.Parameter; Hubel inside hubel.enabled().
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd.graph import increment_version

from hubel.engine.problem import Direction
from hubel.lab.engines.door import Declined, Engine, Outputs, Tensors
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}
TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}

# Hubel itself, on tensors of float32.
FLOAT32 = "hubel's float32"


def torch_call(case: Case, tensors: Tensors) -> Callable[[], Outputs]:
    """The call that a torch user's code ends in, on these tensors."""
    spec, (x, w, b, dy) = case.spec, (tensors.x, tensors.w, tensors.b, tensors.dy)
    sizes = list(spec.stride), list(spec.padding), list(spec.dilation)
    if case.transposed:
        stride, padding, dilation = sizes
        convolve_transposed, beyond = TRANSPOSED[spec.ndim], list(case.output_padding)

        def transposed() -> Outputs:
            return (convolve_transposed(x, w, b, stride, padding, beyond, spec.groups, dilation),)

        return transposed

    if case.problem.direction is Direction.FORWARD:
        convolve = FUNCTIONS[spec.ndim]

        def forward() -> Outputs:
            return (convolve(x, w, b, *sizes, spec.groups),)

        return forward

    mask = gradients_wanted(case)
    bias_sizes = [spec.out_channels] if mask[2] else None
    backward = torch.ops.aten.convolution_backward.default
    arguments = (dy, x, w, bias_sizes, *sizes, False, [0] * spec.ndim, spec.groups, list(mask))

    def gradients() -> Outputs:
        increment_version(w)
        return tuple(gradient for gradient in backward(*arguments) if gradient is not None)

    return gradients


def gradients_wanted(case: Case) -> tuple[bool, bool, bool]:
    """(input, weight, bias) gradient: torch's output mask."""
    data = case.both or case.problem.direction is Direction.INPUT_GRADIENT
    weight = case.both or case.problem.direction is Direction.WEIGHT_GRADIENT
    return data, weight, weight and case.problem.bias


def torch_eager(case: Case, tensors: Tensors) -> Contender | Declined:
    return Contender("torch", torch_call(case, tensors))


def hubel_enabled(case: Case, tensors: Tensors) -> Contender | Declined:
    if importlib.util.find_spec("hubel.ops") is None:
        return Declined("hubel.ops is not there")
    return Contender("hubel", torch_call(case, tensors), enabled)


def enabled() -> AbstractContextManager[Any]:
    from hubel.ops.override import enabled

    return enabled()


def channels_last(engine: Engine) -> Engine:
    """The engine on tensors in channels-last memory format."""

    def laid_out(case: Case, tensors: Tensors) -> Contender | Declined:
        memory_format = CHANNELS_LAST.get(case.spec.ndim)
        if memory_format is None:
            return Declined("torch has no channels-last format for one dimension")
        contender = engine(case, tensors.to(memory_format))
        if isinstance(contender, Declined):
            return contender
        return Contender(f"{contender.name} channels-last", contender.call, contender.enter, contender.family)

    return laid_out


def on_float32(engine: Engine) -> Engine:
    """The engine on the same numbers stored as float32, to see what fewer bits gain; left out where they are."""

    def widened(case: Case, tensors: Tensors) -> Contender | Declined:
        if case.problem.dtype == "float32":
            return Declined("")
        contender = engine(case, tensors.float32())
        if isinstance(contender, Declined):
            return contender
        name = contender.name.replace("hubel", FLOAT32)
        return Contender(name, contender.call, contender.enter, contender.family)

    return widened
