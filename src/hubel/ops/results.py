"""Where results are allocated: small ones as Inductor's code does it, large ones in memory that is used again.

    allocate = room(shape, strides, dtype)            once for a call
    y = allocate()                                    undefined numbers, on the CPU

A graph's large results lie in the memory that it keeps (`kept_memory`), those of layers called one by one from 4 MB on
in one that they share. glibc takes blocks beyond 32 MB from the operating system for each call, in pages of 4 kB that
are cleared when they are first written to: 17 ms for 51 MB where writing takes 1.5. Smaller ones it finds in memory
that is in use, but not the same for each call where other things have come to lie between: two of 13 MB in turn do not
stay in an L3 cache of 32 MB, one does (0.33 and 0.65 ms for an input gradient; Zen 3, 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from hubel.ops.kept_memory import SHARED, TYPES, serving

# What Inductor's code allocates with: past the dispatcher, 1 µs less than `torch.empty_strided` on every call, and no
# default device, dtype or torch function mode can change what comes back.
empty = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]
# part(x, shape, strides, first): a tensor in the memory of x, which autograd takes for one of its own.
part = torch._C._dynamo.guards._reinterpret_tensor  # type: ignore[attr-defined]

# Results from so many bytes on lie in a graph's kept memory, or in the shared one, which take 5 µs longer to allocate.
_LARGE, _SHARED = 2**18, 2**22


def room(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Callable[[], Tensor]:
    """What allocates dense tensors that lie so. strides: in elements."""
    allocate = _empty_large if is_large(shape, dtype) else empty
    return partial(allocate, tuple(shape), tuple(strides), dtype)


def is_large(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether such a result may lie in kept memory."""
    return prod(shape) * dtype.itemsize >= _LARGE


def empty_like(x: Tensor) -> Tensor:
    """A tensor that lies as this dense one does."""
    return room(x.shape, x.stride(), x.dtype)()


def _empty_large(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    memory = serving() or (SHARED if lies_in_shared_memory(shape, dtype) else None)
    return memory.empty(shape, strides, dtype) if memory and dtype in TYPES else empty(shape, strides, dtype)


def lies_in_shared_memory(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether such a result, of a layer called by itself, is not allocated as torch does it."""
    return prod(shape) * dtype.itemsize >= _SHARED
