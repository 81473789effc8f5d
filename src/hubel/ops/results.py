"""Where results are allocated: small ones as Inductor's code does it, large ones so that their pages cost little.

    allocate = room(shape, strides, dtype)            once for a call
    y = allocate()                                    undefined numbers, on the CPU

A graph's large results lie in the memory that it keeps (`kept_memory`). Blocks beyond 32 MB glibc takes from the
operating system for each call, in pages of 4 kB that are cleared when they are first written to: 17 ms for 51 MB where
writing takes 1.5. Asked to, Linux hands out pages of 2 MB: 4 ms (Zen 3, 2026-11). For smaller results nothing is
gained: most lie in memory that is in use already, and now and then Linux takes 50 ms to find such pages.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from hubel.ops.kept_memory import serving

# What Inductor's code allocates with: past the dispatcher, 1 µs less than `torch.empty_strided` on every call, and no
# default device, dtype or torch function mode can change what comes back.
empty = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]

# Results from so many bytes on lie in a graph's kept memory, which takes 5 µs longer to allocate.
_LARGE = 2**18
# glibc's DEFAULT_MMAP_THRESHOLD_MAX.
_LARGEST_KEPT = 32 * 2**20
_HUGE_PAGES: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
_advise = ctypes.CDLL(None).madvise if _HUGE_PAGES is not None else None


def room(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Callable[[], Tensor]:
    """What allocates dense tensors that lie so. strides: in elements."""
    small = prod(shape) * dtype.itemsize < _LARGE
    return partial(empty if small else _empty_large, tuple(shape), tuple(strides), dtype)


def empty_like(x: Tensor) -> Tensor:
    """A tensor that lies as this dense one does."""
    return room(x.shape, x.stride(), x.dtype)()


def _empty_large(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    memory = serving()
    if memory is not None and dtype is torch.float32:
        return memory.empty(shape, strides)
    y = empty(shape, strides, dtype)
    if has_pages_of_its_own(shape, dtype):
        _ask_for_huge_pages(y)
    return y


def has_pages_of_its_own(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the operating system maps such a tensor anew for each call."""
    return prod(shape) * dtype.itemsize > _LARGEST_KEPT


def _ask_for_huge_pages(y: Tensor) -> None:
    """For the whole pages of a tensor's memory; where the system has none to give it stays as it is."""
    if _advise is None:
        return
    page = mmap.PAGESIZE
    first, last = -(-y.data_ptr() // page) * page, (y.data_ptr() + y.nbytes) // page * page
    _advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _HUGE_PAGES)
