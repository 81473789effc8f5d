"""Constants in a file of nobody's, read when they are packed: what `memory="small"` does with raw weights.

A network reads a convolution's weights once, to pack them, and then only for sizes that want another packing. In an
unlinked temporary file they cost address space; `release` gives their pages back, and whoever reads them again gets
them from the file. Nobody else can write to or shorten it.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping

import numpy as np

# Bytes: smaller ones stay where they are, pages being what they are.
LEAST = 64 * 1024


class Spilled:
    """constants: the same values by the same names; the large ones lie in the file, the others are copies."""

    def __init__(self, constants: Mapping[str, np.ndarray]) -> None:
        self.constants = {name: value.copy() for name, value in constants.items() if value.nbytes < LEAST}
        large = {name: np.ascontiguousarray(value) for name, value in constants.items() if value.nbytes >= LEAST}
        self._where: dict[str, tuple[int, int]] = {}
        self._map: mmap.mmap | None = None
        if not large:
            return
        end = 0
        for name, value in large.items():
            self._where[name] = end, value.nbytes
            end += -(-value.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with tempfile.TemporaryFile() as file:
            for name, value in large.items():
                file.seek(self._where[name][0])
                value.tofile(file)
            file.truncate(end)
            file.flush()
            # Copy on write: torch's operators want memory that may be written to.
            self._map = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_COPY)
        for name, value in large.items():
            start, size = self._where[name]
            flat = np.frombuffer(self._map, np.uint8, size, start)
            self.constants[name] = flat.view(value.dtype).reshape(value.shape)

    def release(self, name: str) -> None:
        """Give a constant's pages back, where the system can; its values stay readable."""
        if self._map is not None and name in self._where and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, *self._where[name])
