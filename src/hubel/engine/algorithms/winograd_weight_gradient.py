"""Winograd's weight gradient for 3×3 kernels with stride 1: the forward algorithm F(4×4, 3×3), transposed.

    dw[m, c]  =  Gᵀ [ Σ over images and tiles  (A dy[m] Aᵀ) ⊙ (Bᵀ x[c] B) ] G

A tile is 4 × 4 output gradients with the 6 × 6 inputs that meet them; 36 multiplications do the work of 144. In the
transformed domain every one of the 36 places ξ is a matrix product of its own, summed over tiles:

    for every group, part of the tiles, share of its output channels and of its input channels:        one work item
        for blocks of about 32 tiles:
            copy dy and x into scratch with channels as lanes, transform: gradients[ξ][tile][m], inputs[ξ][tile][c]
            for ξ, for vectors of input channels, for tiles of output channels:                    the register tile
                sums[ξ][m][c] += Σ_tiles gradients[ξ][tile][m] · inputs[ξ][tile][c]
        where the tiles are one part only: dw = Gᵀ sums G
    afterwards, where there are several: add the parts' sums in their order, and dw = Gᵀ sums G

With channels as lanes no lanes are added up, and the transforms read and write whole vectors. The number of parts
depends on the problem alone, so the bits do not depend on the threads; each sum in registers has some 32 terms, so
long sums are blocked.

Constants. A share of 96 × 96 channels makes two thirds of the work the register tile: smaller ones transform more
often, with larger ones sums leave the L2 cache. Blocks of 14 to 64 tiles are within 4 % of each other. Reached on one
AVX-512 core (Cascade Lake, 2026-11, FMA peak 147 GFLOP/s, in flops of the direct sum, batch 16): 64 channels at 56×56
222, 256 at 14×14 195, 512 at 7×7 175.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.channel_lanes import WIDTH, even_share, odd_lines, register_tile
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.tiling import step_cycles
from hubel.engine.algorithms.winograd_transforms import transforms
from hubel.engine.algorithms.winograd_weight_kernels import add_parts_function, kernel_function
from hubel.engine.ir import module_text
from hubel.engine.ir.turn import QUAD
from hubel.engine.machine import MIB, Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile, error_unit, terms_of
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec

NAME = "winograd_weight_gradient"
ANY_EDGES = True
CHANNELS_LAST = True
OUTPUTS, TAPS = 4, 3
# Channels of a share at most, with an L2 cache of 1 MiB; tiles of a block; work items there should be at least.
SHARE, BLOCK, ITEMS = 96, 32, 8
# Bound on the error in units of u: measured 2.3 for up to 2304 terms and less for more, and nearly doubled.
ERROR = 4.0
# Cycles: a transformed vector of 16 lanes, copying included; an input that is copied alone; a partial sum of a vector
# added at the end, and the rest of the end. The register tile within its loops, against its count of cycles.
VALUE, SINGLE, PARTIAL, END, LOOPS = 17.0, 3.0, 8.0, 250.0, 1.4
# Channels of a group, where there are several, from which on it is looked at.
LEAST_CHANNELS = 16
# Where it is nearer than this, the counts of cycles cannot tell which is faster.
LEAST_GAIN = 1.1


@dataclass(frozen=True)
class Shares:
    """How a layer is cut into work items. tile: in registers; rows, channels: of a share; pieces: rows of tiles, or
    pieces of them where they are longer than a block, in all, each of piece_tiles tiles; block: pieces of a block.
    """

    tile: Tile
    rows: int
    channels: int
    row_shares: int
    channel_shares: int
    piece_tiles: int
    pieces_x: int
    tiles_y: int
    pieces: int
    block: int
    parts: int


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for 3×3 kernels with stride and dilation 1."""
    reason = _declined(problem, policy)
    if reason:
        return Refusal(NAME, reason)
    return plan_tiles(problem, machine, policy)


def _declined(problem: Problem, policy: Policy) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return "does weight gradients only"
    if policy.accuracy == "strict":
        return "strict allows direct algorithms only"
    if spec.ndim != 2 or spec.kernel_size != (TAPS, TAPS) or set(spec.stride) | set(spec.dilation) != {1}:
        return "does 3×3 kernels in two dimensions with stride 1 and dilation 1"
    if min(spec.in_channels, spec.out_channels) < spec.groups * LEAST_CHANNELS and spec.groups > 1:
        return f"transforms take as long as they save with fewer than {LEAST_CHANNELS} channels a group"
    if not spec.batch:
        return "there are no images to add up"
    return ""


