"""Winograd's minimal filtering for 3×3 kernels with stride 1: F(4×4, 3×3) and F(2×2, 3×3), forward and input gradient.

Outputs are made in tiles of m × m from n × n inputs, n = m + 2. In the transformed domain every one of the n² values
of a tile is a sum over channels of its own, so that a layer becomes n² matrix products with m²·9 ∕ n² times fewer
multiplications: 4 for m = 4, 2.25 for m = 2. Tiles of all images are counted through, and lanes are neighbouring tiles:

    for every group, block of tiles and share of the output channels:                       one work item
        for channels c:
            gather the n² inputs of every tile, deinterleaved; padding and what hangs over the border are zeros
            transformed[ξ][c][tile] = Bᵀ d B
        for a few tiles of output channels at a time, so that their sums stay within the L2 cache:
            for ξ, for blocks of channels, for tiles of output channels, for vectors of tiles:         the register tile
                sums[ξ][row][tile] += weights[ξ][c][row] · transformed[ξ][c][tile]
            for rows: Aᵀ s A, interleaved, clipped at the border, bias added, stored

Where there are few tiles, two jobs do this instead of one: first the blocks' channels are transformed by all threads
into shared memory, then the output channels are shared out.

Constants. A block of channels and `MOST_TILES` tiles fill half of the L1 cache for one ξ. The order of summation is:
channels of a block one after the other, then blocks one after the other. How the rest is cut: `winograd_tiling.py`.
Reached on one AVX-512 core (Cascade Lake, 2026-11, FMA peak 147 GFLOP/s, in flops of the direct sum): 64 channels at
56×56 290, 128 at 28×28 288, 256 at 14×14 230, 256 at 56×56 320; F(2, 3), 512 at 7×7, 130. About two thirds of the time
is the register tile, at 0.85 of the peak; the rest is gathering and storing by pieces, and the transforms.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, sums
from hubel.engine.algorithms.winograd_kernels import MOST_TILES, PIECE, kernel_function, pack_function
from hubel.engine.algorithms.winograd_tiling import Cut, cut
from hubel.engine.algorithms.winograd_transforms import TAPS, transforms
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, error_unit, terms_of
from hubel.engine.spec import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "winograd"
ANY_EDGES = True
# Where it is nearer than this, the counts of cycles cannot tell which is faster.
LEAST_GAIN = 1.2
# Bounds on the error in units of u, measured (tests/engine/test_winograd.py), by number of outputs.
ERRORS = {2: 1.5, 4: 5.0}


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for 3×3 kernels with stride and dilation 1."""
    reason = _declined(problem, policy)
    return Refusal(NAME, reason) if reason else plan_tiles(problem, machine, policy)


