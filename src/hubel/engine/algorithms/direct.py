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

from collections.abc import Callable
from dataclasses import replace
from math import prod

from hubel.engine.algorithms.edges import ending_of, number
from hubel.engine.algorithms.geometry import Sum, flattened, sums, three
from hubel.engine.algorithms.tiling import MOST_ALTERNATIVES, Cut, cheapest, cuts, error_bound, row_by_row
from hubel.engine.algorithms.winograd_forms import allowed, enough_channels
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, module_text
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.rows import store_rows_function
from hubel.engine.ir.tile import ADD, BIAS, outer_product_tile
from hubel.engine.ir.window import WindowWords, fill_window_function
from hubel.engine.machine import Machine
from hubel.engine.plan import Bound, Estimate, Plan, PlannedJob, Refusal, Tile
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.tables import Tables
from hubel.engine.threads import RESERVED_WORDS
from hubel.engine.window import Axes, Window

NAME = "direct"
ANY_EDGES = True
MOST_TERMS = 768
TINY_FLOPS = 1_000_000
# Sums of so few terms that writing them takes as long: a tile of output channels then does all pixels of a row or
# plane, and what is written at a time lies in a few long stretches, not in short ones of all channels, which fall into
# the same sets of the caches (1 → 64 channels on 64×1000: 1.57 and 0.84 ms; Zen 3, 2026-11).
ALONG = 32
# Numbers of scratch memory behind the last window or tile, for loads and stores that run over the end.
SLACK = 64

# The words of a job after the base pointers, in this order.
WORDS = (
    "parts_at", "parts", "groups", "channels", "rows", "block",
    "chunk_tiles", "chunks", "tiles",
    "box_z", "box_y", "box_x", "boxes_z", "boxes_y", "boxes_x",
    "in_n", "in_g", "out_n", "out_c", "out_z", "out_y", "out_x",
    "sums_row", "sums_z", "in_place", "window",
)  # fmt: skip
# What a table says of each of the sums that share a window.
PART = ("offsets", "weights_from", "taps", "outputs_z", "outputs_y", "outputs_x", "out_from", "sums_from")
# What `in_place` says: all sums pass through scratch; whole tiles of the box's only row go straight to the output;
# those of each row do, where rows are long enough to be done one by one.
SCRATCH, ONE_ROW, ROW_BY_ROW = 0, 1, 2


def propose(problem: Problem, machine: Machine, policy: Policy) -> Plan | Refusal:
    """Always a plan, but for weight gradients, which another file does."""
    if problem.direction is Direction.WEIGHT_GRADIENT:
        return Refusal(NAME, "weight gradients are sums over pixels, not over channels")
    if flattened(problem) is not problem.spec:
        return Refusal(NAME, "a matrix product over one row of pixels: pointwise")
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
    return enough_channels(problem) and bool(allowed(problem, policy))


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


def convolution_function(tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    channels, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS, *WORDS[:-1])
    window_block = f.offset(args, RESERVED_WORDS + WORDS.index("window"), I64, "window")
    window = WindowWords(f, window_block)
    window.load("stride_c", "pitch_z", "pitch_y")
    fill = fill_window_function(tile.lanes, ending.stored)
    part_function = _part_function(tile, ending)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, chunk = item.index // a["chunks"], item.index % a["chunks"]
        origin: dict[str, Value] = {}
        for axis in "xyz":
            origin[axis] = (rest % a[f"boxes_{axis}"]) * a[f"box_{axis}"]
            rest = rest // a[f"boxes_{axis}"]
        group, image = rest % a["groups"], rest // a["groups"]
        first = chunk * a["chunk_tiles"]
        source_g = source + image * a["in_n"] + group * a["in_g"]
        row = group * a["rows"] + first * tile.rows
        out = target + image * a["out_n"] + row * a["out_c"]
        for axis in "xyz":
            out = out + origin[axis] * a[f"out_{axis}"]
        of_row, tile_number = channels.further(row), group * a["tiles"] + first
        with f.loop("c", 0, a["channels"], a["block"]) as c:
            block = f.minimum(a["block"], a["channels"] - c.index)
            from_c = source_g + c.index * window["stride_c"]
            f.call(fill, scratch, from_c, window_block, block, origin["z"], origin["y"], origin["x"])
            with f.loop("part", 0, a["parts"], at_least_once=True) as part:
                f.call(
                    part_function, args, f.offset(a["parts_at"], part.index * len(PART), I64, "part_at"), weights,
                    scratch, out, *of_row.arguments, c.index, block, tile_number, first,
                    origin["z"], origin["y"], origin["x"],
                )  # fmt: skip
    f.ret()
    return f


