"""Direct convolution with output channels in the lanes of a vector: forward and input gradient, any number of
dimensions, stride, padding, dilation and groups.

    for every image, group, box of outputs and share of the output channels:               one work item
        for blocks of input channels:
            copy the window that the box reads into scratch                                 padding becomes zeros
            for phases, for tiles of output channels t, for rows, for runs of pixels p:
                for channels c of the block, for taps (but planes of padding):              the register tile
                    acc[pixel][lane] += window[c][offset[tap] + place(pixel)] · weight[t][c, tap][lane]
            after the last block, bias added: transposed into NCHW rows, or stored as they are into channels-last ones

`direct` has neighbouring pixels in its lanes. Here pixels are broadcast one by one, so it does not matter how far
apart they lie: strides need no gathering, short rows no waste, and tensors with channels last are read and written a
vector at a time. What the lanes hold are output channels, of which there must be enough. The input gradient of a
strided convolution comes in phases (`geometry`): a work item does them all, so that the gradient is read once and
whole rows are stored.

The order of summation is that of `direct`, so results have the same bits; where planes of padding are left out, they
have them as long as all weights are finite, and the order is its own.

Constants. 14 pixels by two AVX-512 vectors take 14 cycles of arithmetic a term, beside 17 loads and 52 instructions; 6
by two AVX2 vectors 6 cycles, beside 9 loads and 22 instructions where two terms go together. A tile's weights (9 KB of
16 channels of a 3×3 kernel) stay in L1 while all pixels of the box stream past: 6 pixels with stride 2 read 6 KB of a
window then, and would read 64 bytes of weights every 6 cycles the other way round, from L2 or, of large layers, from
L3. Measured on one core (Zen 4, AVX2, 2026-11): 0.94 of the FMA peak for 128>128 3×3 stride 2 @56 (0.89 with weights
that stream past), 0.92 for a 4×4 transposed layer and for a 7×7 stem, 0.78 where rows are 7 pixels long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from hubel.engine.algorithms import channels_kernels, direct
from hubel.engine.algorithms.channels_kernels import TAP
from hubel.engine.algorithms.direct import SLACK, channel_block
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Axes, Sum, is_product, sums, three
from hubel.engine.algorithms.tiling import ITEM, UNEVEN, error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables
from hubel.engine.window import Axis, Window

NAME = "channels"
ANY_EDGES = True
CHANNELS_LAST = True
# Most pixels of a tile: more need more pointers than there are, and ARM's have to be added up one by one.
MOST_PIXELS, MOST_PIXELS_ARM = 14, 8
# Fewest output channels a group.
FEWEST = 4
PIECES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
SHARES = (1, 2, 3, 4, 6, 8, 12, 16)
# Cycles: starting a run of pixels; reading and writing a vector of sums; a row of a window, a vector of it.
TILE, SUM, ROW, VECTOR = 20.0, 1.0, 25.0, 3.0
# Cycles to carry sums out: a vector straight from the registers; a vector by way of scratch; a vector turned into
# planes, by the square of its lanes (3→32 at 32×32, 3×3, with 16: 22k cycles more than side by side; with 8 lanes 5 a
# vector); a number of less than a vector.
STRAIGHT, PARKED, TURNED, SINGLE = 1.0, 5.0, 0.075, 3.0
# Taps of a channel that inner planes must leave for those that meet padding to be left out.
FEWEST_TAPS = 12
# Bytes a cycle from and to the L3 cache.
SPILLED = 8


@dataclass(frozen=True)
class Shape:
    """The sums of a problem together: what is read (`axes`; x as it lies, z and y in phases), the step between outputs
    that read neighbours along x, and the phases of what is written.
    """

    parts: tuple[Sum, ...]

    @cached_property
    def axes(self) -> Axes:
        made = []
        for a in range(3):
            shifts = tuple(sorted({shift for part in self.parts for shift in part.axes[a].shifts})) or (0,)
            first = self.parts[0].axes[a]
            outputs = max(part.outputs[a] for part in self.parts)
            if a == 2:
                made.append(Axis(first.size, (outputs - 1) * first.step + 1, 1, shifts))
            else:
                made.append(Axis(first.size, outputs, first.step, shifts))
        return tuple(made)  # type: ignore[return-value]

    @property
    def stride(self) -> int:
        return self.parts[0].axes[2].step

    @cached_property
    def outputs(self) -> tuple[int, int, int]:
        """Places of the largest phase."""
        return tuple(max(part.outputs[a] for part in self.parts) for a in range(3))  # type: ignore[return-value]

    @property
    def step(self) -> tuple[int, int, int]:
        return self.parts[0].out_step

    @property
    def rows(self) -> int:
        return self.parts[0].rows

    @property
    def channels(self) -> int:
        return self.parts[0].channels

    @cached_property
    def taps(self) -> int:
        return sum(part.tap_count for part in self.parts)

    def window(self, box: tuple[int, int, int], lanes: int) -> Window:
        z, y, x = box
        return Window(self.axes, (z, y, (x - 1) * self.stride + 1), lanes=lanes)

    def offsets(self, window: Window, part: Sum) -> list[int]:
        """Where each tap of a phase starts in the window."""
        ny = len(self.axes[1].phases)
        starts = []
        for shifts in product(*(axis.shifts for axis in part.axes)) if part.tap_count else ():
            places = [axis.place(shift) for axis, shift in zip(self.axes, shifts, strict=True)]
            (pz, z), (py, y), (_, x) = places
            starts.append((pz * ny + py) * window.pitch_phase + z * window.pitch_z + y * window.pitch_y + x)
        return starts


@dataclass(frozen=True)
class Cut:
    """How a problem is cut into work items, and the cycles until all are done."""

    box: tuple[int, int, int]
    row_tiles: int
    cycles: float


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for whatever has enough output channels a group."""
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "weight gradients are sums over pixels, not over channels")
    if is_product(problem) and problem.layout != "channels_last":
        return Refusal(NAME, "a matrix product over one row of pixels: pointwise")
    spec, shape = problem.spec, Shape(sums(problem))
    if shape.rows < FEWEST:
        return Refusal(NAME, f"needs {FEWEST} output channels a group to fill its lanes")
    tile = _tile(machine, shape.rows)
    best = _cut(problem, machine, policy)
    width = tile.vectors * tile.lanes
    wasted = -(-shape.rows // width) * width / shape.rows
    block = channel_block(_largest(shape), machine)
    return Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            f"conv_{number(problem)}_channels_{tile}_{machine.isa}{ending_of(problem).name}",
            f"pack_{number(problem)}_channels_{tile}_{machine.isa}",
        ),
        channel_block=block, box=best.box, row_tiles=best.row_tiles,
        estimate=Estimate(spec.flops, int(spec.flops * wasted), problem.bytes(), best.cycles),
        error_bound=error_bound(problem), reason="pixels far apart or in short rows: output channels in lanes",
        sums_like="" if any(_skips(part) for part in shape.parts) else direct.NAME,
    )  # fmt: skip


