"""Where everything lies: buffers with lifetimes share one arena.

A buffer lives from the first step that touches it to the last. Two buffers may share memory if their lives do not
meet. Buffers are placed largest first, each at the lowest place where it fits beside those it meets: within some
percent of the least possible on networks (Pisarchyk and Lee 2020, arXiv 2001.03288).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """bytes: of a buffer. first, last: the steps between which it is in use, both included."""

    bytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def arena(lives: Sequence[Life]) -> tuple[list[int], int]:
    """(where each buffer begins, bytes of the arena). All places are multiples of `ALIGNMENT`."""
    order = sorted(range(len(lives)), key=lambda i: (-lives[i].bytes, lives[i].first))
    places = [0] * len(lives)
    placed: list[int] = []
    for i in order:
        met = sorted((places[j], places[j] + lives[j].bytes) for j in placed if lives[j].meets(lives[i]))
        at = 0
        for begin, end in met:
            if at + lives[i].bytes <= begin:
                break
            at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        places[i] = at
        placed.append(i)
    total = max((places[i] + lives[i].bytes for i in placed), default=0)
    return places, -(-total // ALIGNMENT) * ALIGNMENT