def _part_function(tile: Tile, ending: Ending) -> Function:
    """part(args, part, weights, scratch, out, operands, c, block, tile, first, z, y, x): what a block of channels, from
    c on, adds to the sums of one item that belong together, which are stored after the last block.

    part: its words. out: of the item's first output, without `out_from`. tile: the number of the first tile of weights
    in the whole layer; first: in its group. z, y, x: where the box begins.
    """
    pointers = [("args", PTR), ("part", PTR), ("weights", PTR), ("scratch", PTR), ("out", ending.stored)]
    numbers = [(n, I64) for n in ("c", "block", "tile", "first", "z", "y", "x")]
    f = Function("part", [*pointers, *ending.parameters, *numbers], private=True)
    args, c, of_row = f.arg("args"), f.arg("c"), ending.given(f)
    a = job_words(f, WORDS, "channels", "rows", "block", "chunk_tiles", "tiles", "box_z", "box_y", "box_x", "in_place")
    window = WindowWords(f, f.offset(args, RESERVED_WORDS + WORDS.index("window"), I64, "window_words"))
    window.load("pitch_y")
    p = {name: f.word(f.arg("part"), i, name, PTR if name == "offsets" else I64) for i, name in enumerate(PART)}
    size = {axis: f.minimum(a[f"box_{axis}"], p[f"outputs_{axis}"] - f.arg(axis)) for axis in "xyz"}
    one_by_one = a["in_place"].equals(ROW_BY_ROW)
    flat = f.select(one_by_one, size["x"], (size["y"] - 1) * window["pitch_y"] + size["x"], "flat")
    planes = f.select(one_by_one, size["y"], size["z"], "planes")
    tiles = f.minimum(a["chunk_tiles"], a["tiles"] - f.arg("first"))
    rows = f.minimum(a["rows"] - f.arg("first") * tile.rows, tiles * tile.rows)
    panel = f.arg("weights") + p["weights_from"] + f.arg("tile") * (a["channels"] * p["taps"] * tile.rows)
    out, sums = f.arg("out") + p["out_from"], f.arg("scratch") + p["sums_from"]
    last = c + a["block"] >= a["channels"]
    mode = f.select(c > 0, ADD, 0)
    if ending.plain:
        mode = mode + f.select(last & of_row.given, BIAS, 0)
    # Some sums have one output fewer along an axis than others.
    with f.when((size["x"] > 0) & (size["y"] > 0) & (size["z"] > 0), "there"):
        f.call(
            _compute_function(tile, ending), args, panel + c * p["taps"] * tile.rows, f.arg("scratch"), p["offsets"],
            sums, out, of_row.arguments[0], f.arg("block") * p["taps"], a["channels"] * p["taps"], planes, flat, tiles,
            rows, mode,
        )  # fmt: skip
        with f.when(last, "last"):
            lines = f.select(one_by_one, 1, size["y"], "lines")
            f.call(
                _store_function(tile, ending), args, sums, out, *of_row.arguments, planes, lines, size["x"], rows, flat
            )
    f.ret()
    return f


