"""How a sum is cut up: the shape of the register tile, the box of outputs and the share of output channels of a work
item.

None of these changes a bit of the result, so they may depend on the batch and on the threads. They are chosen by
counting cycles:

A step of a register tile costs the largest of

    rows·vectors ∕ 2                          multiply-adds, two a cycle
    (rows + vectors·crossing) ∕ 2             loads, two a cycle; one that crosses cache lines counts `crossing` times
    (rows·vectors + rows + vectors + 4) ∕ 4   instructions, four a cycle
    4                                         the latency of a multiply-add, where there are few accumulators

cycles, and a small share of a cycle for each load, which tells equal shapes apart as measuring does. A work item costs
its tiles' steps, the filling of its windows, the first reading of each window by a tile, and the storing. The
constants below were measured on Cascade Lake (2026-11); they need to be right only to a factor that orders the
candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from hubel.engine.algorithms.geometry import Sum
from hubel.engine.machine import Machine
from hubel.engine.plan import Tile, error_unit, terms_of
from hubel.engine.problem import Problem
from hubel.engine.window import Window

# Cuts that measuring chooses from.
MOST_ALTERNATIVES = 6
# Widths of tiles in vectors that are worth a look. The rows of a tile depend on the layer's channels and on the width
# alone, so a layer has as many kernels as widths, whatever image sizes come.
WIDTHS = (1, 2, 3, 4)
PIECES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
SHARES = (1, 2, 4, 8, 16)

# Cycles: starting a tile and adding its sums to memory; a row of a window or of the output; a vector of it; a
# channel's first line, which no hardware prefetcher foresees; a line of a window read from L2 by the first tile.
TILE, SUM, ROW, VECTOR, CHANNEL, LINE = 30.0, 2.0, 30.0, 4.0, 60.0, 5.0
# Most pixels computed for each that a row has, where rows are done one by one.
MOST_BESIDE = 1.15
# Cycles it costs to start a work item, and the share of an item that is lost where items do not divide evenly among
# busy threads.
ITEM, UNEVEN = 500.0, 0.2


@dataclass(frozen=True)
class _Item:
    """Cycles of a work item: for each tile of output channels, for the rest, and what is computed for each tile."""

    for_tile: float
    once: float
    computed: int


@dataclass(frozen=True)
class Cut:
    """A sum cut into work items. `cycles` is the estimate for all of them on all threads; `computed` the
    multiply-adds.
    """

    tile: Tile
    box: tuple[int, int, int]
    row_tiles: int
    cycles: float
    computed: int


def rows_that_fit(machine: Machine, vectors: int) -> int:
    """Most rows of a tile: its accumulators, its pixels and one weight must find room in the registers.

    On ARM two more are left free, because LLVM loads weights in pairs there.
    """
    others = 3 if machine.arch == "aarch64" else 1
    return (machine.registers - vectors - others) // vectors


def step_cycles(machine: Machine, rows: int, vectors: int, taps: int) -> float:
    """Cycles of one term of a tile's sum (module docstring)."""
    crossing = 1.0 if taps == 1 else 1.9 if machine.lanes == 16 else 1.4
    multiply = rows * vectors / 2
    loads = (rows + vectors * crossing) / 2
    instructions = (rows * vectors + rows + vectors + 4) / 4
    return max(multiply, loads, instructions, 4.0) + 0.05 * rows + 0.1 * vectors * crossing


