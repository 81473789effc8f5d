"""Depthwise convolution of channels-last tensors, forward and input gradient: channels in the lanes of a vector.

    for every image, band of rows, strip of columns and block of channels:                  one work item
        for rows of outputs, for tiles of `pixels` outputs beside each other, for vectors of channels:
            for rows of the kernel that lie in the image:                                   the register tile
                load the row's weights; load each column of the tile once
                acc[output] += weight[tap] · column[output·stride + tap]
            store the outputs, finished

Nothing is copied or masked: a column that lies outside of the image is read from a vector of zeros, and rows of the
kernel that do are left out. Stride and dilation cost nothing. The input gradient of a convolution with stride s is s²
sums (`geometry`); those along x that lie beside each other are one part, whose tile has outputs of all of them, so
that memory is written in runs, too.

A strip is so narrow that its rows stay in the L2 cache until the kernel has passed over them, a block of channels so
small that its weights stay in L1; within these bounds both are as large as they can be, so that memory is read in runs.

Constants. Tiles of seven outputs: the maps of classic networks are 7, 14, 28, 56 and 112 wide, and seven sums, the
weights of a row of up to seven taps and a column fill AVX2's registers. Narrower maps have tiles of four or of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from hubel.engine.algorithms.depthwise_channels_kernels import (
    PART,
    WORDS,
    Pattern,
    kernel_function,
    pack_function,
)
from hubel.engine.algorithms.edges import ending_of, number, stored
from hubel.engine.algorithms.geometry import Sum, sums, three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.tables import Tables

NAME = "depthwise_channels"
ANY_EDGES = True
CHANNELS_LAST = True
# Units of a tile, for maps at least so wide, by the outputs of a unit: sums that lie beside each other.
UNITS = {1: (7, 4, 1), 2: (4, 2, 1), 3: (2, 1), 4: (2, 1)}
# Columns of a kernel are written out.
MOST_COLUMNS = 31
# What the rows that a strip reads may take of the L2 cache, and the weights of a block of channels of the L1 cache.
# Rows that stay in L1 would be read in shorter runs: that took 1.1 to 1.3 times as long (Zen 4, 2026-11).
ROWS_HELD, WEIGHTS_HELD = 0.25, 0.25
# Work items wanted for each thread.
ITEMS = 4
# Tensors from this share of the L3 cache on come from memory, and lines are asked for ahead: tiles read so many streams
# at once that the hardware follows none of them. Line after line is the quickest order (64 channels, 16 images at
# 112×112, stride 2: 3.5 ms; 3.3 when asked for column by column, 2.7 so; Zen 3). What is written is asked for where it
# is at least as much as what is read (128 channels, 16 images at 56×56: 3.2 ms without, 2.5 so; input gradient with
# stride 2, 64 at 112×112: 4.9 and 2.7). Stores past the caches, which read no line first, took 0.6 to 2.2 times as long
# from one second to the next, as other guests of the machine used its memory.
AHEAD = 0.25
# For estimates: the share of the FMA peak that is reached, and cycles of a tile.
REACHED, TILE = 0.7, 12.0


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for channels-last tensors with one input and one output channel a group, in one or two dimensions."""
    spec = problem.spec
    reason = _declined(problem, machine)
    if reason:
        return Refusal(NAME, reason)
    parts, runs = _sums_of_rows(problem), _runs_there(problem)
    units = units_of_tile(min(count for _, count in runs), runs[0][0].pattern.outputs)
    block, strip, band = box_of(problem, parts, units, machine, machine.l2 * ROWS_HELD, ITEMS * policy.threads)
    vectors = spec.batch * -(-spec.in_channels // machine.lanes)
    tiles = [vectors * part.outputs[1] * -(-count // units) for part in parts for _, count in runs]
    taps = [len(part.taps[1]) * len(run.taps) for part in parts for run, _ in runs]
    computed = 2 * machine.lanes * units * sum(count * each for count, each in zip(tiles, taps, strict=True))
    cycles = computed / (4 * machine.lanes * REACHED) + TILE * sum(tiles)
    kind = f"{number(problem)}_channels_{_shape(problem)}_{units}"
    kind += "_ahead" if asks_ahead(problem, machine) else ""
    return Plan(
        problem, machine, policy, NAME, Tile(units, 1, machine.lanes),
        kernels=(
            f"depthwise_{kind}_{machine.isa}{ending_of(problem).name}",
            f"pack_{number(problem)}_depthwise_channels_{machine.isa}",
        ),
        channel_block=1, box=(1, band, strip), row_tiles=block,
        estimate=Estimate(spec.flops, computed, problem.bytes(), cycles / policy.threads),
        error_bound=error_bound(problem), reason="one channel a group, next to each other: channels in lanes",
    )  # fmt: skip


def _declined(problem: Problem, machine: Machine) -> str:
    spec = problem.spec
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels"
    if problem.layout != "channels_last":
        return "reads channels that are next to each other"
    if spec.ndim > 2:
        return "has one or two dimensions"
    if spec.groups == 1 or spec.in_channels != spec.groups or spec.out_channels != spec.groups:
        return "needs one input and one output channel a group"
    if spec.in_channels < machine.lanes:
        return f"needs {machine.lanes} channels to fill its lanes"
    if spec.kernel_size[-1] > MOST_COLUMNS:
        return f"needs a kernel of up to {MOST_COLUMNS} columns"
    return ""


def asks_ahead(problem: Problem, machine: Machine) -> bool:
    """Whether the kernel asks for lines of memory ahead."""
    return problem.bytes() > AHEAD * machine.l3


def units_of_tile(least: int, outputs: int) -> int:
    """Units of a tile where no part has fewer than `least` along x, by the outputs of a unit."""
    return next(units for units in UNITS[outputs] if units <= max(1, least))


def box_of(
    problem: Problem, parts: list[Sum], units: int, machine: Machine, held: float, items: int
) -> tuple[int, int, int]:
    """(vectors of channels, units along x, rows of units) of a work item.

    held: bytes that the rows which a strip reads at a time may take. items: wanted.
    """
    spec, lanes = problem.spec, machine.lanes
    vectors = -(-spec.in_channels // lanes)
    down, reach = (max((max(s) - min(s) for part in parts if (s := part.axes[a].shifts)), default=0) for a in (1, 2))
    step_y, step_x = (parts[0].axes[a].step for a in (1, 2))
    units_y, units_x = (max(part.outputs[a] for part in parts) for a in (1, 2))
    tiles = -(-units_x // units)

    def window(count: int, block: int) -> int:
        return 4 * (down + 1 + step_y) * ((count * units - 1) * step_x + 1 + reach) * block * lanes

    most = max(2, int(machine.l1 * WEIGHTS_HELD) // (4 * spec.taps * lanes))
    while most > 2 and window(1, min(most, vectors)) > held:
        most -= 2
    block = -(-vectors // -(-vectors // most))
    block = min(vectors, block + block % 2)
    strip = max(count for count in range(1, tiles + 1) if count == 1 or window(count, block) <= held)
    strip = -(-tiles // -(-tiles // strip))
    others = max(1, spec.batch) * -(-vectors // block) * -(-tiles // strip)
    bands = min(max(1, units_y // (down + 1)), max(1, -(-items // others)))
    return block, strip * units, -(-units_y // bands)


def _shape(problem: Problem) -> str:
    """All that is compiled in of the kernel's row, in words."""
    spec = problem.spec
    kind = "forward" if problem.direction is Direction.FORWARD else "input_gradient"
    return f"{kind}_k{spec.kernel_size[-1]}s{spec.stride[-1]}d{spec.dilation[-1]}p{spec.padding[-1]}"


@dataclass(frozen=True)
class Run:
    """Sums along x whose outputs lie beside each other: the first's is at `start`. lead: their leftmost column for unit
    0; taps: positions of the kernel, in the pattern's order.
    """

    start: int
    lead: int
    taps: tuple[int, ...]
    pattern: Pattern


def runs_of(problem: Problem) -> list[Run]:
    """The runs of a problem, which depend on the layer, not on the size of the image."""
    spec = problem.spec
    k, s, d, p = (sizes[-1] for sizes in (spec.kernel_size, spec.stride, spec.dilation, spec.padding))
    # An image that has all remainders.
    parts = sums(Problem(ConvSpec(1, 1, 1, (d * k + s,), k, s, p, d), problem.direction))
    together = -(-len(parts) // -(-len(parts) // max(UNITS)))
    forward = problem.direction is Direction.FORWARD
    found = []
    for first in range(0, len(parts), together):
        run = parts[first : first + together]
        met = [
            (shift, phase, tap)
            for phase, part in enumerate(run)
            for shift, tap in zip(part.axes[2].shifts, part.taps[2], strict=True)
        ]
        columns, phases, taps = zip(*sorted(met), strict=True) if met else ((), (), ())
        lead = min(columns, default=0)
        # The last unit may have outputs that the image has not.
        beyond = p if forward else (d * (k - 1) - p + (s - 1) * (2 if len(run) > 1 else 1)) // s
        pattern = Pattern(
            tuple(column - lead for column in columns), parts[0].axes[2].step, max(0, -lead), max(0, beyond),
            phases, len(run), parts[0].out_step[2],
        )  # fmt: skip
        found.append(Run(parts[first].out_start[2], lead, taps, pattern))
    return found


def patterns_of(problem: Problem) -> tuple[Pattern, ...]:
    """The different patterns of the problem's runs."""
    return tuple(dict.fromkeys(run.pattern for run in runs_of(problem)))


def _runs_there(problem: Problem) -> list[tuple[Run, int]]:
    """The runs that an image of this size has, each with its units along x, of which the last may be cut short."""
    width = _written(problem)[-1]
    return [(run, -(-(width - run.start) // run.pattern.apart)) for run in runs_of(problem) if run.start < width]


def _written(problem: Problem) -> tuple[int, ...]:
    """The sizes of an image of what is written."""
    spec = problem.spec
    return spec.output_size if problem.direction is Direction.FORWARD else spec.input_size


def _sums_of_rows(problem: Problem) -> list[Sum]:
    """The problem's sums with the first remainder along x, one for each remainder along y."""
    return [part for part in sums(problem) if not part.out_start[2]]


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    problem, machine = plan.problem, plan.machine
    patterns = patterns_of(problem)
    main, pack = plan.kernels
    lanes, ending = machine.lanes, ending_of(problem)
    return {
        main: lambda: module_text(
            kernel_function(patterns, plan.tile.rows, lanes, machine.registers, ending, asks_ahead(problem, machine)),
            lanes,
        ),
        pack: lambda: module_text(pack_function(lanes, stored(problem)), lanes),
    }


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are input and output (or their gradients), w weights."""
    problem, spec, lanes = plan.problem, plan.problem.spec, plan.machine.lanes
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    read = spec.input_size if forward else spec.output_size
    parts, runs, tables = _sums_of_rows(problem), _runs_there(problem), Tables()
    units_y, units_x = max(part.outputs[1] for part in parts), max(count for _, count in runs)
    vectors, block = -(-spec.in_channels // lanes), plan.row_tiles
    table, places = _parts_table(problem, parts, runs, w)
    (_, in_y, in_x), (_, out_y, out_x) = three(source[2:], 0), three(target[2:], 0)
    (_, height, width), step = three(read, 1), parts[0].axes
    _, band, strip = plan.box
    blocks, strips, bands = -(-vectors // block), -(-units_x // strip), -(-units_y // band)
    bias_at = -(-lanes // 16) * 16
    words = {
        "channels": spec.in_channels, "vectors": vectors, "block": block, "blocks": blocks,
        "units_y": units_y, "bands": bands, "per_band": band, "units_x": units_x, "strips": strips, "strip": strip,
        "taps": len(places), "phase_table": tables.add(table), "parts": len(parts) * len(runs),
        "step_y": step[1].step, "step_x": step[2].step, "height": height, "width": width,
        "in_n": source[0], "in_y": in_y, "in_x": in_x, "out_n": target[0], "out_y": out_y, "out_x": out_x,
        "out_step_y": parts[0].out_step[1], "out_width": _written(problem)[-1],
        "zeros_at": 0, "bias_at": bias_at,
    }  # fmt: skip
    items = spec.batch * bands * strips * blocks
    jobs = (PlannedJob(plan.kernels[0], items, tuple(words[name] for name in WORDS)),)
    contiguous = sorted(places) == list(range(len(places)))
    packing = PlannedJob(
        plan.kernels[1], vectors, (spec.in_channels, len(places), tables.add(places), w[0], int(contiguous))
    )
    scratch = max(bias_at + spec.in_channels + lanes, (len(places) + 4) * lanes)
    key = (plan.kernels[1], spec.weight_shape, w, forward, spec.stride, spec.padding, spec.dilation)
    return Bound(jobs, (packing,), vectors * len(places) * lanes, key, scratch, 0, tables.keep())


def _parts_table(
    problem: Problem, parts: list[Sum], runs: list[tuple[Run, int]], w: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """(the words of `PART` for each part, where each weight lies from its channel's first on, part by part)"""
    patterns, (_, w_y, w_x) = patterns_of(problem), three(w[2:], 0)
    table: list[int] = []
    places: list[int] = []
    for part, (run, count) in product(parts, runs):
        rows = sorted(zip(part.axes[1].shifts, part.taps[1], strict=True))
        here = bool(rows and run.taps)
        words = {
            "rows": len(rows) * here, "lead_y": rows[0][0] if here else 0,
            "apart_y": rows[1][0] - rows[0][0] if len(rows) > 1 else 1, "lead_x": run.lead,
            "units_y": part.outputs[1], "units_x": count, "start_y": part.out_start[1], "start_x": run.start,
            "before": len(places), "pattern": patterns.index(run.pattern),
        }  # fmt: skip
        table += [words[name] for name in PART]
        places += [ty * w_y + tx * w_x for (_, ty), tx in product(rows, run.taps)]
    return table, places