def _compute_function(tile: Tile, ending: Ending) -> Function:
    """compute(args, panel, window, offsets, sums, out, bias, terms, all_terms, planes, flat, tiles, rows, mode): a
    block of channels of one item, with so many terms; all channels have `all_terms`. Planes are rows where rows are
    done one by one.

    Whole tiles go straight to the output where it lies as the tile does (`in_place`) and takes sums as they are, all
    others into scratch. The last tiles of output channels ask for the pixels that come next, a line each.
    """
    pointers = [(n, PTR) for n in ("args", "panel", "window", "offsets", "sums")]
    pointers += [("out", ending.stored), ending.parameters[0]]
    numbers = [(n, I64) for n in ("terms", "all_terms", "planes", "flat", "tiles", "rows", "mode")]
    f = Function("compute", [*pointers, *numbers], private=True)
    args, width = f.arg("args"), tile.vectors * tile.lanes
    a = job_words(f, WORDS, "out_c", "out_z", "out_y", "sums_row", "sums_z", "in_place")
    window = WindowWords(f, f.offset(args, RESERVED_WORDS + WORDS.index("window"), I64, "window_words"))
    window.load("pitch_z", "pitch_y")
    one_by_one = a["in_place"].equals(ROW_BY_ROW)
    pitch_z = f.select(one_by_one, window["pitch_y"], window["pitch_z"], "pitch_plane")
    out_z = f.select(one_by_one, a["out_y"], a["out_z"], "out_plane")
    inner = outer_product_tile(tile.rows, tile.vectors, tile.lanes)
    lines = max(1, width // 16)
    panel_tile = f.arg("all_terms") * tile.rows
    in_place = a["in_place"] > SCRATCH
    along = f.arg("terms") <= ALONG
    runs = (f.arg("flat") + (width - 1)) // width
    outer, within = f.select(along, f.arg("tiles"), runs), f.select(along, runs, f.arg("tiles"))
    with f.loop("z", 0, f.arg("planes")) as z, f.loop("o", 0, outer) as o, f.loop("i", 0, within) as i:
        t = f.select(along, o.index, i.index, "t")
        q = f.select(along, i.index, o.index, "q") * width
        pixels = f.arg("window") + z.index * pitch_z + q
        row = t * tile.rows
        straight = in_place & (q + width <= f.arg("flat")) & (row + tile.rows <= f.arg("rows"))
        out = f.arg("out") + row * a["out_c"] + z.index * out_z + q
        parked = f.arg("sums") + row * a["sums_row"] + z.index * a["sums_z"] + q
        line = f.minimum(f.arg("tiles") - 1 - t, lines)
        ahead = pixels + f.select(line < lines, line * 16 + width, 0)
        pitch = f.select(straight, a["out_c"], a["sums_row"], "pitch")
        mode = f.select(straight, f.arg("mode"), f.arg("mode") % BIAS, "tile_mode")
        into, bias = (
            (f.select(straight, out, parked, "into"), f.arg("bias") + row)
            if ending.plain
            else (parked, Value(f, PTR, "null"))
        )
        f.call(
            inner, f.arg("panel") + t * panel_tile, pixels, f.arg("offsets"), into, bias, ahead, f.arg("offsets"),
            f.arg("terms"), pitch, mode,
        )  # fmt: skip
    f.ret()
    return f


def _store_function(tile: Tile, ending: Ending) -> Function:
    """store(args, sums, out, operands, z, y, x, rows, flat): what went into scratch leaves it, row by row, finished."""
    numbers = [(n, I64) for n in ("z", "y", "x", "rows", "flat")]
    pointers = [("args", PTR), ("sums", PTR), ("out", ending.stored)]
    f = Function("store", [*pointers, *ending.parameters, *numbers], private=True)
    names = ("out_c", "out_z", "out_y", "out_x", "sums_row", "sums_z", "in_place")
    a = job_words(f, WORDS, *names)
    window = WindowWords(f, f.offset(f.arg("args"), RESERVED_WORDS + WORDS.index("window"), I64, "window_words"))
    window.load("pitch_y")
    width = tile.vectors * tile.lanes
    whole_pixels = f.arg("flat") // width * width
    whole_rows = f.arg("rows") // tile.rows * tile.rows
    put, channels = store_rows_function(tile.lanes, ending), ending.given(f)
    in_place = a["in_place"] > SCRATCH
    out_z = f.select(a["in_place"].equals(ROW_BY_ROW), a["out_y"], a["out_z"], "out_plane")
    with f.loop("row", 0, f.arg("rows")) as row:
        done = f.select(in_place & (row.index < whole_rows), whole_pixels, 0, "done")
        of_row = channels.further(row.index)
        with f.when(done < f.arg("x"), "left_over"), f.loop("z", 0, f.arg("z")) as z:
            to = f.arg("out") + row.index * a["out_c"] + z.index * out_z + done * a["out_x"]
            at = f.arg("sums") + row.index * a["sums_row"] + z.index * a["sums_z"] + done
            f.call(
                put, to, at, *of_row.arguments, f.arg("y"), a["out_y"], window["pitch_y"], f.arg("x") - done, a["out_x"]
            )
    f.ret()
    return f


PACK_WORDS = ("taps_at", "packed_from", "rows", "channels", "taps", "tiles", "from_g", "from_m", "from_c")


def pack_function(rows: int, stored: Pointer = PTR) -> Function:
    """The weights of a tile of output channels, in the order in which the register tile reads them: [c][tap][row].

    One work item a tile; rows beyond the last output channel are zeros.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a = job_words(f, PACK_WORDS)
    terms = a["channels"] * a["taps"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        group, tile = item.index // a["tiles"], item.index % a["tiles"]
        panel = packed + a["packed_from"] + item.index * terms * rows
        with f.loop("row", 0, rows) as row:
            m = tile * rows + row.index
            with f.when(m < a["rows"], "weights"):
                from_row = source + group * a["from_g"] + m * a["from_m"]
                with f.loop("c", 0, a["channels"]) as c, f.loop("tap", 0, a["taps"]) as tap:
                    offset = f.load(f.offset(a["taps_at"], tap.index, I64), I64, "tap_offset")
                    weight = f.load(from_row + c.index * a["from_c"] + offset, F32, "weight")
                    f.store(weight, panel + (c.index * a["taps"] + tap.index) * rows + row.index)
            with f.when(m >= a["rows"], "zeros"), f.loop("k", 0, terms) as k:
                f.store(f.constant(0.0, F32), panel + k.index * rows + row.index)
    f.ret()
    return f


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


def _sharing_windows(plan: Plan) -> list[list[Sum]]:
    """The problem's sums in parts that share windows: so many that what they have in scratch stays in L2."""
    parts = sums(plan.problem)
    of_one = 4 * plan.row_tiles * plan.tile.rows * prod(plan.box)
    together = max(1, plan.machine.l2 // 4 // max(1, of_one))
    return [parts[i : i + together] for i in range(0, len(parts), together)]


def _common(parts: list[Sum]) -> Axes:
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
    parts: list[Sum],
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
