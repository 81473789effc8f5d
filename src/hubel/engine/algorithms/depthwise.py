"""Depthwise convolution, forward and input gradient: every channel on its own, one plane of pixels under one small
kernel.

    for every image, channel, band of rows:                                                 one work item
        for tiles of rows, for columns of tiles:                                            the register tile
        (`ir.stencil`)
            for input rows of the tile, for offsets along x:
                load the pixels once; add them, weighted, to every output row that reads them

There is one multiply-add for each pixel, weight and output, so what counts is what surrounds it: a vector loaded at
an unaligned place costs as much as four multiply-adds. A tile is `rows` outputs high and one vector wide, and each
loaded vector serves up to kernel-height rows. Nothing is copied: rows are read where they lie. Padding is masked
lanes along x (a table made beside the plan holds the masks of each column), and along y a row of zeros in scratch
that the topmost and lowest tiles point to. Tensors whose pixels along x are not next to each other go through scratch.

The input gradient is a forward sweep with the kernel turned round; with stride 2, sums of the taps that meet even and
odd places, kept side by side in registers and interleaved when they are stored.

Constants. 7 rows divide the heights of most networks (7, 14, 28, 56, 112), 8 the others, 4 is for what is left. The
sums of 7 rows and the 9 weights of a 3×3 kernel leave half of the AVX-512 registers free: (7 + 2)·3 loads for 63
multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from hubel.engine.algorithms.depthwise_kernels import WORDS, depthwise_function
from hubel.engine.algorithms.geometry import Sum, sums, three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import module_text
from hubel.engine.ir.stencil import Stencil, Tap
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.spec import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "depthwise"
# Taps are written out one by one: larger kernels would make code that does not fit the instruction cache.
MOST_TAPS = 81
# Work items wanted, so that every thread finds some: planes are cut into bands of rows where there are too few.
ITEMS = 32
CHUNKS = 16


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for one input channel a group, in one or two dimensions."""
    spec = problem.spec
    reason = _declined(problem)
    if reason:
        return Refusal(NAME, reason)
    stencil, _ = stencil_of(problem, machine)
    y, x = units(problem)
    tiles = -(-y // stencil.rows)
    bands = min(tiles, -(-ITEMS // max(1, spec.batch * spec.in_channels)))
    return Plan(
        problem, machine, policy, NAME, Tile(stencil.rows * stencil.out[0], stencil.out[1], machine.lanes),
        kernels=(kernel_name(problem, stencil, machine),),
        channel_block=1, box=(1, -(-tiles // bands) * stencil.rows, x), row_tiles=1,
        # Lanes beyond the end of a row are not counted: other algorithms waste fewer of them, but load for every
        # multiply-add.
        estimate=Estimate(spec.flops, spec.flops, spec.bytes()),
        error_bound=error_bound(problem), reason="one channel a group: planes are swept where they lie",
    )  # fmt: skip


def _declined(problem: Problem) -> str:
    spec = problem.spec
    stride = three(spec.stride, 1)
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels"
    if spec.ndim > 2:
        return "has one or two dimensions"
    if spec.groups == 1 or spec.in_channels != spec.groups:
        return "needs one input channel a group"
    if problem.direction is Direction.INPUT_GRADIENT and spec.out_channels != spec.groups:
        return "the input gradient needs one output channel a group"
    if not 1 < spec.taps <= MOST_TAPS:
        return f"needs a kernel of 2 to {MOST_TAPS} elements"
    if stride[2] > 2 or (problem.direction is Direction.INPUT_GRADIENT and stride[1] > 2):
        return "needs a stride of 1 or 2"
    return ""


def units(problem: Problem) -> tuple[int, int]:
    """Units along y and x (see `hubel.engine.ir.stencil`)."""
    spec = problem.spec
    if problem.direction is Direction.FORWARD:
        return three(spec.output_size, 1)[1:]
    sizes, strides = three(spec.input_size, 1), three(spec.stride, 1)
    return -(-sizes[1] // strides[1]), -(-sizes[2] // strides[2])


def _parts(problem: Problem) -> list[Sum]:
    """The sums that make up a unit: those of an image that is large enough to have all of them, whatever the image."""
    spec = problem.spec
    sizes = tuple(d * k + s for k, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True))
    return sums(Problem(replace(spec, input_size=sizes), problem.direction))


@lru_cache(maxsize=1024)
def stencil_of(problem: Problem, machine: Machine) -> tuple[Stencil, tuple[int, int]]:
    """The stencil of a problem, and where its first unit's first row and column lie in the input."""
    of, lead = stencils(problem, machine)
    height, _ = units(problem)
    fitting = [of(rows) for rows in _heights(problem) if of(rows).fits] or [of(1)]
    return min(fitting, key=lambda s: (-(-height // s.rows) * s.rows, -s.rows)), lead


def stencils(problem: Problem, machine: Machine) -> tuple[Callable[[int], Stencil], tuple[int, int]]:
    """The stencil of a problem for any number of rows, and where its first unit's first row and column lie in the
    input."""
    parts = _parts(problem)
    width = three(problem.spec.kernel_size, 1)[2]
    taps = [
        Tap(part.out_start[1], part.out_start[2], row, column, ty * width + tx)
        for part in parts
        for ty, row in zip(part.taps[1], part.axes[1].shifts, strict=True)
        for tx, column in zip(part.taps[2], part.axes[2].shifts, strict=True)
    ]
    lead = min(tap.row for tap in taps), min(tap.column for tap in taps)
    taps = tuple(Tap(t.ry, t.rx, t.row - lead[0], t.column - lead[1], t.weight) for t in taps)
    _, axis_y, axis_x = parts[0].axes
    step, out = (axis_y.step, axis_x.step), parts[0].out_step[1:]
    return lambda rows: Stencil(rows, machine.lanes, step, out, taps, problem.spec.taps, machine.registers), lead


def _heights(problem: Problem) -> tuple[int, ...]:
    """Heights of tiles in units. At most four, so that no layer has more kernels, whatever image sizes come."""
    if problem.spec.ndim == 1:
        return (1,)
    unit = three(problem.spec.stride, 1)[1] if problem.direction is Direction.INPUT_GRADIENT else 1
    return (8, 7, 4) if unit == 1 else (4, 2)


def kernel_name(problem: Problem, stencil: Stencil, machine: Machine) -> str:
    """All that is compiled in: kernel, stride, dilation, and of the padding what decides which taps meet which
    remainder."""
    spec = problem.spec

    def sizes(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    kind = "forward" if problem.direction is Direction.FORWARD else "input_gradient"
    shape = f"k{sizes(spec.kernel_size)}s{sizes(spec.stride)}d{sizes(spec.dilation)}"
    if problem.direction is Direction.INPUT_GRADIENT and set(spec.stride) != {1}:
        shape += f"p{sizes(tuple(p % s for p, s in zip(spec.padding, spec.stride, strict=True)))}"
    return f"depthwise_f32_{kind}_{shape}_rows{stencil.rows}_{machine.isa}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of the plan's kernel, by name."""
    stencil, _ = stencil_of(plan.problem, plan.machine)
    return {plan.kernels[0]: lambda: module_text(depthwise_function(stencil), stencil.lanes)}


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """The job for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight."""
    problem, spec = plan.problem, plan.problem.spec
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    tables = Tables()
    stencil, lead = stencil_of(problem, plan.machine)
    lanes = stencil.lanes
    units_y, units_x = units(problem)
    _, height, width = three(spec.input_size if forward else spec.output_size, 1)
    _, out_height, out_width = three(spec.output_size if forward else spec.input_size, 1)
    tiles = -(-units_y // stencil.rows)
    per_band = plan.box[1] // stencil.rows
    bands = -(-tiles // per_band)
    (_, in_y, in_x), (_, out_y, out_x) = three(source[2:], 0), three(target[2:], 0)
    (_, w_y, w_x) = three(w[2:], 0)
    (_, k_y, k_x) = three(spec.kernel_size, 1)
    masks, inner = _masks(stencil, lead[1], width, units_x, out_width)
    # Stores of whole vectors may run over the end of a row only in scratch; AVX-512 masks them at no cost.
    over = lanes < 16 and (units_x < lanes or units_x * stencil.out[1] != out_width)
    copy_in, copy_out = int(in_x != 1), int(out_x != 1 or over)
    copy_weights = int(w_x != 1 or w_y != k_x)
    rows_in = min(height, (per_band + 1) * stencil.rows * stencil.step[0] + stencil.span)
    rows_out = min(units_y, (per_band + 1) * stencil.rows) + stencil.rows
    out_pitch = max(-(-units_x // lanes), 1) * lanes * stencil.out[1]
    names = ("zeros_at", "dump_at", "weights_at", "in_at", "out_at")
    sizes = (width, out_pitch, spec.taps, copy_in * rows_in * width, copy_out * rows_out * stencil.out[0] * out_pitch)
    places, scratch = places_of(names, sizes, lanes)
    words = {
        "channels": spec.in_channels, "multiplier": spec.out_channels // spec.in_channels,
        "bands": bands, "per_band": per_band, "tiles": tiles, "units_y": units_y, "units_x": units_x,
        "lead_y": lead[0], "lead_x": lead[1],
        "in_n": source[0], "in_c": source[1], "in_y": in_y, "in_x": in_x, "height": height, "width": width,
        "out_n": target[0], "out_c": target[1], "out_y": out_y, "out_x": out_x, "out_height": out_height, "out_width":
        out_width, "w_o": w[0], "w_y": w_y, "w_x": w_x, "k_y": k_y, "k_x": k_x,
        "columns": -(-units_x // lanes), "inner_from": inner[0], "inner_to": inner[1], "masks": tables.add(masks),
        "copy_in": copy_in, "copy_out": copy_out, "copy_weights": copy_weights, "out_pitch": out_pitch,
        **places,
    }  # fmt: skip
    items = spec.batch * spec.in_channels * bands
    job = PlannedJob(
        plan.kernels[0], items, tuple(words[name] for name in WORDS), max(1, items // (CHUNKS * plan.policy.threads))
    )
    return Bound((job,), (), 0, (), scratch, 0, tables.keep())


def places_of(names: tuple[str, ...], sizes: tuple[int, ...], lanes: int) -> tuple[dict[str, int], int]:
    """Where the parts of a thread's scratch begin, and its length in numbers."""
    places, at = {}, 0
    for name, size in zip(names, sizes, strict=True):
        places[name] = at
        at += -(-(size + 2 * lanes) // 16) * 16
    return places, at


def _masks(stencil: Stencil, lead: int, width: int, units_x: int, out_width: int) -> tuple[list[int], tuple[int, int]]:
    """For each column of tiles the masks of its loads and stores, and (first, last + 1) of the columns that need
    none."""
    lanes = stencil.lanes
    columns = []
    for column in range(-(-units_x // lanes)):
        x = max(0, min(column * lanes, units_x - lanes))
        stores = [mask(lanes, x * stencil.out[1] + half * lanes, out_width) for half in range(stencil.out[1])]
        columns.append(load_masks(stencil, x, lead, width) + stores)
    return [m for masks in columns for m in masks], inner_columns(columns, lanes)


def load_masks(stencil: Stencil, x: int, lead: int, width: int) -> list[int]:
    """The masks of what a tile loads of a row of `width` pixels, its first unit being x."""
    starts = [load + half * stencil.lanes for load in stencil.loads for half in range(stencil.step[1])]
    return [mask(stencil.lanes, x * stencil.step[1] + lead + start, width) for start in starts]


def mask(lanes: int, start: int, size: int) -> int:
    """Bit i says whether 0 ≤ start + i < size."""
    return sum(1 << i for i in range(lanes) if 0 <= start + i < size)


def inner_columns(masks: list[list[int]], lanes: int) -> tuple[int, int]:
    """(first, last + 1) of the columns all of whose masks are full."""
    inner = [i for i, column in enumerate(masks) if all(m == (1 << lanes) - 1 for m in column)]
    return (inner[0], inner[-1] + 1) if inner else (0, 0)