def _largest(shape: Shape) -> Sum:
    """The sum that `direct` takes its block of channels from."""
    return max(shape.parts, key=lambda part: part.tap_count * prod(part.outputs))


def _taps_summed(part: Sum) -> list[range]:
    """For each plane of outputs the taps that are summed: without those that meet padding, if the others are enough for
    a loop of their own.
    """
    return [met if len(met) >= FEWEST_TAPS else range(part.tap_count) for met in part.taps_inside()]


def _skips(part: Sum) -> bool:
    return any(len(met) < part.tap_count for met in _taps_summed(part))


def _tile(machine: Machine, rows: int) -> Tile:
    """The tile with the fewest cycles a pixel for so many output channels."""
    widths = (1, 2, 3, 4) if machine.lanes == 4 else (1, 2, 3)
    tiles = [Tile(_pixels_that_fit(machine, v), v, machine.lanes) for v in widths]

    def cost(tile: Tile) -> float:
        return -(-rows // (tile.vectors * tile.lanes)) * _step(tile, tile.rows) / tile.rows

    # Three vectors leave room for few pixels, and short rows fill such tiles badly.
    return min(tiles, key=lambda tile: cost(tile) * (1.03 if tile.vectors == 3 else 1.0))


def _pixels_that_fit(machine: Machine, vectors: int) -> int:
    """Most pixels of a tile: its accumulators, its weights and a pixel must find room in the registers."""
    others = 3 if machine.arch == "aarch64" else 1
    most = MOST_PIXELS_ARM if machine.arch == "aarch64" else MOST_PIXELS
    return min(most, (machine.registers - vectors - others) // vectors)


def _step(tile: Tile, pixels: int) -> float:
    """Cycles of one term of the sums of so many pixels."""
    sums_, v = pixels * tile.vectors, tile.vectors
    return max(sums_ / 2, (pixels + v + 1) / 2, (sums_ + pixels + v + 4) / 4, 4.0) + 0.03 * pixels


def _cut(problem: Problem, machine: Machine, policy: Policy) -> Cut:
    """The cheapest way to share the work out."""
    spec, shape = problem.spec, Shape(sums(problem))
    tile = _tile(machine, shape.rows)
    tiles = -(-shape.rows // (tile.vectors * tile.lanes))
    block, out = channel_block(_largest(shape), machine), _carrying(problem, tile, shape.rows)
    best: Cut | None = None
    for box in _boxes(shape.outputs):
        boxes = prod(-(-o // b) for o, b in zip(shape.outputs, box, strict=True))
        for_tile, once = _item(shape, tile, block, box, out, machine)
        for share in SHARES:
            if share > tiles:
                break
            row_tiles = -(-tiles // share)
            items = max(1, spec.batch * spec.groups) * boxes * -(-tiles // row_tiles)
            busy = items / policy.threads
            turns = max(1.0, busy) if busy > 8 else float(-(-items // policy.threads))
            spread = 1 + (UNEVEN / turns if policy.threads > 1 else 0)
            took = (once + row_tiles * for_tile) * turns * spread
            if best is None or took < best.cycles * 0.999:
                best = Cut(box, row_tiles, took)
    assert best is not None
    return best


def _boxes(outputs: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Boxes worth a look: whole rows and planes, cut along the outermost axis that there is; long single rows are cut
    too.
    """
    z, y, x = outputs
    if z * y == 1:
        yield from ((1, 1, size) for size in sorted({-(-x // pieces) for pieces in PIECES}, reverse=True) if size)
        return
    seen = set()
    for pieces in PIECES:
        cut_y = min(y, max(1, pieces // z))
        box = (-(-z // min(pieces, z)), -(-y // cut_y), x)
        if box not in seen:
            seen.add(box)
            yield box


def _carrying(problem: Problem, tile: Tile, rows: int) -> float:
    """Cycles to carry the sums of a tile of output channels out, for each pixel."""
    if problem.layout != "channels_last":
        return tile.vectors * (TURNED * tile.lanes**2 + (0 if ending_of(problem).plain else STRAIGHT))
    single = SINGLE * (rows % tile.lanes) / -(-rows // (tile.vectors * tile.lanes))
    return tile.vectors * (STRAIGHT if ending_of(problem).short else PARKED) + single


def _item(
    shape: Shape, tile: Tile, block: int, box: tuple[int, int, int], out: float, machine: Machine
) -> tuple[float, float]:
    """Cycles of a work item: for each tile of output channels, and for the rest. out: to carry a pixel's sums out."""
    window = shape.window(box, tile.lanes)
    blocks = -(-shape.channels // block)
    for_tile = 0.0
    for part in shape.parts:
        bz, by, bx = (min(b, o) for b, o in zip(box, part.outputs, strict=True))
        if not bz * by * bx:
            continue
        runs = -(-bx // tile.rows)
        pixels = -(-bx // runs)
        if 2 * bx <= tile.rows and by > 1:
            pixels, by = 2 * bx, by / 2
        summed = _taps_summed(part)
        taps = sum(map(len, summed)) / len(summed)
        row = runs * (shape.channels * taps * _step(tile, pixels) + blocks * TILE)
        for_tile += bz * by * (row + blocks * SUM * bx * tile.vectors)
    region = prod(b * s for b, s in zip(box, shape.step, strict=True))
    width = tile.vectors * tile.lanes
    for_tile += region * out
    # Weights come from memory, or from L2 where all of them stay there from item to item.
    panels = 4 * shape.channels * shape.taps * shape.rows
    for_tile += 4 * shape.channels * shape.taps * width / (64 if panels < machine.l2 // 2 else 12)
    phases = prod(len(axis.phases) for axis in shape.axes)
    # What does not fit into the L2 cache beside the rest is read and written at a fraction of its speed.
    if 4 * (region * shape.rows + block * window.pitch_c + shape.rows * block * shape.taps) > machine.l2 * 3 // 4:
        for_tile += 4 * region * width * (2 * blocks - 1) / SPILLED
    filled = phases * window.planes * window.rows * (ROW + VECTOR * window.valid[2] / tile.lanes)
    once = ITEM + shape.channels * filled
    if 4 * block * window.pitch_c > machine.l2 // 2:
        once += 4 * shape.channels * window.pitch_c * 2 / SPILLED
    return for_tile, once


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    lanes, ending = plan.tile.lanes, ending_of(plan.problem)
    return {
        main: lambda: module_text(channels_kernels.convolution_function(plan.tile, ending), lanes),
        pack: lambda: module_text(channels_kernels.pack_function(plan.tile, ending.stored), lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    spec, tile, forward = plan.problem.spec, plan.tile, plan.problem.direction is Direction.FORWARD
    shape, tables = Shape(sums(plan.problem)), Tables()
    source, target = (x, y) if forward else (y, x)
    words, items, scratch = _job_words(plan, shape, source, target, tables)
    packing = _packing_job(plan, shape, w, tables)
    packed = packing.items * tile.vectors * tile.lanes * shape.channels * shape.taps
    key = (plan.kernels[1], spec.weight_shape, spec.groups, w, forward, plan.channel_block)
    if not forward:
        key += (spec.stride, spec.padding, spec.dilation)
    jobs = (PlannedJob(plan.kernels[0], items, words),)
    return Bound(
        jobs, (packing,) if packed else (), packed, key, max(scratch, shape.taps * tile.lanes), 0, tables.keep()
    )


def _job_words(
    plan: Plan, shape: Shape, source: tuple[int, ...], target: tuple[int, ...], tables: Tables
) -> tuple[tuple[int, ...], int, int]:
    """(words, work items, numbers of scratch) of the job."""
    spec, tile, box, block = plan.problem.spec, plan.tile, plan.box, plan.channel_block
    width = tile.vectors * tile.lanes
    window = shape.window(box, tile.lanes)
    boxes = tuple(-(-o // b) for o, b in zip(shape.outputs, box, strict=True))
    tiles = -(-shape.rows // width)
    chunks = -(-tiles // plan.row_tiles)
    in_n, in_c, *space = source
    out_n, out_c, *out_space = target
    strides, out = three(tuple(space), 0), three(tuple(out_space), 0)
    by_cells = in_c == 1 and strides[2] != 1
    # Pixels whose channels are all in the block are copied as they lie; others begin at whole quarters of a line.
    dense = strides[2] == block == shape.channels
    cell = (block if dense else -(-block // 4) * 4) if by_cells else 1
    table, before = [], 0
    for part in shape.parts:
        taps = shape.offsets(window, part)
        offsets = [tap * cell + c if by_cells else c * window.pitch_c + tap for c in range(block) for tap in taps]
        summed = tables.add([word for met in _taps_summed(part) for word in (met.start, len(met))])
        table += [tables.add(offsets), len(taps), before, *part.out_start, *part.outputs, summed]
        before += len(taps)
    size = tuple(s * b for s, b in zip(shape.step, box, strict=True))
    sums_y = size[2] * width
    sums_z, sums_t = size[1] * sums_y, size[0] * size[1] * sums_y
    held = (window.pitch_c if by_cells else block * window.pitch_c) + window.overhang + window.pitch_y
    bias_from = -(-(held * cell + SLACK) // 16) * 16
    sums_from = bias_from + (1 + plan.row_tiles) * width
    out_size = spec.output_size if plan.problem.direction is Direction.FORWARD else spec.input_size
    words = (
        tables.add(table), len(shape.parts), spec.groups, shape.channels, shape.rows, shape.taps, block,
        plan.row_tiles, chunks, tiles,
        *shape.outputs, *box, *boxes, *shape.step, *three(out_size, 1),
        in_n, shape.channels * in_c, out_n, out_c, *out,
        cell, shape.stride, window.pitch_z * cell, window.pitch_y * cell, sums_t, sums_z, sums_y,
        bias_from, sums_from,
        *window.words((in_c, *strides), tuple(tables.add(axis.table()) for axis in shape.axes)),  # type: ignore[arg-type]
    )  # fmt: skip
    scratch = sums_from + plan.row_tiles * sums_t + tile.lanes * width + SLACK
    return words, spec.batch * spec.groups * prod(boxes) * chunks, scratch


def _packing_job(plan: Plan, shape: Shape, w: tuple[int, ...], tables: Tables) -> PlannedJob:
    """The job that packs the weights of all phases."""
    out_stride, in_stride, *space = w
    strides = three(tuple(space), 0)
    taps, before = [], 0
    for part in shape.parts:
        places = [sum(t * s for t, s in zip(tap, strides, strict=True)) for tap in product(*part.taps)]
        for order, place in enumerate(places):
            taps += [place, before, len(places), order]
        before += len(places)
    if plan.problem.direction is Direction.FORWARD:
        by_group, by_row, by_channel = shape.rows * out_stride, out_stride, in_stride
    else:
        by_group, by_row, by_channel = shape.channels * out_stride, in_stride, out_stride
    tiles = -(-shape.rows // (plan.tile.vectors * plan.tile.lanes))
    run = 0
    places, following = taps[:: len(TAP)], [*range(shape.taps)]
    if sorted(places) == following:
        run = 2 if by_channel == shape.taps and places == following and len(shape.parts) == 1 else 1
    words = (
        tables.add(taps), shape.rows, shape.channels, shape.taps, tiles, plan.channel_block,
        by_group, by_row, by_channel, run,
    )  # fmt: skip
    return PlannedJob(plan.kernels[1], plan.problem.spec.groups * tiles, words)
