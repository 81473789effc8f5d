"""What a prepared call does, as data: which results it makes, which memory it needs meanwhile, and its launches.

A call that is nothing but launches says so with a `Recipe`, for whoever runs several calls as one (`segments`).
Whatever does more (copies of its arguments, checks of its results) has none. Recipes are made when they are asked for:
kernels that only they need are not compiled for calls that come alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from hubel.engine.between import Work
from hubel.engine.invoke import Invocation
from hubel.engine.threads import Job


@dataclass(frozen=True)
class Argument:
    """The tensor that the call is given in this place."""

    index: int


@dataclass(frozen=True)
class Result:
    """The tensor that it gives back in this place."""

    index: int


@dataclass(frozen=True)
class Room:
    """Memory that it needs meanwhile, by what it is for."""

    name: str


PACKED = Room("packed weights")


@dataclass(frozen=True)
class Table:
    """Memory that holds addresses."""

    pointers: tuple[Argument | Result | Room, ...]


Pointer: TypeAlias = Argument | Result | Room | Table | None


@dataclass(frozen=True)
class Launch:
    """Jobs that run one after the other on four base pointers. keep: what their words point to."""

    jobs: Sequence[Job]
    pointers: tuple[Pointer, Pointer, Pointer, Pointer]
    shared_bytes: int
    scratch_bytes: int
    keep: object


@dataclass(frozen=True)
class Made:
    """How a result lies. strides: in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Recipe:
    """results: None where one is not asked for. rooms: bytes of each. native: how many native calls it counts as."""

    results: tuple[Made | None, ...]
    launches: tuple[Launch, ...]
    rooms: Mapping[Room, int] = field(default_factory=dict)
    native: int = 0


def made_like(x: Tensor) -> Made:
    return Made(tuple(x.shape), x.stride(), x.dtype)


def of_work(work: Work, *pointers: Pointer) -> Launch:
    """The launch of a kernel between convolutions."""
    p0, p1, p2, p3 = pointers
    return Launch(work.jobs, (p0, p1, p2, p3), work.shared_bytes, work.scratch_bytes, work)


def of_invocation(invocation: Invocation, *pointers: Pointer) -> Launch:
    """The launch of a prepared problem."""
    p0, p1, p2, p3 = pointers
    return Launch(invocation.jobs, (p0, p1, p2, p3), invocation.shared_bytes, invocation.scratch_bytes, invocation)


def with_weights(invocation: Invocation, x: Pointer, w: Argument, b: Pointer, y: Pointer) -> tuple[Launch, ...]:
    """The launches of a problem that reads weights: they are packed first where its kernels want it (`PACKED`)."""
    if not invocation.packed_bytes:
        return (of_invocation(invocation, x, w, b, y),)
    packing = Launch(invocation.packing, (w, PACKED, None, None), 0, invocation.scratch_bytes, invocation)
    return packing, of_invocation(invocation, x, PACKED, b, y)
