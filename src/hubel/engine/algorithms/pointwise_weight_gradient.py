"""Weight gradients of 1×1 kernels: a matrix product summed over pixels, as outer products with channels as lanes.

    dw[m, c]  =  Σ_images Σ_pixels  dy[m][pixel] · x[c][pixel]

    the channels of one of both are rows, those of the other, if there are fewer, lanes
    for every part of the pixels, share of the rows and share of the lanes:                            one work item
        for blocks of pixels:
            for panels of two vectors of lanes:
                copy the panel's pixels into scratch, turned where pixels are contiguous
                for tiles of rows:                                                               the register tile
                    sums[row][lane] += Σ_pixels of_rows[row][pixel] · panel[pixel][lane]
    afterwards: add the parts' sums in their order

No lanes are added up. Rows are read one by one, for all lanes, and so from where they lie if their pixels are
contiguous; those of channels-last tensors are copied, tile by tile. A panel fills half of the L1 cache and is used for
all rows of a share, so that turning it costs little. The number of parts depends on the problem alone, so the bits do
not depend on the threads; each sum in registers has some 256 terms, so long sums are blocked. While a panel is
multiplied, the next one's lines are asked for.

Constants. Zen 3, 2026-11, two threads: the register tile reaches 0.91 of the FMA peak where rows were copied, 0.83
where they are read as they lie; with all copies 64 → 256 channels at 56×56 reach 0.78, 1024 → 512 at 14×14 0.85. Panels
of 192 to 320 pixels are within 3 % of one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.channel_lanes import WIDTH, even_share, odd_lines, register_tile
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import flat_strides, flattened, is_product
from hubel.engine.algorithms.pointwise_weight_kernels import LINE, RUN, add_parts_function, kernel_function
from hubel.engine.algorithms.tiling import error_bound, step_cycles
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec

NAME = "pointwise_weight_gradient"
ANY_EDGES = True
CHANNELS_LAST = True
# Channels of a share at most; work items there should be at least.
SHARE, ITEMS = 256, 8
# Cycles: a vector of 16 pixels copied; a pixel of a channel that is copied alone. The register tile within its loops,
# against its count of cycles.
VALUE, SINGLE, LOOPS = 10.0, 3.0, 1.2
LEAST_GAIN = 1.1


@dataclass(frozen=True)
class Shares:
    """How a layer is cut into work items. rows_are_x: whether the input's channels are rows, and the output's lanes;
    rows, channels: of a share; pieces: of images, in all, each of piece_pixels; block: pieces of a block, whole images
    then.
    """

    tile: Tile
    rows_are_x: bool
    all_rows: int
    all_channels: int
    rows: int
    channels: int
    row_shares: int
    channel_shares: int
    pixels: int
    piece_pixels: int
    pieces_x: int
    pieces: int
    block: int
    parts: int


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for 1×1 kernels with stride 1 and no padding."""
    reason = _declined(problem)
    if reason:
        return Refusal(NAME, reason)
    return plan_products(problem, machine, policy)


def _declined(problem: Problem) -> str:
    """Why not, or nothing."""
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return "does weight gradients only"
    if not is_product(problem):
        return "does 1×1 kernels with stride 1 and no padding, on images whose pixels lie at one distance"
    if problem.spec.groups > 1:
        return "does one group"
    if not problem.spec.batch:
        return "there are no images to add up"
    return ""


