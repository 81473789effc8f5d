"""The constants of a network, and their packed forms: made once, read by all sizes and threads.

A packed form belongs to a constant and a packing key (`Invocation.packing_key`); forms are never changed, so that a run
that is under way keeps those it began with.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubel.engine.invoke import Invocation
from hubel.graph.memory import ALIGNMENT
from hubel.graph.spill import Spilled


class Weights:
    """Constants by name, contiguous, with addresses. spilled: where they lie, if their pages are to be given back."""

    def __init__(self, constants: Mapping[str, np.ndarray], spilled: Spilled | None = None) -> None:
        self._spilled = spilled
        self._constants = {name: np.ascontiguousarray(value) for name, value in constants.items()}
        self._packed: dict[tuple[str, Any], np.ndarray] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._constants[name]

    def address(self, name: str) -> int:
        return self._constants[name].ctypes.data

    def ones(self, count: int) -> int:
        """The address of so many ones."""
        name = f"ones {count}"
        if name not in self._constants:
            self._constants[name] = np.ones(count, np.float32)
        return self.address(name)

    def packed(self, name: str, invocation: Invocation, threads: int) -> int:
        """The address of the constant in the order in which `invocation` reads it."""
        if not invocation.packed_bytes:
            return self.address(name)
        key = (name, invocation.packing_key)
        with self._lock:
            memory = self._packed.get(key)
            if memory is None:
                memory = self._packed[key] = np.empty(invocation.packed_bytes + ALIGNMENT, np.uint8)
                invocation.pack(self.address(name), aligned(memory), threads)
                if self._spilled is not None:
                    self._spilled.release(name)
        return aligned(memory)

    @property
    def bytes(self) -> int:
        """Of all constants and packed forms."""
        arrays = [*self._constants.values(), *self._packed.values()]
        return sum(array.nbytes for array in arrays)


def aligned(memory: np.ndarray) -> int:
    """The first address in it that is a multiple of `ALIGNMENT`."""
    return -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
