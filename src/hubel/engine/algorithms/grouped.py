"""Grouped convolutions, forward and input gradient: output channels in the lanes of a vector.

    for every image, bundle of groups and band of rows:                                     one work item
        copy what the band reads into scratch, channels in lanes, zeros around it
        for vectors of the bundle's output channels, for tiles of outputs:                  the register tile
            for input channels c of a group, for rows of the kernel:
                for places of the row that the tile reads, for the taps that meet each:
                    acc[output][lane] += weight[c, tap][lane] · input[c][place]
        turn the sums back, where the output does not have its channels next to each other

Groups are too narrow for tiles of many output channels, whose loads then bind. Here a place is loaded once for all taps
of a row that meet it: 30 loads for 84 multiply-adds (28 outputs of a 3×3 kernel). A group with at least as many output
channels as lanes has vectors of its own, and a place is one number for all lanes. Narrower groups share a vector, a
*bundle* of them; each lane picks the input channel of its own group from a vector of them all.

The order of summation is that of `direct` where that sums all channels of a group in one block.

Constants. Rows of 28 outputs keep 84 multiply-adds beside 33 loads in 32 registers. Inputs spread in scratch instead,
a vector for each channel of a group, take longer to write than to multiply (128 channels at 56×56 in groups of 4, one
thread: 0.82 ms, of which spreading took 0.37; as it is, 0.61). Cascade Lake, 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from hubel.engine.algorithms import direct
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, sums, three
from hubel.engine.algorithms.grouped_kernels import Taps, kernel_function, pack_function
from hubel.engine.algorithms.tiling import ITEM, UNEVEN, error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "grouped"
ANY_EDGES = True
CHANNELS_LAST = True
# Channels of a group at most: their sums are one block, and their inputs stay in the caches.
MOST_CHANNELS, MOST_TAPS = 80, 11
# Widths of tiles that are compiled, beside the widest: those of the usual maps, and 1 for all others.
WIDTHS = {32: (19, 14, 10, 8, 7, 4, 1), 16: (10, 8, 7, 6, 5, 4, 1)}
MOST_ROWS = 4
# How many times fewer cycles than others' it must take by this count. Where a group is just one vector, `channels`
# takes half as long again as it counts (256 channels of 8 a group, stride 2, 56×56: 0.63 ms, here 0.39; Zen 4,
# 2026-11).
LEAST_GAIN, OF_ONE_VECTOR = 1.1, 0.7
# Cycles: a vector turned, to or from the lanes; a tile begun; an output stored.
TURN, TILE, STORE = 12.0, 25.0, 1.5


@dataclass(frozen=True)
class Shares:
    """How a sum is cut up. bundle: groups of a vector; vectors: of a bundle; panels: vectors of input channels kept of
    a place; shape: number of the register tile among `shapes`; box_y: rows of a band.
    """

    bundle: int
    vectors: int
    panels: int
    shape: int
    box_y: int
    cycles: float
    computed: int


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for groups of a few channels, in one or two dimensions."""
    reason = _declined(problem, machine)
    if reason:
        return Refusal(NAME, reason)
    spec, parts = problem.spec, sums(problem)
    shares = [_shares(problem, part, machine, policy.threads) for part in parts]
    kinds = list(dict.fromkeys(_taps(part, machine) for part in parts))
    largest = max(range(len(parts)), key=lambda i: shares[i].cycles)
    how, part = shares[largest], parts[largest]
    rows, width = shapes(_taps(part, machine), machine)[how.shape]
    # `direct` sums the channels of a block one after the other, as it is done here with all.
    whole = direct.channel_block(max(parts, key=direct.extent), machine) == part.channels
    cycles, computed = sum(each.cycles for each in shares), sum(each.computed for each in shares)
    return Plan(
        problem, machine, policy, NAME, Tile(rows * width, 1, machine.lanes),
        kernels=(*(_name(problem, kind, machine) for kind in kinds), f"pack_{number(problem)}_grouped_{machine.isa}"),
        channel_block=part.channels, box=(1, how.box_y, part.outputs[2]), row_tiles=how.vectors,
        estimate=Estimate(spec.flops, computed, problem.bytes(), cycles),
        least_gain=OF_ONE_VECTOR if part.rows == part.channels == machine.lanes else LEAST_GAIN,
        error_bound=error_bound(problem), reason="few channels a group: output channels in lanes",
        sums_like=direct.NAME if whole else "",
    )  # fmt: skip


def _name(problem: Problem, kind: Taps, machine: Machine) -> str:
    return f"conv_{number(problem)}_grouped_{kind}_{machine.isa}{ending_of(problem).name}"


