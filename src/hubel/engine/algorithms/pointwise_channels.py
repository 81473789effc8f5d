"""1×1 convolutions with output channels in the lanes of a vector: a matrix product over pixels wherever they lie,
forward and, with stride 1, input gradient.

    for every image, group, piece of the pixels and share of the output channels:                  one work item
        for tiles of output channels t, for blocks of input channels:
            for runs of pixels p:                                                                  the register tile
                for channels c of the block:
                    acc[pixel][lane] += input[place(p) + c] · weight[t][c][lane]
        turn the sums back, where the output does not have its channels next to each other

`pointwise` has neighbouring pixels in its lanes. Here each pixel is broadcast, from wherever a table says that it lies:
channels-last tensors are read and written as they are, strides cost nothing, and maps of any size fill the tile: 49
pixels are nine runs of five and six. The weights of a block stay in L1 while all pixels of the item pass by; meanwhile
those of the next block are asked for, a little with each term, for in small maps they are most of what is read.

The order of summation is that of `pointwise`, so results have the same bits; strided problems, which that declines,
have an order of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from hubel.engine.algorithms import pointwise
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, flattened, one_run, sums, three
from hubel.engine.algorithms.pointwise_channels_kernels import pack_function, product_function
from hubel.engine.algorithms.tiling import ITEM, MOST_ALTERNATIVES, UNEVEN, error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.tables import Tables

NAME = "pointwise_channels"
ANY_EDGES = True
CHANNELS_LAST = True
# Most pixels of a tile: each needs a pointer of its own.
MOST_PIXELS = 8
# Cycles: a tile begun and its sums stored; a vector of sums turned, or finished on its way; a number held as float32; a
# run of a channel held (64→64 at 56×56: 0.41 ms with pixels side by side, 0.30 with channels; Zen 4).
TILE, TURN, HOLD, RUN = 30.0, 8.0, 0.3, 4.0
# Bytes a cycle from the caches beyond L2 and from L2.
FAR, NEAR = 8.0, 32.0


@dataclass(frozen=True)
class Cut:
    """Pixels of a piece, tiles of output channels of a share, and the cycles until all are done."""

    piece: int
    row_tiles: int
    cycles: float


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for any 1×1 kernel without padding whose outputs follow each other."""
    spec = problem.spec
    if set(spec.kernel_size) != {1} or set(spec.padding) != {0}:
        return Refusal(NAME, "needs a 1×1 kernel and no padding")
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "weight gradients are sums over pixels, not over channels")
    if problem.direction is Direction.INPUT_GRADIENT and set(spec.stride) != {1}:
        return Refusal(NAME, "of strided convolutions it does the forward direction")
    if problem.layout == "strided":
        return Refusal(NAME, "needs outputs that follow each other in memory")
    return _plans(problem, machine, policy)[0]


def alternatives(plan: Plan) -> list[Plan]:
    """The same plan cut otherwise, cheapest first: other pieces and shares."""
    return _plans(plan.problem, plan.machine, plan.policy)


def _plans(problem: Problem, machine: Machine, policy: Policy) -> list[Plan]:
    spec = problem.spec
    part = _sum(problem)
    tile, block = _tile(machine, part.rows), pointwise.channel_block(part, machine)
    pixels, width = prod(part.outputs), tile.vectors * tile.lanes
    computed = 2 * spec.batch * spec.groups * pixels * part.channels * -(-part.rows // width) * width
    first = Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            f"conv_{number(problem)}_pointwise_channels_{tile}_{machine.isa}{ending_of(problem).name}",
            f"pack_{number(problem)}_pointwise_channels_{tile}_{machine.isa}",
        ),
        channel_block=block, box=(1, 1, 0), row_tiles=0,
        estimate=Estimate(spec.flops, computed, problem.bytes(), 0.0),
        error_bound=error_bound(problem), reason="1×1: a matrix product with output channels in lanes",
        sums_like=pointwise.NAME if pointwise.applies(problem) else "",
    )  # fmt: skip
    return [
        replace(
            first, box=(1, 1, cut.piece), row_tiles=cut.row_tiles, estimate=replace(first.estimate, cycles=cut.cycles)
        )
        for cut in _cuts(problem, tile, part, block, machine, policy.threads)[:MOST_ALTERNATIVES]
    ]


def _sum(problem: Problem) -> Sum:
    """The problem's one sum; with stride 1, over one long row of pixels."""
    spec = problem.spec if set(problem.spec.stride) != {1} else flattened(replace(problem, layout="planes"))
    (part,) = sums(Problem(spec, problem.direction))
    return part


