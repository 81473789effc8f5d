"""Whether the values of many weights are still what they were: one call of a generated function for a whole network.

Of each weight the memory is compared that `weights.picked` says. Python would need a microsecond or two a weight, and
networks have hundreds.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hubel.engine.compile import Library, compiled
from hubel.engine.machine import Machine
from hubel.ops.weights import picked

# What is compared at a time, in bytes: whole stretches, single words of 32 bits, the end of a stretch.
_STRETCH, _WORD, _BYTE = 32, 4, 1
_TYPES = {_STRETCH: "<32 x i8>", _WORD: "i32", _BYTE: "i8"}
# An entry: where its first piece lies, bytes from one piece to the next, how many, how large, and where the copies are.
_ENTRY_WORDS = 5


class Samples:
    """Copies of the values of some weights. They do not keep the memory alive: ask only while it is the weights'."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        pieces = [piece for w in weights for piece in _pieces(w)]
        places = np.cumsum([0, *(count * size for _, _, count, size in pieces)])
        self._copies = np.empty(places[-1], np.uint8)
        self._entries = np.empty((len(pieces), _ENTRY_WORDS), np.int64)
        for entry, place, (address, apart, count, size) in zip(self._entries, places, pieces, strict=False):
            entry[:] = address, apart, count, size, self._copies.ctypes.data + place
            span = (count - 1) * apart + size
            memory: Any = (ctypes.c_char * span).from_address(address)
            memory = np.frombuffer(memory, np.uint8)
            windows = np.lib.stride_tricks.as_strided(memory, (count, size), (apart, 1))
            self._copies[place : place + count * size] = windows.ravel()
        self._differ, self._library = _function()
        self._arguments = self._entries.ctypes.data, len(self._entries)

    def unchanged(self) -> bool:
        """Whether all values are as they were."""
        return not self._differ(*self._arguments)


def _pieces(w: Tensor) -> list[tuple[int, int, int, int]]:
    """(address, bytes apart, count, bytes) of what is compared of a weight that lies dense in memory."""
    address, total = w.data_ptr(), w.numel() * w.element_size()
    words = total // _WORD
    apart = picked(words, len(w) if w.dim() else 1)
    if apart > 1:
        return [(address, _WORD * apart, -(-words // apart), _WORD)]
    stretches, rest = divmod(total, _STRETCH)
    found = [(address, _STRETCH, stretches, _STRETCH), (address + total - rest, _BYTE, rest, _BYTE)]
    return [piece for piece in found if piece[2]]


@functools.cache
def _function() -> tuple[Callable[[int, int], int], Library]:
    text = samples_ir()
    # The engine's version says nothing of this text, which is not the engine's.
    library = compiled(f"samples_{hashlib.sha256(text.encode()).hexdigest()[:16]}", lambda: text, Machine.detect())
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    return kind(library.address("differ")), library


def samples_ir() -> str:
    """differ(entries, count): 1 if any piece of any entry is not as its copy."""
    words = ("address", "apart", "count", "size", "copies")
    load = "\n".join(
        f"  %{word}_at = getelementptr i64, ptr %entries, i64 %{word}_word\n  %{word} = load i64, ptr %{word}_at"
        for word in words
    )
    index = "\n".join(f"  %{word}_word = add i64 %first, {i}" for i, word in enumerate(words))
    cases = "\n".join(f"    i64 {size}, label %compare{size}" for size in _TYPES)
    return f"""
define i64 @differ(ptr %entries, i64 %entries_count) {{
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], {", ".join(f"[ %i_next, %compared{size} ]" for size in _TYPES)}
  %i_next = add i64 %i, 1
  %more = icmp slt i64 %i, %entries_count
  br i1 %more, label %read, label %same
read:
  %first = mul i64 %i, {_ENTRY_WORDS}
{index}
{load}
  %data = inttoptr i64 %address to ptr
  %kept = inttoptr i64 %copies to ptr
  switch i64 %size, label %different [
{cases}
  ]
{"".join(_compare(size, type_) for size, type_ in _TYPES.items())}
same:
  ret i64 0
different:
  ret i64 1
}}
"""


def _compare(size: int, type_: str) -> str:
    """The blocks that compare the pieces of an entry, all before a branch: loads then need not wait for each other."""
    whole = f"i{8 * size}"
    return f"""
compare{size}:
  %n{size} = phi i64 [ 0, %read ], [ %n_next{size}, %compare{size} ]
  %seen{size} = phi {type_} [ zeroinitializer, %read ], [ %seen_next{size}, %compare{size} ]
  %here_from{size} = mul i64 %n{size}, %apart
  %here_at{size} = getelementptr i8, ptr %data, i64 %here_from{size}
  %there_from{size} = mul i64 %n{size}, {size}
  %there_at{size} = getelementptr i8, ptr %kept, i64 %there_from{size}
  %here{size} = load {type_}, ptr %here_at{size}, align 1
  %there{size} = load {type_}, ptr %there_at{size}, align 1
  %difference{size} = xor {type_} %here{size}, %there{size}
  %seen_next{size} = or {type_} %seen{size}, %difference{size}
  %n_next{size} = add i64 %n{size}, 1
  %again{size} = icmp slt i64 %n_next{size}, %count
  br i1 %again{size}, label %compare{size}, label %compared{size}
compared{size}:
  %bits{size} = bitcast {type_} %seen_next{size} to {whole}
  %equal{size} = icmp eq {whole} %bits{size}, 0
  br i1 %equal{size}, label %next, label %different
"""
