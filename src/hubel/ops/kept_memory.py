"""Memory for large results that come again with every step, kept from one step to the next.

What a step has computed is freed by its end and allocated anew by the next. The C library gives its pages back to the
operating system in between, and handing out and clearing new ones takes long: 20 of the 77 ms of a step of MobileNet v2
(batch 16, 64²), 150 of the 190 ms of a gradient of 400 MB (Zen 3). Here the memory of a tensor that nobody holds any
more is used for the next one of its size.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Alignment of a tensor, in numbers.
_LINE = 16
# What no tensor needed for so many runs of a graph is given back: two training steps have two forward, two backward.
_RUNS = 4
_serving = threading.local()


class KeptMemory:
    """Tensors of float32. Kept is what the last runs of `served` functions needed, as long as this object lives."""

    def __init__(self) -> None:
        # Of each size the blocks that nobody holds, with the run that used them last; the latest back is the last.
        self._free: defaultdict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        self._runs = 0

    def empty(self, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
        """A dense tensor of undefined numbers, at a multiple of 64 bytes. strides: in elements."""
        count = prod(shape)
        free = self._free[count]
        try:
            _, block = free.pop()
        except IndexError:
            block = _aligned(count)
        # The tensor's storage holds this array, whichever views of it there are, and nothing else does.
        array = _Lent(shape, np.float32, block, 0, tuple([block.itemsize * n for n in strides]))
        array.give_back = partial(free.append, (self._runs, block))
        return torch.from_numpy(array)

    def served(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose large results (`results`) lie in this memory."""

        def run(*args: Any) -> Any:
            self._forget()
            before = serving()
            _serving.memory = self
            try:
                return function(*args)
            finally:
                _serving.memory = before

        return run

    def _forget(self) -> None:
        """Begin a run: what was not needed in the last ones goes."""
        self._runs += 1
        for blocks in list(self._free.values()):
            while blocks and blocks[0][0] < self._runs - _RUNS:
                # Other threads may take blocks, too, from the other end.
                del blocks[:1]


class _Lent(np.ndarray):
    """A block's numbers, which say when nobody needs them any more."""

    give_back: Callable[[], None]

    def __del__(self) -> None:
        self.give_back()


def _aligned(count: int) -> np.ndarray:
    block = np.empty(count + _LINE, np.float32)
    start = -(block.ctypes.data // block.itemsize) % _LINE
    return block[start : start + count]


def serving() -> KeptMemory | None:
    """The memory of the function that this thread is in."""
    return getattr(_serving, "memory", None)
