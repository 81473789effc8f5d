"""Direct convolution, forward and input gradient: any number of dimensions, stride, padding, dilation and groups.

    for every image, group, box of outputs and share of the output channels:               one work item
        for blocks of input channels:
            copy the window that the box reads into scratch                                 padding becomes zeros
            for the sums of a gradient with a stride, which read the same window,
            for planes z, for runs of pixels q, for tiles of output channels t:             (t, then q: few terms)
                for channels c of the block, for taps:                                      the register tile
                    acc[row, pixel] += weight[t][c, tap][row] · window[c][offset[tap] + pixel]
        store the box, bias added

Lanes are neighbouring pixels, so NCHW tensors are read and written as they are, and a channel count that fits no
vector costs nothing. Offsets come from a table (`hubel.engine.window`), so one compiled kernel serves every kernel
size, stride and dilation; only the shape of the register tile is compiled in.

Constants. The channel block keeps what a tile reads within half of the L1 cache: the tiles of output channels then
find it there, and the weights stream past (24 bytes for every 12 cycles of arithmetic with a 6×64 tile). Measured on
one AVX-512 core (Cascade Lake, 2026-11): 6×64 reaches 0.97 of the FMA peak from L1 and 0.86 from L2. Blocks also
bound the rounding error: sums of at most `MOST_TERMS` products are rounded one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from hubel.engine.algorithms import depthwise
from hubel.engine.algorithms.direct_kernels import (
    ONE_ROW,
    ROW_BY_ROW,
    SCRATCH,
    convolution_function,
    pack_function,
)
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, is_product, sums, three
from hubel.engine.algorithms.tiling import MOST_ALTERNATIVES, Cut, cheapest, cuts, error_bound, row_by_row
from hubel.engine.algorithms.winograd_forms import allowed, too_few_channels
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables
from hubel.engine.window import Axes, Window

NAME = "direct"
ANY_EDGES = True
MOST_TERMS = 768
TINY_FLOPS = 1_000_000
# Numbers of scratch memory behind the last window or tile, for loads and stores that run over the end.
SLACK = 64


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for whatever is not a weight gradient, a matrix product or a depthwise layer, which other files do."""
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "weight gradients are sums over pixels, not over channels")
    if is_product(problem):
        return Refusal(NAME, "a matrix product over one row of pixels: pointwise")
    if problem.spec.in_channels == problem.spec.out_channels > 1 and not depthwise.declined(problem):
        return Refusal(NAME, "one channel a group fills one row of its tiles: depthwise")
    part, used, found = _cuts(problem, machine, policy)
    return _plan(problem, machine, policy, part, used, cheapest(found))


def alternatives(plan: Plan) -> list[Plan]:
    """The same plan cut otherwise, cheapest first: other tiles, boxes and shares."""
    part, used, found = _cuts(plan.problem, plan.machine, plan.policy)
    best = sorted(dict.fromkeys(found), key=lambda cut: cut.cycles)[:MOST_ALTERNATIVES]
    return [_plan(plan.problem, plan.machine, plan.policy, part, used, cut) for cut in best]


def _plan(problem: Problem, machine: Machine, policy: Policy, part: Sum, used: Machine, best: Cut) -> Plan:
    spec, parts = problem.spec, sums(problem)
    useful = sum(each.tap_count * prod(each.outputs) for each in parts) / max(1, part.tap_count * prod(part.outputs))
    return Plan(
        problem, machine, policy, NAME, best.tile,
        kernels=(kernel_name(problem, best.tile, used), pack_name(problem, best.tile, used)),
        channel_block=channel_block(part, machine), box=best.box, row_tiles=best.row_tiles,
        estimate=Estimate(spec.flops, int(2 * best.computed * useful), problem.bytes(), max(1.0, best.cycles * useful)),
        error_bound=error_bound(problem), reason="any shape: windows in scratch, pixels in lanes",
    )  # fmt: skip


def _cuts(problem: Problem, machine: Machine, policy: Policy) -> tuple[Sum, Machine, list[Cut]]:
    """The largest of the problem's sums, the machine as it is used, and how the sum may be cut up."""
    spec = problem.spec
    largest = max(sums(problem), key=extent)
    # A tiny problem is over before a core that has been asked for its widest vectors has slowed its clock for them.
    tiny = spec.flops < TINY_FLOPS and machine.lanes == 16
    used = replace(machine, lanes=8) if tiny else machine
    widths = (2,) if tiny else _widths(problem, machine, policy)
    block, copies = channel_block(largest, machine), max(1, spec.batch * spec.groups)
    straight = largest.out_step[2] == 1 and ending_of(problem).plain
    return largest, used, cuts(largest, block, copies, used, policy.threads, straight, widths)


