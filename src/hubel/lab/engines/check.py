"""The check that comes before any timing: what an engine computed, held against torch in float64."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from hubel.engine.choose import STORED_ERRORS
from hubel.engine.plan import error_unit, terms_of
from hubel.engine.problem import Direction
from hubel.lab.engines.door import Outputs, Tensors
from hubel.lab.engines.eager import FLOAT32, FUNCTIONS, TRANSPOSED, gradients_wanted
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

# Errors allowed on N(0, 1) data, in units of `error_unit`.
UNITS = {"strict": 2.0, "default": 6.0, "fast": 20.0}
# Other libraries promise nothing. Above this their figure is shown, and does not count as one for float32.
PEER_ERROR = 1e-5
# Of the outputs' rounding: what a rival's result of another dtype than float32 may err by.
STORED_ERROR = 1e-2
# Above this it is no rounding error: the engine computed something else.
WRONG = 1e-2


@dataclass(frozen=True)
class Checked:
    """What the check found: relative error against float64, and what ran (Hubel may hand a call to torch).

    reason: why it gets no figure; None: it may be timed. counts: as precise as an engine for float32 should be.
    """

    error: float
    native: bool = True
    reason: str | None = None
    counts: bool = True


def check(contender: Contender, case: Case, reference: Outputs, bound: float, wrong: float | None = None) -> Checked:
    """Run the contender once and compare. bound: the largest error of one that counts. wrong: that of one that is
    timed all the same (default: the same).
    """
    with contender.enter() as log:
        try:
            outputs = contender.call()
            if contender.read is not None:
                outputs = contender.read(outputs)
        except Exception as failure:  # a peer may fail in any way; the others still run
            return Checked(math.inf, False, f"failed: {type(failure).__name__}: {failure}".splitlines()[0])
    handed_back = getattr(log, "fallback", 0) > 0
    error = worst_distance(outputs, reference)
    allowed = bound if wrong is None else max(bound, wrong)
    reason = None if error <= allowed else f"wrong: relative error {error:.1e}, allowed {allowed:.1e}"
    return Checked(error, not handed_back, reason, counts=error <= bound)


def error_bound(case: Case, accuracy: str, library: str) -> float:
    """The relative error allowed: Hubel's own promise, and for the others the larger of that and `PEER_ERROR`."""
    directions = [case.problem.direction]
    if case.both:
        directions.append(Direction.INPUT_GRADIENT)
    terms = max(terms_of(dataclasses.replace(case.problem, direction=direction)) for direction in directions)
    dtype = case.problem.dtype
    if library != FLOAT32 and dtype != "float32":
        # Half a unit in the last place of the output, and of what is summed in it.
        return 2 * STORED_ERRORS[dtype] if library.startswith("hubel") else STORED_ERROR
    promise = UNITS[accuracy] * error_unit(terms)
    return promise if library.startswith("hubel") else max(promise, PEER_ERROR)


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
    if case.transposed:
        stride, padding, dilation = sizes
        transpose, beyond = TRANSPOSED[spec.ndim], case.output_padding
        images = [transpose(image, w, b, stride, padding, beyond, spec.groups, dilation) for image in x.split(1)]
        return (torch.cat(images),)
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