def _tile(machine: Machine, rows: int) -> Tile:
    """The tile with the fewest cycles a pixel for so many output channels."""
    others = 3 if machine.arch == "aarch64" else 1
    widths = (4, 3, 2) if machine.lanes == 4 and machine.registers == 32 else (2, 3)
    tiles = [Tile(min(MOST_PIXELS, (machine.registers - v - others) // v), v, machine.lanes) for v in widths]

    def cost(tile: Tile) -> float:
        return -(-rows // (tile.vectors * tile.lanes)) * _step(tile, tile.rows) / tile.rows

    # Wide blocks of weights leave little room in L1 (64→64 at 56×56: 0.80 of the peak, 6×16 0.91).
    return min(tiles, key=lambda tile: cost(tile) * (1.1 if tile.vectors == 3 and tile.lanes == 8 else 1.0))


def _step(tile: Tile, pixels: int) -> float:
    """Cycles of one term of the sums of so many pixels."""
    sums_, v = pixels * tile.vectors, tile.vectors
    return max(sums_ / 2, (pixels + v + 1) / 2, (sums_ + pixels + v + 5) / 4, 4.0) + 0.05 * (pixels + v)


def _cuts(problem: Problem, tile: Tile, part: Sum, block: int, machine: Machine, threads: int) -> list[Cut]:
    """The ways to share the work out, cheapest first."""
    spec, width = problem.spec, tile.vectors * tile.lanes
    pixels, channels, tiles = prod(part.outputs), part.channels, -(-part.rows // width)
    copies, blocks = max(1, spec.batch * spec.groups), -(-part.channels // block)
    straight = problem.layout == "channels_last" and ending_of(problem).short
    weights = 4 * channels * width / (NEAR if 4 * channels * part.rows < machine.l2 // 2 else FAR)
    found = []
    for piece in sorted({min(pixels, max(1, -(-pixels // n))) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)}):
        runs = max(1, -(-piece // tile.rows))
        read = 4 * channels * piece
        for_tile = runs * (channels * _step(tile, -(-piece // runs)) + blocks * TILE)
        for_tile += max(0.0, weights - 0.5 * for_tile) + (0.0 if read < machine.l2 * 3 // 4 else read / FAR)
        for_tile += 0 if straight else piece * tile.vectors * TURN
        once = ITEM + read / FAR
        if problem.layout != "channels_last":
            once += RUN * channels * runs
        elif problem.dtype != "float32":
            once += HOLD * channels * piece
        for row_tiles in sorted({-(-tiles // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 32)}):
            items = copies * -(-max(1, pixels) // max(1, piece)) * -(-tiles // row_tiles)
            turns = -(-items // threads)
            spread = 1 + (UNEVEN / turns if threads > 1 else 0)
            found.append(Cut(piece, row_tiles, (once + row_tiles * for_tile) * turns * spread))
    return sorted(found, key=lambda cut: (cut.cycles, -cut.piece))


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    lanes, ending = plan.tile.lanes, ending_of(plan.problem)
    return {
        main: lambda: module_text(product_function(plan.tile, ending), lanes),
        pack: lambda: module_text(pack_function(plan.tile, ending.stored), lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    problem, spec, tile = plan.problem, plan.problem.spec, plan.tile
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    part, tables, width = _sum(problem), Tables(), tile.vectors * tile.lanes
    out_x = one_run(spec.output_size if forward else spec.input_size, target[2:])
    assert out_x is not None, "outputs of strided problems do not follow each other"
    pixels, piece, tiles = prod(part.outputs), max(1, plan.box[2]), -(-part.rows // width)
    chunks, pieces = -(-tiles // max(1, plan.row_tiles)), -(-pixels // piece)
    cells = source[1] == 1
    # Rows of channels do not all begin in the same set of the cache.
    held_x, held_c, held_run = part.channels + 16, 1, 0
    if not cells:
        held_x, held_c, held_run = 1, tile.rows, part.channels * tile.rows + 16
    elif problem.dtype == "float32":
        held_x = held_c = 0
    held = piece * held_x if cells else -(-piece // tile.rows) * held_run
    bias_from = -(-held // 16) * 16
    sums_from = bias_from + -(-width // 16) * 16
    # One table for all pieces, where pixels follow each other at one distance; else a place for every pixel.
    in_x = one_run(spec.output_size, source[2:]) if set(spec.stride) == {1} else None
    table = places(spec, source[2:]) if in_x is None else [p * in_x for p in range(piece)]
    words = (
        tables.add(table), tables.add([p * held_x for p in range(piece if cells else tile.rows)]),
        spec.groups, part.channels, part.rows, plan.channel_block, plan.row_tiles, chunks, tiles, pixels, piece, pieces,
        source[0], part.channels * source[1], source[1], in_x or 0, int(in_x is None),
        held_c, held_run, target[0], target[1], out_x, bias_from, sums_from,
    )  # fmt: skip
    by_row, by_channel = (w[0], w[1]) if forward else (w[1], w[0])
    by_group = w[0] * (part.rows if forward else part.channels)
    pack_words = (spec.groups, part.rows, part.channels, tiles, by_group, by_row, by_channel)
    packing = PlannedJob(plan.kernels[1], spec.groups * tiles, pack_words)
    packed = packing.items * width * part.channels
    key = (plan.kernels[1], spec.weight_shape, spec.groups, w, forward)
    scratch = sums_from + piece * (width + tile.lanes)
    jobs = (PlannedJob(plan.kernels[0], spec.batch * spec.groups * pieces * chunks, words),)
    return Bound(jobs, (packing,) if packed else (), packed, key, scratch, 0, tables.keep())


def places(spec: ConvSpec, strides: tuple[int, ...]) -> list[int]:
    """Where the input's number of each output pixel lies, from the first on."""
    sizes, steps = three(spec.output_size, 1), three(spec.stride, 1)
    z, y, x = (
        [i * step * stride for i in range(size)]
        for size, step, stride in zip(sizes, steps, three(strides, 0), strict=True)
    )
    return [at_z + at_y + at_x for at_z in z for at_y in y for at_x in x]
