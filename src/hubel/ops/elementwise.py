"""Sums of residuals, activations and their gradients in training graphs: torch's operators, said as launches.

One by one they are torch's. Between two convolutions they are jobs of the launch that does both (`segments`), which
else would end there: ten times each way in a MobileNet v2. A result never lies over an operand there, also where torch
writes in place: nobody reads that operand again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from hubel.engine.between import Work, mapped
from hubel.ops.recipe import Argument, Recipe, Result, made_like, of_work
from hubel.ops.weights import is_dense

_aten = torch.ops.aten


def _sum(a: Any, b: Any, **options: Any) -> Recipe | None:
    return None if options else _recipe("add", "", a, b)


def _activated(name: str, bounds: tuple[float, ...], x: Tensor, *given: Any) -> Recipe | None:
    return _recipe("copy", name, x) if given == bounds else None


def _gradient(name: str, bounds: tuple[float, ...], dy: Tensor, y: Tensor, *given: Any, **_: Any) -> Recipe | None:
    return _recipe(f"through_{name}", "", dy, y) if given == bounds else None


def _recipe(function: str, activation: str, *operands: Any) -> Recipe | None:
    """None where operands are no tensors of one size that lie alike."""
    x = operands[0]
    lie = [(t.shape, t.stride(), t.dtype) if isinstance(t, Tensor) else None for t in operands]
    if lie[0] is None or set(lie) != {lie[0]} or x.dtype is not torch.float32 or not x.numel() or not is_dense(x):
        return None
    pointers = [Argument(i) for i in range(len(operands))] + [None] * (3 - len(operands))
    work = _work(function, activation, len(operands), x.numel())
    return Recipe((made_like(x),), (of_work(work, *pointers, Result(0)),))


@lru_cache(maxsize=1024)
def _work(function: str, activation: str, operands: int, numbers: int) -> Work:
    return mapped(function, (numbers,), *[(1,)] * (1 + operands), activation=activation)


_SUM = (_aten.add.Tensor, _aten.add_.Tensor)
# By activation: what hardtanh or threshold are told beside their tensors, and the operators, in place or not.
_ACTIVATIONS: tuple[tuple[str, tuple[float, ...], tuple[Any, ...]], ...] = (
    ("relu", (), (_aten.relu.default, _aten.relu_.default)),
    ("relu6", (0.0, 6.0), (_aten.hardtanh.default, _aten.hardtanh_.default)),
)
_GRADIENTS: tuple[tuple[str, tuple[float, ...], tuple[Any, ...]], ...] = (
    ("relu", (0,), (_aten.threshold_backward.default, _aten.threshold_backward.grad_input)),
    ("relu6", (0.0, 6.0), (_aten.hardtanh_backward.default, _aten.hardtanh_backward.grad_input)),
)
# What says what an operator does, from arguments like its own.
RECIPES: dict[Any, Callable[..., Recipe | None]] = dict.fromkeys(_SUM, _sum)
for _table, _make in ((_ACTIVATIONS, _activated), (_GRADIENTS, _gradient)):
    RECIPES |= {target: partial(_make, name, bounds) for name, bounds, targets in _table for target in targets}