def plan_tiles(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan of a problem that is not declined."""
    best = cut(problem, machine, policy.threads)
    spec, t = problem.spec, transforms(best.outputs)
    weights = spec.parameters * t.size**2 // TAPS**2
    size = f"{best.outputs}×{best.outputs}"
    return Plan(
        problem, machine, policy, NAME, best.tile,
        kernels=(_name("conv", problem, best, machine), _name("pack", problem, best, machine)),
        channel_block=best.block, box=(1, best.outputs, best.outputs), row_tiles=best.part_tiles,
        estimate=Estimate(
            spec.flops, best.computed, problem.bytes() + 4 * (weights - spec.parameters), best.cycles
        ),
        least_gain=LEAST_GAIN, error_bound=ERRORS[best.outputs] * error_unit(terms_of(problem)),
        reason=f"F({size}, 3×3): {best.outputs**2 * TAPS**2 / t.size**2:.3g} times fewer multiplications",
    )  # fmt: skip


def _declined(problem: Problem, policy: Policy) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels, not over channels"
    if policy.accuracy == "strict":
        return "strict allows direct algorithms only"
    if spec.ndim != 2 or spec.kernel_size != (TAPS, TAPS) or set(spec.stride) | set(spec.dilation) != {1}:
        return "does 3×3 kernels in two dimensions with stride 1 and dilation 1"
    if 0 in (*spec.input_shape, *spec.output_shape):
        return "there are no outputs"
    return ""


def _name(kind: str, problem: Problem, how: Cut, machine: Machine) -> str:
    size = f"{how.outputs}x{how.outputs}"
    tile, ending = (str(how.tile), ending_of(problem).name) if kind == "conv" else (f"rows{how.tile.rows}", "")
    return f"{kind}_{number(problem)}_winograd_f{size}_3x3_{tile}_{machine.isa}{ending}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    t, lanes, ending = transforms(plan.box[1]), plan.tile.lanes, ending_of(plan.problem)
    return {
        main: lambda: module_text(kernel_function(t, plan.tile, ending), lanes),
        pack: lambda: module_text(pack_function(t, plan.tile.rows, ending.stored), lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are input and output (or their gradients), w the weight."""
    problem, spec = plan.problem, plan.problem.spec
    forward = problem.direction is Direction.FORWARD
    (part,) = sums(Problem(spec, problem.direction))
    how = cut(problem, plan.machine, plan.policy.threads)
    tables = Tables()
    source, target = (x, y) if forward else (y, x)
    jobs, scratch, shared = _jobs(plan, part, how, source, target)
    t, tiles = transforms(how.outputs), -(-part.rows // how.tile.rows)
    by_row, by_channel = (w[0], w[1]) if forward else (w[1], w[0])
    by_group = w[0] * (part.rows if forward else part.channels)
    taps = [z * w[2] + u * w[3] for z in _in_order(part, 1) for u in _in_order(part, 2)]
    channel_blocks = -(-part.channels // how.block)
    step = _weights_step(part, how)
    words = (
        tables.add(taps), part.rows, part.channels, tiles,
        how.block, channel_blocks, by_group, by_row, by_channel, step,
    )  # fmt: skip
    packing = PlannedJob(plan.kernels[1], spec.groups * tiles * channel_blocks, words)
    packed = spec.groups * t.size**2 * step
    key = (plan.kernels[1], spec.weight_shape, spec.groups, w, forward, how.block)
    return Bound(jobs, (packing,), packed, key, scratch, shared, tables.keep())


def _in_order(part: Sum, axis: int) -> list[int]:
    """The kernel's positions along an axis, in the order in which they meet the input."""
    return [tap for _, tap in sorted(zip(part.axes[axis].shifts, part.taps[axis], strict=True))]


def _jobs(
    plan: Plan, part: Sum, how: Cut, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[tuple[PlannedJob, ...], int, int]:
    """(jobs, numbers of scratch of a thread, numbers of shared scratch)"""
    spec, t, tile, m = plan.problem.spec, transforms(how.outputs), how.tile, how.outputs
    lanes, points = tile.lanes, t.size**2
    tiles = -(-part.rows // tile.rows)
    pitch = -(-how.vectors // how.blocks) * lanes
    step = _odd_lines(part.channels * pitch)
    sums_step = _odd_lines(how.sub_tiles * tile.rows * pitch)
    sizes = (
        0 if how.shared else points * step, points * (MOST_TILES + lanes), points * sums_step,
        m * m * pitch, (m + 1) * lanes, 2 * (pitch * len(PIECE) + 1),
    )  # fmt: skip
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // 16) * 16)
    outputs, axes = part.outputs[1:], part.axes[1:]
    tiles_y, tiles_x = (-(-size // m) for size in outputs)

    def job(transforming: bool, multiplying: bool) -> PlannedJob:
        channel_parts = how.channel_parts if not multiplying else 1
        row_parts = -(-tiles // how.part_tiles) if multiplying else 1
        words = (
            spec.groups, part.channels, part.rows, tiles, how.block,
            how.blocks, channel_parts, row_parts, how.part_tiles, how.sub_tiles, int(transforming), int(multiplying),
            how.vectors, spec.batch * tiles_y * tiles_x, tiles_y, tiles_x,
            axes[0].size, axes[1].size, *outputs, axes[0].pad, axes[1].pad, *source, *target,
            _weights_step(part, how), int(how.shared), points * step if how.shared else 0, step, sums_step, pitch,
            *places[:-1],
        )  # fmt: skip
        items = spec.groups * how.blocks * channel_parts * row_parts if how.vectors else 0
        return PlannedJob(plan.kernels[0], items, words)

    if not how.shared:
        return (job(True, True),), places[-1], 0
    return (job(True, False), job(False, True)), places[-1], spec.groups * how.blocks * points * step


def _weights_step(part: Sum, how: Cut) -> int:
    """From the packed weights of one ξ to those of the next."""
    return _odd_lines(part.channels * -(-part.rows // how.tile.rows) * how.tile.rows)


def _odd_lines(numbers: int) -> int:
    """At least so many numbers, in an odd number of cache lines: places that far apart fall into different sets."""
    lines = -(-numbers // 16)
    return 16 * (lines + 1 - lines % 2)
