"""The engines a benchmark compares, each through the door its user has; and the check that comes before any timing.

`ENGINES` is the table. An engine is a function from the tensors of a case to a Contender, or to Declined with a reason
(no such layout, no such direction, not installed). Its contender's `call` returns what it computed, which `check`
holds against torch in float64: an engine that is wrong gets no figure.

    torch, hubel        F.conv2d (forward) or aten::convolution_backward (gradients) through torch's dispatcher,
                        outputs allocated by torch on every call, weights an nn.Parameter; hubel inside hubel.enabled()
    ... channels-last   the same call on tensors in that memory format, as model.to(memory_format=...) makes them

Forward calls find their weights packed, as in inference. Gradient calls find them changed since the last call, as in
training: their version is bumped each time, for every engine alike, so that re-packing is in the figure.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import increment_version

from hubel.engine.plan import error_unit, terms_of
from hubel.engine.spec import Direction
from hubel.errors import unknown
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

# Errors allowed on N(0, 1) data, in units of `error_unit`.
UNITS = {"strict": 2.0, "default": 6.0, "fast": 20.0}
# Other libraries promise nothing. Above this their figure is not one for float32.
PEER_ERROR = 1e-5

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Declined:
    """Why an engine has no figure for a case."""

    reason: str


@dataclass(frozen=True)
class Tensors:
    """The data of a case, contiguous float32: input, weights, bias if it has one, and the output's gradient."""

    x: torch.Tensor
    w: torch.nn.Parameter
    b: torch.nn.Parameter | None
    dy: torch.Tensor

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Tensors:
        """Drawn from N(0, 1): the data on which accuracy is stated."""
        draw = torch.Generator().manual_seed(seed)
        spec = case.spec

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw)

        bias = torch.nn.Parameter(normal(spec.out_channels)) if case.problem.bias else None
        return cls(
            normal(*spec.input_shape), torch.nn.Parameter(normal(*spec.weight_shape)), bias, normal(*spec.output_shape)
        )

    def to(self, memory_format: torch.memory_format) -> Tensors:
        """The same data laid out in `memory_format`."""
        return Tensors(
            self.x.contiguous(memory_format=memory_format),
            torch.nn.Parameter(self.w.detach().contiguous(memory_format=memory_format)),
            self.b,
            self.dy.contiguous(memory_format=memory_format),
        )


Engine = Callable[[Case, Tensors], Contender | Declined]


def torch_call(case: Case, tensors: Tensors) -> Callable[[], Outputs]:
    """The call that a torch user's code ends in, on these tensors."""
    spec, (x, w, b, dy) = case.spec, (tensors.x, tensors.w, tensors.b, tensors.dy)
    sizes = list(spec.stride), list(spec.padding), list(spec.dilation)
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


ENGINES: dict[str, dict[str, Engine]] = {
    "hubel": {"hubel": hubel_enabled, "hubel channels-last": channels_last(hubel_enabled)},
    "torch": {"torch": torch_eager, "torch channels-last": channels_last(torch_eager)},
}


def contenders(case: Case, libraries: Sequence[str], tensors: Tensors) -> tuple[list[Contender], dict[str, str]]:
    """The contenders of these libraries on a case, and the reasons of those that declined, by contender."""
    taking_part, declined = [], {}
    for library in libraries:
        if library not in ENGINES:
            raise unknown("engine", library, ENGINES)
        for name, engine in ENGINES[library].items():
            contender = engine(case, tensors)
            if isinstance(contender, Declined):
                declined[name] = contender.reason
            else:
                taking_part.append(contender)
    return taking_part, declined


@dataclass(frozen=True)
class Checked:
    """What the check found: relative error against float64, and what ran (Hubel may hand a call to torch)."""

    error: float
    native: bool = True
    reason: str | None = None


def check(contender: Contender, case: Case, reference: Outputs, bound: float) -> Checked:
    """Run the contender once and compare. `reason` says why it gets no figure; None: it may be timed."""
    with contender.enter() as log:
        try:
            outputs = contender.call()
        except Exception as failure:  # a peer may fail in any way; the others still run
            return Checked(math.inf, False, f"failed: {type(failure).__name__}: {failure}".splitlines()[0])
    handed_back = getattr(log, "fallback", 0) > 0
    error = worst_distance(outputs, reference)
    wrong = None if error <= bound else f"wrong: relative error {error:.1e}, allowed {bound:.1e}"
    return Checked(error, not handed_back, wrong)


def error_bound(case: Case, accuracy: str, library: str) -> float:
    """The relative error allowed: Hubel's own promise, and for the others the larger of that and `PEER_ERROR`."""
    directions = [case.problem.direction]
    if case.both:
        directions.append(Direction.INPUT_GRADIENT)
    terms = max(terms_of(dataclasses.replace(case.problem, direction=direction)) for direction in directions)
    promise = UNITS[accuracy] * error_unit(terms)
    return promise if library == "hubel" else max(promise, PEER_ERROR)


def worst_distance(outputs: object, reference: Outputs) -> float:
    """The largest `distance` of the outputs; infinite if there are more or fewer of them than there should be."""
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    if len(given) != len(reference):
        return math.inf
    return max(distance(output, expected) for output, expected in zip(given, reference, strict=True))


def distance(output: object, reference: torch.Tensor) -> float:
    """‖output − reference‖ / ‖reference‖ in float64; infinite for NaN, another shape, or no tensor at all."""
    if not isinstance(output, torch.Tensor) or output.shape != reference.shape:
        return math.inf
    scale = float(torch.linalg.vector_norm(reference))
    error = float(torch.linalg.vector_norm(output.double() - reference)) / (scale or 1.0)
    # NaN would slip through comparisons and through max().
    return error if math.isfinite(error) else math.inf


def float64(case: Case, tensors: Tensors) -> Outputs:
    """What the case's call should return, computed by torch in float64.

    Image by image: torch's float64 path unrolls a whole batch (im2col), which would not fit into memory.
    """
    spec = case.spec
    x, w, dy = (tensor.detach().double() for tensor in (tensors.x, tensors.w, tensors.dy))
    b = None if tensors.b is None else tensors.b.detach().double()
    sizes = spec.stride, spec.padding, spec.dilation
    if case.problem.direction is Direction.FORWARD:
        convolve = FUNCTIONS[spec.ndim]
        return (torch.cat([convolve(image, w, b, *sizes, spec.groups) for image in x.split(1)]),)
    data, weight, bias = gradients_wanted(case)
    images = [
        torch.ops.aten.convolution_backward(
            dy_n, x_n, w, [spec.out_channels], *sizes, False, [0] * spec.ndim, spec.groups, [data, weight, bias]
        )
        for x_n, dy_n in zip(x.split(1), dy.split(1), strict=True)
    ]
    dx, dw, db = zip(*images, strict=True)
    results = [torch.cat(dx)] if data else []
    results += [torch.stack(dw).sum(0)] if weight else []
    results += [torch.stack(db).sum(0)] if bias else []
    return tuple(results)