def tile_of_width(machine: Machine, rows: int, vectors: int, taps: int) -> Tile:
    """The tile `vectors` wide that needs the fewest cycles for `rows` output channels of a group."""
    fit = range(1, rows_that_fit(machine, vectors) + 1)

    def cycles(r: int) -> float:
        return -(-rows // r) * step_cycles(machine, r, vectors, taps)

    return Tile(min(fit, key=lambda r: (round(cycles(r), 6), -r)), vectors, machine.lanes)


def cheapest(cuts: list[Cut]) -> Cut:
    """The cut with the fewest cycles; of those that hardly differ, the first."""
    best = cuts[0]
    for other in cuts:
        best = other if other.cycles < best.cycles * 0.999 else best
    return best


def cuts(
    part: Sum,
    block: int,
    copies: int,
    machine: Machine,
    threads: int,
    straight: bool,
    widths: tuple[int, ...] = WIDTHS,
) -> list[Cut]:
    """The ways to cut a sum that is done `copies` times (images × groups) on `threads` threads.

    block: channels summed in registers. straight: tiles that lie as the output does go to it without passing through
    scratch. widths: those that tiles may have.
    """
    found = []
    for box, boxes, tile, item in _items(part, block, machine, straight, widths):
        tiles = -(-part.rows // tile.rows)
        for share in SHARES:
            if share > tiles:
                break
            row_tiles = -(-tiles // share)
            items = copies * boxes * -(-tiles // row_tiles)
            each = item.once + row_tiles * item.for_tile
            busy = items / threads
            cycles = each * max(busy, 1.0) * (1 + (UNEVEN / busy if threads > 1 else 0))
            found.append(Cut(tile, box, row_tiles, cycles, item.computed * row_tiles * items))
    return found


@lru_cache(maxsize=64)
def _items(
    part: Sum, block: int, machine: Machine, straight: bool, widths: tuple[int, ...]
) -> list[tuple[tuple[int, int, int], int, Tile, _Item]]:
    """(box, how many boxes, tile, what a work item of both costs) of every pair worth a look. Kept, for one problem is
    cut for one thread and for several.
    """
    taps = max(1, part.tap_count)
    candidates = [tile_of_width(machine, part.rows, vectors, taps) for vectors in widths]
    found = []
    for box in _boxes(part.outputs):
        window = Window(part.axes, box, lanes=machine.lanes)
        boxes = prod(-(-o // b) for o, b in zip(part.outputs, box, strict=True))
        found += [(box, boxes, tile, _item(part, window, tile, block, machine, straight)) for tile in candidates]
    return found


def _boxes(outputs: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Boxes worth a look: whole rows and planes, cut along the outermost axis that there is; long single rows are cut
    too.
    """
    z, y, x = outputs
    if z * y == 1:
        sizes = {x if pieces == 1 else min(x, -(-x // pieces // 64) * 64) for pieces in PIECES}
        yield from ((1, 1, size) for size in sorted(sizes, reverse=True))
        return
    seen = set()
    for pieces in PIECES:
        cut_y = min(y, max(1, pieces // z))
        box = (-(-z // min(pieces, z)), -(-y // cut_y), x)
        if box not in seen:
            seen.add(box)
            yield box


def row_by_row(box: tuple[int, int, int], width: int) -> bool:
    """Whether rows of a box are long enough to be done one by one by tiles of this width: little is computed beside
    them, and whole tiles lie as the output does. Otherwise tiles run on from one row into the next.
    """
    z, y, x = box
    return z == 1 < y and -(-x // width) * width <= MOST_BESIDE * x


def _item(part: Sum, window: Window, tile: Tile, block: int, machine: Machine, straight: bool) -> _Item:
    """What one work item costs."""
    bz, by, bx = window.box
    lanes, width = machine.lanes, tile.vectors * machine.lanes
    taps, channels = part.tap_count, part.channels
    one_by_one = straight and row_by_row(window.box, width)
    runs = by * -(-bx // width) if one_by_one else -(-window.flat // width) * bz
    blocks = -(-channels // block)
    step = step_cycles(machine, tile.rows, tile.vectors, max(1, taps))
    for_tile = runs * (channels * taps * step + blocks * (TILE + SUM * tile.rows * tile.vectors))
    if one_by_one:
        for_tile += tile.rows * by * (ROW + VECTOR * (bx % width) / lanes) if bx % width else 0
    elif not (straight and bz == by == 1):
        for_tile += tile.rows * bz * by * (ROW + VECTOR * bx / lanes)
        # Sums that leave the L2 cache between two blocks are read and written at half of its speed.
        spill = 4 * part.rows * runs * width - machine.l2 // 2
        for_tile += max(0, spill) * tile.rows / part.rows * blocks / 16
    phases = prod(len(axis.phases) for axis in part.axes)
    lines = len(part.taps[0]) * len(part.taps[1]) * len(part.axes[2].phases) * ((width + part.axes[2].reach) / 16 + 1)
    per_vector = VECTOR if part.axes[2].step == 1 else VECTOR * lanes / 2
    filled = phases * window.planes * window.rows * (ROW + per_vector * window.valid[2] / lanes)
    once = ITEM + channels * (runs * lines * LINE + CHANNEL + filled)
    return _Item(for_tile, once, tile.rows * runs * width * channels * taps)


def error_bound(problem: Problem) -> float:
    """Bound on the relative error of a sum in blocks of up to 768 terms, or of one slice's taps where they are more, on
    N(0,1) data. Measured over all shapes (docs/numerics.md): 1.2·u at most for sums of several blocks; 1.66·u where all
    terms are one block, of 768 (16×16 stems) or 961 (31×31 depthwise).
    """
    return 1.9 * error_unit(terms_of(problem))
