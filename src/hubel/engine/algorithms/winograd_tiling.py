"""How a Winograd problem is cut up: form, register tile, blocks of tiles, shares of the output channels.

A block is a strip of tiles, counted through all images, of some neighbouring planes (of one, where nothing is summed
along the outer axis).

Of these only the form and the block of channels change bits, and they are chosen for one image and one thread.
Everything is chosen by counting cycles; the constants were measured on Cascade Lake (2026-11):

- `transformed` values of a block of tiles should fill about a third of the L2 cache, but 32 tiles are the least that
  hides the streaming of the weights (64 → 64 channels at 56×56, 64 tiles a block: 266 GFLOP/s, 32 tiles: 294).
- The `sums` of the output channels done at a time should fill another third, and half where the transformed values do
  not fit anyway.
- Register tiles reach this share of the FMA peak from L1: 13×32 and 14×32 0.95, 8×32 0.94, 8×48 0.95, 13×16 0.80,
  8×16 0.73.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hubel.engine.algorithms.geometry import Sum, one_image, sums
from hubel.engine.algorithms.tiling import rows_that_fit, step_cycles
from hubel.engine.algorithms.winograd_forms import Form, allowed
from hubel.engine.algorithms.winograd_kernels import MOST_TILES
from hubel.engine.machine import Machine
from hubel.engine.plan import Tile
from hubel.engine.problem import Policy, Problem

LEAST_TILES = 32
# Vectors of a register tile.
WIDTH = 2
# Cycles: a row of a piece of tiles gathered or stored, and for each column of a tile; a value of a vector of tiles, and
# for each axis along which it is transformed; a call of the register tile; a work item.
ROW, COLUMN, VALUE, AXIS, CALL, ITEM = 7.0, 5.0, 1.1, 1.1, 40.0, 1500.0
# The register tile within the loops around it, against its count of cycles; bytes of weights a cycle from L3, and
# from memory.
LOOPS, FROM_L3, FROM_MEMORY = 1.15, 8.0, 4.0
BARRIER = 5000.0


@dataclass(frozen=True)
class Cut:
    """A problem cut into work items. tiles: of a plane, in all images; strips: that they are cut into, in whole units;
    planes: of a block, plane_parts: groups of so many; part_tiles: tiles of output channels of an item, sub_tiles: of
    them at a time; shared: whether transforming is a job of its own; cycles: until all threads are done; computed:
    floating-point operations."""

    form: Form
    tile: Tile
    block: int
    tiles: int
    unit: int
    strips: int
    planes: int
    plane_parts: int
    part_tiles: int
    sub_tiles: int
    channel_parts: int
    shared: bool
    cycles: float
    computed: int

    @property
    def strip(self) -> int:
        """Tiles of a strip at most."""
        units = -(-self.tiles // self.unit)
        return -(-units // self.strips) * self.unit


@lru_cache(maxsize=4096)
def cut(problem: Problem, machine: Machine, policy: Policy) -> Cut:
    """The cheapest cut of a problem that may have some form. The form is that which is best for one image on one
    thread: it may not depend on the batch."""
    alone = one_image(problem)
    form = min(allowed(problem, policy), key=lambda form: _Counting(form, alone, machine).best(1).cycles)
    return _Counting(form, problem, machine).best(policy.threads)


class _Counting:
    """Counts the cycles of one problem in one form."""

    def __init__(self, form: Form, problem: Problem, machine: Machine) -> None:
        self.form, self.machine, self.groups = form, machine, problem.spec.groups
        self.points = form.points
        self.part: Sum = sums(Problem(problem.spec, problem.direction))[0]
        self.lanes = machine.lanes
        self.row = ROW + COLUMN * form.cols.outputs
        self.value = VALUE + AXIS * sum(axis.size > 1 for axis in (form.rows, form.cols))
        outer, *plane = (self.part.outputs[axis] for axis in form.axes)
        self.outer, self.taps = outer, len(self.part.taps[form.axes[0]])
        high, self.wide = (-(-size // m) for size, m in zip(plane, form.outputs, strict=True))
        self.all_tiles = problem.spec.batch * high * self.wide
        most = max(1, machine.l1 // 2 // (4 * MOST_TILES))
        self.block = -(-self.part.channels // -(-self.part.channels // most))
        self.tile = _register_tile(machine, self.part.rows)
        self.tiles = -(-self.part.rows // self.tile.rows)

    def best(self, threads: int) -> Cut:
        """The cut with the fewest cycles on so many threads."""
        candidates = []
        for strips, planes in self._blocks(threads):
            candidates.append(self._alone(strips, planes, threads))
            if threads > 1:
                candidates.append(self._shared(strips, planes, threads))
        return min(candidates, key=lambda c: c.cycles)

    def _blocks(self, threads: int) -> Iterator[tuple[int, int]]:
        """(strips, planes of a block) worth a look: blocks that fit the cache, in a few numbers of strips, so that
        threads find equal work."""
        beyond = self.taps - 1
        share = 0.35 if self.outer == 1 else 0.5
        fits = max(share * self.machine.l2 / (4 * self.points * self.part.channels), LEAST_TILES)
        seen = set()
        for parts in range(1, self.outer + 1):
            planes = -(-self.outer // parts)
            most = min(MOST_TILES, int(fits / (planes + beyond)))
            if planes in seen or (planes > 1 and most < min(self.lanes, self.wide)):
                continue
            seen.add(planes)
            units = -(-self.all_tiles // self._unit(planes))
            least = max(1, -(-units // max(1, most // self._unit(planes))))
            for strips in range(least, min(max(1, units), least + 2 * threads - 1) + 1):
                yield strips, planes

    def _unit(self, planes: int) -> int:
        """Strips of one plane are whole vectors; of several planes, which lie close together, they need not be."""
        return self.lanes if planes == 1 else 1

    def _strip(self, strips: int, planes: int) -> int:
        units = -(-self.all_tiles // self._unit(planes))
        return min(self.all_tiles, -(-units // strips) * self._unit(planes))

    def _alone(self, strips: int, planes: int, threads: int) -> Cut:
        """Work items that transform and multiply."""
        strip, parts = self._strip(strips, planes), -(-self.outer // planes)
        each = self._transform(strip, planes) + self._multiply(strip, planes, self.tiles) + ITEM
        items = self.groups * strips * parts
        # Strips and plane groups that are smaller than the others.
        total = each * self.groups * max(1, self.all_tiles * self.outer) / max(1, strip * planes)
        busy = items / threads
        # Up to a few rounds the items are counted out; later the last round is half empty.
        cycles = max(total / threads, -(-items // threads) * each) if busy <= 4 else total / threads + each / 2
        if threads == 1:
            cycles = total
        return self._cut(strips, planes, self.tiles, 1, False, cycles)

    def _shared(self, strips: int, planes: int, threads: int) -> Cut:
        """Two jobs: transforming by blocks and channels, multiplying by blocks and output channels."""
        strip, blocks = self._strip(strips, planes), strips * -(-self.outer // planes)
        parts = -(-2 * threads // (self.groups * blocks))
        channel_parts = min(parts, self.part.channels)
        part_tiles = -(-self.tiles // min(parts, self.tiles))
        first = self._rounds(self.groups * blocks * channel_parts, threads) * (
            self._transform(strip, planes) / channel_parts + ITEM
        )
        items = self.groups * blocks * -(-self.tiles // part_tiles)
        second = self._rounds(items, threads) * (self._multiply(strip, planes, part_tiles) + ITEM)
        return self._cut(strips, planes, part_tiles, channel_parts, True, first + second + BARRIER)

    def _cut(self, strips: int, planes: int, part: int, channel_parts: int, shared: bool, cycles: float) -> Cut:
        strip, parts = self._strip(strips, planes), -(-self.outer // planes)
        width = strips * parts * self._vectors(strip, planes) * self.lanes * self.groups
        products = 2 * self.points * self.taps * self.part.channels * self.tiles * self.tile.rows * width
        # The transforms take about four operations for each of their values.
        computed = products + 4 * self.points * (self.part.channels + self.part.rows) * width
        sub = min(part, self._sub_tiles(strip, planes))
        size = self.form, self.tile, self.block, self.all_tiles, self._unit(planes), strips, planes, parts, part, sub
        return Cut(*size, channel_parts, shared, cycles, computed)

    @staticmethod
    def _rounds(items: int, threads: int) -> float:
        return -(-items // threads) if items <= 4 * threads else items / threads + 0.5

    def _vectors(self, strip: int, planes: int) -> int:
        """Vectors of tiles of a block's outputs, which lie close together."""
        return -(-strip * planes // self.lanes)

    def _sub_tiles(self, strip: int, planes: int) -> int:
        """Tiles of output channels whose sums fit the cache beside a block's transformed values."""
        pitch = self._vectors(strip, planes) * self.lanes
        inputs = strip * (planes + self.taps - 1)
        fit = 4 * self.points * self.part.channels * inputs <= 0.6 * self.machine.l2
        room = (0.3 if fit else 0.5) * self.machine.l2
        return max(1, int(room / (4 * self.points * self.tile.rows * max(1, pitch))))

    def _pieces(self, strip: int) -> float:
        """Pieces of rows of tiles in a strip; where there are several strips, they begin and end within rows."""
        return strip / min(self.wide, self.lanes - self.form.halo) + (strip < self.all_tiles)

    def _transform(self, strip: int, planes: int) -> float:
        rows = self._pieces(strip) * self.form.rows.size * self.row
        each = rows + -(-strip // self.lanes) * self.points * self.value
        return self.part.channels * each * (planes + self.taps - 1)

    def _multiply(self, strip: int, planes: int, tiles: int) -> float:
        """Products, and the making and storing of outputs, of one block and so many tiles of output channels."""
        vectors = self._vectors(strip, planes)
        channels, rows = self.part.channels, min(self.part.rows, tiles * self.tile.rows)
        widths = [WIDTH] * (vectors // WIDTH) + [1] * (vectors % WIDTH)
        steps = sum(step_cycles(self.machine, self.tile.rows, width, 1) for width in widths) * LOOPS
        calls = len(widths) * -(-channels // self.block) * CALL
        products = self.points * self.taps * tiles * (channels * steps + calls)
        weights = 4 * self.points * self.taps * channels * tiles * self.tile.rows
        stored = 4 * self.points * self.taps * channels * self.tiles * self.tile.rows * self.groups
        streamed = weights / (FROM_L3 if stored < self.machine.l3 / 2 else FROM_MEMORY)
        stores = self._pieces(strip) * planes * self.form.rows.outputs * self.row
        outputs = rows * (vectors * self.points * self.value + stores)
        return max(products, streamed) + outputs


def _register_tile(machine: Machine, rows: int) -> Tile:
    """Two vectors wide, and of many rows, so that one vector alone keeps enough sums going too. It depends on the
    layer alone: all image sizes share one kernel and one packed form of the weights."""
    fit = range(1, rows_that_fit(machine, WIDTH) + 1)

    def cycles(r: int) -> float:
        return -(-rows // r) * (step_cycles(machine, r, WIDTH, 1) + 1)

    return Tile(min(fit, key=lambda r: (round(cycles(r), 6), -r)), WIDTH, machine.lanes)
