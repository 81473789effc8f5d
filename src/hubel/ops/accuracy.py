"""The choices that hold for every convolution of the process: how exact, whether always the same bits, and whether
plans are estimated or measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

from hubel.engine.problem import Accuracy, Policy
from hubel.errors import unknown

_accuracy: Accuracy = "default"
_deterministic = True
_measured = False

# Called after a change: prepared calls were planned under the old choice.
_on_change: list[Callable[[], object]] = []


def set_accuracy(level: Accuracy) -> None:
    """Choose the error that every convolution may have from now on, in this process.

    level: "strict" (at most 2 u, and torch's NaN, Inf and denormals), "default" (6 u) or "fast" (20 u), with
    u = 3e-7 · max(1, √(K ∕ 2304)) for sums of K terms. Raises `UnknownNameError` for any other word.
    """
    global _accuracy
    if level not in get_args(Accuracy):
        raise unknown("accuracy", level, get_args(Accuracy))
    _accuracy = level
    _changed()


def set_deterministic(on: bool) -> None:
    """Whether results have the same bits whatever the threads and the rest of the batch; at first they have."""
    global _deterministic
    _deterministic = bool(on)
    _changed()


def set_planning(way: Literal["estimate", "measure"]) -> None:
    """How the engine chooses among plans that give the same bits: by counting cycles, or by timing the best few.

    Timing takes up to some seconds for each new layer and image size, once: what is found is kept in the cache folder
    (`hubel.export_wisdom` writes it to a file). Raises `UnknownNameError` for any other word.
    """
    global _measured
    if way not in ("estimate", "measure"):
        raise unknown("way of planning", way, ("estimate", "measure"))
    _measured = way == "measure"
    _changed()


def policy(threads: int) -> Policy:
    """What the engine is asked for now."""
    return _made(_accuracy, _deterministic, threads, _measured)


# Compiled networks ask with every call.
_made = lru_cache(maxsize=64)(Policy)


def on_change(forget: Callable[[], object]) -> None:
    """Have `forget` called whenever a choice changes."""
    _on_change.append(forget)


def _changed() -> None:
    for forget in _on_change:
        forget()
