"""Memory that ends where a tensor ends: the pages behind and before it may not be touched."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from numpy.lib.stride_tricks import as_strided

PAGE = 4096
NO_ACCESS, READ, READ_WRITE, PRIVATE_ANONYMOUS = 0, 1, 3, 0x22


class Fenced:
    """A copy of a tensor, same strides, that ends right before a forbidden page, or begins right behind one.

    Its memory is never given back.
    """

    def __init__(self, like: np.ndarray, at_end: bool) -> None:
        reach = 4 + sum((n - 1) * s for n, s in zip(like.shape, like.strides, strict=True)) if like.size else 4
        self._room = -(-reach // PAGE) * PAGE
        self._base = _LIBC.mmap(None, self._room + 2 * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0) + PAGE
        self.address = self._base + self._room - reach if at_end else self._base
        self.strides = tuple(s // 4 for s in like.strides)
        memory = np.ctypeslib.as_array((ctypes.c_float * (reach // 4)).from_address(self.address))
        as_strided(memory, like.shape, like.strides)[...] = like
        self._protect(self._base - PAGE, PAGE, NO_ACCESS)
        self._protect(self._base + self._room, PAGE, NO_ACCESS)

    def read_only(self) -> Fenced:
        self._protect(self._base, self._room, READ)
        return self

    def _protect(self, address: int, size: int, access: int) -> None:
        assert _LIBC.mprotect(address, size, access) == 0


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_size_t
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.mprotect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    return libc


_LIBC = _libc() if sys.platform.startswith("linux") else ctypes.CDLL(None)