def _declined(problem: Problem, machine: Machine) -> str:
    """Why not, or nothing. Nothing here may depend on the batch."""
    spec = problem.spec
    rows, channels = sums(problem)[0].rows, sums(problem)[0].channels
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels, not over channels"
    if spec.groups == 1 or channels == 1:
        return "does groups of several channels"
    if spec.ndim > 2:
        return "does one and two dimensions"
    if channels > MOST_CHANNELS:
        return f"does groups of at most {MOST_CHANNELS} channels"
    if rows < machine.lanes and (machine.lanes % rows or channels > rows):
        return "output channels of a group fill no vector and do not share it evenly"
    if rows < machine.lanes and machine.arch != "x86_64":
        return "groups narrower than a vector share one on x86 only"
    if spec.kernel_size[-1] > MOST_TAPS:
        return f"does kernels of at most {MOST_TAPS} columns"
    if not prod(spec.output_size) or not spec.batch:
        return "there are no outputs"
    return ""


def _taps(part: Sum, machine: Machine) -> Taps:
    """What the kernel of a sum is compiled for."""
    x, first = part.axes[2], min(part.axes[2].shifts, default=0)
    shared = (part.rows, part.channels) if part.rows < machine.lanes else None
    return Taps(x.step, tuple(shift - first for shift in x.shifts) or (0,), shared)