def plan_tiles(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan of a problem that is not declined."""
    spec, how, t = problem.spec, shares(problem.spec, machine), transforms(OUTPUTS, TAPS)
    lanes, tile = how.tile.lanes, how.tile
    tiles, points = how.pieces * how.piece_tiles, t.size**2
    rows, vectors = (-(-spec.out_channels // spec.groups // n) * n for n in (tile.rows, lanes))
    channels = -(-spec.in_channels // spec.groups // lanes) * lanes
    # The transforms take about four operations for each of their values.
    transformed = vectors * how.channel_shares + channels * how.row_shares
    computed = spec.groups * points * tiles * (2 * rows * channels + 4 * transformed)
    less = OUTPUTS**2 * TAPS**2 / points
    name = f"weight_gradient_{{}}_winograd_f{OUTPUTS}x{OUTPUTS}_3x3_{{}}{tile}_{machine.isa}"
    return Plan(
        problem, machine, policy, NAME, tile,
        kernels=(name.format(number(problem), ""), name.format("f32", "add_parts_"), bias_name(problem, machine)),
        channel_block=how.channels, box=(1, how.block * OUTPUTS, how.piece_tiles * OUTPUTS),
        row_tiles=-(-how.rows // tile.rows), partial_sums=how.parts,
        estimate=Estimate(spec.flops, computed, problem.bytes(), _cycles(spec, machine) / policy.threads),
        least_gain=LEAST_GAIN,
        error_bound=ERROR * error_unit(terms_of(problem)),
        reason=f"F({OUTPUTS}×{OUTPUTS}, 3×3) transposed: {less:.3g} times fewer multiplications; an infinity or "
        "NaN spreads over all taps of its channel",
    )  # fmt: skip


def shares(spec: ConvSpec, machine: Machine) -> Shares:
    """The layer's work items. The register tile and the channels of a share depend on the channels alone."""
    most = SHARE if machine.l2 >= MIB else SHARE // 2
    of_rows, of_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    rows, channels = (even_share(n, most, machine.lanes) for n in (of_rows, of_channels))
    tiles_y, tiles_x = (-(-size // OUTPUTS) for size in spec.output_size)
    pieces_x = -(-tiles_x // BLOCK)
    piece_tiles = -(-tiles_x // pieces_x)
    pieces = spec.batch * pieces_x * tiles_y
    block = max(1, BLOCK // piece_tiles)
    row_shares, channel_shares = -(-of_rows // rows), -(-of_channels // channels)
    parts = max(1, min(-(-ITEMS // (spec.groups * row_shares * channel_shares)), -(-pieces // block)))
    tile = register_tile(machine, min(rows, of_rows))
    cut = piece_tiles, pieces_x, tiles_y, pieces, block
    return Shares(tile, rows, channels, row_shares, channel_shares, *cut, parts)


def _cycles(spec: ConvSpec, machine: Machine) -> float:
    """Cycles on one thread."""
    how, lanes, points = shares(spec, machine), machine.lanes, transforms(OUTPUTS, TAPS).size ** 2
    tiles, tile = how.pieces * how.piece_tiles, how.tile
    of_rows, of_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    rows, channels = -(-of_rows // lanes), -(-of_channels // lanes)
    transformed = tiles * points * (rows * how.channel_shares + channels * how.row_shares)
    transformed *= VALUE * (lanes + 4) / 20
    # Channels beyond whole vectors, and rows shorter than four, are copied one by one.
    short = min(spec.input_size[1], spec.output_size[1]) < QUAD
    alone = [n if short else n % lanes for n in (of_channels, of_rows)]
    single = spec.batch * SINGLE * (
        alone[0] * spec.input_size[0] * spec.input_size[1] * how.row_shares
        + alone[1] * spec.output_size[0] * spec.output_size[1] * how.channel_shares
    )  # fmt: skip
    widths = [WIDTH] * (channels // WIDTH) + [1] * (channels % WIDTH)
    steps = sum(step_cycles(machine, tile.rows, width, 1) for width in widths) * LOOPS
    products = points * tiles * -(-of_rows // tile.rows) * steps
    end = of_rows * channels * (END + points * PARTIAL * (how.parts - 1))
    return spec.groups * (transformed + single + products + end)


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, add_parts, bias = plan.kernels
    t, lanes = transforms(OUTPUTS, TAPS), plan.tile.lanes
    sources = {
        main: lambda: module_text(kernel_function(t, plan.tile, stored(plan.problem)), lanes),
        add_parts: lambda: module_text(add_parts_function(t, plan.tile), lanes),
    }
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(lanes, stored(plan.problem)), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, t = plan.problem.spec, transforms(OUTPUTS, TAPS)
    how = shares(spec, plan.machine)
    tile, points, lanes = how.tile, t.size**2, how.tile.lanes
    width = how.rows + how.channels
    step = odd_lines(how.block * how.piece_tiles * width + tile.rows)
    row_tiles = -(-how.rows // tile.rows)
    sums_step = odd_lines(row_tiles * tile.rows * how.channels)
    shared_out = spec.groups * how.row_shares * how.channel_shares
    item_sums, items = points * sums_step, how.parts * shared_out
    pitch = (how.piece_tiles * OUTPUTS + t.size - OUTPUTS) * lanes
    lines = min(how.block, how.tiles_y) * OUTPUTS + t.size - OUTPUTS
    # Zeros may run over the end of a region by a vector.
    sizes = lines * pitch + lanes, points * step, item_sums if how.parts == 1 else 0, TAPS**2 * lanes
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // 16) * 16)
    words = (
        how.parts, how.pieces, how.block, how.piece_tiles, how.tiles_y, how.pieces_x,
        spec.out_channels // spec.groups, how.rows, how.row_shares,
        spec.in_channels // spec.groups, how.channels, how.channel_shares,
        *spec.input_size, *x, *spec.padding, *spec.output_size, *y,
        pitch, step, sums_step, item_sums, row_tiles, *places[:-1],
    )  # fmt: skip
    jobs = [PlannedJob(plan.kernels[0], items, words)]
    if how.parts > 1:
        jobs.append(PlannedJob(plan.kernels[1], shared_out * row_tiles, words))
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    return Bound(tuple(jobs), (), 0, (), places[-1], item_sums * items if how.parts > 1 else 0, ())
