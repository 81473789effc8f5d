"""Memory for large results that come again with every step, kept from one step to the next.

What a step has computed is freed by its end and allocated anew by the next. The C library gives its pages back to the
operating system in between, and handing out and clearing new ones takes long: 20 of the 77 ms of a step of MobileNet v2
(batch 16, 64²), 150 of the 190 ms of a gradient of 400 MB (Zen 3). Here the memory of a tensor that nobody holds any
more is used for the next one of its size.

A graph has a memory of its own, which lives as long as it does. Layers that are called one by one share `SHARED`, which
keeps what was needed lately, up to a share of the machine's memory.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hubel.engine.machine import give_back_memory, physical_memory

# Alignment of a tensor, in bytes.
_LINE = 64
# What is served, and as which type numpy has it.
TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
# What no tensor needed for so many runs of a graph is given back: two training steps have two forward, two backward.
_RUNS = 4
# The same for layers that are called one by one, in calls: some steps of a deep network.
_CALLS = 1024
# Of the machine's memory, what may be kept for such layers.
_SHARE = 1 / 16
_serving = threading.local()
_Block: TypeAlias = tuple[int, np.ndarray]


class KeptMemory:
    """Tensors of float32 and of 16 bits. Kept is what the last runs of `served` functions needed, as long as this
    object lives.
    """

    _last = _RUNS

    def __init__(self) -> None:
        # Of each size, in bytes, the blocks that nobody holds, with the run that used them last; the latest back is
        # the last.
        self._free: defaultdict[int, list[_Block]] = defaultdict(list)
        self._runs = 0

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A dense tensor of undefined numbers, at a multiple of 64 bytes. strides: in elements."""
        each = dtype.itemsize
        size = prod(shape) * each
        try:
            _, block = self._free[size].pop()
        except IndexError:
            block = _aligned(size)
        # The tensor's storage holds this array, whichever views of it there are, and nothing else does.
        array = _Lent(shape, TYPES[dtype], block, 0, tuple([each * n for n in strides]))
        array.give_back = partial(self._taker(size), (self._runs, block))
        tensor = torch.from_numpy(array)
        return tensor if tensor.dtype is dtype else tensor.view(dtype)

    def clear(self) -> None:
        """Give back all that no tensor holds, to the operating system."""
        self._free = defaultdict(list)
        give_back_memory()

    def _taker(self, size: int) -> Callable[[_Block], None]:
        """What takes a block of this size back. It may outlive this object."""
        return self._free[size].append

    def served(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose large results (`results`) lie in this memory."""

        def run(*args: Any) -> Any:
            self._runs += 1
            self._forget()
            before = serving()
            _serving.memory = self
            try:
                return function(*args)
            finally:
                _serving.memory = before

        return run

    def _forget(self) -> None:
        """Give back what was not needed in the last runs."""
        for blocks in list(self._free.values()):
            while blocks and blocks[0][0] < self._runs - self._last:
                # Other threads may take blocks, too, from the other end.
                del blocks[:1]


class SharedMemory(KeptMemory):
    """The same for layers that are called one by one: every tensor is a run, and at most `most` bytes are kept."""

    _last = _CALLS

    def __init__(self, most: float) -> None:
        super().__init__()
        self._most = most

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        self._runs += 1
        if not self._free[prod(shape) * dtype.itemsize]:
            # More is needed than before: a time to look for what is not.
            self._forget()
            self._free = defaultdict(list, {size: blocks for size, blocks in self._free.items() if blocks})
        return super().empty(shape, strides, dtype)

    def kept(self) -> int:
        """Bytes that no tensor holds."""
        return sum(size * len(blocks) for size, blocks in list(self._free.items()))

    def _taker(self, size: int) -> Callable[[_Block], None]:
        return partial(self._take, size)

    def _take(self, size: int, block: _Block) -> None:
        if self.kept() + size <= self._most:
            self._free[size].append(block)


class _Lent(np.ndarray):
    """A block's numbers, which say when nobody needs them any more."""

    give_back: Callable[[], None]

    def __del__(self) -> None:
        self.give_back()


def _aligned(size: int) -> np.ndarray:
    # numpy asks for pages of 2 MB, where the system has them: clearing them takes a quarter of the time.
    block = np.empty(size + _LINE, np.uint8)
    start = -block.ctypes.data % _LINE
    return block[start : start + size]


SHARED = SharedMemory(_SHARE * physical_memory())


def serving() -> KeptMemory | None:
    """The memory of the function that this thread is in."""
    return getattr(_serving, "memory", None)
