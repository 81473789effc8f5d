"""Winograd's minimal filtering for kernels with stride 1 and 2: forward and input gradient, in one to three dimensions.

Outputs are made in tiles of my × mx from ny × nx inputs, n = m + r − 1 with stride 1. In the transformed domain every
one of the ny·nx values ξ of a tile is a sum over channels of its own, so that a layer becomes as many matrix products
with far fewer multiplications: 4 times for F(4×4, 3×3), 2.25 for F(2×2, 3×3), 4.2 for F(4×2, 5×5), 2 for F(4, 3) along
one axis, 2.8 for F(4, 7). With stride 2 even and odd rows and columns have filters of their own, whose products are
added up: 1.8 times fewer for 3×3, 2.6 for 4×4. Which form a kernel size has: `winograd_forms.py`. Along a third axis
nothing is transformed: its taps are more terms of the sums, which read the transformed tiles of neighbouring planes.
Tiles of a plane are counted through all images; lanes are neighbouring channels, of the input where it is transformed,
of the output elsewhere:

    for every group, strip of tiles, few planes and share of the output channels:            one work item
        for vectors of channels, planes, pieces of rows of tiles:
            turn the piece's inputs so that channels lie next to each other; padding and what hangs over are zeros
            for tiles:  transformed[ξ][plane][tile][c] = Bᵀ d B
        for a few tiles of output channels at a time, so that their sums stay within the L2 cache:
            for ξ, taps of the third axis, blocks of channels, vectors of output channels, runs of tiles:
                sums[ξ][plane][tile][row] += transformed[ξ][plane + tap][tile][c] · weights[ξ][tap][c][row]
            for vectors of rows, planes, pieces:  Aᵀ s A, turned back, clipped at the border, bias added, stored

Where channels lie next to each other already, tiles within the border are transformed where they lie, and outputs
stored as they are. Where there are few tiles, two jobs do this instead of one: first the strips' channels are
transformed by all threads into shared memory, then the output channels are shared out.

Constants. The register tile holds 6 image tiles and 16 output channels on AVX2, with variants of 5 and 4 tiles, of
which any number is the sum: no lane is wasted on small maps (with tiles in the lanes 14 % at 56×56, 23 % at 28×28).
Meanwhile it asks for the next weights. The order of summation is: channels of a block one after the other, then blocks
and taps of the third axis one after the other. How the rest is cut: `winograd_tiling.py`. Reached on Zen 4 held to AVX2
(2026-11, FMA peak 91 GFLOP/s a core), in flops of the direct sum, as a share of the peak on one thread and two: 64
channels at 56×56 3.0 and 2.8, 128 at 28×28 3.2 and 2.9, 256 at 14×14 2.3 and 2.5, 256 at 56×56 3.3 and 3.1; F(2, 3),
512 at 7×7, 1.4. The register tile runs at 0.86 (512 channels, whose weights stream from L3) to 0.94 of the peak and
takes 80 % (64 channels) to 95 % (512) of the time.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, three
from hubel.engine.algorithms.winograd_forms import (
    Form,
    allowed,
    error_bound,
    forms_of,
    too_few_channels,
    whole,
)
from hubel.engine.algorithms.winograd_kernels import PIECE, kernel_function, pack_function, piece_tiles, pitches
from hubel.engine.algorithms.winograd_tiling import Cut, cut, most_rows, planes_held
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "winograd"
ANY_EDGES = True
CHANNELS_LAST = True
# Where it is nearer than this, the counts of cycles cannot tell which is faster. On AVX2 they tell more of ungrouped
# layers: of the 12 between 1.1 and 1.2, on two cores of a Zen 4 held to it (2026-11), eight are 1.17 to 1.28 times as
# fast, three stay within 7 %, and the tiniest takes a third longer.
LEAST_GAIN, LEAST_GAIN_AVX2 = 1.2, 1.1


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for the kernel sizes that have a form, with stride 1 or 2 and dilation 1."""
    reason = _declined(problem, policy)
    return Refusal(NAME, reason) if reason else plan_tiles(problem, machine, policy)


