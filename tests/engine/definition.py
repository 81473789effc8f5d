"""Right answers: the definition's, and torch's in float64 where its plain loops would take seconds.

On small integers both are exact, and so the same; `test_reference.py` holds one against the other.
"""

from __future__ import annotations

import numpy as np
import torch

from hubel.engine import reference
from hubel.engine.problem import Direction, Problem

# Multiply-adds, at about 1 µs each in the plain loops.
FEW_MACS = 20_000


def expected(problem: Problem, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The result of a problem on small integers. first, second: x and w · dy and w · x and dy, by direction."""
    if problem.spec.macs > FEW_MACS:
        return by_torch(problem, first, second, bias)
    if problem.direction is Direction.FORWARD:
        return reference.forward(problem.spec, first, second, bias)
    if problem.direction is Direction.INPUT_GRADIENT:
        return reference.input_gradient(problem.spec, first, second)
    return reference.weight_gradient(problem.spec, first, second)


def by_torch(problem: Problem, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The result of a problem by torch in float64."""
    spec = problem.spec
    how = spec.stride, spec.padding, spec.dilation, False, [0] * spec.ndim, spec.groups
    a, b = (torch.from_numpy(np.array(array, np.float64)) for array in (first, second))
    if problem.direction is Direction.FORWARD:
        return torch.convolution(a, b, None if bias is None else torch.from_numpy(bias).double(), *how).numpy()
    if problem.direction is Direction.INPUT_GRADIENT:
        x = torch.empty(spec.input_shape, dtype=torch.float64)
        return torch.ops.aten.convolution_backward(a, x, b, None, *how, (True, False, False))[0].numpy()
    w = torch.empty(spec.weight_shape, dtype=torch.float64)
    return torch.ops.aten.convolution_backward(b, a, w, None, *how, (False, True, False))[1].numpy()