def extent(part: Sum) -> int:
    """How much a sum does beside the others of its problem."""
    return part.tap_count * prod(part.outputs)


def may_be_winograd(problem: Problem, policy: Policy) -> bool:
    """Whether images of some size may be Winograd's, whose kernels then count among a layer's."""
    return not too_few_channels(problem) and bool(allowed(problem, policy))


def _widths(problem: Problem, machine: Machine, policy: Policy) -> tuple[int, ...]:
    """The widths that tiles may have: few enough that all sizes of a layer's images together need four kernels at most.

    With AVX-512 one of the four is that for tiny problems. Layers that Winograd may do leave it
    two, others one to `images`.
    """
    if may_be_winograd(problem, policy):
        return (3,) if machine.lanes == 16 else (2, 3)
    return (3, 4) if machine.lanes == 16 else (2, 3, 4)


def channel_block(part: Sum, machine: Machine) -> int:
    """Channels summed in registers before memory is touched: those whose pixels under a tile of four vectors take
    half of L1.

    It fixes the order of summation, so it may not depend on the batch, nor on the tile, which does.
    """
    lines = len(part.taps[0]) * len(part.taps[1]) * len(part.axes[2].phases)
    # A row of a 1×1 panel is as wide as the tile; rows of a window also show what lies beside it.
    line = 4 * (4 * machine.lanes if part.tap_count == 1 else 5 * machine.lanes + part.axes[2].reach)
    by_cache = machine.l1 // 2 // max(1, lines * line)
    by_error = MOST_TERMS // max(1, part.tap_count)
    most = max(1, min(part.channels, max(4, by_cache), by_error))
    return -(-part.channels // -(-part.channels // most))


def kernel_name(problem: Problem, tile: Tile, machine: Machine) -> str:
    return f"conv_{number(problem)}_direct_{tile}_{machine.isa}{ending_of(problem).name}"


def pack_name(problem: Problem, tile: Tile, machine: Machine) -> str:
    return f"pack_{number(problem)}_rows{tile.rows}_{machine.isa}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    lanes, ending = plan.tile.lanes, ending_of(plan.problem)
    return {
        main: lambda: module_text(convolution_function(plan.tile, ending), lanes),
        pack: lambda: module_text(pack_function(plan.tile.rows, ending.stored), lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    spec = plan.problem.spec
    forward = plan.problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    tables, jobs, packing = Tables(), [], []
    scratch = packed = 0
    for parts in _sharing_windows(plan):
        places = []
        for part in parts:
            places.append(packed)
            if part.tap_count:
                packing.append(packing_job(plan, part, w, packed, tables))
                packed += packing[-1].items * plan.tile.rows * part.channels * part.tap_count
        words, items, needed = _job_words(plan, parts, spec.batch, spec.groups, source, target, places, tables)
        jobs.append(PlannedJob(plan.kernels[0], items, words))
        scratch = max(scratch, needed)
    key = packing_key(plan, w) if forward else (*packing_key(plan, w), spec.stride, spec.padding, spec.dilation)
    return Bound(tuple(jobs), tuple(packing), packed, key, scratch, 0, tables.keep())


def _sharing_windows(plan: Plan) -> list[tuple[Sum, ...]]:
    """The problem's sums in parts that share windows: so many that what they have in scratch stays in L2."""
    parts = sums(plan.problem)
    of_one = 4 * plan.row_tiles * plan.tile.rows * prod(plan.box)
    together = max(1, plan.machine.l2 // 4 // max(1, of_one))
    return [parts[i : i + together] for i in range(0, len(parts), together)]


def _common(parts: Sequence[Sum]) -> Axes:
    """Axes with the shifts of all the sums."""
    if len(parts) == 1:
        return parts[0].axes
    found = []
    for of_parts in zip(*(part.axes for part in parts), strict=True):
        shifts = tuple(sorted({shift for axis in of_parts for shift in axis.shifts}))
        found.append(replace(of_parts[0], outputs=max(axis.outputs for axis in of_parts), shifts=shifts))
    return tuple(found)  # type: ignore[return-value]


def _job_words(
    plan: Plan,
    parts: Sequence[Sum],
    batch: int,
    groups: int,
    source: tuple[int, ...],
    target: tuple[int, ...],
    packed: list[int],
    tables: Tables,
) -> tuple[tuple[int, ...], int, int]:
    """(words, work items, numbers of scratch) of the job for sums that share a window, whose packed weights begin at
    these places.
    """
    tile, axes, part = plan.tile, _common(parts), parts[0]
    outputs = tuple(axis.outputs for axis in axes)
    box = tuple(min(b, o) for b, o in zip(plan.box, outputs, strict=True))
    window = Window(axes, box, lanes=tile.lanes)  # type: ignore[arg-type]
    boxes = tuple(-(-o // b) for o, b in zip(outputs, box, strict=True))
    tiles = -(-part.rows // tile.rows)
    chunks = -(-tiles // plan.row_tiles)
    width = tile.vectors * tile.lanes
    channels = part.channels if any(each.tap_count for each in parts) else 1
    block = min(plan.channel_block, channels)
    n, c, *space = source
    out_n, out_c, *out_space = target
    strides, out = three(tuple(space), 0), three(tuple(out_space), 0)
    steps = tuple(o * s for o, s in zip(part.out_step, out, strict=True))
    straight = steps[2] == 1 and ending_of(plan.problem).plain
    one_by_one = straight and row_by_row(box, width)  # type: ignore[arg-type]
    planes, flat = (box[1], box[2]) if one_by_one else (box[0], window.flat)
    sums_z = -(-flat // width) * width
    sums_row = planes * sums_z + (tile.lanes if planes * sums_z % 1024 == 0 else 0)
    sums_from = -(-(block * window.pitch_c + window.overhang + width + SLACK) // 16) * 16
    in_place = ROW_BY_ROW if one_by_one else ONE_ROW if straight and box[0] == box[1] == 1 else SCRATCH
    table = []
    for each, place in zip(parts, packed, strict=True):
        taps = window.offsets(each.axes) if each.tap_count else []
        table += [
            tables.add([c * window.pitch_c + tap for c in range(block) for tap in taps]), place, len(taps),
            *each.outputs, sum(r * s for r, s in zip(each.out_start, out, strict=True)), sums_from,
        ]  # fmt: skip
        sums_from += plan.row_tiles * tile.rows * sums_row
    words = (
        tables.add(table), len(parts), groups, channels, part.rows, block,
        plan.row_tiles, chunks, tiles,
        *box, *boxes,
        n, part.channels * c, out_n, out_c, *steps,
        sums_row, sums_z, in_place,
        *window.words((c, *strides), tuple(tables.add(axis.table()) for axis in axes)),  # type: ignore[arg-type]
    )  # fmt: skip
    return words, batch * groups * prod(boxes) * chunks, sums_from + SLACK


def packing_key(plan: Plan, w: tuple[int, ...]) -> tuple[object, ...]:
    """What the packed form of weights with these strides depends on, where all taps are packed in their order."""
    spec = plan.problem.spec
    return plan.kernels[1], spec.weight_shape, spec.groups, w, plan.problem.direction is Direction.FORWARD


def packing_job(plan: Plan, part: Sum, w: tuple[int, ...], packed: int, tables: Tables) -> PlannedJob:
    """The job that packs the weights of one sum, tiles of `plan.tile.rows` output channels, from place `packed` on."""
    out_stride, in_stride, *space = w
    strides = three(tuple(space), 0)
    taps = [
        z * strides[0] + y * strides[1] + x * strides[2]
        for z in part.taps[0]
        for y in part.taps[1]
        for x in part.taps[2]
    ]
    tiles = -(-part.rows // plan.tile.rows)
    if plan.problem.direction is Direction.FORWARD:
        by_group, by_row, by_channel = part.rows * out_stride, out_stride, in_stride
    else:
        by_group, by_row, by_channel = part.channels * out_stride, in_stride, out_stride
    words = (tables.add(taps), packed, part.rows, part.channels, len(taps), tiles, by_group, by_row, by_channel)
    return PlannedJob(plan.kernels[1], plan.problem.spec.groups * tiles, words)