@lru_cache(maxsize=256)
def shapes(taps: Taps, machine: Machine) -> tuple[tuple[int, int], ...]:
    """(rows, outputs of a row) of the register tiles, the widest first: the sums, a row's weights and inputs must find
    room in the registers. (On ARM LLVM loads weights and inputs in pairs.)
    """
    others = 10 if machine.arch == "aarch64" else 2 if taps.shared is None else 3
    most = machine.registers - len(taps.shifts) - others
    widths = [most, *(width for width in WIDTHS[machine.registers] if width < most)]
    return tuple((min(MOST_ROWS, most // width), width) for width in widths)


def _step(taps: Taps, rows: int, width: int, lanes: int) -> float:
    """Cycles of a row of the kernel and an input channel, a tile."""
    sums_, loads = rows * width * len(taps.shifts), rows * len(taps.places(width)) + len(taps.shifts) + 1
    # Vectors of 16 lanes are picked from by one of the two units that multiply them.
    picked = rows * len(taps.places(width)) if taps.shared and lanes == 16 else 0
    return max((sums_ + picked) / 2, loads / 2, (sums_ + loads + rows + 3) / 4, 4.0 * len(taps.shifts)) + 0.05 * loads


@lru_cache(maxsize=4096)
def _shares(problem: Problem, part: Sum, machine: Machine, threads: int) -> Shares:
    """The cheapest cut of a sum. It changes no bit of the result, so it may depend on the batch and the threads."""
    lanes, taps = machine.lanes, _taps(part, machine)
    _, y, x = part.outputs
    bundle = lanes // part.rows if taps.shared else 1
    vectors = 1 if taps.shared else -(-part.rows // lanes)
    panels = 1 if taps.shared else -(-part.channels // lanes)
    groups = problem.spec.batch * -(-problem.spec.groups // bundle)
    read_y, read_x = _reach(part, 1), _window_x(part)
    terms = part.channels * len(part.taps[1])
    found: list[Shares] = []
    for pieces in (1, 2, 3, 4, 6, 8, 12, 16, 32):
        box_y = -(-y // pieces)
        rows = (box_y - 1) * part.axes[1].step + read_y
        scratch = 4 * lanes * (rows * read_x * panels + box_y * x)
        if pieces > y or (scratch > machine.l2 * 3 // 4 and box_y > 1):
            continue
        copied = rows * read_x * TURN * panels
        items = groups * -(-y // box_y)
        busy = items / threads
        for index, (r, width) in enumerate(shapes(taps, machine)):
            if width > x:
                continue
            tiles = -(-box_y // r) * -(-x // width)
            each = tiles * (terms * _step(taps, r, width, lanes) + TILE + STORE * r * width) + box_y * x * TURN
            cycles = (ITEM + copied + vectors * each) * max(busy, 1.0) * (1 + (UNEVEN / busy if threads > 1 else 0))
            computed = 2 * items * vectors * tiles * r * width * terms * len(taps.shifts) * lanes
            found.append(Shares(bundle, vectors, panels, index, box_y, cycles, computed))
    return min(found, key=lambda share: share.cycles)


def _reach(part: Sum, axis: int) -> int:
    """Places between the first and the last that an output reads, these included."""
    shifts = part.axes[axis].shifts
    return max(shifts, default=0) - min(shifts, default=0) + 1


def _window_x(part: Sum) -> int:
    """Places of a row that are read."""
    return (part.outputs[2] - 1) * part.axes[2].step + _reach(part, 2)


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    lanes, ending = plan.machine.lanes, ending_of(plan.problem)
    *names, pack = plan.kernels
    kinds = dict.fromkeys(_taps(part, plan.machine) for part in sums(plan.problem))
    sources: dict[str, Callable[[], str]] = {pack: lambda: module_text(pack_function(lanes, ending.stored), lanes)}
    for name, kind in zip(names, kinds, strict=True):
        function = lambda kind=kind: kernel_function(kind, shapes(kind, plan.machine), lanes, ending)  # noqa: E731
        sources[name] = lambda function=function: module_text(function(), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    problem, spec, lanes = plan.problem, plan.problem.spec, plan.machine.lanes
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    tables, jobs, packing = Tables(), [], []
    scratch = packed = 0
    for part in sums(problem):
        how = _shares(problem, part, plan.machine, plan.policy.threads)
        words, needed = _words(plan, part, how, source, target, packed, tables)
        bundles = -(-spec.groups // how.bundle)
        items = spec.batch * bundles * -(-part.outputs[1] // how.box_y)
        kind = _taps(part, plan.machine)
        jobs.append(PlannedJob(_name(problem, kind, plan.machine), items, words))
        if part.tap_count:
            packing.append(_packing(plan, part, how, w, packed, tables))
            packed += bundles * how.vectors * lanes * part.channels * part.tap_count
        scratch = max(scratch, needed)
    key = (plan.kernels[-1], spec.weight_shape, spec.groups, w, forward)
    key = key if forward else (*key, spec.stride, spec.padding, spec.dilation)
    return Bound(tuple(jobs), tuple(packing), packed, key, scratch, 0, tables.keep())


def _words(
    plan: Plan,
    part: Sum,
    how: Shares,
    source: tuple[int, ...],
    target: tuple[int, ...],
    packed: int,
    tables: Tables,
) -> tuple[tuple[int, ...], int]:
    """(words, numbers of scratch) of the job for one sum."""
    spec, lanes = plan.problem.spec, plan.machine.lanes
    _, axis_y, axis_x = part.axes
    window_x = _window_x(part)
    place = ((how.box_y - 1) * axis_y.step + _reach(part, 1)) * window_x * lanes
    # Off multiples of 4 KiB, which all fall into one set of the L1 cache.
    plane = place + (lanes if place % 1024 == 0 else 0)
    shared = _taps(part, plan.machine).shared
    first = [0] if shared else [c // lanes * plane + c % lanes for c in range(part.channels)]
    rows = [(shift - min(axis_y.shifts)) * window_x * lanes for shift in axis_y.shifts]
    offsets = [c + row for c in first for row in rows] if part.tap_count else []
    strides, out = three(source[2:], 0), three(target[2:], 0)
    out_from = sum(r * s for r, s in zip(part.out_start, out, strict=True))
    out = tuple(o * s for o, s in zip(part.out_step, out, strict=True))
    at_sums = how.panels * plane
    at_bias = at_sums + how.box_y * axis_x.outputs * lanes
    words = (
        tables.add(offsets), packed, spec.groups, part.channels, part.rows, how.bundle, -(-spec.groups // how.bundle),
        how.vectors, len(part.taps[1]) if part.tap_count else 0,
        *part.outputs[1:], how.box_y, -(-axis_y.outputs // how.box_y), axis_y.step,
        min(axis_y.shifts, default=0), min(axis_x.shifts, default=0), _reach(part, 1), window_x,
        axis_y.size, axis_x.size, source[0], part.channels * source[1], source[1], *strides[1:],
        out_from, target[0], target[1], *out[1:],
        how.shape, plane, at_sums, at_bias,
    )  # fmt: skip
    beside = 0 if ending_of(plan.problem).plain else at_bias - at_sums
    return words, at_bias + lanes + beside


def _packing(plan: Plan, part: Sum, how: Shares, w: tuple[int, ...], packed: int, tables: Tables) -> PlannedJob:
    """The job that packs the weights of one sum from place `packed` on."""
    out_stride, in_stride, *space = w
    strides, spec = three(tuple(space), 0), plan.problem.spec
    taps = [y * strides[1] + x * strides[2] for y in part.taps[1] for x in part.taps[2]]
    by_row, by_channel = (
        (out_stride, in_stride) if plan.problem.direction is Direction.FORWARD else (in_stride, out_stride)
    )
    own = part.rows if plan.problem.direction is Direction.FORWARD else part.channels
    words = (
        tables.add(taps), packed, spec.groups, part.rows, part.channels, len(taps), how.vectors, how.bundle,
        own * out_stride, by_row, by_channel,
    )  # fmt: skip
    return PlannedJob(plan.kernels[-1], -(-spec.groups // how.bundle) * how.vectors, words)
