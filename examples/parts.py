"""What the examples share: where the files of a package lie, and the same input on Hubel and on another runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hubel


class Missing(SystemExit):
    """A package that the example needs is not installed; the message says how to install it."""


def folder_of(package: str) -> Path:
    """Where an installed package lies. It is not imported: some of these need more than is installed here."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise Missing(f"This example needs {package}. Install it: pip install --no-deps {package.replace('_', '-')}")
    return Path(next(iter(found.submodule_search_locations)))


@dataclass(frozen=True)
class Compared:
    """native: convolutions on Hubel's kernels; fallback: on PyTorch's. error: ‖a − b‖ / ‖b‖, of the worst output.

    largest: the largest difference of two numbers. against: what the other runtime was.
    """

    native: int
    fallback: int
    error: float
    largest: float
    against: str

    def __str__(self) -> str:
        return (
            f"{self.native} convolutions on Hubel's kernels, {self.fallback} on PyTorch's; against {self.against}: "
            f"relative error {self.error:.1e}, largest difference {self.largest:.1e}"
        )


@torch.no_grad()
def compare(
    network: nn.Module, x: Tensor, other: Callable[[Tensor], Any], against: str = "PyTorch"
) -> tuple[Any, Compared]:
    """What `network` makes of `x` under hubel.enable(), and how far it is from what `other` makes of it."""
    with hubel.enabled() as log:
        ours = network(x)
    return ours, distance(ours, other(x), log, against)


def distance(ours: Any, theirs: Any, log: Any, against: str) -> Compared:
    """Two results, tensors or tuples of them, one beside the other."""
    pairs = list(zip(_tensors(ours), _tensors(theirs), strict=True))
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    return Compared(log.native, log.fallback, error, largest, against)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [torch.as_tensor(part) for part in result]
