"""Numbers as they are stored, in numpy: 16 bits as uint16, whatever they mean."""

from __future__ import annotations

import numpy as np

STORED = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.uint16}


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """As they are stored → float32."""
    if dtype == "float32":
        return stored
    if dtype == "float16":
        return stored.view(np.float16).astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 → as they are stored: to nearest, ties to even; NaN stays NaN."""
    if dtype == "float32":
        return values
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers that are stored exactly."""
    return widen(narrow(values, dtype), dtype)