def plan_products(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan of a problem that is not declined."""
    spec, how = problem.spec, shares(problem.spec, machine)
    lanes, tile, pixels = how.tile.lanes, how.tile, spec.batch * how.pixels
    rows, channels = -(-how.all_rows // tile.rows) * tile.rows, -(-how.all_channels // lanes) * lanes
    name = f"weight_gradient_{{}}{tile}_{machine.isa}"
    return Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            name.format(f"{number(problem)}_1x1_"), name.format("f32_1x1_add_parts_"), bias_name(problem, machine),
        ),
        channel_block=how.channels, box=(1, how.block, how.piece_pixels),
        row_tiles=-(-how.rows // tile.rows), partial_sums=how.parts,
        estimate=Estimate(
            spec.flops, 2 * pixels * rows * channels, problem.bytes(), _cycles(spec, machine) / policy.threads
        ),
        least_gain=LEAST_GAIN,
        error_bound=error_bound(problem), reason="outer products pixel by pixel, with channels as lanes",
    )  # fmt: skip


def shares(spec: ConvSpec, machine: Machine) -> Shares:
    """The layer's work items. Tiles and shares of the channels depend on the channels alone."""
    all_rows, all_channels = max(spec.in_channels, spec.out_channels), min(spec.in_channels, spec.out_channels)
    tile = register_tile(machine, min(SHARE, all_rows))
    tile = replace(tile, rows=min(tile.rows, all_rows))
    width = tile.vectors * tile.lanes
    rows, channels = even_share(all_rows, SHARE, tile.rows), even_share(all_channels, SHARE, width)
    # The last share, too, holds a whole tile.
    while (all_rows - 1) % rows + 1 < tile.rows:
        rows += tile.rows
    most = machine.l1 // 2 // (4 * width) // 16 * 16
    pixels = prod(spec.output_size)
    # Images that are cut are cut into whole cache lines.
    piece_pixels = pixels if pixels <= most else even_share(pixels, most, 16)
    pieces_x = -(-pixels // piece_pixels)
    pieces, block = spec.batch * pieces_x, max(1, most // piece_pixels) if pieces_x == 1 else 1
    row_shares, channel_shares = -(-all_rows // rows), -(-all_channels // channels)
    parts = max(1, min(-(-ITEMS // (row_shares * channel_shares)), -(-pieces // block)))
    cut = all_rows, all_channels, rows, channels, row_shares, channel_shares, pixels, piece_pixels, pieces_x, pieces
    return Shares(tile, spec.in_channels > spec.out_channels, *cut, block, parts)


def _cycles(spec: ConvSpec, machine: Machine) -> float:
    """Cycles on one thread."""
    how, lanes = shares(spec, machine), machine.lanes
    pixels, tile, channels = spec.batch * how.pixels, how.tile, how.all_channels
    # Channels beyond whole vectors, and images of fewer than four pixels, are copied one by one.
    alone = channels if how.pixels < 4 else channels % lanes
    copied = (-(-channels // lanes) * VALUE * (lanes + 4) / 20 + alone * SINGLE) * how.row_shares
    vectors = -(-channels // lanes)
    widths = [WIDTH] * (vectors // WIDTH) + [1] * (vectors % WIDTH)
    steps = sum(step_cycles(machine, tile.rows, width, 1) for width in widths) * LOOPS
    return pixels * (copied + -(-how.all_rows // tile.rows) * steps)


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, add_parts, bias = plan.kernels
    lanes = plan.tile.lanes
    sources = {
        main: lambda: module_text(kernel_function(plan.tile, stored(plan.problem)), lanes),
        add_parts: lambda: module_text(add_parts_function(plan.tile), lanes),
    }
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(lanes, stored(plan.problem)), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, how = flattened(plan.problem), shares(plan.problem.spec, plan.machine)
    x, y = flat_strides(plan.problem.spec, x, y)
    tile, lanes = how.tile, how.tile.lanes
    width = tile.vectors * lanes
    row, lane, dw = (x, y, (1, spec.in_channels)) if how.rows_are_x else (y, x, (spec.in_channels, 1))
    copied = row[2] != 1 or plan.problem.dtype != "float32"
    terms = how.block * how.piece_pixels
    # A call asks for lines of one channel, or of a number of pixels.
    ask_c, ask_x = (lane[1], LINE) if lane[2] == 1 else (LINE * lane[2], lane[2])
    ask_n = lane[0] - -(-how.piece_pixels // LINE) * ask_x
    # Rows that are side by side are asked for in runs: of all there are, or of a pixel's.
    runs_apart = (RUN if how.rows == row[2] else row[2]) if row[1] == 1 else 0
    runs = max(0, terms * row[2] // runs_apart - 2) if runs_apart else 0
    row_tiles, panels = -(-how.rows // tile.rows), -(-how.channels // width)
    item_sums, items = row_tiles * tile.rows * how.channels, how.parts * how.row_shares * how.channel_shares
    at_rows, pitch = terms * width, odd_lines(terms * tile.rows + lanes)
    at_sums = -(-(at_rows + (pitch * row_tiles if copied else 0)) // 16) * 16
    words = (
        int(how.rows_are_x), int(copied), how.parts, how.pieces, how.block, how.piece_pixels, how.pixels, how.pieces_x,
        how.all_rows, how.rows, how.row_shares, how.all_channels, how.channels, how.channel_shares,
        *row, *lane, ask_n, ask_c, ask_x, runs_apart, runs, pitch, panels, item_sums, at_rows, at_sums, *dw,
    )  # fmt: skip
    jobs = [PlannedJob(plan.kernels[0], items, words)]
    if how.parts > 1:
        jobs.append(PlannedJob(plan.kernels[1], how.row_shares * how.channel_shares * panels, words))
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    shared = item_sums * items if how.parts > 1 else 0
    return Bound(tuple(jobs), (), 0, (), at_sums + (0 if shared else item_sums), shared, ())