def plan_tiles(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan of a problem that is not declined."""
    best = cut(problem, machine, policy)
    spec, form = problem.spec, best.form
    weights = spec.parameters * form.points // (form.taps[0] * form.taps[1])
    kind, width = f"{number(problem)}_winograd_f{form}", best.tile.vectors * best.tile.lanes
    return Plan(
        problem, machine, policy, NAME, best.tile,
        kernels=(
            f"conv_{kind}_{best.tile}{'_tail' * _has_tail(problem, best)}_{machine.isa}{ending_of(problem).name}",
            f"pack_{kind}_rows{width}_{machine.isa}",
        ),
        channel_block=best.block, box=(1, *form.outputs), row_tiles=best.part_tiles,
        estimate=Estimate(
            spec.flops, best.computed, problem.bytes() + 4 * (weights - spec.parameters), best.cycles
        ),
        least_gain=_least_gain(spec.groups, machine), error_bound=error_bound(form, problem),
        reason=f"{_called(form)}: {form.saved:.3g} times fewer multiplications; an infinity or NaN "
        f"spreads over tiles of {'×'.join(map(str, form.outputs))} outputs",
    )  # fmt: skip


def _least_gain(groups: int, machine: Machine) -> float:
    return LEAST_GAIN_AVX2 if machine.lanes == 8 and groups == 1 else LEAST_GAIN


def _declined(problem: Problem, policy: Policy) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels, not over channels"
    if policy.accuracy == "strict":
        return "strict allows direct algorithms only"
    if set(spec.dilation) != {1} or max(spec.stride) > 2:
        return "does strides 1 and 2, and dilation 1"
    # Before the forms, whose matrices of fractions take milliseconds: depthwise layers need none of them.
    if few := too_few_channels(problem):
        return few
    if not forms_of(problem):
        size, stride = ("×".join(map(str, sizes)) for sizes in (spec.kernel_size, spec.stride))
        kernels = f"kernels of {size}" + (f" with stride {stride}" if set(spec.stride) != {1} else "")
        return f"{kernels} have no form that saves multiplications accurately"
    if not allowed(problem, policy):
        return f"its error is too large for {policy.accuracy}"
    if 0 in (*spec.input_shape, *spec.output_shape):
        return "there are no outputs"
    return ""


def _called(form: Form) -> str:
    """As in F(4×4, 3×3), and with which stride unless it is 1."""
    name = f"F({'×'.join(map(str, form.outputs))}, {'×'.join(map(str, form.taps))})"
    return f"{name} with stride 2" if form.rows.kind or form.cols.kind else name


def _form(plan: Plan) -> Form:
    """The form that a plan was made with."""
    return next(form for form in forms_of(plan.problem) if form.outputs == plan.box[1:])


def _has_tail(problem: Problem, how: Cut) -> bool:
    """Whether the last tile of output channels holds no more than one vector of them."""
    part = whole(problem)
    return how.tile.vectors > 1 and 0 < part.rows % (how.tile.vectors * how.tile.lanes) <= how.tile.lanes


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    form, tile, ending = _form(plan), plan.tile, ending_of(plan.problem)
    width, tail = tile.vectors * tile.lanes, "_tail" in main
    return {
        main: lambda: module_text(kernel_function(form, tile, tail, ending), tile.lanes),
        pack: lambda: module_text(pack_function(form, width, ending.stored), tile.lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are input and output (or their gradients), w the weight."""
    problem, spec = plan.problem, plan.problem.spec
    forward = problem.direction is Direction.FORWARD
    part = whole(problem)
    how = cut(problem, plan.machine, plan.policy)
    tables, form = Tables(), how.form
    source, target = (x, y) if forward else (y, x)
    jobs, scratch, shared = _jobs(plan, part, how, source, target)
    tiles = -(-part.rows // (how.tile.vectors * how.tile.lanes))
    by_row, by_channel = (w[0], w[1]) if forward else (w[1], w[0])
    by_group = w[0] * (part.rows if forward else part.channels)
    strides = three(w[2:], 0)
    outer, rows, cols = ([tap * strides[axis] for tap in _in_order(part, axis)] for axis in form.axes)
    channel_blocks = -(-part.channels // how.block)
    step = _weights_step(part, how)
    words = (
        tables.add([z + u + v for z in outer for u in rows for v in cols]), part.rows, part.channels, tiles,
        how.block, channel_blocks, len(outer), by_group, by_row, by_channel, step,
    )  # fmt: skip
    packing = PlannedJob(plan.kernels[1], spec.groups * tiles * channel_blocks, words)
    packed = spec.groups * form.points * step
    key = (plan.kernels[1], spec.weight_shape, spec.groups, w, forward, how.block)
    return Bound(jobs, (packing,), packed, key, scratch, shared, tables.keep())


def _in_order(part: Sum, axis: int) -> list[int]:
    """The kernel's positions along an axis, in the order in which they meet the input."""
    return [tap for _, tap in sorted(zip(part.axes[axis].shifts, part.taps[axis], strict=True))]


def _jobs(
    plan: Plan, part: Sum, how: Cut, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[tuple[PlannedJob, ...], int, int]:
    """(jobs, numbers of scratch of a thread, numbers of shared scratch)"""
    spec, form, tile = plan.problem.spec, how.form, how.tile
    lanes, points, width = tile.lanes, form.points, tile.vectors * tile.lanes
    tiles = -(-part.rows // width)
    axes = [part.axes[axis] for axis in form.axes]
    taps, strip = len(part.taps[form.axes[0]]), how.strip
    # What is read reaches from the furthest tap's planes as far as the runs of tiles do.
    rows = most_rows(tile, strip, how.planes)
    furthest = planes_held(how.planes, taps, axes[0].step) - how.planes
    pitch, sums_pitch = -(-part.channels // lanes) * lanes, how.sub_tiles * width
    if how.block < part.channels:
        # Rows of a block of channels do not follow each other: else they would share a few sets of the cache.
        pitch = _odd_lines(pitch)
    step = _odd_lines((furthest * strip + max(rows, how.planes * strip)) * pitch)
    sums_step = _odd_lines(rows * sums_pitch)
    pieces = strip + -(-strip // piece_tiles(form, lanes)) + 1
    of_region, of_stage = pitches(form, lanes)
    sizes = (
        0 if how.shared else points * step, form.rows.read * of_region + lanes, points * sums_step,
        form.rows.outputs * of_stage, lanes, 2 * (pieces * len(PIECE) + 1),
    )  # fmt: skip
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // 16) * 16)
    outputs = [axis.outputs for axis in axes]
    tiles_y, tiles_x = (-(-size // m) for size, m in zip(outputs[1:], form.outputs, strict=True))
    strides = [[three(t[2:], 0)[axis] for axis in form.axes] for t in (source, target)]
    blocks = spec.groups * how.strips * how.plane_parts

    def job(transforming: bool, multiplying: bool) -> PlannedJob:
        channel_parts = how.channel_parts if not multiplying else 1
        row_parts = -(-tiles // how.part_tiles) if multiplying else 1
        words = (
            spec.groups, part.channels, part.rows, tiles, how.block, taps, axes[0].step,
            how.strips, how.plane_parts, how.planes, outputs[0],
            channel_parts, row_parts, how.part_tiles, how.sub_tiles, int(transforming), int(multiplying),
            how.tiles, tiles_y, tiles_x, *(axis.size for axis in axes), *outputs[1:], *(axis.pad for axis in axes),
            *source[:2], *strides[0], *target[:2], *strides[1],
            _weights_step(part, how), int(how.shared), points * step if how.shared else 0, step, sums_step,
            pitch, sums_pitch, *places[:-1],
        )  # fmt: skip
        return PlannedJob(plan.kernels[0], blocks * channel_parts * row_parts if how.tiles else 0, words)

    if not how.shared:
        return (job(True, True),), places[-1], 0
    return (job(True, False), job(False, True)), places[-1], blocks * points * step


def _weights_step(part: Sum, how: Cut) -> int:
    """From the packed weights of one ξ to those of the next."""
    outer, width = len(part.taps[how.form.axes[0]]), how.tile.vectors * how.tile.lanes
    return _odd_lines(outer * part.channels * -(-part.rows // width) * width)


def _odd_lines(numbers: int) -> int:
    """At least so many numbers, in an odd number of cache lines: places that far apart fall into different sets."""
    lines = -(-numbers // 16)
    return 16 * (lines + 1 - lines % 2)
