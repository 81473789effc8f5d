"""torch's operators inside a network of Hubel's: whatever `graph` has no operator for runs as torch's own, in place.

In a graph such an operator is a name ("aten.topk.default") and arguments in which operands are numbered (`Operand`).
This host finds it, asks it on meta tensors what it makes, and runs it on memory of the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubel.errors import ModelError
from hubel.graph.host import Made, Operand


class TorchHost:
    """Runs operators of torch's by name."""

    def makes(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Any]) -> Any:
        with torch.no_grad():
            result = _called(target, arguments, keywords, [_meta(made) for made in operands], on_meta=True)
        return _made(result)

    def call(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Any]) -> Any:
        return _called(target, arguments, keywords, operands)

    def view(self, memory: np.ndarray) -> Tensor:
        return torch.from_numpy(memory)

    def copy(self, value: Tensor, view: Tensor) -> None:
        view.copy_(value)


@lru_cache(maxsize=1024)
def operator(name: str) -> Callable[..., Any]:
    """torch's operator of this name. Raises ModelError if this torch has none."""
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise ModelError(
            f"a foreign operator is one of torch {torch.__version__}'s. Received: {name!r}. Use the torch that the "
            "network was captured with."
        )
    return found


def _called(target: str, arguments: Any, keywords: Any, operands: Sequence[Any], on_meta: bool = False) -> Any:
    def filled(value: Any) -> Any:
        if isinstance(value, Operand):
            return operands[value.index]
        if isinstance(value, tuple | list):
            return [filled(part) for part in value]
        if isinstance(value, dict):
            return {key: filled(part) for key, part in value.items()}
        return torch.device("meta") if on_meta and isinstance(value, torch.device) else value

    return operator(target)(*filled(arguments), **filled(keywords))


def _meta(made: Any) -> Any:
    if isinstance(made, Made):
        return torch.empty(made.shape, dtype=getattr(torch, made.dtype), device="meta")
    return [_meta(part) for part in made] if isinstance(made, tuple) else made


def _made(result: Any) -> Any:
    if isinstance(result, Tensor):
        return Made(tuple(result.shape), str(result.dtype).removeprefix("torch."))
    if isinstance(result, tuple | list):
        return tuple(_made(part) for part in result)
    return Made(None, type(result).__name__)
