"""Small maps of many images, forward and input gradient: neighbouring images in the lanes of a vector.

    for as many images as a vector has lanes, every group and share of the output channels:   one work item
        for blocks of input channels:
            turn the block's maps so that a pixel of all the images is one vector, zeros around them
            for rows of outputs, for runs of pixels, for tiles of output channels:             the register tile
                acc[row, pixel] += weight[tile][c, tap][row] · map[c][pixel + tap]
        turn the sums back into the images' maps

Where a map is a few vectors wide, lanes that hold pixels run over the ends of rows: with 5×5 kernels on LeNet's 14×14
maps 4 of 14 do. Lanes that hold images waste nothing, whatever the size, stride or padding, and no load crosses cache
lines. Turning costs about twelve cycles a vector each way.

The order of summation is that of `direct`, so an image's bits are the same alone, where `direct` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from hubel.engine.algorithms import direct
from hubel.engine.algorithms.channel_lanes import fill_function, region_function, turn_back_function
from hubel.engine.algorithms.direct import channel_block, pack_name, packing_job, packing_key
from hubel.engine.algorithms.direct_kernels import pack_function
from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, is_product, one_run, sums
from hubel.engine.algorithms.tiling import ITEM, SUM, TILE, error_bound, rows_that_fit, step_cycles
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Value, module_text
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.rows import store_rows_function
from hubel.engine.ir.tile import ADD, BIAS, outer_product_tile
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables

NAME = "images"
ANY_EDGES = True
# Cycles to turn a vector, to or from the lanes.
TURN = 12.0
# How many times fewer cycles than others it must take by this count, which is a little hopeful.
LEAST_GAIN = 1.1

# The words of a job after the base pointers, in this order.
WORDS = (
    "offsets", "images", "groups", "channels", "rows", "taps", "block", "share_tiles", "shares", "tiles",
    "outputs_y", "outputs_x", "step_y", "step_x", "first_y", "first_x", "window_y", "window_x", "size_y", "size_x",
    "in_n", "in_g", "in_c", "in_y", "in_x", "out_n", "out_c", "out_x",
    "pitch_c", "sums_from", "beside_from",
)  # fmt: skip


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """A plan for batches that fill a vector: the cheapest whose maps and sums fit into the L2 cache."""
    reason = _declined(problem, machine, policy)
    if reason:
        return Refusal(NAME, reason)
    spec, (part,) = problem.spec, sums(problem)
    tile = _tile(machine, part)
    vectors, tiles = -(-spec.batch // tile.lanes), -(-part.rows // tile.rows)
    computed = 2 * vectors * tile.lanes * spec.groups * tiles * tile.rows * part.channels * part.tap_count
    whole = Plan(
        problem, machine, policy, NAME, tile,
        kernels=(
            f"conv_{number(problem)}_images_{tile}_{machine.isa}{ending_of(problem).name}",
            pack_name(problem, tile, machine),
        ),
        channel_block=channel_block(part, machine), box=part.outputs, row_tiles=tiles, images=tile.lanes,
        estimate=Estimate(spec.flops, computed * prod(part.outputs), problem.bytes(), 0.0), least_gain=LEAST_GAIN,
        error_bound=error_bound(problem), reason="small maps of many images: images in lanes", sums_like=direct.NAME,
    )  # fmt: skip
    # More shares of the output channels turn the maps more often.
    shared = [replace(whole, row_tiles=n) for n in sorted({-(-tiles // n) for n in (1, 2, 3, 4, 6, 8, 12, 16)})]
    fitting = [plan for plan in shared if 4 * sum(_layout(plan, part)[1:]) <= machine.l2]
    if not fitting:
        return Refusal(NAME, "its maps and sums do not fit into the L2 cache")
    counted = [replace(p, estimate=replace(p.estimate, cycles=_cycles(p, part))) for p in fitting]
    return min(counted, key=lambda plan: plan.cost)


def _declined(problem: Problem, machine: Machine, policy: Policy) -> str:
    """Why not, or nothing. Nothing here may depend on the batch but whether it fills a vector."""
    spec = problem.spec
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return "weight gradients are sums over images"
    if spec.batch < machine.lanes:
        return f"needs {machine.lanes} images, one a lane"
    if spec.ndim > 2 or problem.layout != "planes":
        return "does planes whose pixels follow each other in memory"
    if is_product(problem) or spec.groups == spec.in_channels > 1:
        return "has no place where a map is one row or one channel a group"
    if problem.direction is Direction.INPUT_GRADIENT and set(spec.stride) != {1}:
        return "does input gradients with stride 1"
    if direct.may_be_winograd(problem, policy):
        return "winograd may do an image alone, and the same image in a batch has the same bits"
    if not prod(spec.output_size):
        return "there are no outputs"
    return ""


def _tile(machine: Machine, part: Sum) -> Tile:
    """The tile that needs the fewest cycles a pixel; of the channels alone."""
    tiles = [Tile(rows, v, machine.lanes) for v in (1, 2, 3, 4) for rows in range(1, rows_that_fit(machine, v) + 1)]
    return min(tiles, key=lambda tile: (round(_step(machine, part, tile), 6), -tile.rows * tile.vectors))


def _step(machine: Machine, part: Sum, tile: Tile) -> float:
    """Cycles of a term of the sums of all output channels, a vector."""
    return -(-part.rows // tile.rows) * step_cycles(machine, tile.rows, tile.vectors, 1) / tile.vectors


def _cycles(plan: Plan, part: Sum) -> float:
    """Cycles until all is done."""
    spec, tile, machine = plan.problem.spec, plan.tile, plan.machine
    _, y, x = part.outputs
    tiles = -(-part.rows // tile.rows)
    shares = -(-tiles // plan.row_tiles)
    narrow, runs = x % tile.vectors, -(-x // tile.vectors)
    steps = x // tile.vectors * step_cycles(machine, tile.rows, tile.vectors, 1)
    steps += step_cycles(machine, tile.rows, narrow, 1) if narrow else 0
    add = -(-part.channels // plan.channel_block) * (runs * TILE + x * SUM * tile.rows)
    compute = y * plan.row_tiles * (part.channels * part.tap_count * steps + add)
    turn = TURN * (part.channels * prod(_window(part)) + min(part.rows, plan.row_tiles * tile.rows) * y * x)
    items = -(-spec.batch // tile.lanes) * spec.groups * shares
    return -(-items // plan.policy.threads) * (ITEM + compute + turn)


def _window(part: Sum) -> tuple[int, int]:
    """Rows and columns of a map that the outputs read, padding included."""
    y, x = (
        (axis.outputs - 1) * axis.step + max(axis.shifts, default=0) - min(axis.shifts, default=0) + 1
        for axis in part.axes[1:]
    )
    return y, x


def _layout(plan: Plan, part: Sum) -> tuple[int, int, int, int]:
    """(from a channel's map to the next, numbers of all maps, of the sums, of what lies beside them: the bias, or the
    outputs of one channel).
    """
    rows = plan.row_tiles * plan.tile.rows
    pitch = prod(_window(part)) * plan.tile.lanes
    # Off multiples of 4 KiB, which all fall into one set of the L1 cache.
    pitch += plan.tile.lanes if pitch % 1024 == 0 else 0
    outputs = prod(part.outputs) * plan.tile.lanes
    beside = -(-rows // 16) * 16 if ending_of(plan.problem).plain else outputs
    return pitch, plan.channel_block * pitch, rows * outputs, beside


def emit(plan: Plan) -> dict[str, Callable[[], str]]:
    """The IR of each kernel of the plan, by name."""
    main, pack = plan.kernels
    lanes, ending = plan.tile.lanes, ending_of(plan.problem)
    return {
        main: lambda: module_text(convolution_function(plan.tile, ending), lanes),
        pack: lambda: module_text(pack_function(plan.tile.rows, ending.stored), lanes),
    }


def convolution_function(tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, maps, lanes = f.arg("args"), f.arg("scratch"), tile.lanes
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS)
    fill = fill_function(lanes)
    region = region_function(lanes, fill if ending.stored is PTR else None, ending.stored)
    compute, turn_back = _compute_function(tile), turn_back_function(lanes, fill)
    collect, put = _bias_function(), store_rows_function(lanes, ending)
    sums_at, beside = maps + a["sums_from"], maps + a["beside_from"]
    pixels = a["outputs_y"] * a["outputs_x"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, share = item.index // a["shares"], item.index % a["shares"]
        group, image = rest % a["groups"], rest // a["groups"] * lanes
        images = f.minimum(a["images"] - image, lanes)
        first = share * a["share_tiles"]
        tiles = f.minimum(a["share_tiles"], a["tiles"] - first)
        rows = f.minimum(a["rows"] - first * tile.rows, tiles * tile.rows)
        row = group * a["rows"] + first * tile.rows
        if ending.plain:
            f.call(collect, beside, *operands.arguments, row, rows, tiles * tile.rows)
        terms = a["channels"] * a["taps"]
        panel = weights + (group * a["tiles"] + first) * terms * tile.rows
        maps_from = source + image * a["in_n"] + group * a["in_g"]
        with f.loop("c", 0, a["channels"], a["block"]) as c:
            block = f.minimum(a["block"], a["channels"] - c.index)
            with f.loop("map", 0, block) as m:
                f.call(
                    region, maps + m.index * a["pitch_c"], maps_from + (c.index + m.index) * a["in_c"], images,
                    a["first_y"], a["first_x"], a["window_y"], a["window_x"], a["size_y"], a["size_x"],
                    a["in_n"], a["in_y"], a["in_x"], a["window_x"] * lanes, a["in_c"],
                )  # fmt: skip
            last = c.index + block >= a["channels"]
            mode = f.select(c.index > 0, ADD, 0)
            if ending.plain:
                mode = mode + f.select(last, BIAS, 0)
            weights_at = panel + c.index * a["taps"] * tile.rows
            f.call(compute, args, weights_at, maps, sums_at, beside, block * a["taps"], terms * tile.rows, tiles, mode)
        with f.loop("r", 0, rows) as r:
            out = target + image * a["out_n"] + (row + r.index) * a["out_c"]
            sums_of = sums_at + r.index * pixels * lanes
            if ending.plain:
                f.call(turn_back, out, sums_of, pixels, images, a["out_n"], a["out_x"])
            else:
                f.call(turn_back, beside, sums_of, pixels, images, pixels, 1)
                of_row = operands.further(row + r.index).arguments
                f.call(put, out, beside, *of_row, images, a["out_n"], pixels, pixels, a["out_x"])
    f.ret()
    return f


def _bias_function() -> Function:
    """collect(target, bias, first, rows, whole): bias[first + r] for r < rows, zeros up to `whole`.

    Minus zeros: adding them changes no number, not even −0. They stand for a bias that is null, too.
    """
    f = Function(
        "collect", [("target", PTR), ("bias", PTR), *((n, I64) for n in ("first", "rows", "whole"))], private=True
    )
    with f.loop("none", 0, f.arg("whole")) as r:
        f.store(f.constant(-0.0, F32), f.arg("target") + r.index)
    with f.when(f.compare("ne", f.arg("bias"), Value(f, PTR, "null")), "given"), f.loop("row", 0, f.arg("rows")) as r:
        f.store(f.load(f.arg("bias") + f.arg("first") + r.index, F32), f.arg("target") + r.index)
    f.ret()
    return f


def _compute_function(tile: Tile) -> Function:
    """compute(args, weights, maps, sums, bias, terms, tile_step, tiles, mode): a block of channels of one item."""
    pointers = [(n, PTR) for n in ("args", "weights", "maps", "sums", "bias")]
    numbers = [(n, I64) for n in ("terms", "tile_step", "tiles", "mode")]
    f = Function("compute", [*pointers, *numbers], private=True)
    names = ("offsets", "outputs_y", "outputs_x", "step_y", "step_x", "window_x")
    a = job_words(f, WORDS, *names)
    lanes = tile.lanes
    pitch = a["outputs_y"] * a["outputs_x"] * lanes
    apart = a["step_x"] * lanes
    whole = a["outputs_x"] // tile.vectors * tile.vectors
    with f.loop("y", 0, a["outputs_y"]) as y, f.loop("x", 0, a["outputs_x"], tile.vectors) as x:
        pixels = f.arg("maps") + (y.index * a["step_y"] * a["window_x"] + x.index * a["step_x"]) * lanes
        sums_at = f.arg("sums") + (y.index * a["outputs_x"] + x.index) * lanes
        count = f.select(x.index < whole, tile.vectors, a["outputs_x"] - whole, "count")
        for v in range(1, tile.vectors + 1):
            inner = outer_product_tile(tile.rows, v, lanes, spaced=True)
            with f.when(count.equals(v), f"pixels{v}"), f.loop("t", 0, f.arg("tiles")) as t:
                row = t.index * tile.rows
                f.call(
                    inner, f.arg("weights") + t.index * f.arg("tile_step"), pixels, a["offsets"],
                    sums_at + row * pitch, f.arg("bias") + row, pixels, a["offsets"],
                    f.arg("terms"), pitch, f.arg("mode"), apart,
                )  # fmt: skip
    f.ret()
    return f


def bind(plan: Plan, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Bound:
    """Jobs for tensors with these element strides: x and y are the input and output (or their gradients), w the
    weight.
    """
    problem, tile, spec = plan.problem, plan.tile, plan.problem.spec
    (part,) = sums(problem)
    source, target = (x, y) if problem.direction is Direction.FORWARD else (y, x)
    tiles = -(-part.rows // tile.rows)
    shares = -(-tiles // plan.row_tiles)
    _, axis_y, axis_x = part.axes
    window_y, window_x = _window(part)
    pitch, *sizes = _layout(plan, part)
    offsets = [
        c * pitch + ((u - min(axis_y.shifts)) * window_x + v - min(axis_x.shifts)) * tile.lanes
        for c in range(plan.channel_block)
        for u in axis_y.shifts
        for v in axis_x.shifts
    ]
    in_y, in_x = (source[-2] if spec.ndim == 2 else 0, source[-1])
    out_x = one_run(part.outputs[-spec.ndim :], target[2:])
    assert out_x is not None, "only problems in planes have such a plan"
    tables = Tables()
    words = (
        tables.add(offsets), spec.batch, spec.groups, part.channels, part.rows, part.tap_count, plan.channel_block,
        plan.row_tiles, shares, tiles,
        axis_y.outputs, axis_x.outputs, axis_y.step, axis_x.step, min(axis_y.shifts), min(axis_x.shifts),
        window_y, window_x, axis_y.size, axis_x.size,
        source[0], part.channels * source[1], source[1], in_y, in_x, target[0], target[1], out_x,
        pitch, sizes[0], sizes[0] + sizes[1],
    )  # fmt: skip
    packing = packing_job(plan, part, w, 0, tables)
    items = -(-spec.batch // tile.lanes) * spec.groups * shares
    packed = packing.items * tile.rows * part.channels * part.tap_count
    jobs = (PlannedJob(plan.kernels[0], items, words),)
    return Bound(jobs, (packing,), packed, packing_key(plan, w), sum(sizes), 0, tables.keep())
