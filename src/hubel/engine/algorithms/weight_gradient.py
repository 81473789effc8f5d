"""Weight and bias gradients: dot products of the output gradient with shifted copies of the input.

    dw[m, (c, tap)]  =  Σ_images Σ_q  dy[m][q] · window[c][offset[tap] + q]

    for every share of the images, group, share of output and of input channels:            one work item
        for a few images, for boxes of outputs:
            copy dy and the window of x into scratch, laid out alike; where dy has no output it gets zeros
            for tiles of output channels, for tiles of (channel, tap) pairs:                 the register tile
                sums[m, (c, tap)] += dot products over the box
    afterwards, for every output channel: add the shares' sums in their order

Lanes are neighbouring pixels, added up at the end of a box. The number of shares depends on the problem alone, so the
bits do not depend on the threads; and as a box ends every ~1,000 products, long sums are blocked.

Constants. A box of about 1,024 places makes the adding-up of lanes 5 % of the work (25 dot products: 75 instructions
against 64 × 25 multiply-adds); a tile's rows of x are then shifts of two or three channels and stay in L1 (a 4×6 tile
reaches 0.93 of the FMA peak, Cascade Lake, 2026-11). A 1×1 kernel has no shifts to share: there, boxes of 512 keep
ten rows in L1. Channels are shared out so that dy and x of an item stay within the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import prod

from hubel.engine.algorithms.bias_gradient import bias_function, bias_job, bias_name
from hubel.engine.algorithms.edges import number, stored
from hubel.engine.algorithms.geometry import Sum, flat_strides, flattened, is_product, sums, three
from hubel.engine.algorithms.tiling import error_bound
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, module_text
from hubel.engine.ir.rows import zero_row
from hubel.engine.ir.tile import dot_product_tile
from hubel.engine.ir.window import WindowWords, fill_window_function
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables
from hubel.engine.threads import RESERVED_WORDS
from hubel.engine.window import WORDS as WINDOW_WORDS
from hubel.engine.window import Axis, Window

NAME = "dot_products"
ANY_EDGES = True
LENGTH, LENGTH_1X1 = 1024, 512
ITEMS = 8
SLACK = 64
# The share of the FMA peak that is reached in large boxes; cycles of adding up the lanes of a tile, and of copying a
# vector.
REACHED, CALL, COPIED = 0.6, 130.0, 10.0

WORDS = (
    "offsets", "groups", "images", "share", "images_at_once",
    "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares", "taps",
    "boxes_z", "boxes_y", "boxes_x", "box_z", "box_y", "box_x",
    "x_n", "x_g", "dy_n", "dy_g", "pitch_image", "filled", "length", "overhang", "phases",
    "x_from", "row_tiles", "pair_tiles", "item_sums",
)  # fmt: skip
X_WINDOW = RESERVED_WORDS + len(WORDS)
DY_WINDOW = X_WINDOW + len(WINDOW_WORDS)


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    if problem.direction is not Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "does weight gradients only")
    return plan_dots(problem, machine, policy)


def plan_dots(problem: Problem, machine: Machine, policy: Policy) -> Plan:
    """The plan of a weight gradient; there always is one."""
    spec = flattened(problem)
    part = sums(Problem(spec))[0]
    tile = _tile(machine, part.rows, part.channels * part.tap_count, part.tap_count)
    box, images = _box(part, spec.batch)
    rows, channels, shares = _shares(part, spec.batch, spec.groups, machine)
    waste = -(-rows // tile.rows) * tile.rows / rows * -(-channels * part.tap_count // tile.vectors) * tile.vectors
    # Vectors run over the places between rows, and over the ends of boxes.
    window = Window(part.axes, box, images, tile.lanes)
    places = spec.batch * prod(-(-o // b) for o, b in zip(part.outputs, box, strict=True)) * _length_of(window)
    waste *= places / max(1, spec.batch * prod(part.outputs))
    computed = int(problem.spec.flops * waste / max(1, channels * part.tap_count))
    plan = Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            _name("dots", problem, tile, machine), _name("reduce", None, tile, machine), bias_name(problem, machine),
        ),
        channel_block=channels, box=box, row_tiles=-(-rows // tile.rows), images=images, partial_sums=shares,
        estimate=Estimate(problem.spec.flops, computed, problem.bytes(), 0.0),
        error_bound=error_bound(problem),
        reason="sums over pixels, lane by lane; shares of the images are added in a fixed order",
    )  # fmt: skip
    return replace(plan, estimate=replace(plan.estimate, cycles=_cycles(plan)))


def _cycles(plan: Plan) -> float:
    """Cycles until all is done, about."""
    spec, tile = flattened(plan.problem), plan.tile
    part = sums(Problem(spec))[0]
    share = -(-spec.batch // plan.partial_sums)
    runs = plan.partial_sums * -(-share // plan.images)
    runs *= prod(-(-o // b) for o, b in zip(part.outputs, plan.box, strict=True))
    tiles = spec.groups * -(-part.rows // tile.rows) * -(-part.channels * part.tap_count // tile.vectors)
    copied = part.channels * spec.groups * prod(spec.input_size) + spec.out_channels * prod(spec.output_size)
    products = plan.estimate.computed / (4 * tile.lanes * REACHED)
    return (products + runs * tiles * CALL + spec.batch * copied / tile.lanes * COPIED) / plan.policy.threads


def _name(kind: str, problem: Problem | None, tile: Tile, machine: Machine) -> str:
    """problem: whose tensors the kernel reads, if it does."""
    return f"weight_gradient_{number(problem) if problem else 'f32'}_{kind}_{tile.rows}x{tile.vectors}_{machine.isa}"


@lru_cache(maxsize=4096)
def _tile(machine: Machine, rows: int, pairs: int, taps: int) -> Tile:
    """`rows` output channels by `vectors` (channel, tap) pairs: the shape with the fewest cycles whose sums fit the
    registers.
    """
    unaligned = 1.0 if taps == 1 else 1.9 if machine.lanes == 16 else 1.4

    def cycles(shape: tuple[int, int]) -> float:
        r, p = shape
        # The last term stands for what comes from L2: equal shapes otherwise, the one that reads less wins.
        step = max(r * p / 2, (r + p * unaligned) / 2, (r * p + r + p + 3) / 4, 4.0) + 0.2 * (r + p / min(taps, 3))
        return -(-rows // r) * -(-pairs // p) * step

    fit = [(r, p) for r in range(1, 7) for p in range(1, 13) if r * p + r + 1 <= machine.registers]
    r, p = min(fit, key=lambda shape: (cycles(shape), -shape[0] * shape[1]))
    return Tile(r, p, machine.lanes)


def _box(part: Sum, batch: int) -> tuple[tuple[int, int, int], int]:
    """(outputs of a box, images read at once), for about as many places in all as `_length` says."""
    z, y, x = part.outputs
    length = _length(part)
    if z * y * x <= length:
        return (z, y, x), max(1, min(batch, length // (z * y * x)))
    if z * y == 1:
        return (1, 1, min(x, length)), 1
    if y * x >= length:
        return (1, max(1, -(-y // max(1, round(y * x / length)))), x), 1
    return (max(1, length // (y * x)), y, x), 1


def _length(part: Sum) -> int:
    return LENGTH if part.tap_count > 1 else LENGTH_1X1


def _length_of(window: Window) -> int:
    """Places of a box that are multiplied: whole vectors."""
    return -(-((window.box[0] - 1) * window.pitch_z + window.flat) // window.lanes) * window.lanes


def _shares(part: Sum, batch: int, groups: int, machine: Machine) -> tuple[int, int, int]:
    """(output channels, input channels) of a work item, and the number of shares of the images.

    Channels first, as far as the cache asks for it; then images; then channels again, until there are enough items to
    go round.
    """
    most = max(8, machine.l2 // 4 // (4 * _length(part)))
    rows = -(-part.rows // -(-part.rows // most))
    channels = -(-part.channels // -(-part.channels // most))
    items = groups * -(-part.rows // rows) * -(-part.channels // channels)
    shares = max(1, min(batch, -(-ITEMS // items)))
    if items * shares < ITEMS:
        channels = max(1, channels * items * shares // ITEMS)
    return rows, channels, shares


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    dots, reduce, bias = plan.kernels
    tile, of = plan.tile, stored(plan.problem)
    sources = {
        dots: lambda: module_text(dots_function(tile, of), tile.lanes),
        reduce: lambda: module_text(reduce_function(tile), tile.lanes),
    }
    if plan.problem.bias:
        sources[bias] = lambda: module_text(bias_function(tile.lanes, of), tile.lanes)
    return sources


def sums_length(tile: Tile) -> int:
    """Numbers a tile's sums take in memory: whole vectors."""
    return -(-tile.rows * tile.vectors // tile.lanes) * tile.lanes


def dots_function(tile: Tile, of: Pointer = PTR) -> Function:
    """The kernel: the sums of one work item, into the memory shared by all. of: how x and dy are stored."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    x, dy, shared = f.word(args, 0, "x", of), f.word(args, 1, "dy", of), f.word(args, 4, "shared", PTR)
    a = job_words(f, WORDS)
    x_block, dy_block = f.offset(args, X_WINDOW, I64, "x_window"), f.offset(args, DY_WINDOW, I64, "dy_window")
    x_window, dy_window = WindowWords(f, x_block), WindowWords(f, dy_block)
    x_window.load("stride_c")
    dy_window.load("stride_c")
    fill = fill_window_function(tile.lanes, of)
    close = _close_function(tile.lanes)
    multiply = _multiply_function(tile)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, c_share = item.index // a["channel_shares"], item.index % a["channel_shares"]
        rest, m_share = rest // a["row_shares"], rest % a["row_shares"]
        share, group = rest // a["groups"], rest % a["groups"]
        m, c = m_share * a["share_rows"], c_share * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - m)
        channels = f.minimum(a["share_channels"], a["channels"] - c)
        sums = shared + item.index * a["item_sums"]
        zero_row(f, sums, a["item_sums"], tile.lanes)
        x_g = x + group * a["x_g"] + c * x_window["stride_c"]
        dy_g = dy + group * a["dy_g"] + m * dy_window["stride_c"]
        x_scratch = scratch + a["x_from"]
        image = share * a["share"]
        beyond = f.minimum(image + a["share"], a["images"])
        with f.loop("n", image, beyond, a["images_at_once"]) as n:
            count = f.minimum(a["images_at_once"], beyond - n.index)
            with (
                f.loop("bz", 0, a["boxes_z"]) as bz,
                f.loop("by", 0, a["boxes_y"]) as by,
                f.loop("bx", 0, a["boxes_x"]) as bx,
            ):
                origin = [b.index * a[f"box_{axis}"] for axis, b in (("z", bz), ("y", by), ("x", bx))]
                with f.loop("i", 0, count) as i:
                    at, place = n.index + i.index, i.index * a["pitch_image"]
                    f.call(fill, scratch + place, dy_g + at * a["dy_n"], dy_block, rows, *origin)
                    f.call(fill, x_scratch + place, x_g + at * a["x_n"], x_block, channels, *origin)
                    behind = a["pitch_image"] - a["filled"]
                    with f.when(behind > 0, "behind"):
                        f.call(close, scratch + place + a["filled"], dy_block, rows, 1, behind)
                        f.call(close, x_scratch + place + a["filled"], x_block, channels, a["phases"], behind)
                end = count * a["pitch_image"]
                f.call(close, x_scratch + end, x_block, channels, a["phases"], a["overhang"])
                f.call(multiply, args, scratch, x_scratch, sums, rows, channels, count)
    f.ret()
    return f


def _close_function(lanes: int) -> Function:
    """close(at, window, channels, phases, count): zeros behind an image, where vectors run over its end."""
    f = Function(
        "close", [("at", PTR), ("window", PTR), ("channels", I64), ("phases", I64), ("count", I64)], private=True
    )
    words = WindowWords(f, f.arg("window"))
    words.load("pitch_c", "pitch_phase")
    with f.loop("c", 0, f.arg("channels")) as c, f.loop("phase", 0, f.arg("phases")) as phase:
        place = f.arg("at") + c.index * words["pitch_c"] + phase.index * words["pitch_phase"]
        zero_row(f, place, f.arg("count"), lanes)
    f.ret()
    return f


def _multiply_function(tile: Tile) -> Function:
    """multiply(args, dy, x, sums, rows, channels, images): every tile of one box."""
    pointers = [(n, PTR) for n in ("args", "dy", "x", "sums")]
    f = Function("multiply", [*pointers, ("rows", I64), ("channels", I64), ("images", I64)], private=True)
    names = ("offsets", "taps", "pair_tiles", "length", "pitch_image")
    a = job_words(f, WORDS, *names)
    pitch = f.word(f.arg("args"), DY_WINDOW + WINDOW_WORDS.index("pitch_c"), "pitch_dy")
    dots = dot_product_tile(tile.rows, tile.vectors, tile.lanes)
    pairs = f.arg("channels") * a["taps"]
    size = sums_length(tile)
    with f.loop("m", 0, f.arg("rows"), tile.rows) as m, f.loop("k", 0, pairs, tile.vectors) as k:
        at = (m.index // tile.rows * a["pair_tiles"] + k.index // tile.vectors) * size
        offsets = f.offset(a["offsets"], k.index, I64)
        dy = f.arg("dy") + m.index * pitch
        sums = f.arg("sums") + at
        f.call(dots, dy, f.arg("x"), offsets, sums, pitch, a["length"], f.arg("images"), a["pitch_image"])
    f.ret()
    return f


REDUCE_WORDS = (
    "groups", "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares", "taps",
    "shares", "pair_tiles", "item_sums",
)  # fmt: skip


def reduce_function(tile: Tile) -> Function:
    """One row of the weight gradient a work item: the shares' sums, added in order, in the layout of the weights."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    target, shared = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    a = job_words(f, REDUCE_WORDS)
    size = sums_length(tile)
    share_pitch = a["groups"] * a["row_shares"] * a["channel_shares"] * a["item_sums"]
    with f.loop("row", f.arg("begin"), f.arg("end")) as row:
        group, m = row.index // a["rows"], row.index % a["rows"]
        m_share, inside = m // a["share_rows"], m % a["share_rows"]
        dw = target + row.index * a["channels"] * a["taps"]
        with f.loop("share_c", 0, a["channel_shares"]) as share_c:
            item = (group * a["row_shares"] + m_share) * a["channel_shares"] + share_c.index
            first = shared + item * a["item_sums"] + inside // tile.rows * a["pair_tiles"] * size
            first = first + inside % tile.rows * tile.vectors
            from_c = share_c.index * a["share_channels"]
            pairs = f.minimum(a["share_channels"], a["channels"] - from_c) * a["taps"]
            to = dw + from_c * a["taps"]
            with f.loop("k", 0, pairs, tile.vectors) as k:
                at = first + k.index // tile.vectors * size
                with f.loop("j", 0, f.minimum(pairs - k.index, tile.vectors), at_least_once=True) as j:
                    start = f.load(at + j.index, F32)
                    with f.loop("share", 1, a["shares"], carry=[start]) as share:
                        part = f.load(at + share.index * share_pitch + j.index, F32)
                        share.carry(share.carried[0] + part)
                    f.store(share.results[0], to + k.index + j.index)
    f.ret()
    return f


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for an input and an output gradient with strides x and y; the weight gradient is contiguous."""
    del w
    spec = flattened(plan.problem)
    if is_product(plan.problem):
        x, y = flat_strides(plan.problem.spec, x, y)
    part = sums(Problem(spec))[0]
    tables = Tables()
    item = _Item(plan, part, spec.batch, spec.groups)
    jobs = [
        PlannedJob(plan.kernels[0], item.items, item.words(x, y, tables)),
        PlannedJob(plan.kernels[1], spec.out_channels, item.reduce_words(), chunk=4),
    ]
    if plan.problem.bias:
        jobs.append(bias_job(plan, spec, y))
    shared = item.items * item.item_sums
    return Bound(tuple(jobs), (), 0, (), item.scratch, shared, tables.keep())


class _Item:
    """The sizes of a work item, derived from the plan."""

    def __init__(self, plan: Plan, part: Sum, batch: int, groups: int) -> None:
        self.plan, self.part, self.batch, self.groups = plan, part, batch, groups
        tile = plan.tile
        self.rows, self.channels = min(part.rows, plan.row_tiles * tile.rows), plan.channel_block
        self.row_shares, self.channel_shares = -(-part.rows // self.rows), -(-part.channels // self.channels)
        self.share = -(-batch // plan.partial_sums) if batch else 1
        self.pair_tiles = -(-self.channels * part.tap_count // tile.vectors)
        row_tiles = -(-self.rows // tile.rows)
        self.item_sums = row_tiles * self.pair_tiles * sums_length(tile)
        self.items = plan.partial_sums * groups * self.row_shares * self.channel_shares
        self.x_window = Window(part.axes, plan.box, plan.images, tile.lanes)
        written = tuple(Axis(size, size) for size in part.outputs)
        self.dy_window = Window(written, plan.box, plan.images, tile.lanes, like=self.x_window)  # type: ignore[arg-type]
        self.x_from = -(-(row_tiles * tile.rows * self.dy_window.pitch_c + SLACK) // 16) * 16
        self.scratch = self.x_from + self.channels * self.x_window.pitch_c + self.x_window.overhang + SLACK

    def words(self, x: tuple[int, ...], y: tuple[int, ...], tables: Tables) -> tuple[int, ...]:
        plan, part, window = self.plan, self.part, self.x_window
        taps = window.offsets()
        offsets = [c * window.pitch_c + tap for c in range(self.channels) for tap in taps]
        offsets += [0] * plan.tile.vectors
        boxes = tuple(-(-o // b) for o, b in zip(part.outputs, plan.box, strict=True))
        x_strides, y_strides = (x[1], *three(x[2:], 0)), (y[1], *three(y[2:], 0))

        def axis_tables(w: Window) -> tuple[int, int, int]:
            return tuple(tables.add(axis.table()) for axis in w.axes)  # type: ignore[return-value]

        return (
            tables.add(offsets), self.groups, self.batch, self.share, plan.images,
            part.rows, self.rows, self.row_shares, part.channels, self.channels, self.channel_shares, len(taps),
            *boxes, *plan.box,
            x[0], part.channels * x[1], y[0], part.rows * y[1],
            window.pitch_image, window.planes * window.pitch_z, _length_of(window), window.overhang,
            prod(len(axis.phases) for axis in window.axes),
            self.x_from, -(-self.rows // plan.tile.rows), self.pair_tiles, self.item_sums,
            *window.words(x_strides, axis_tables(window)),
            *self.dy_window.words(y_strides, axis_tables(self.dy_window)),
        )  # fmt: skip

    def reduce_words(self) -> tuple[int, ...]:
        part = self.part
        return (
            self.groups, part.rows, self.rows, self.row_shares, part.channels, self.channels, self.channel_shares,
            part.tap_count, self.plan.partial_sums, self.pair_tiles, self.item_sums,
        )  # fmt: skip
