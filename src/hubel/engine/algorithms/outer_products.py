"""Weight gradients of any kernel: outer products, pixel by pixel, with output channels in the lanes of a vector.

    dw[m, (c, tap)]  =  Σ_images Σ_pixels  dy[pixel][m] · x[c][step·pixel + tap]

    for every part of the images and their boxes, group, share of the output and of the input channels:   one work item
        for blocks: a box of outputs of a few images
            copy dy into scratch, channels in lanes, and what the box reads of x, zeros around it
            for vectors of output channels, for tiles of (channel, tap) pairs:                  the register tile
                sums[(c, tap)][m] += Σ_pixels x[pixel, (c, tap)] · dy[pixel][m]
    afterwards, for every vector of output channels: add the parts' sums in their order, turned into the weights' layout

No lanes are added up, and a stride costs nothing: numbers of x are read one by one, for all lanes. They lie in scratch
as pixels of a channel side by side where rows are long and channels few, so that a tile reads the taps of a row from
one place; else as channels of a pixel. The number of parts depends on the problem alone, so the bits do not depend on
the threads; as a block ends every few hundred products, long sums are blocked.

Constants. Blocks of 98 to 224 outputs and both ways to hold x are within 10 % of one another; copying takes a tenth to
a sixth of the time (64 → 128 channels with stride 2 at 56×56: 3 of 20 ms on one thread). Cascade Lake, 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.channel_lanes import even_share
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import Sum, is_product, sums, three
from hubel.engine.algorithms.outer_products_kernels import Rows, finish_function, kernel_function
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.ir import module_text
from hubel.engine.machine import MIB, Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.tables import Tables
from hubel.engine.window import Axis, Window

NAME = "outer_products"
ANY_EDGES = True
CHANNELS_LAST = True
# Outputs of a block, about; output channels and sums of a share at most, with an L2 cache of 1 MiB; work items there
# should be at least.
PIXELS, SHARE_ROWS, SUMS, ITEMS = 224, 128, 128 * 32 * 9, 8
# Places in scratch that a register tile may read from: each takes a register for its address.
MOST_BASES, RUN = 8, 4
SLACK = 64
# Cycles: a vector turned; a row of a window, and a vector of it; a number copied alone; a tile begun, and a vector of
# its sums added to memory; a line of outputs begun. The register tile within its loops, against its count.
TURN, ROW, VECTOR, SINGLE, TILE, SUM, LINE, LOOPS = 12.0, 30.0, 4.0, 2.5, 40.0, 3.0, 6.0, 1.15
# How much dearer turning must be to be avoided.
EVEN = 1.05
LEAST_GAIN = 1.05


@dataclass(frozen=True)
class Blocks:
    """How a problem is cut up. tile: the register tile; rows, channels: of a share; box: outputs (z, y, x) of a block
    of so many images; blocks, parts: in all; tiles: of (channel, tap) pairs of a share; window: what a box reads, as
    if outputs were one place apart.
    """

    tile: Rows
    part: Sum
    window: Window
    rows: int
    channels: int
    box: tuple[int, int, int]
    images: int
    blocks: int
    parts: int
    tiles: int
    cycles: float

    @property
    def shares(self) -> tuple[int, int]:
        return -(-self.part.rows // self.rows), -(-self.part.channels // self.channels)


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for weight gradients of all but narrow groups."""
    reason = _declined(problem, machine)
    if reason:
        return Refusal(NAME, reason)
    spec, how = problem.spec, blocks(problem.spec, machine)
    tile, lanes = how.tile, machine.lanes
    name = f"weight_gradient_{{}}{tile}_{machine.isa}"
    row_shares, channel_shares = how.shares
    pairs = channel_shares * how.tiles * tile.count
    computed = 2 * spec.batch * prod(how.part.outputs) * spec.groups * -(-how.part.rows // lanes) * lanes * pairs
    return Plan(
        problem, machine, policy, NAME, Tile(tile.count, tile.vectors, lanes),
        kernels=(
            name.format(f"{number(problem)}_products_"), name.format("f32_add_products_"), bias_name(problem, machine),
        ),
        channel_block=how.channels, box=how.box, row_tiles=row_shares, images=how.images, partial_sums=how.parts,
        estimate=Estimate(spec.flops, computed, problem.bytes(), how.cycles / policy.threads), least_gain=LEAST_GAIN,
        error_bound=error_bound(problem), reason="outer products pixel by pixel, with output channels in lanes",
    )  # fmt: skip


def _declined(problem: Problem, machine: Machine) -> str:
    """Why not, or nothing."""
    spec = problem.spec
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return "does weight gradients only"
    if is_product(problem) and spec.groups == 1:
        return "a matrix product over one row of pixels: pointwise"
    if not spec.batch or not prod(spec.output_size):
        return "there are no outputs to add up"
    if spec.out_channels // spec.groups < machine.lanes:
        return "output channels of a group fill no vector"
    return ""


@lru_cache(maxsize=1024)
def blocks(spec: ConvSpec, machine: Machine) -> Blocks:
    """The problem's work items, by the fewest cycles of two ways to hold x. Nothing depends on the threads."""
    ways = (False, True) if sums(Problem(spec))[0].outputs[0] == 1 and spec.ndim < 3 else (False,)
    # Where it matters little: channels-last tensors are turned for nothing.
    return min(
        (_cut(spec, machine, turned) for turned in ways), key=lambda cut: cut.cycles * (1 if cut.tile.turned else EVEN)
    )


def _read(spec: ConvSpec) -> tuple[Sum, tuple[int, int, int]]:
    """The sum whose gradient is asked for, and how many rows and planes of x lie between those that are read: where the
    kernel has but one and no padding, a stride skips them.
    """
    part = sums(Problem(spec))[0]
    skips = tuple(a.step if a.shifts == (0,) and i < 2 else 1 for i, a in enumerate(part.axes))
    axes = tuple(
        Axis(a.outputs, a.outputs, 1, a.shifts) if skip > 1 else a for a, skip in zip(part.axes, skips, strict=True)
    )
    return replace(part, axes=axes), skips  # type: ignore[arg-type]


def _tile(part: Sum, spec: ConvSpec, machine: Machine, turned: bool) -> Rows:
    """Two vectors wide where there are so many; as many rows as then fit the registers, and are of use."""
    vectors = min(2, -(-part.rows // machine.lanes))
    most = (machine.registers - vectors - (1 if machine.lanes == 16 else 2)) // vectors
    most = min(most, 24)
    columns = len(part.taps[2]) if set(spec.dilation) == {1} else 1
    run = (RUN if most >= 2 * RUN else 2) if turned else columns if columns <= most else 1
    bases = min(MOST_BASES, max(1, most // run))
    pairs = part.channels * part.tap_count
    return Rows(min(bases, -(-pairs // run)), run, vectors, turned)


def _cut(spec: ConvSpec, machine: Machine, turned: bool) -> Blocks:
    lanes = machine.lanes
    part = _read(spec)[0]
    tile = _tile(part, spec, machine, turned)
    half = 1 if machine.l2 >= MIB else 2
    most = SHARE_ROWS // half * (2 if part.tap_count == 1 else 1)
    rows = min(even_share(part.rows, most, lanes), -(-part.rows // lanes) * lanes)
    most = max(1, SUMS // half // half // most // part.tap_count)
    channels = min(part.channels, even_share(part.channels, most, 4))
    box, images = _box(part, spec.batch)
    axes = tuple(Axis(a.size, (a.outputs - 1) * a.step + 1, 1, a.shifts) for a in part.axes)
    dense = tuple((b - 1) * a.step + 1 for a, b in zip(part.axes, box, strict=True))
    window = Window(axes, dense, images, lanes)  # type: ignore[arg-type]
    boxes = prod(-(-o // b) for o, b in zip(part.outputs, box, strict=True))
    count = -(-spec.batch // images) * boxes
    shares = -(-part.rows // rows) * -(-part.channels // channels)
    parts = max(1, min(-(-ITEMS // (spec.groups * shares)), count))
    runs = -(-channels // tile.run) * part.tap_count if turned else -(-channels * part.tap_count // tile.run)
    tiles = -(-runs // tile.bases)
    how = Blocks(tile, part, window, rows, channels, box, images, count, parts, tiles, 0.0)
    return Blocks(tile, part, window, rows, channels, box, images, count, parts, tiles, _cycles(how, spec, machine))


def _box(part: Sum, batch: int) -> tuple[tuple[int, int, int], int]:
    """(outputs of a box, images of a block)."""
    z, y, x = part.outputs
    if z * y * x <= PIXELS:
        # Alike, for the last block takes as long as the others.
        images = even_share(batch, max(1, PIXELS // (z * y * x)), 1) if z == 1 else 1
        return (z, y, x), images
    if x > PIXELS:
        return (1, 1, -(-x // -(-x // PIXELS))), 1
    if y * x > PIXELS:
        lines = max(1, PIXELS // x)
        return (1, -(-y // -(-y // lines)), x), 1
    return (max(1, PIXELS // (y * x)), y, x), 1


def _cycles(how: Blocks, spec: ConvSpec, machine: Machine) -> float:
    """Cycles on one thread."""
    lanes, tile, part = machine.lanes, how.tile, how.part
    row_shares, channel_shares = how.shares
    outputs = how.images * prod(how.box)
    window = how.window
    if tile.turned:
        read_x = prod(window.valid) * (
            -(-how.channels // lanes) * TURN if how.channels % lanes in (0, how.channels) else 0
        )
        read_x += prod(window.valid) * (how.channels % lanes * SINGLE)
    else:
        read_x = how.channels * window.planes * window.rows * (ROW + VECTOR * window.valid[2] / lanes)
    vectors = -(-min(how.rows, part.rows) // lanes)
    read_dy = outputs * (how.rows // lanes * TURN + (part.rows % lanes) * SINGLE / row_shares)
    product = 0.0
    for v, calls in ((tile.vectors, vectors // tile.vectors), (1, vectors % tile.vectors)):
        step = max(tile.count * v / 2, (tile.count + v) / 2, (tile.count * (v + (lanes < 16)) + v + 4) / 4, 4.0)
        lines = how.images * how.box[0] * how.box[1]
        product += calls * how.tiles * (outputs * step * LOOPS + lines * LINE + TILE + SUM * tile.count * v)
    items = spec.groups * row_shares * channel_shares
    each = how.images * read_x + read_dy + product
    last = (
        how.parts * items * how.tiles * tile.count * vectors * 4
        + part.rows * spec.groups * part.channels * TURN / lanes
    )
    return how.blocks * items * each + last


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, finish, bias = plan.kernels
    lanes, tile, of = plan.machine.lanes, blocks(plan.problem.spec, plan.machine).tile, stored(plan.problem)
    sources = {
        main: lambda: module_text(kernel_function(tile, lanes, of), lanes),
        finish: lambda: module_text(finish_function(tile, lanes), lanes),
    }
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(lanes, of), lanes)
    return sources


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec, lanes, tables = plan.problem.spec, plan.machine.lanes, Tables()
    how = blocks(spec, plan.machine)
    part, tile, window, box = how.part, how.tile, how.window, how.box
    row_shares, channel_shares = how.shares
    steps = tuple(axis.step for axis in part.axes)
    x_strides = tuple(s * skip for s, skip in zip(three(x[2:], 0), _read(spec)[1], strict=True))
    y_strides = three(y[2:], 0)
    outputs = how.images * prod(box)
    panel_dy = outputs * tile.vectors * lanes
    offsets, places, x_words, from_dy = _x_layout(how, lanes)
    item_sums = -(-how.rows // lanes) * how.tiles * tile.count * lanes
    tiles_z, tiles_y, tiles_x = (-(-o // b) for o, b in zip(part.outputs, box, strict=True))
    _, axis_y, axis_x = part.axes
    words = (
        tables.add(offsets), tables.add(places), spec.groups, spec.batch, how.images, how.parts, how.blocks,
        part.rows, how.rows, row_shares, part.channels, how.channels, channel_shares,
        how.channels * part.tap_count, how.tiles,
        tiles_z, tiles_y, tiles_x, *box, *part.outputs, *steps,
        min(axis_y.shifts), min(axis_x.shifts), max(axis_y.shifts) - min(axis_y.shifts) + 1, window.valid[1],
        window.valid[2], axis_y.size, axis_x.size, x[0], x[1], *x_strides[1:], y[0], y[1], *y_strides,
        *x_words, from_dy, panel_dy, item_sums, part.tap_count,
        *window.words((x[1], *x_strides), tuple(tables.add(axis.table()) for axis in window.axes)),  # type: ignore[arg-type]
    )  # fmt: skip
    items = how.parts * spec.groups * row_shares * channel_shares
    vectors = -(-how.rows // lanes)
    jobs = [
        PlannedJob(plan.kernels[0], items, words),
        PlannedJob(plan.kernels[1], spec.groups * row_shares * channel_shares * vectors, words),
    ]
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    panels = -(-vectors // tile.vectors) * panel_dy + SLACK
    scratch = max(from_dy + panels, how.channels * part.tap_count * lanes)
    return Bound(tuple(jobs), (), 0, (), scratch, items * item_sums, tables.keep())


def _x_layout(how: Blocks, lanes: int) -> tuple[list[int], list[int], tuple[int, ...], int]:
    """(where each place of a tile's rows starts, where each weight's sums lie, x_image … x_panel, numbers of scratch
    taken).
    """
    part, tile, window = how.part, how.tile, how.window
    step_z, step_y, step_x = (axis.step for axis in part.axes)
    taps, run = part.tap_count, tile.run
    if tile.turned:
        _, rows, cols = window.valid
        image = rows * cols * lanes
        # Off multiples of 4 KiB, which all fall into one set of the L1 cache.
        panel = how.images * image + (lanes if how.images * image % 1024 == 0 else 0)
        _, axis_y, axis_x = part.axes
        shifts = [
            ((u - min(axis_y.shifts)) * cols + v - min(axis_x.shifts)) * lanes
            for u in axis_y.shifts
            for v in axis_x.shifts
        ]
        chunks = range(0, how.channels, run)
        offsets = [c // lanes * panel + c % lanes + shift for c in chunks for shift in shifts]
        places = [((c // run * taps + t) * run + c % run) * lanes for c in range(how.channels) for t in range(taps)]
        words = (image, 0, step_y * cols * lanes, step_x * lanes, panel)
        used = -(-how.channels // lanes) * panel
    else:
        starts = window.offsets()
        offsets = [c * window.pitch_c + start for c in range(how.channels) for start in starts][::run]
        places = [pair * lanes for pair in range(how.channels * taps)]
        words = (window.pitch_image, step_z * window.pitch_z, step_y * window.pitch_y, step_x, 0)
        used = how.channels * window.pitch_c + window.overhang
    offsets += [0] * (how.tiles * tile.bases - len(offsets))
    return offsets, places, words, -(-(used + SLACK) // 16) * 16
