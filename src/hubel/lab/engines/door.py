"""What every engine is asked with and answers with: the tensors of a case, a Contender, or Declined with a reason."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hubel.lab.shapes import Case
from hubel.lab.timing import Contender

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Declined:
    """Why an engine has no figure for a case."""

    reason: str


@dataclass(frozen=True)
class Tensors:
    """The data of a case, contiguous, in its dtype: input, weights, bias if it has one, and the output's gradient.

    In the shapes that torch's operator wants: those of a transposed case are the transposed convolution's own.
    """

    x: torch.Tensor
    w: torch.nn.Parameter
    b: torch.nn.Parameter | None
    dy: torch.Tensor

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Tensors:
        """Drawn from N(0, 1): the data on which accuracy is stated. Other dtypes hold the same numbers, rounded."""
        draw = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, case.problem.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw).to(dtype)

        bias = torch.nn.Parameter(normal(case.output_shape[1])) if case.problem.bias else None
        weights = torch.nn.Parameter(normal(*case.spec.weight_shape))
        return cls(normal(*case.input_shape), weights, bias, normal(*case.output_shape))

    def to(self, memory_format: torch.memory_format) -> Tensors:
        """The same data laid out in `memory_format`."""
        return self._each(lambda tensor: tensor.contiguous(memory_format=memory_format), self.b)

    def float32(self) -> Tensors:
        """The same numbers stored as float32."""
        bias = None if self.b is None else torch.nn.Parameter(self.b.detach().float())
        return self._each(torch.Tensor.float, bias)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], bias: torch.nn.Parameter | None) -> Tensors:
        return Tensors(change(self.x), torch.nn.Parameter(change(self.w.detach())), bias, change(self.dy))

    def arrays(self) -> tuple[Any, Any, Any]:
        """Input, weights and bias (None if there is none) as numpy arrays on the same memory."""
        return self.x.numpy(), self.w.detach().numpy(), None if self.b is None else self.b.detach().numpy()


Engine = Callable[[Case, Tensors], Contender | Declined]


class NotThere(Exception):
    """A library that an engine needs is not installed."""


def library(name: str, package: str | None = None) -> Any:
    """A module of a peer, imported when it is first asked for. NotThere, with the remedy, if it is not installed.

    package: what pip calls it, where that is another name.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise NotThere(
            f"{package or name} is not installed or does not load ({error}); pip install 'hubel[bench]'"
        ) from None


def peer(engine: Engine) -> Engine:
    """An engine of another library: it only runs forward, and may not be there."""

    def asked(case: Case, tensors: Tensors) -> Contender | Declined:
        if not case.is_forward:
            return Declined("it does not train: no gradients")
        if case.problem.dtype != "float32":
            return Declined("asked for float32 only")
        try:
            return engine(case, tensors)
        except NotThere as missing:
            return Declined(str(missing))

    return asked


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that a library writes to the terminal, past Python, gets there."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, saved in enumerate(kept, 1):
            os.dup2(saved, number)
            os.close(saved)
        os.close(nowhere)


def channels_last_order(ndim: int) -> tuple[int, ...]:
    """Axes of a channels-first tensor of `ndim` spatial dimensions in channels-last order."""
    return (0, *range(2, ndim + 2), 1)


def channels_first(tensor: torch.Tensor) -> torch.Tensor:
    """A channels-last tensor seen channels first; no copy."""
    return tensor.movedim(-1, 1)
