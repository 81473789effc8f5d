"""Small tables of 64-bit integers whose addresses stand in a job's words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tables:
    """Makes tables, and keeps them alive until the jobs that point to them are gone."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, numbers: Sequence[int]) -> int:
        """The address of a table of these numbers."""
        array = np.array(list(numbers) or [0], dtype=np.int64)
        self._arrays.append(array)
        return array.ctypes.data

    def keep(self) -> tuple[object, ...]:
        """What must be kept alive."""
        return tuple(self._arrays)
