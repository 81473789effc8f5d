"""Weight gradient of a depthwise convolution: for every channel and tap, the dot product of dy and the shifted input.

    for every share of the images, every block of channels:             one work item
        for a few images:
            for channels of the block, for bands of rows:               what the L1 cache holds
                for passes over the taps:                               as many as the registers hold
                    for tiles of rows, for columns:                     the register tile (`ir.stencil`)
                        for input rows, for offsets along x:
                            load the pixels once; for every row of dy that reads them, add products to a tap's lanes
                    add the taps' lanes to memory
        add up the lanes of every channel

The planes of a channel in all images lie far apart, those of neighbouring channels beside each other: an item reads
blocks of channels, image by image, so that memory is read in order.

Lanes are neighbouring outputs. Rows are read where they lie, as in `depthwise`; rows that are not there, of dy too, are
zeros, so that every tile is full. The taps' sums start anew with every band, which bounds the rounding error. The
number of shares depends on the problem alone; where there are several, a second job adds them in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.depthwise import (
    PLANES,
    clear_rows,
    cycles,
    inner_columns,
    mask_table,
    places_of,
    plane_of,
    read_masks,
    stencils,
    units,
    within,
)
from hubel.engine.algorithms.depthwise_planes import Plane
from hubel.engine.algorithms.depthwise_weight_kernels import REDUCE_WORDS, WORDS, correlation_function, reduce_function
from hubel.engine.algorithms.depthwise_weight_planes import plane_correlation_function
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import PTR, module_text
from hubel.engine.ir.stencil import Stencil
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "depthwise_weight_gradient"
ANY_EDGES = True
MOST_TAPS = 81
# Work items wanted; images are shared out where there are fewer channels.
ITEMS = 32
CHUNKS = 16
# Bytes of input and dy that passes over the taps find in the L1 cache, as a share of it.
HELD = 0.5
# Images read side by side: those of a batch often lie a multiple of a page apart, and fall into the same few cache
# sets. Bytes of sums of the channels between which an item goes to and fro.
IMAGES = 4
SUMS = 16384
# With the two planes of `depthwise.PLANES` four kernels for each layer.
HEIGHTS = (8, 7)


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for one input channel a group, in one or two dimensions."""
    spec = problem.spec
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "does weight gradients only")
    if spec.ndim > 2:
        return Refusal(NAME, "has one or two dimensions")
    if spec.groups == 1 or spec.in_channels != spec.groups:
        return Refusal(NAME, "needs one input channel a group")
    if not 1 < spec.taps <= MOST_TAPS or three(spec.stride, 1)[2] > 2:
        return Refusal(NAME, f"needs a kernel of 2 to {MOST_TAPS} elements and a stride of 1 or 2")
    stencil, plane, _ = shape_of(problem, machine)
    height, width = units(Problem(spec))
    row = 4 * (width + stencil.step[0] * three(spec.input_size, 1)[2])
    tiles = -(-height // stencil.rows)
    held = max(1, int(machine.l1 * HELD) // (row * stencil.rows * stencil.planes))
    images = max(1, min(spec.batch, held // tiles, IMAGES))
    shares = max(1, min(spec.batch, -(-ITEMS // spec.out_channels)))
    return Plan(
        problem, machine, policy, NAME, Tile(1, max(len(p) for p in passes_of(stencil)), machine.lanes),
        kernels=(
            _name(problem, stencil, plane, machine),
            f"depthwise_weight_gradient_f32_reduce_{machine.isa}",
            bias_name(problem, machine),
        ),
        channel_block=1, box=(1, min(tiles, held) * stencil.rows, width), row_tiles=1,
        images=images, partial_sums=shares,
        estimate=Estimate(spec.flops, spec.flops, problem.bytes(), cycles(spec, machine) / policy.threads),
        error_bound=error_bound(problem),
        reason="one channel a group: all taps' sums in registers, planes swept where they lie",
    )  # fmt: skip


@lru_cache(maxsize=1024)
def shape_of(problem: Problem, machine: Machine) -> tuple[Stencil, Plane | None, tuple[int, int]]:
    """The stencil of the forward convolution, its rows those of a tile of dy; the plane, if that is compiled in; where
    the first unit begins in the input.
    """
    of, lead = stencils(Problem(problem.spec), machine)
    height, _ = units(Problem(problem.spec))
    heights = (1,) if problem.spec.ndim == 1 else HEIGHTS
    stencil = min((of(rows) for rows in heights), key=lambda s: (-(-height // s.rows) * s.rows, -s.rows))
    plane = plane_of(Problem(problem.spec), stencil, lead)
    if plane:
        stencil = replace(of(height), planes=2 if machine.lanes == 16 and height == min(PLANES) else 1)
    return stencil, plane, lead


@lru_cache(maxsize=1024)
def passes_of(stencil: Stencil) -> tuple[tuple[int, ...], ...]:
    """Loads (by number) whose taps' sums fit the registers together, beside the rows of dy they meet."""
    live = min(stencil.rows, max(tap.row for tap in stencil.taps) // stencil.step[0] + 1)
    room = stencil.registers - live - (1 if stencil.step[1] == 1 else 3)
    each = max(sum(tap.column - load in range(stencil.step[1]) for tap in stencil.taps) for load in stencil.loads)
    count = -(-len(stencil.loads) // max(1, room // each))
    bounds = [len(stencil.loads) * i // count for i in range(count + 1)]
    return tuple(tuple(range(a, b)) for a, b in pairwise(bounds))


def _name(problem: Problem, stencil: Stencil, plane: Plane | None, machine: Machine) -> str:
    def sizes(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    spec = problem.spec
    shape = f"k{sizes(spec.kernel_size)}s{sizes(spec.stride)}d{sizes(spec.dilation)}"
    if plane:
        shape += f"_plane{plane.height}to{plane.units}from{-plane.lead}x{stencil.planes}"
    return f"depthwise_weight_gradient_{number(problem)}_{shape}_rows{stencil.rows}_{machine.isa}"


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel that the plan runs, by name."""
    stencil, plane, _ = shape_of(plan.problem, plan.machine)
    lanes, passes, of = stencil.lanes, passes_of(stencil), stored(plan.problem)
    main, reduce, bias = plan.kernels

    def source() -> str:
        if plane is None:
            return module_text(correlation_function(stencil, passes, of), lanes)
        return module_text(plane_correlation_function(stencil, plane, passes, of), lanes)

    sources = {main: source}
    if plan.partial_sums > 1:
        sources[reduce] = lambda: module_text(reduce_function(), lanes)
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(lanes, of), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, shares = plan.problem.spec, plan.partial_sums
    tables = Tables()
    stencil, _, _ = shape_of(plan.problem, plan.machine)
    words, scratch = _words(plan, x, y, tables)
    sets = -(-spec.out_channels // stencil.planes)
    items = -(-sets // words["block"]) * shares
    chunk = max(1, items // (CHUNKS * plan.policy.threads))
    jobs = [PlannedJob(plan.kernels[0], items, tuple(words[name] for name in WORDS), chunk)]
    if shares > 1:
        sums = {"numbers": spec.out_channels * spec.taps, "shares": shares}
        jobs.append(
            PlannedJob(plan.kernels[1], sums["numbers"], tuple(sums[name] for name in REDUCE_WORDS), sums["numbers"])
        )
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    shared = spec.out_channels * shares * spec.taps if shares > 1 else 0
    return Bound(tuple(jobs), (), 0, (), scratch, shared, tables.keep())


def _words(plan: Plan, x: tuple[int, ...], y: tuple[int, ...], tables: Tables) -> tuple[dict[str, int], int]:
    """(the words of the main job, numbers of scratch)"""
    spec = plan.problem.spec
    stencil, _, lead = shape_of(plan.problem, plan.machine)
    lanes, rows = stencil.lanes, stencil.rows
    (_, height, width), (_, dy_height, dy_width) = three(spec.input_size, 1), three(spec.output_size, 1)
    (_, x_y, x_x), (_, dy_y, dy_x) = three(x[2:], 0), three(y[2:], 0)
    tiles, per_band = -(-dy_height // rows), plan.box[1] // rows
    columns = [_column_masks(stencil, start, lead[1], width, dy_width) for start in range(0, dy_width, stencil.width)]
    inner = inner_columns(columns)
    # Rows that lie closer than they are long are no part of a plane. Scratch is float32.
    narrow = stored(plan.problem) is not PTR
    copy_x, copy_dy = (
        int(narrow or step != 1 or pitch < size) for pitch, step, size in ((x_y, x_x, width), (dy_y, dy_x, dy_width))
    )
    reach = len(columns) * stencil.width
    clear = clear_rows(stencil, lead[1], width, stencil.width, reach - stencil.width, width)
    x_image = width * min(height, per_band * rows * stencil.step[0] + stencil.span)
    dy_image = dy_width * min(dy_height, per_band * rows)
    names = ("zeros_at", "sums_at", "packed_at", "x_at", "dy_at")
    sets = -(-spec.out_channels // stencil.planes)
    block = max(1, min(sets * plan.partial_sums // ITEMS, SUMS // (4 * lanes * spec.taps)))
    copies = plan.images * stencil.planes
    sums = block * spec.taps * lanes
    sizes = (max(width, dy_width), sums, spec.taps + lanes, copy_x * x_image * copies, copy_dy * dy_image * copies)
    places, scratch = places_of(names, sizes, lanes)
    words = {
        "channels": spec.out_channels, "multiplier": spec.out_channels // spec.in_channels,
        "block": block, "images": spec.batch,
        "share": -(-spec.batch // plan.partial_sums), "images_at_once": plan.images,
        "tiles": tiles, "per_band": per_band, "columns": len(columns), "inner_from": inner[0], "inner_to": inner[1],
        "masks": tables.add(mask_table(stencil, columns)),
        "lead_y": lead[0], "lead_x": lead[1],
        "clear_top": clear[0], "clear_bottom": clear[1], "clear_dy": -(-(reach - dy_width) // max(1, dy_width)),
        "x_n": x[0], "x_c": x[1], "x_y": x_y, "x_x": x_x, "height": height, "width": width,
        "dy_n": y[0], "dy_c": y[1], "dy_y": dy_y, "dy_x": dy_x, "dy_height": dy_height, "dy_width": dy_width,
        "copy_x": copy_x, "copy_dy": copy_dy, "x_image": x_image, "dy_image": dy_image,
        "partial": int(plan.partial_sums > 1), **places,
    }  # fmt: skip
    return words, scratch


def _column_masks(stencil: Stencil, start: int, lead: int, width: int, dy_width: int) -> list[list[bool]]:
    """The masks of a column of tiles: as `read_masks`, but in the columns' those lanes only that hold a dy."""
    count, _ = stencil.loaded
    masks, inside = read_masks(stencil, start, lead, width), within(start, stencil.width, dy_width)
    loads = len(stencil.loads) * count
    both = [[a and b for a, b in zip(mask, inside * stencil.planes, strict=True)] for mask in masks[loads:]]
    return [*masks[:loads], *both, inside]
