"""How a Winograd problem is cut up: form, register tile, blocks of tiles, shares of the output channels.

A block is a strip of tiles, counted through all images, of some neighbouring planes (of one, where nothing is summed
along the outer axis).

Of these only the form and the block of channels change bits, and they are chosen for one image and one thread.
Everything is chosen by counting cycles; the constants were measured on Zen 4 held to AVX2 (2026-11):

- `transformed` values of a block of tiles should fill about a third of the L2 cache, but two runs of the register tile
  are the least that hides the streaming of the weights.
- The `sums` of the output channels done at a time should fill another third, and half where the transformed values do
  not fit anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hubel.engine.algorithms.geometry import Sum, of_usual_batch
from hubel.engine.algorithms.tiling import rows_that_fit, step_cycles
from hubel.engine.algorithms.winograd_forms import Form, allowed, whole
from hubel.engine.algorithms.winograd_kernels import row_counts
from hubel.engine.machine import Machine
from hubel.engine.plan import Tile
from hubel.engine.problem import Policy, Problem

# Tiles of a strip at most.
MOST_TILES = 64
# Vectors of output channels of a register tile; tiles of an image of one that has a single vector.
WIDTH, NARROW = 2, 10
# Channels that are added up before their sum goes to memory, and those of forms with more than six points along an
# axis, whose errors leave less room.
BLOCK, SHORT_BLOCK = 128, 64
# Share of the L2 cache for a block's transformed values.
BLOCKS = 0.6
# Cycles: a pixel of a vector of channels copied, one of a vector of outputs stored; a value of a tile transformed, and
# back; a call of the register tile; a piece of a row of tiles; a work item.
COPIED, STORED, VALUE, RESULT, CALL, PIECE, ITEM = 3.0, 5.0, 4.0, 3.0, 30.0, 60.0, 1500.0
# The share of the copying and storing that is left where channels lie next to each other.
IN_PLACE = 0.4
# The register tile within the loops around it, against its count of cycles; bytes of weights a cycle from L3, and
# from memory, and the share of their time that asking ahead does not hide.
LOOPS, FROM_L3, FROM_MEMORY, HIDDEN = 1.05, 8.0, 4.0, 0.15
# The share of the L3 cache that weights may have, and the bytes: the other layers of a network want it, too, and what a
# virtual machine sees of it is shared with others (512 channels at 7×7 in a ResNet-18, on two cores of a Xeon with 480
# MB: 38 MB of weights came at the rate of the memory, 1.57 ms; alone 0.76).
IN_L3, MOST_IN_L3 = 0.75, 32 * 2**20
BARRIER = 5000.0


@dataclass(frozen=True)
class Cut:
    """A problem cut into work items. tiles: of a plane, in all images; strips: that they are cut into; planes: of a
    block, plane_parts: groups of so many; part_tiles: tiles of output channels of an item, sub_tiles: of them at a
    time; shared: whether transforming is a job of its own; cycles: until all threads are done; computed:
    floating-point operations."""

    form: Form
    tile: Tile
    block: int
    tiles: int
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
        return -(-self.tiles // self.strips)


@lru_cache(maxsize=4096)
def cut(problem: Problem, machine: Machine, policy: Policy) -> Cut:
    """The cheapest cut of a problem that may have some form. The form is that which is best for the usual batch
    on one thread, in planes: it may not depend on the batch."""
    usual = replace(of_usual_batch(problem), layout="planes")
    form = min(allowed(problem, policy), key=lambda form: _Counting(form, usual, machine).best(1).cycles)
    return _Counting(form, problem, machine).best(policy.threads)


@lru_cache(maxsize=1024)
def row_runs(tile: Tile, count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """`count` tiles of an image as runs of register tiles: (how many, of how many rows) of the longer ones, and of the
    shorter. They may hold a few tiles more."""
    sizes = row_counts(tile)
    runs = max(1, -(-count // tile.rows))
    least, longer = divmod(count, runs)
    long, short = (next(size for size in sizes if size >= n) for n in (least + (longer > 0), least))
    return (longer, long), (runs - longer, short)


def most_rows(tile: Tile, strip: int, planes: int) -> int:
    """Rows that the runs of blocks of up to so many tiles touch."""
    counts = range(max(1, strip - 1), strip + 1)
    return max(
        n * long + m * short
        for tiles in counts
        for part in range(1, planes + 1)
        for (n, long), (m, short) in (row_runs(tile, tiles * part),)
    )


def planes_held(planes: int, taps: int, step: int) -> int:
    """Transformed planes that a block of so many planes of sums has room for: those that each tap of the outer axis
    meets lie one behind the other.
    """
    return step * (planes + (taps - 1) // step)


class _Counting:
    """Counts the cycles of one problem in one form."""

    def __init__(self, form: Form, problem: Problem, machine: Machine) -> None:
        self.form, self.machine, self.groups = form, machine, problem.spec.groups
        self.points = form.points
        self.part: Sum = whole(problem)
        self.lanes = machine.lanes
        # Whether tensors lie as they are worked on, and only what hangs over the border is copied.
        self.in_place = problem.layout == "channels_last" and problem.dtype == "float32"
        outer, *plane = (self.part.outputs[axis] for axis in form.axes)
        self.outer, self.taps, self.step = outer, len(self.part.taps[form.axes[0]]), self.part.axes[form.axes[0]].step
        high, self.wide = (-(-size // m) for size, m in zip(plane, form.outputs, strict=True))
        self.all_tiles = problem.spec.batch * high * self.wide
        most = BLOCK if max(form.rows.longest, form.cols.longest) <= 6 else SHORT_BLOCK
        self.block = -(-self.part.channels // -(-self.part.channels // most))
        self.tile = _register_tile(machine, self.part.rows)
        self.width = self.tile.vectors * self.lanes
        self.tiles = -(-self.part.rows // self.width)
        # Channels of an image in whole vectors.
        self.padded = -(-self.part.channels // self.lanes) * self.lanes

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
        fits = max(BLOCKS * self.machine.l2 / (4 * self.points * self.padded), 3 * self.tile.rows)
        seen = set()
        for parts in range(1, self.outer + 1):
            planes = -(-self.outer // parts)
            most = min(MOST_TILES, int(fits / planes_held(planes, self.taps, self.step)))
            if planes in seen or (planes > 1 and most < min(self.tile.rows, self.wide)):
                continue
            seen.add(planes)
            least = max(1, -(-self.all_tiles // max(1, most)))
            for strips in range(least, min(max(1, self.all_tiles), least + 2 * threads + 1) + 1):
                yield strips, planes

    def _strip(self, strips: int) -> int:
        return -(-self.all_tiles // strips)

    def _alone(self, strips: int, planes: int, threads: int) -> Cut:
        """Work items that transform and multiply."""
        strip, parts = self._strip(strips), -(-self.outer // planes)
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
        strip, blocks = self._strip(strips), strips * -(-self.outer // planes)
        parts = -(-2 * threads // (self.groups * blocks))
        channel_parts = min(parts, self.padded // self.lanes)
        part_tiles = -(-self.tiles // min(parts, self.tiles))
        first = self._rounds(self.groups * blocks * channel_parts, threads) * (
            self._transform(strip, planes) / channel_parts + ITEM
        )
        items = self.groups * blocks * -(-self.tiles // part_tiles)
        second = self._rounds(items, threads) * (self._multiply(strip, planes, part_tiles) + ITEM)
        return self._cut(strips, planes, part_tiles, channel_parts, True, first + second + BARRIER)

    def _cut(self, strips: int, planes: int, part: int, channel_parts: int, shared: bool, cycles: float) -> Cut:
        strip, parts = self._strip(strips), -(-self.outer // planes)
        rows = strips * parts * sum(n * size for n, size in row_runs(self.tile, strip * planes)) * self.groups
        products = 2 * self.points * self.taps * self.part.channels * self.tiles * self.width * rows
        # The transforms take about four operations for each of their values.
        computed = products + 4 * self.points * (self.padded + self.part.rows) * rows
        sub = min(part, self._sub_tiles(strip, planes))
        size = self.form, self.tile, self.block, self.all_tiles, strips, planes, parts, part, sub
        return Cut(*size, channel_parts, shared, cycles, computed)

    @staticmethod
    def _rounds(items: int, threads: int) -> float:
        return -(-items // threads) if items <= 4 * threads else items / threads + 0.5

    def _sub_tiles(self, strip: int, planes: int) -> int:
        """Tiles of output channels whose sums fit the cache beside a block's transformed values."""
        inputs = strip * planes_held(planes, self.taps, self.step)
        fit = 4 * self.points * self.padded * inputs <= 0.6 * self.machine.l2
        room = (0.3 if fit else 0.5) * self.machine.l2
        return max(1, int(room / (4 * self.points * self.width * max(1, strip * planes))))

    def _pieces(self, strip: int) -> float:
        """Pieces of rows of tiles in a strip; where there are several strips, they begin and end within rows."""
        return strip / self.wide + (strip < self.all_tiles)

    def _transform(self, strip: int, planes: int) -> float:
        rows, cols = self.form.rows, self.form.cols
        copied = strip * cols.advance + self._pieces(strip) * (cols.read - cols.advance)
        each = copied * rows.read * COPIED * (IN_PLACE if self.in_place else 1)
        each += strip * self.points * VALUE + self._pieces(strip) * PIECE
        return self.padded / self.lanes * each * ((planes - 1) * self.step + self.taps)

    def _multiply(self, strip: int, planes: int, tiles: int) -> float:
        """Products, and the making and storing of outputs, of one block and so many tiles of output channels."""
        channels, rows = self.part.channels, min(self.part.rows, tiles * self.width)
        runs = [(n, size) for n, size in row_runs(self.tile, strip * planes) if n]
        steps = sum(n * step_cycles(self.machine, size, self.tile.vectors, 1) for n, size in runs) * LOOPS
        calls = sum(n for n, _ in runs) * -(-channels // self.block) * CALL
        products = self.points * self.taps * tiles * (channels * steps + calls)
        weights = 4 * self.points * self.taps * channels * tiles * self.width
        stored = 4 * self.points * self.taps * channels * self.tiles * self.width * self.groups
        streamed = weights / (FROM_L3 if stored < min(IN_L3 * self.machine.l3, MOST_IN_L3) else FROM_MEMORY)
        high, wide = self.form.outputs
        each = self.points * RESULT + high * wide * STORED * (IN_PLACE if self.in_place else 1)
        outputs = -(-rows // self.lanes) * planes * (strip * each + self._pieces(strip) * PIECE)
        return max(products, streamed) + HIDDEN * streamed + outputs


def _register_tile(machine: Machine, rows: int) -> Tile:
    """Two vectors of output channels wide, where there are more than one. It depends on the layer alone: all image
    sizes share one kernel and one packed form of the weights."""
    if rows <= machine.lanes:
        return Tile(min(NARROW, rows_that_fit(machine, 1)), 1, machine.lanes)
    return Tile(rows_that_fit(machine, WIDTH), WIDTH, machine.lanes)
