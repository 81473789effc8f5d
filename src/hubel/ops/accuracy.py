"""The two choices that hold for every convolution of the process: how exact, and whether always the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from hubel.engine.spec import Accuracy, Policy
from hubel.errors import unknown

_accuracy: Accuracy = "default"
_deterministic = True

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


def policy(threads: int) -> Policy:
    """What the engine is asked for now."""
    return Policy(_accuracy, _deterministic, threads)


def on_change(forget: Callable[[], object]) -> None:
    """Have `forget` called whenever a choice changes."""
    _on_change.append(forget)


def _changed() -> None:
    for forget in _on_change:
        forget()
