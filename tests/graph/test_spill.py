"""Weights in a file of nobody's: the same values, whose pages can be given back and come again."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from hubel.graph.spill import LEAST, Spilled

DRAW = np.random.default_rng(0)
CONSTANTS = {
    "large": DRAW.standard_normal((64, 33, 3, 5)).astype(np.float32),
    "indices": DRAW.integers(0, 9, (3, LEAST), dtype=np.int64),
    "turned": DRAW.standard_normal((300, 200)).astype(np.float32).T,
    "small": DRAW.standard_normal(7).astype(np.float32),
    "empty": np.empty((0, 3), np.float32),
    "scalar": np.float32(3).reshape(()),
}


def test_values_are_the_same_before_and_after_they_are_released() -> None:
    wanted = {name: value.copy() for name, value in CONSTANTS.items()}
    spilled = Spilled(CONSTANTS)
    assert spilled.constants.keys() == wanted.keys()
    for _ in range(2):
        for name, value in wanted.items():
            found = spilled.constants[name]
            assert found.dtype == value.dtype and not np.shares_memory(found, CONSTANTS[name])
            np.testing.assert_array_equal(found, value)
            spilled.release(name)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_pages_leave_memory() -> None:
    big = np.ones((64, 2**18), np.float32)
    spilled = Spilled({"big": big})
    float(spilled.constants["big"].sum())
    full = resident()
    spilled.release("big")
    assert full - resident() > 0.9 * big.nbytes
    assert float(spilled.constants["big"].sum()) == big.size


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE
