"""Weight gradients of 1×1 kernels: a matrix product summed over pixels, as outer products with channels as lanes.

    dw[m, c]  =  Σ_images Σ_pixels  dy[m][pixel] · x[c][pixel]

    for every part of the pixels, share of the output channels and share of the input channels:       one work item
        for blocks of pixels:
            copy x and dy into scratch with channels as lanes: turned where pixels are contiguous, plainly otherwise
            for vectors of input channels, for tiles of output channels:                           the register tile
                sums[m][c] += Σ_pixels dy[pixel][m] · x[pixel][c]
    afterwards: add the parts' sums in their order

No lanes are added up, and channels-last tensors need no turning. The number of parts depends on the problem alone, so
the bits do not depend on the threads; each sum in registers has some 56 terms, so long sums are blocked.

While a block is multiplied, the next one's lines are asked for.

Constants. Long runs of a channel let the processor foresee the next line: with pieces of 112 instead of 208 pixels
64 → 64 channels at 56×56 are 13 % slower; but where pieces and sums crowd the L2 cache, 112 are 7 to 10 % faster
(64 → 256 at 56×56, 512 → 128 at 28×28). Shares of 256 channels read each tensor least often. Cascade Lake, 2026-11,
two threads: the register tile in its loops reaches 0.75 of the FMA peak; copying is bound by memory and takes a quarter
(512 → 128 at 28×28) to a third (64 → 256 at 56×56) of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.channel_lanes import ASKED, WIDTH, even_share, odd_lines, register_tile
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import flat_strides, flattened
from hubel.engine.algorithms.pointwise_weight_kernels import add_parts_function, kernel_function
from hubel.engine.algorithms.tiling import error_bound, step_cycles
from hubel.engine.ir import module_text
from hubel.engine.machine import MIB, Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec

NAME = "pointwise_weight_gradient"
ANY_EDGES = True
CHANNELS_LAST = True
# Channels of a share at most, with an L2 cache of 1 MiB; pixels of a piece at least, where there are so many, and at
# most; the share of the L2 cache that pieces fill between these; work items there should be at least.
SHARE, LEAST, MOST, HELD, ITEMS = 256, 112, 208, 0.15, 8
# Cycles: a vector of 16 pixels copied; a pixel of a channel that is copied alone. The register tile within its loops,
# against its count of cycles.
VALUE, SINGLE, LOOPS = 10.0, 3.0, 1.2
LEAST_GAIN = 1.1


@dataclass(frozen=True)
class Shares:
    """How a layer is cut into work items. rows, channels: of a share; pieces: of images, in all, each of piece_pixels;
    block: pieces of a block, whole images then.
    """

    tile: Tile
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
    if flattened(problem) is problem.spec:
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
    rows, channels = -(-spec.out_channels // tile.rows) * tile.rows, -(-spec.in_channels // lanes) * lanes
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
    """The layer's work items. The register tile and the channels of a share depend on the channels alone."""
    most = SHARE if machine.l2 >= MIB else SHARE // 2
    rows, channels = (even_share(n, most, machine.lanes) for n in (spec.out_channels, spec.in_channels))
    pixels = prod(spec.output_size)
    # Images that are cut are cut into whole cache lines.
    fit = int(HELD * machine.l2 / (4 * (rows + channels))) // 16 * 16
    piece = min(max(fit, LEAST), MOST)
    piece_pixels = pixels if pixels <= piece else even_share(pixels, piece, 16)
    pieces_x = -(-pixels // piece_pixels)
    pieces, block = spec.batch * pieces_x, max(1, LEAST // piece_pixels) if pieces_x == 1 else 1
    row_shares, channel_shares = -(-spec.out_channels // rows), -(-spec.in_channels // channels)
    parts = max(1, min(-(-ITEMS // (row_shares * channel_shares)), -(-pieces // block)))
    tile = register_tile(machine, min(rows, spec.out_channels))
    cut = pixels, piece_pixels, pieces_x, pieces, block
    return Shares(tile, rows, channels, row_shares, channel_shares, *cut, parts)


def _cycles(spec: ConvSpec, machine: Machine) -> float:
    """Cycles on one thread."""
    how, lanes = shares(spec, machine), machine.lanes
    pixels, tile = spec.batch * how.pixels, how.tile
    rows, channels = -(-spec.out_channels // lanes), -(-spec.in_channels // lanes)
    copied = (rows * how.channel_shares + channels * how.row_shares) * VALUE * (lanes + 4) / 20
    # Channels beyond whole vectors, and images of fewer than four pixels, are copied one by one.
    alone = [n if how.pixels < 4 else n % lanes for n in (spec.in_channels, spec.out_channels)]
    copied += (alone[0] * how.row_shares + alone[1] * how.channel_shares) * SINGLE
    widths = [WIDTH] * (channels // WIDTH) + [1] * (channels % WIDTH)
    steps = sum(step_cycles(machine, tile.rows, width, 1) for width in widths) * LOOPS
    return pixels * (copied + -(-spec.out_channels // tile.rows) * steps)


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
    dy_pitch, row_tiles = odd_lines(how.rows), -(-how.rows // tile.rows)
    item_sums, items = row_tiles * tile.rows * how.channels, how.parts * how.row_shares * how.channel_shares
    panels = how.block * how.piece_pixels * (-(-how.channels // width) * width + dy_pitch) + tile.rows
    at_sums = -(-panels // 16) * 16
    words = (
        how.parts, how.pieces, how.block, how.piece_pixels, how.pixels, how.pieces_x,
        spec.out_channels, how.rows, how.row_shares, spec.in_channels, how.channels, how.channel_shares,
        *x, *y, dy_pitch, row_tiles, item_sums, 0, at_sums, max(1, ASKED * 16 // how.pixels),
    )  # fmt: skip
    jobs = [PlannedJob(plan.kernels[0], items, words)]
    if how.parts > 1:
        jobs.append(PlannedJob(plan.kernels[1], how.row_shares * how.channel_shares * row_tiles, words))
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    shared = item_sums * items if how.parts > 1 else 0
    return Bound(tuple(jobs), (), 0, (), at_sums + (0 if shared else item_sums), shared, ())
