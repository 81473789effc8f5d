"""Depthwise convolution, forward and input gradient: every channel on its own, one plane of pixels, one small kernel.

    for every image, channel, band of rows:                         one work item
        for tiles of rows, for columns of tiles:                    the register tile (`ir.stencil`)
            for offsets along x, for input rows of the tile:
                load the pixels once; add them, weighted, to every output row that reads them

A layer with one input channel, of gray images, is one group, and every output channel a plane of its own.

There is one multiply-add for each pixel, weight and output, so what counts is what surrounds it: a vector that is
loaded across a boundary of cache lines costs as much as two multiply-adds. A tile is `rows` outputs high and one vector
wide, and each loaded vector serves up to kernel-height rows. Nothing is copied: rows are read where they lie. Padding
is masked lanes along x (a table made beside the plan holds the masks of each column), and along y a row of zeros in
scratch that the topmost and lowest tiles point to. Tensors whose pixels along x are not next to each other go through
scratch.

The input gradient is a forward sweep with the kernel turned round; with stride 2, sums of the taps that meet even and
odd places, kept side by side in registers and interleaved when they are stored.

Four kernels do a layer, whatever image sizes come, each for a class of planes (in units):

    7 high, 5 to 8 wide             two planes to a vector, written out (`depthwise_planes`); AVX2: one, if 7 wide
    14 high, 9 to 16 wide           written out too
    17 to 32 wide, AVX-512          rows stream through registers (`depthwise_streams`), where all weights stay in them
    all others                      tiles of 8 rows; of 7, if fewer rows are computed so, where there are no streams

Constants. The sums of 8 rows and the weights on one offset leave half of the AVX-512 registers free. Reached on one
AVX-512 core (Cascade Lake, 2026-11), of 150 GFLOP/s: from L1 0.45 with 3×3 and 0.67 with 7×7 on planes of 14×14; from
L3, 3×3 moves 20 GB/s, as copying does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from hubel.engine.algorithms.depthwise_kernels import WORDS, depthwise_function, read_as
from hubel.engine.algorithms.depthwise_planes import Plane, plane_function
from hubel.engine.algorithms.depthwise_streams import stream_function
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, sums, three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import module_text
from hubel.engine.ir.stencil import Stencil, Tap, mask_words
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.tables import Tables

NAME = "depthwise"
ANY_EDGES = True
# Taps are written out one by one: larger kernels would make code that does not fit the instruction cache.
MOST_TAPS = 81
# Work items wanted, so that every thread finds some: planes are cut into bands of rows where there are too few.
ITEMS = 32
# Heights of planes (in units) for which kernels are written out, so wide as high.
PLANES = (7, 14)
# Vectors side by side through which rows stream, where planes are so wide: wider ones are swept in tiles, along rows.
STREAMS = 2
CHUNKS = 16
# For estimates: the share of the FMA peak that sweeping reaches, and cycles to begin a plane.
REACHED, PLANE = 0.4, 60.0


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for one input channel a group, in one or two dimensions."""
    spec = problem.spec
    reason = declined(problem)
    if reason:
        return Refusal(NAME, reason)
    stencil, plane, _ = shape_of(problem, machine)
    y, x = units(problem)
    tiles = -(-y // stencil.rows)
    bands = 1 if plane else min(tiles, -(-ITEMS // max(1, spec.batch * spec.in_channels)))
    return Plan(
        problem, machine, policy, NAME, Tile(stencil.rows * stencil.out[0], stencil.out[1], machine.lanes),
        kernels=(kernel_name(problem, stencil, plane, machine),),
        channel_block=1, box=(1, -(-tiles // bands) * stencil.rows, x), row_tiles=1,
        # Lanes beyond the end of a row are not counted: others waste fewer of them, but load for every multiply-add.
        estimate=Estimate(spec.flops, spec.flops, problem.bytes(), cycles(spec, machine) / policy.threads),
        error_bound=error_bound(problem), reason="one channel a group: planes are swept where they lie",
    )  # fmt: skip


def cycles(spec: ConvSpec, machine: Machine) -> float:
    """Cycles on one thread, about."""
    planes = spec.batch * spec.in_channels
    return spec.flops / (4 * machine.lanes * REACHED) + planes * PLANE


def declined(problem: Problem) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    stride = three(spec.stride, 1)
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over pixels"
    if spec.ndim > 2:
        return "has one or two dimensions"
    if spec.in_channels != spec.groups:
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


def _parts(problem: Problem) -> tuple[Sum, ...]:
    """The sums that make up a unit: those of an image that is large enough to have all of them, whatever the image."""
    spec = problem.spec
    sizes = tuple(d * k + s for k, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True))
    return sums(Problem(replace(spec, input_size=sizes), problem.direction))


@lru_cache(maxsize=1024)
def shape_of(problem: Problem, machine: Machine) -> tuple[Stencil, Plane | None, tuple[int, int]]:
    """The stencil of a problem, its plane if that is compiled in, and where the first unit's first row and column lie
    in the input.
    """
    of, lead = stencils(problem, machine)
    height, width = units(problem)
    # With shorter vectors few planes would stream, and the others would do without a second height of tiles.
    streams = problem.spec.ndim == 2 and machine.lanes == 16 and of(1).streamable(STREAMS)
    heights = _heights(problem, streams)
    fitting = [of(rows) for rows in heights if of(rows).fits] or [of(heights[-1])]
    stencil = min(fitting, key=lambda s: (-(-height // s.rows) * s.rows, -s.rows))
    plane = plane_of(problem, stencil, lead)
    if streams and not plane and machine.lanes < width <= STREAMS * machine.lanes:
        return replace(of(1), streams=STREAMS), None, lead
    if plane and of(height).fits:
        # No row is loaded for two tiles.
        stencil = of(height)
    if plane and machine.lanes == 16 and height == min(PLANES):
        stencil = replace(stencil, planes=2)
    if plane and machine.lanes == 8 and height == min(PLANES) and stencil.out[1] == 1 and ending_of(problem).local:
        plane = replace(plane, narrow=width)
    return stencil, plane, lead


def plane_of(problem: Problem, stencil: Stencil, lead: tuple[int, int]) -> Plane | None:
    """The plane to compile in, if the problem has one of the heights in `PLANES`, and about the same width.

    Not for vectors of four lanes: NEON has no masks, and LLVM makes a branch of every lane.
    """
    (height, width), (out_height, _) = _sizes(problem)
    units_y, units_x = units(problem)
    regular = height * stencil.out[0] == out_height * stencil.step[0]
    if problem.spec.ndim != 2 or units_y not in PLANES or not regular or stencil.lanes < 8:
        return None
    if stencil.lanes < 16:
        fits = units_x == units_y if units_y == min(PLANES) else units_x <= max(PLANES) + 2
        return Plane(height, out_height, units_y, lead[0], (0, 0)) if fits else None
    # Vectors, or halves, that are more than half full.
    most = 8 if units_y == min(PLANES) else 16
    least = (most // 2 + 1) * stencil.step[1]
    if not most // 2 < units_x <= most or width < least:
        return None
    clear = clear_rows(stencil, lead[1], least, most, 0, least)
    return Plane(height, out_height, units_y, lead[0], clear)


def clear_rows(stencil: Stencil, lead: int, width: int, lanes: int, last: int, pitch: int) -> tuple[int, int]:
    """Rows at the top and at the bottom of which whole vectors reach out of the plane.

    Columns of tiles of `lanes` units begin at 0 to `last`; pitch: from a row to the next.
    """
    end = last * stencil.step[1] + lead + stencil.loads[-1] + lanes * stencil.step[1]
    return -(-max(0, -lead) // pitch), -(-max(0, end - width) // pitch)


def stencils(problem: Problem, machine: Machine) -> tuple[Callable[[int], Stencil], tuple[int, int]]:
    """The stencil of a problem for any number of rows, and where its first unit begins in the input."""
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


def _sizes(problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of what is read and of what is written."""
    read, written = problem.spec.input_size, problem.spec.output_size
    if problem.direction is not Direction.FORWARD:
        read, written = written, read
    return three(read, 1)[1:], three(written, 1)[1:]


def _heights(problem: Problem, streams: bool) -> tuple[int, ...]:
    """Heights of tiles in units. With `PLANES`, and with streams where there are any, at most four kernels for each
    layer, whatever image sizes come.
    """
    if problem.spec.ndim == 1:
        return (1,)
    unit = three(problem.spec.stride, 1)[1] if problem.direction is Direction.INPUT_GRADIENT else 1
    heights = (8, 7) if unit == 1 else (4, 2)
    return heights[:1] if streams else heights


def kernel_name(problem: Problem, stencil: Stencil, plane: Plane | None, machine: Machine) -> str:
    """All that is compiled in: kernel, stride, dilation, and of the padding what tells which taps meet a remainder."""
    spec = problem.spec

    def sizes(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    kind = "forward" if problem.direction is Direction.FORWARD else "input_gradient"
    shape = f"k{sizes(spec.kernel_size)}s{sizes(spec.stride)}d{sizes(spec.dilation)}"
    if problem.direction is Direction.INPUT_GRADIENT and set(spec.stride) != {1}:
        shape += f"p{sizes(tuple(p % s for p, s in zip(spec.padding, spec.stride, strict=True)))}"
    if plane:
        shape += f"_plane{plane.height}to{plane.out_height}from{-plane.lead}x{stencil.planes}"
        shape += f"narrow{plane.narrow}" if plane.narrow else ""
    swept = f"stream{stencil.streams}" if stencil.streams else f"rows{stencil.rows}"
    return f"depthwise_{number(problem)}_{kind}_{shape}_{swept}_{machine.isa}{ending_of(problem).name}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of the plan's kernel, by name."""
    stencil, plane, _ = shape_of(plan.problem, plan.machine)

    def source() -> str:
        ending = ending_of(plan.problem)
        if plane:
            return module_text(plane_function(stencil, plane, ending), stencil.lanes)
        rows = stream_function(stencil, ending) if stencil.streams else None
        return module_text(depthwise_function(stencil, rows, ending), stencil.lanes)

    return {plan.kernels[0]: source}


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """The job for tensors with these element strides: x and y are input and output (or their gradients), w weights."""
    problem, spec = plan.problem, plan.problem.spec
    forward = problem.direction is Direction.FORWARD
    source, target = (x, y) if forward else (y, x)
    tables = Tables()
    stencil, plane, lead = shape_of(problem, plan.machine)
    lanes = stencil.lanes
    units_y, units_x = units(problem)
    (height, width), (out_height, out_width) = _sizes(problem)
    tiles = -(-units_y // stencil.rows)
    per_band = plan.box[1] // stencil.rows
    bands = -(-tiles // per_band)
    (_, in_y, in_x), (_, out_y, out_x) = three(source[2:], 0), three(target[2:], 0)
    (_, w_y, w_x) = three(w[2:], 0)
    (_, k_y, k_x) = three(spec.kernel_size, 1)
    side_by_side = max(1, stencil.streams)
    last_x = max((side_by_side - 1) * lanes, units_x - lanes)
    clear = clear_rows(stencil, lead[1], width, lanes, last_x, width)
    masks, inner = _masks(stencil, lead[1], width, units_x, out_width)
    # Stores of whole vectors may run over the end of a row only in scratch; AVX-512 masks them at no cost.
    over = lanes < 16 and (units_x < lanes * side_by_side or units_x * stencil.out[1] != out_width)
    over = over and not (plane and plane.narrow)
    # Rows that lie closer than they are long are no part of a plane.
    ending = ending_of(problem)
    copy_in = int(in_x != 1 or in_y < width or read_as(ending.stored, lanes) is not ending.stored)
    copy_out = int(out_x != 1 or over or not ending.local)
    copy_weights = int(w_x != 1 or w_y != k_x)
    rows_in = min(height, (per_band + 1) * stencil.rows * stencil.step[0] + stencil.span) * stencil.planes
    rows_out = (min(units_y, (per_band + 1) * stencil.rows) + stencil.rows) * stencil.planes
    columns = -(-units_x // (stencil.width * side_by_side))
    out_pitch = columns * side_by_side * lanes * stencil.out[1]
    names = ("zeros_at", "dump_at", "weights_at", "in_at", "out_at")
    sizes = (
        width,
        out_pitch,
        spec.taps * stencil.planes,
        copy_in * rows_in * width,
        copy_out * rows_out * stencil.out[0] * out_pitch,
    )
    places, scratch = places_of(names, sizes, lanes)
    words = {
        "channels": spec.in_channels, "multiplier": spec.out_channels // spec.in_channels,
        "bands": bands, "per_band": per_band, "tiles": tiles, "units_y": units_y, "units_x": units_x,
        "lead_y": lead[0], "lead_x": lead[1],
        "in_n": source[0], "in_c": source[1], "in_y": in_y, "in_x": in_x, "height": height, "width": width,
        "out_n": target[0], "out_c": target[1], "out_y": out_y, "out_x": out_x,
        "out_height": out_height, "out_width": out_width,
        "w_o": w[0], "w_y": w_y, "w_x": w_x, "k_y": k_y, "k_x": k_x,
        "columns": columns, "inner_from": inner[0], "inner_to": inner[1],
        "masks": tables.add(masks),
        "clear_top": clear[0], "clear_bottom": clear[1],
        "copy_in": copy_in, "copy_out": copy_out, "copy_weights": copy_weights, "out_pitch": out_pitch,
        **places,
    }  # fmt: skip
    items = spec.batch * -(-spec.in_channels // stencil.planes) * bands
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
    """For each column of tiles its masks, and (first, last + 1) of the columns that need none."""
    count, size = stencil.stored
    columns = []
    side_by_side = max(1, stencil.streams)
    whole = side_by_side * stencil.width
    for column in range(-(-units_x // whole)):
        begin = max(0, min(column * whole, units_x - whole))
        for x in range(begin, begin + whole, stencil.width):
            stores = [within(x * stencil.out[1] + i * size, size, out_width) for i in range(count)]
            columns.append(read_masks(stencil, x, lead, width) + stores)
    first, last = inner_columns(columns)
    return mask_table(stencil, columns), (-(-first // side_by_side), last // side_by_side)


def read_masks(stencil: Stencil, x: int, lead: int, width: int) -> list[list[bool]]:
    """The masks of what a tile reads of a row of `width` pixels, its first unit being x: of vectors, and of columns."""
    first = x * stencil.step[1] + lead
    count, size = stencil.loaded
    loads = [within(first + load + i * size, size, width) for load in stencil.loads for i in range(count)]
    if stencil.lanes < 16:
        return loads
    return loads + [
        within(first + column, stencil.width, width, stencil.step[1]) * stencil.planes for column in stencil.columns
    ]


def within(start: int, count: int, size: int, step: int = 1) -> list[bool]:
    """Which of `count` places from `start` on lie between 0 and `size`."""
    return [0 <= start + i * step < size for i in range(count)]


def mask_table(stencil: Stencil, columns: list[list[list[bool]]]) -> list[int]:
    return [word for masks in columns for mask in masks for word in mask_words(stencil, mask)]


def inner_columns(columns: list[list[list[bool]]]) -> tuple[int, int]:
    """(first, last + 1) of the columns all of whose masks are full."""
    inner = [i for i, masks in enumerate(columns) if all(map(all, masks))]
    return (inner[0], inner[-1] + 1) if inner else (0, 0)
