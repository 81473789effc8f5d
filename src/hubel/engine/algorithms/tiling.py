"""Shapes of register tiles: which fit a machine's registers, and which wastes least on a problem.

A step of an outer-product tile costs the largest of
    rows·vectors ∕ 2                          multiply-adds, two a cycle
    (rows + vectors·crossing) ∕ 2             loads, two a cycle; a vector that crosses cache lines counts `crossing` times
    (rows·vectors + rows + vectors + 4) ∕ 4   instructions, four a cycle
    4                                         the latency of a multiply-add, where there are few accumulators
cycles, and there are ⌈rows of the problem ∕ rows⌉ · ⌈pixels ∕ lanes of the tile⌉ of them a term.
"""

from __future__ import annotations

from functools import lru_cache

from hubel.engine.machine import Machine
from hubel.engine.plan import Tile, error_unit, terms_of
from hubel.engine.spec import Problem

# Widths in vectors. A layer's tile depends on its channels and on one of these alone, so that no more than four kernels are ever
# compiled for one layer and direction, whatever image sizes come.
WIDTHS = (1, 2, 3, 4)


def rows_that_fit(machine: Machine, vectors: int) -> int:
    """Most rows of a tile: its accumulators, its pixels and one weight must find room in the registers."""
    return (machine.registers - vectors - 1) // vectors


def step_cycles(machine: Machine, rows: int, vectors: int, taps: int) -> float:
    """Cycles of one term of a tile's sum (module docstring)."""
    unaligned = 1.0 if taps == 1 else 1.9 if machine.lanes == 16 else 1.4
    multiply = rows * vectors / 2
    loads = (rows + vectors * unaligned) / 2
    instructions = (rows * vectors + rows + vectors + 4) / 4
    return max(multiply, loads, instructions, 4.0)


@lru_cache(maxsize=4096)
def choose_tile(machine: Machine, rows: int, pixels: int, taps: int) -> Tile:
    """The tile with the least cycles for `rows` output channels of a group and `pixels` places of a work item."""

    def rows_for(vectors: int) -> int:
        fit = range(1, rows_that_fit(machine, vectors) + 1)
        return min(fit, key=lambda r: (-(-rows // r) * step_cycles(machine, r, vectors, taps), r))

    def cycles(vectors: int) -> float:
        tall = rows_for(vectors)
        runs = -(-pixels // (vectors * machine.lanes))
        return -(-rows // tall) * runs * step_cycles(machine, tall, vectors, taps)

    vectors = min(WIDTHS, key=lambda v: (round(cycles(v), 3), -v))
    return Tile(rows_for(vectors), vectors, machine.lanes)


def error_bound(problem: Problem) -> float:
    """Bound on the relative error of a sum in blocks, on N(0,1) data: measured 0.8·u for blocks of up to 768 terms, and doubled."""
    return 1.5 * error_unit(terms_of(problem))
