"""1×1 convolution with stride 1 and no padding, forward and input gradient: a matrix product over one long row of
pixels.

    out[m, pixel]  =  Σ_c weight[m, c] · in[c, pixel]

    for every image, group, piece of the pixels and share of the output channels:           one work item
        for runs of pixels as wide as the register tile, for blocks of channels:
            copy the block's pixels of this run into a panel, a whole run with the first tile
            for tiles of output channels:                                                    the register tile
                acc[row, pixel] += weight[tile][c][row] · panel[c][pixel]
            sums of several blocks meet in the output; those of a ragged tile in scratch

Channels lie far apart in memory, each run of pixels on a page of its own: no hardware prefetcher sees what comes
next, and the TLB holds few pages. So a run is copied once, close together, by the first tile of output channels as it
goes, while the lines of the next one are already on their way: the last tiles ask for them, one a term of the sum,
into L2, for in L1 they would take the place of the panel. Measured on one AVX2 core (Zen 4, 2026-11), of the
arithmetic peak: 256→64 channels at 56² 0.61, into L2 0.67, without a pass for the copy 0.83; 64→64 0.72, 0.81, 0.94.
On Cascade Lake (2026-11) a panel for several runs at once had 0.8 of the speed of one.

The last run is narrower, and its tile as well, as many vectors as it needs. One pixel that is left over, as in
7×7 = 3·16 + 1, goes with the run before it: a vector of its own would take a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

from hubel.engine.algorithms.direct import MOST_TERMS, TINY_FLOPS, pack_name, packing_job, packing_key
from hubel.engine.algorithms.direct_kernels import pack_function
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, flat_strides, flattened, is_product, sums
from hubel.engine.algorithms.tiling import (
    ITEM,
    MOST_ALTERNATIVES,
    TILE,
    UNEVEN,
    error_bound,
    step_cycles,
    tile_of_width,
)
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, module_text
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.function import vector_of
from hubel.engine.ir.rows import gather_row, store_rows_function, store_tile_function
from hubel.engine.ir.tile import ADD, BIAS, panel_tile
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "pointwise"
ANY_EDGES = True
# Cycles to copy a vector of pixels, asked for before.
COPY = 3.5

# The words of a job after the base pointers, in this order.
WORDS = (
    "groups", "channels", "rows", "block", "chunk_tiles", "chunks", "tiles", "pixels", "piece", "pieces", "odd",
    "in_n", "in_g", "in_c", "in_x", "out_n", "out_c", "out_x", "sums_from",
)  # fmt: skip


def applies(problem: Problem) -> bool:
    """Whether the convolution is a matrix product over pixels as they lie in memory."""
    return is_product(problem) and problem.direction is not Direction.WEIGHT_GRADIENT


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    if not applies(problem):
        return Refusal(NAME, "needs a 1×1 kernel, stride 1, no padding, and pixels that follow each other in memory")
    return _plans(problem, machine, policy)[0]


def alternatives(plan: Plan) -> list[Plan]:
    """The same plan cut otherwise, cheapest first: other pieces and shares."""
    return _plans(plan.problem, plan.machine, plan.policy)


def _plans(problem: Problem, machine: Machine, policy: Policy) -> list[Plan]:
    """The plan for each of the best ways to share the work out, cheapest first."""
    spec = flattened(problem)
    (part,) = sums(Problem(spec, problem.direction))
    block = channel_block(part, machine)
    tiny = spec.flops < TINY_FLOPS and machine.lanes == 16
    used = replace(machine, lanes=8) if tiny else machine
    tile = _tile(used, part.rows, block)
    pixels = prod(part.outputs)
    odd = _odd(tile, used, pixels)
    cuts = _cuts(tile, part, block, pixels - odd, spec.batch * spec.groups, used, policy.threads)
    vectors = -(-(pixels - odd) // tile.lanes)
    computed = spec.batch * spec.groups * part.channels * -(-part.rows // tile.rows) * tile.rows * vectors * tile.lanes
    first = Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            f"conv_{number(problem)}_pointwise_{tile}_{used.isa}{ending_of(problem).name}",
            pack_name(problem, tile, used),
        ),
        channel_block=block, box=(1, 1, 0), row_tiles=0,
        estimate=Estimate(problem.spec.flops, 2 * computed, problem.bytes(), 0.0),
        error_bound=error_bound(problem), reason="1×1: a matrix product over one long row of pixels",
    )  # fmt: skip
    return [
        replace(
            first, box=(1, 1, cut.piece), row_tiles=cut.row_tiles, estimate=replace(first.estimate, cycles=cut.cycles)
        )
        for cut in cuts[:MOST_ALTERNATIVES]
    ]


def channel_block(part: Sum, machine: Machine) -> int:
    """Channels whose pixels, in a panel as wide as a tile, take three quarters of L1.

    It fixes the order of summation, so it depends neither on the batch nor on the size of the image.
    """
    most = min(MOST_TERMS, max(4, machine.l1 * 3 // 4 // (4 * 3 * machine.lanes)))
    most = max(1, min(part.channels, most))
    return -(-part.channels // -(-part.channels // most))


def _tile(machine: Machine, rows: int, block: int) -> Tile:
    """The tile that needs the fewest cycles a pixel; of the channels alone, so a layer has one kernel for all sizes."""
    # Registers are left for the odd pixel where there are many.
    room = replace(machine, registers=machine.registers - 2) if machine.registers >= 32 else machine
    tiles = [tile_of_width(room, rows, vectors, 1) for vectors in (2, 3, 4)]

    def cycles(tile: Tile) -> float:
        step = step_cycles(machine, tile.rows, tile.vectors, 1)
        return -(-rows // tile.rows) * (block * step + TILE) / tile.vectors

    return min(tiles, key=lambda tile: round(cycles(tile), 6))


def _takes_odd(tile: Tile, machine: Machine) -> bool:
    """Whether the tile has room for one pixel more."""
    return machine.registers >= 32 and tile.rows <= tile.lanes


def _odd(tile: Tile, machine: Machine, pixels: int) -> int:
    """1 if one pixel is left over that goes with the run before it."""
    width = tile.vectors * tile.lanes
    return int(_takes_odd(tile, machine) and pixels > width and pixels % width == 1)


@dataclass(frozen=True)
class _Cut:
    """Pixels of a piece, tiles of output channels of a share, and the cycles until all are done."""

    piece: int
    row_tiles: int
    cycles: float


def _cuts(tile: Tile, part: Sum, block: int, pixels: int, copies: int, machine: Machine, threads: int) -> list[_Cut]:
    """The ways to share the work out, cheapest first. Splitting pixels reads the weights once more, splitting output
    channels copies the pixels once more.
    """
    width, tiles = tile.vectors * tile.lanes, -(-part.rows // tile.rows)
    runs = -(-pixels // width)
    of_tile = part.channels * step_cycles(machine, tile.rows, tile.vectors, 1) + -(-part.channels // block) * TILE
    candidates = []
    for at_once in sorted({-(-runs // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 32)}):
        for row_tiles in sorted({-(-tiles // n) for n in (1, 2, 3, 4, 8, 16)}):
            items = max(1, copies * -(-runs // at_once) * -(-tiles // row_tiles))
            each = ITEM + at_once * (part.channels * COPY * tile.vectors + row_tiles * of_tile)
            turns = -(-items // threads)
            spread = 1 + (UNEVEN / turns if threads > 1 else 0)
            candidates.append(_Cut(at_once * width, row_tiles, each * turns * spread))
    return sorted(candidates, key=lambda cut: (cut.cycles, -cut.piece))


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    lanes, odd, ending = plan.tile.lanes, _takes_odd(plan.tile, plan.machine), ending_of(plan.problem)
    return {
        main: lambda: module_text(product_function(plan.tile, odd, ending), lanes),
        pack: lambda: module_text(pack_function(plan.tile.rows, ending.stored), lanes),
    }


def product_function(tile: Tile, takes_odd: bool, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`. takes_odd: whether it has a tile for a pixel left over."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    channels, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS)
    width, run = tile.vectors * tile.lanes, _run_function(tile, takes_odd, ending)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, chunk = item.index // a["chunks"], item.index % a["chunks"]
        rest, piece = rest // a["pieces"], rest % a["pieces"]
        group, image = rest % a["groups"], rest // a["groups"]
        first, at_end = piece * a["piece"], (piece + 1).equals(a["pieces"])
        last = f.select(at_end, a["pixels"] - a["odd"], first + a["piece"], "last")
        odd_from = f.select(at_end & a["odd"].equals(1), last - width, -1, "odd_from")
        first_tile = chunk * a["chunk_tiles"]
        tiles = f.minimum(a["chunk_tiles"], a["tiles"] - first_tile)
        from_row = first_tile * tile.rows
        rows = f.minimum(a["rows"] - from_row, tiles * tile.rows)
        row = group * a["rows"] + from_row
        of_row = channels.further(row)
        from_image = source + image * a["in_n"] + group * a["in_g"]
        to_row = target + image * a["out_n"] + row * a["out_c"]
        panels = weights + (group * a["tiles"] + first_tile) * a["channels"] * tile.rows
        with f.loop("q", first, last, width) as q:
            pixels, more = f.minimum(last - q.index, width), f.select(q.index.equals(odd_from), 1, 0, "more")
            further = f.select(q.index + width < last, width * a["in_x"], 0, "further")
            f.call(
                run, args, f.arg("scratch"), panels, from_image + q.index * a["in_x"], to_row + q.index * a["out_x"],
                *of_row.arguments, pixels, more, further, tiles, rows,
            )  # fmt: skip
    f.ret()
    return f


def _run_function(tile: Tile, takes_odd: bool, ending: Ending) -> Function:
    """run(args, panel, weights, source, out, operands, pixels, more, further, tiles, rows): one run of pixels of one
    item.

    more: 1 where the odd pixel follows the run. further: how far it is to the next run, 0 behind the last.
    """
    pointers = [("args", PTR), ("panel", PTR), ("weights", PTR), ("source", ending.stored), ("out", ending.stored)]
    pointers += ending.parameters
    numbers = [(n, I64) for n in ("pixels", "more", "further", "tiles", "rows")]
    f = Function("run", [*pointers, *numbers], private=True)
    panel, out, source, operands = f.arg("panel"), f.arg("out"), f.arg("source"), ending.given(f)
    pixels, more, rows = f.arg("pixels"), f.arg("more"), f.arg("rows")
    names = ("channels", "block", "in_c", "in_x", "out_c", "out_x", "sums_from")
    a = job_words(f, WORDS, *names)
    width, pitch = tile.vectors * tile.lanes, _pitch(tile, takes_odd)
    copy, put = _copy_function(tile, ending.stored, pitch), store_rows_function(tile.lanes, ending)
    multiply = {v: _multiply_function(tile, v, ending, pitch) for v in range(1, tile.vectors + 1)}
    if takes_odd:
        multiply[tile.vectors + 1] = _multiply_function(tile, tile.vectors, ending, pitch, odd=True)
    parked = panel + a["sums_from"]
    vectors = (pixels + (tile.lanes - 1)) // tile.lanes
    # Ragged runs, and pixels that do not follow each other in the output, pass through scratch.
    straight = (vectors * tile.lanes).equals(pixels) & a["out_x"].equals(1)
    whole = f.select(straight, rows // tile.rows, 0, "whole")
    # The first tile of output channels copies whole runs.
    fresh = pixels.equals(width) & a["in_x"].equals(1) & f.negate(more.equals(1))
    with f.loop("c", 0, a["channels"], a["block"]) as c:
        channels = f.minimum(a["block"], a["channels"] - c.index)
        block = source + c.index * a["in_c"]
        done = c.index + channels >= a["channels"]
        following = f.select(done, source + f.arg("further"), block + channels * a["in_c"], "following")
        with f.when(f.negate(fresh), "panel"):
            f.call(copy, panel, block, channels, pixels, a["in_c"], a["in_x"])
        with f.when(more.equals(1), "odd"), f.loop("o", 0, channels) as o:
            f.store(f.load(block + o.index * a["in_c"] + width, F32), panel + o.index * pitch + width)
        mode = f.select(c.index > 0, ADD, 0)
        mode = mode + f.select(done & operands.given if ending.plain else done, BIAS, 0)
        weights = f.arg("weights") + c.index * tile.rows
        for v, function in multiply.items():
            with f.when((vectors + more).equals(v), f"vectors{v}"):
                f.call(
                    function, weights, panel, out, parked, *operands.arguments, following, block,
                    channels, f.arg("tiles"), whole, a["channels"], a["out_c"], a["in_c"], mode, f.select(fresh, 1, 0),
                )  # fmt: skip
    with f.loop("row", whole * tile.rows, rows) as r:
        to, at = out + r.index * a["out_c"], parked + r.index * pitch
        f.call(put, to, at, *operands.further(r.index).arguments, 1, 0, 0, pixels + more, a["out_x"])
    f.ret()
    return f


def _copy_function(tile: Tile, stored: Pointer, pitch: int) -> Function:
    """copy(panel, source, channels, pixels, in_c, in_x): panel[c][pixel], rows as wide as the tile.

    Lanes beyond the last pixel get zeros up to a whole vector; vectors beyond those are not read.
    """
    numbers = [(n, I64) for n in ("channels", "pixels", "in_c", "in_x")]
    f = Function("copy", [("panel", PTR), ("source", stored), *numbers], private=True)
    lanes, width = tile.lanes, tile.vectors * tile.lanes
    pixels, vector = f.arg("pixels"), vector_of(tile.lanes)
    side_by_side = f.arg("in_x").equals(1)
    full = pixels.equals(width)
    whole = pixels // lanes * lanes
    mask = f.lanes_below(pixels - whole, lanes)
    last = f.minimum(whole, width - lanes)

    def each_channel() -> Iterator[tuple[Value, Value]]:
        with f.loop("c", 0, f.arg("channels"), carry=[f.arg("panel"), f.arg("source")]) as c:
            to, at = c.carried
            yield to, at
            c.carry(to + pitch, at + f.arg("in_c"))

    with f.when(side_by_side & full, "whole_run"):
        for to, at in each_channel():
            for v in range(tile.vectors):
                f.store(f.load(at + v * lanes, vector), to + v * lanes)
    with f.when(side_by_side & f.negate(full), "ragged_run"):
        for to, at in each_channel():
            with f.loop("col", 0, whole, lanes) as col:
                f.store(f.load(at + col.index, vector), to + col.index)
            with f.when(whole < pixels, "rest"):
                f.store(f.load_masked(at + whole, mask, lanes), to + last)
    with f.when(f.negate(side_by_side), "apart"):
        zero = f.constant(0.0, vector)
        for to, at in each_channel():
            f.store(zero, to + last)
            gather_row(f, to, at, pixels, f.arg("in_x"))
    f.ret()
    return f


def _pitch(tile: Tile, odd: bool) -> int:
    """From a row of the panel, or of the sums in scratch, to the next: a run, and the odd pixel if there may be one."""
    return (tile.vectors + odd) * tile.lanes


def _multiply_function(tile: Tile, vectors: int, ending: Ending, row_pitch: int, odd: bool = False) -> Function:
    """multiply(weights, panel, out, parked, operands, following, pixels, terms, tiles, whole, channels, out_c, in_c,
    mode, fresh): the tiles of output channels of one run and block of channels; where `fresh`, the first of them reads
    the pixels where they lie and leaves them in the panel.

    The first `whole` tiles go to the output, the others to parked[row][pixel]. The last tiles ask for the lines of the
    pixels at `following`, the others for the weights of the tile behind them. Where the output takes no sums as they
    are, all go to parked[row][pixel], and with BIAS, which then means the last block, the first `whole` on to the
    output.
    """
    pointers = [("weights", PTR), ("panel", PTR), ("out", ending.stored), ("parked", PTR), *ending.parameters]
    pointers += [("following", ending.stored), ("pixels", ending.stored)]
    numbers = [(n, I64) for n in ("terms", "tiles", "whole", "channels", "out_c", "in_c", "mode", "fresh")]
    f = Function(f"multiply_{'odd' if odd else vectors}", [*pointers, *numbers], private=True)
    inner = panel_tile(tile.rows, vectors, tile.lanes, odd, ending.stored)
    whole = vectors == tile.vectors and not odd
    first = panel_tile(tile.rows, vectors, tile.lanes, False, ending.stored, fresh=row_pitch) if whole else None
    put = store_tile_function(vectors, tile.lanes, ending, odd)
    lines = max(1, tile.vectors * tile.lanes // 16) + 1
    step = f.arg("channels") * tile.rows
    with f.loop("t", 0, f.arg("tiles")) as t:
        row = t.index * tile.rows
        parked, straight = f.arg("parked") + row * row_pitch, t.index < f.arg("whole")
        weights = f.arg("weights") + t.index * step
        left = f.arg("tiles") - 1 - t.index
        out, mode = f.arg("out") + row * f.arg("out_c"), f.arg("mode")
        if ending.plain:
            bias, to = f.arg("bias") + row, f.select(straight, out, parked, "to")
            pitch = f.select(straight, f.arg("out_c"), row_pitch, "pitch")
            mode = f.select(straight, mode, mode % BIAS, "tile_mode")
        else:
            # Sums of one block of channels need no place of their own: the first is still in L1.
            parked = f.select(straight & mode.equals(BIAS), f.arg("parked"), parked, "tile_at")
            bias, to, pitch, mode = Value(f, PTR, "null"), parked, f.constant(row_pitch), mode % BIAS
        stored = ending.stored
        ahead = f.select(left < lines, f.arg("following") + left * 16, (weights + step).seen_as(stored), "ahead")
        ahead_pitch = f.select(left < lines, f.arg("in_c"), tile.rows * PTR.bytes // stored.bytes, "ahead_pitch")
        reads = f.arg("fresh").equals(1) & t.index.equals(0) if first else Value(f, "i1", "false")
        if first:
            with f.when(reads, "fresh"):
                f.call(
                    first, weights, f.arg("pixels"), to, bias, ahead, f.arg("panel"),
                    f.arg("terms"), f.arg("in_c"), pitch, ahead_pitch, mode,
                )  # fmt: skip
        with f.when(f.negate(reads), "from_panel"):
            f.call(
                inner, weights, f.arg("panel"), to, bias, ahead,
                f.arg("terms"), row_pitch, pitch, ahead_pitch, mode,
            )  # fmt: skip
        if not ending.plain:
            with f.when(straight & (f.arg("mode") >= BIAS), "finished"):
                of_row = ending.given(f).further(row).arguments
                f.call(put, out, parked, *of_row, tile.rows, f.arg("out_c"), row_pitch)
    f.ret()
    return f


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    problem, tile = plan.problem, plan.tile
    spec = flattened(problem)
    (part,) = sums(Problem(spec, problem.direction))
    x, y = flat_strides(problem.spec, x, y)
    source, target = (x, y) if problem.direction is Direction.FORWARD else (y, x)
    tiles, pixels = -(-part.rows // tile.rows), prod(part.outputs)
    odd = _odd(tile, plan.machine, pixels) if source[2] == target[2] == 1 else 0
    chunks, pieces = -(-tiles // plan.row_tiles), -(-(pixels - odd) // plan.box[2])
    pitch = _pitch(tile, _takes_odd(tile, plan.machine))
    sums_from = plan.channel_block * pitch
    words = (
        spec.groups, part.channels, part.rows, plan.channel_block, plan.row_tiles, chunks, tiles,
        pixels, plan.box[2], pieces, odd,
        source[0], part.channels * source[1], source[1], source[2], *target, sums_from,
    )  # fmt: skip
    tables = Tables()
    packing = packing_job(plan, part, (*w[:2], 0), 0, tables)
    jobs = (PlannedJob(plan.kernels[0], spec.batch * spec.groups * pieces * chunks, words),)
    packed = packing.items * tile.rows * part.channels
    scratch = sums_from + plan.row_tiles * tile.rows * pitch
    return Bound(jobs, (packing,), packed, packing_key(plan, w[:2]), scratch, 0, tables.keep())
