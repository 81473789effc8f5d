"""Memory for large results that come again with every step, kept from one step to the next.

A gradient of 400 MB is freed by `zero_grad` and allocated anew by the next step; the operating system takes its pages
away in between, and handing out and clearing new ones takes longer than computing what goes into them (150 of 190 ms,
Zen 3). Here the memory of a tensor that nobody holds any more is used for the next one of its size.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from math import prod

import numpy as np
import torch
from torch import Tensor

# Alignment of a tensor, in numbers.
_LINE = 16


class KeptMemory:
    """Tensors of float32. Kept is as much as tensors of each size were alive at once, as long as this object lives: for
    results of few sizes, as a graph has them.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def empty(self, *shape: int) -> Tensor:
        """A contiguous tensor of undefined numbers, at a multiple of 64 bytes."""
        count = prod(shape)
        try:
            block = self._free[count].pop()
        except IndexError:
            block = np.empty(count + _LINE, np.float32)
        start = -(block.ctypes.data // block.itemsize) % _LINE
        numbers = block[start : start + count]
        # The tensor's storage holds `numbers`, whichever views of it there are, and nothing else does.
        weakref.finalize(numbers, self._free[count].append, block).atexit = False
        return torch.from_numpy(numbers).view(shape)
