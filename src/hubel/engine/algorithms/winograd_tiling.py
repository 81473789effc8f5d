"""How a Winograd problem is cut up: size of the tiles, register tile, blocks of tiles, shares of the output channels.

Of these only the size of the tiles and the block of channels change bits, and they are chosen for one image and one
thread. Everything is chosen by counting cycles; the constants were measured on Cascade Lake (2026-11):

- `transformed` values of a block of tiles should fill about a third of the L2 cache, but 32 tiles are the least that
  hides the streaming of the weights (64 → 64 channels at 56×56, 64 tiles a block: 266 GFLOP/s, 32 tiles: 294).
- The `sums` of the output channels done at a time should fill another third, and half where the transformed values do
  not fit anyway.
- Register tiles reach this share of the FMA peak from L1: 13×32 and 14×32 0.95, 8×32 0.94, 8×48 0.95, 13×16 0.80,
  8×16 0.73.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hubel.engine.algorithms.geometry import Sum, one_image, sums
from hubel.engine.algorithms.tiling import rows_that_fit, step_cycles
from hubel.engine.algorithms.winograd_kernels import MOST_TILES
from hubel.engine.algorithms.winograd_transforms import TAPS, transforms
from hubel.engine.machine import Machine
from hubel.engine.plan import Tile
from hubel.engine.spec import Problem

OUTPUTS = (4, 2)
LEAST_TILES = 32
# Vectors of a register tile.
WIDTH = 2
# Cycles: a row of a piece of tiles gathered or stored; a transformed value of a vector of tiles; a call of the
# register tile; a work item.
ROW, VALUE, CALL, ITEM = 27.0, 3.3, 40.0, 1500.0
# The register tile within the loops around it, against its count of cycles; bytes of weights a cycle from L3, and
# from memory.
LOOPS, FROM_L3, FROM_MEMORY = 1.15, 8.0, 4.0
BARRIER = 5000.0


@dataclass(frozen=True)
class Cut:
    """A problem cut into work items. vectors: of tiles, in all; blocks: of them, a group; part_tiles: tiles of output
    channels of an item, sub_tiles: of them at a time; shared: whether transforming is a job of its own; cycles: until
    all threads are done; computed: floating-point operations."""

    outputs: int
    tile: Tile
    block: int
    vectors: int
    blocks: int
    part_tiles: int
    sub_tiles: int
    channel_parts: int
    shared: bool
    cycles: float
    computed: int


@lru_cache(maxsize=4096)
def cut(problem: Problem, machine: Machine, threads: int) -> Cut:
    """The cheapest cut. The size of the tiles is that which is best for one image on one thread: it may not depend on
    the batch."""
    alone = one_image(problem)
    outputs = min(OUTPUTS, key=lambda m: _Counting(m, alone, machine).best(1).cycles)
    return _Counting(outputs, problem, machine).best(threads)


class _Counting:
    """Counts the cycles of one problem with tiles of one size."""

    def __init__(self, outputs: int, problem: Problem, machine: Machine) -> None:
        self.m, self.machine, self.groups = outputs, machine, problem.spec.groups
        self.points = transforms(outputs).size ** 2
        self.part: Sum = sums(Problem(problem.spec, problem.direction))[0]
        self.lanes = machine.lanes
        _, high, wide = self.part.outputs
        self.wide = -(-wide // outputs)
        self.all_tiles = problem.spec.batch * -(-high // outputs) * self.wide
        self.vectors = -(-self.all_tiles // self.lanes)
        most = max(1, machine.l1 // 2 // (4 * MOST_TILES))
        self.block = -(-self.part.channels // -(-self.part.channels // most))
        self.tile = _register_tile(machine, self.part.rows)
        self.tiles = -(-self.part.rows // self.tile.rows)

    def best(self, threads: int) -> Cut:
        """The cut with the fewest cycles on so many threads."""
        fits = 0.35 * self.machine.l2 / (4 * self.points * self.part.channels)
        most = max(1, int(min(max(fits, LEAST_TILES), MOST_TILES)) // self.lanes)
        blocks = max(1, -(-self.vectors // most))
        candidates = [self._alone(b, threads) for b in range(blocks, min(self.vectors, blocks + 2 * threads - 1) + 1)]
        if not candidates:
            candidates = [self._alone(blocks, threads)]
        if threads > 1:
            candidates.append(self._shared(blocks, threads))
        return min(candidates, key=lambda c: c.cycles)

    def _alone(self, blocks: int, threads: int) -> Cut:
        """Work items that transform and multiply."""
        vectors = -(-self.vectors // blocks)
        low, wide_blocks = divmod(self.vectors, blocks)
        items = self.groups * blocks
        each = [self._transform(v) + self._multiply(v, self.tiles) + ITEM for v in (low, low + 1)]
        total = self.groups * ((blocks - wide_blocks) * each[0] + wide_blocks * each[1])
        busy = items / threads
        longest = each[1] if wide_blocks else each[0]
        # Up to a few rounds the items are counted out; later the last round is half empty.
        cycles = max(total / threads, -(-items // threads) * longest) if busy <= 4 else total / threads + longest / 2
        if threads == 1:
            cycles = total
        return self._cut(blocks, self.tiles, self._sub_tiles(vectors), 1, False, cycles)

    def _shared(self, blocks: int, threads: int) -> Cut:
        """Two jobs: transforming by blocks and channels, multiplying by blocks and output channels."""
        vectors = -(-self.vectors // blocks)
        parts = -(-2 * threads // (self.groups * blocks))
        channel_parts = min(parts, self.part.channels)
        part_tiles = -(-self.tiles // min(parts, self.tiles))
        first = self._rounds(self.groups * blocks * channel_parts, threads) * (
            self._transform(vectors) / channel_parts + ITEM
        )
        row_parts = -(-self.tiles // part_tiles)
        items = self.groups * blocks * row_parts
        second = self._rounds(items, threads) * (self._multiply(vectors, part_tiles) + ITEM)
        sub_tiles = min(part_tiles, self._sub_tiles(vectors))
        return self._cut(blocks, part_tiles, sub_tiles, channel_parts, True, first + second + BARRIER)

    def _cut(self, blocks: int, part: int, sub: int, channel_parts: int, shared: bool, cycles: float) -> Cut:
        width = self.vectors * self.lanes * self.groups
        products = 2 * self.points * self.part.channels * self.tiles * self.tile.rows * width
        # The transforms take about four operations for each of their values.
        computed = products + 4 * self.points * (self.part.channels + self.part.rows) * width
        size = self.m, self.tile, self.block, self.vectors, blocks, part, min(sub, part)
        return Cut(*size, channel_parts, shared, cycles, computed)

    @staticmethod
    def _rounds(items: int, threads: int) -> float:
        return -(-items // threads) if items <= 4 * threads else items / threads + 0.5

    def _sub_tiles(self, vectors: int) -> int:
        """Tiles of output channels whose sums fit the cache beside a block's transformed values."""
        pitch = vectors * self.lanes
        fit = 4 * self.points * self.part.channels * pitch <= 0.6 * self.machine.l2
        room = (0.3 if fit else 0.5) * self.machine.l2
        return max(1, int(room / (4 * self.points * self.tile.rows * pitch)))

    def _pieces(self, vectors: int) -> float:
        """Pieces of rows of tiles in a block; where there are several blocks, they begin and end within rows."""
        tiles = vectors * self.lanes
        return min(tiles, self.all_tiles) / min(self.wide, self.lanes - 1) + (tiles < self.all_tiles)

    def _transform(self, vectors: int) -> float:
        rows = self._pieces(vectors) * (self.m + TAPS - 1) * ROW
        return self.part.channels * (rows + vectors * self.points * VALUE)

    def _multiply(self, vectors: int, tiles: int) -> float:
        """Products, and the making and storing of outputs, of one block and so many tiles of output channels."""
        if not vectors:
            return 0.0
        channels, rows = self.part.channels, min(self.part.rows, tiles * self.tile.rows)
        widths = [WIDTH] * (vectors // WIDTH) + [1] * (vectors % WIDTH)
        steps = sum(step_cycles(self.machine, self.tile.rows, width, 1) for width in widths) * LOOPS
        calls = len(widths) * -(-channels // self.block) * CALL
        products = self.points * tiles * (channels * steps + calls)
        weights = 4 * self.points * channels * tiles * self.tile.rows
        stored = 4 * self.points * channels * self.tiles * self.tile.rows * self.groups
        streamed = weights / (FROM_L3 if stored < self.machine.l3 / 2 else FROM_MEMORY)
        outputs = rows * (vectors * self.points * VALUE + self._pieces(vectors) * self.m * ROW)
        return max(products, streamed) + outputs


def _register_tile(machine: Machine, rows: int) -> Tile:
    """Two vectors wide, and of many rows, so that one vector alone keeps enough sums going too. It depends on the
    layer alone: all image sizes share one kernel and one packed form of the weights."""
    fit = range(1, rows_that_fit(machine, WIDTH) + 1)

    def cycles(r: int) -> float:
        return -(-rows // r) * (step_cycles(machine, r, WIDTH, 1) + 1)

    return Tile(min(fit, key=lambda r: (round(cycles(r), 6), -r)), WIDTH, machine.lanes)
