"""The kernels of `channels`: fill the window, sum tile by tile, carry the sums out."""

from __future__ import annotations

from collections.abc import Iterator

from hubel.engine.algorithms.cells import fill_pixels_function
from hubel.engine.algorithms.channel_lanes import fill_function
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.broadcast import broadcast_tile
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.turn import joined, transposed_quarters
from hubel.engine.ir.window import WindowWords, fill_window_function
from hubel.engine.plan import Tile
from hubel.engine.threads import RESERVED_WORDS

# The words of a job after the base pointers, in this order. Outputs come in phases: those of a forward convolution
# are one, those of an input gradient one for each remainder of the position modulo the stride. outputs, box, boxes
# count places of the largest phase, neighbours in which lie `step` apart in the output, whose size is `size`.
WORDS = (
    "phase_table", "phases", "groups", "channels", "rows", "taps", "block", "chunk_tiles", "chunks", "tiles",
    "outputs_z", "outputs_y", "outputs_x", "box_z", "box_y", "box_x", "boxes_z", "boxes_y", "boxes_x",
    "step_z", "step_y", "step_x", "size_z", "size_y", "size_x",
    "in_n", "in_g", "out_n", "out_c", "out_z", "out_y", "out_x",
    "cell", "stride_x", "row_z", "row_y", "sums_t", "sums_z", "sums_y", "bias_from", "sums_from", "window",
)  # fmt: skip
# A phase in `phase_table`: the table of its terms' offsets, its taps and those of the phases before it, its first
# output, its number of outputs, and for each of its planes the taps that are summed: (the first of them, how many).
PHASE = ("offsets", "taps", "before", "first_z", "first_y", "first_x", "count_z", "count_y", "count_x", "summed")
AXES = "zyx"
# Vectors of pixels of a row that are stored one after the other.
STRETCH = 8


def convolution_function(tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`. tile.rows are pixels, tile.vectors of output channels.

    Where the output takes no sums as they are, all go through scratch, and the bias is added there, too.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, width = f.arg("args"), f.arg("scratch"), tile.vectors * tile.lanes
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS, *WORDS[:-1])
    window_block = f.offset(args, RESERVED_WORDS + WORDS.index("window"), I64, "window")
    stride_c = WindowWords(f, window_block)["stride_c"]
    planes = fill_window_function(tile.lanes, ending.stored)
    pixels = fill_pixels_function(tile.lanes, ending.stored)
    collect, compute, store = _bias_function(), _compute_function(tile, ending), _store_function(tile, ending)
    nothing, sums_at = scratch + a["bias_from"], scratch + a["sums_from"]
    biases = nothing + width
    f.call(collect, nothing, Value(f, PTR, "null"), 0, 0, width)
    by_planes = a["cell"].equals(1)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, chunk = item.index // a["chunks"], item.index % a["chunks"]
        origin: dict[str, Value] = {}
        for axis in "xyz":
            origin[axis] = (rest % a[f"boxes_{axis}"]) * a[f"box_{axis}"]
            rest = rest // a[f"boxes_{axis}"]
        group, image = rest % a["groups"], rest // a["groups"]
        first = chunk * a["chunk_tiles"]
        tiles = f.minimum(a["chunk_tiles"], a["tiles"] - first)
        rows = f.minimum(a["rows"] - first * width, tiles * width)
        row = group * a["rows"] + first * width
        from_g = source + image * a["in_n"] + group * a["in_g"]
        out = target + image * a["out_n"] + row * a["out_c"]
        for axis in AXES:
            out = out + origin[axis] * a[f"step_{axis}"] * a[f"out_{axis}"]
        bias = operands.bias_at()[0] if ending.short else Value(f, PTR, "null")
        f.call(collect, biases, bias, row, rows, tiles * width)
        panels = weights + group * a["tiles"] * a["channels"] * a["taps"] * width
        with f.loop("c", 0, a["channels"], a["block"]) as c:
            block = f.minimum(a["block"], a["channels"] - c.index)
            from_c, x = from_g + c.index * stride_c, origin["x"] * a["stride_x"]
            with f.when(by_planes, "planes"):
                f.call(planes, scratch, from_c, window_block, block, origin["z"], origin["y"], x)
            with f.when(f.negate(by_planes), "pixels"):
                f.call(pixels, scratch, from_c, window_block, block, origin["z"], origin["y"], x, a["cell"])
            last = c.index + a["block"] >= a["channels"]
            # Tiles of the last block are carried out one by one, while their sums are in L1; whole ones go straight to
            # an output with channels last, if their ending is short.
            straight = f.select(a["out_c"].equals(1), rows // width, 0, "straight") if ending.short else f.constant(0)
            sums_step = f.select(a["block"] < a["channels"], a["sums_t"], 0, "sums_step")
            with f.loop("t", 0, tiles, f.select(last, 1, tiles)) as t:
                row_t, sums_t = t.index * width, sums_at + t.index * sums_step
                out_t, operands_t = out + row_t * a["out_c"], operands.further(row + row_t).arguments
                there, at = f.minimum(rows - row_t, width), (origin["z"], origin["y"], origin["x"])
                done = last & (t.index < straight)
                added = last if ending.plain else done
                f.call(
                    compute, args, panels + c.index * a["taps"] * a["tiles"] * width, scratch, sums_t,
                    out_t if ending.short else sums_t,
                    f.select(added, biases + row_t, nothing, "addend"),
                    f.select(c.index > 0, sums_t, nothing, "before"), *operands_t,
                    first + t.index, f.select(last, 1, tiles), block, f.select(done, 1, 0), *at,
                )  # fmt: skip
                with f.when(last & f.negate(done), "parked"):
                    f.call(store, args, sums_t, out_t, *operands_t, there, *at)
    f.ret()
    return f


def _bias_function() -> Function:
    """collect(target, bias, first, rows, whole): bias[first + r] for r < rows, minus zeros up to `whole` and where bias
    is null: adding them changes no number, not even −0.
    """
    numbers = [(n, I64) for n in ("first", "rows", "whole")]
    f = Function("collect", [("target", PTR), ("bias", PTR), *numbers], private=True)
    with f.loop("none", 0, f.arg("whole")) as r:
        f.store(f.constant(-0.0, F32), f.arg("target") + r.index)
    with f.when(f.compare("ne", f.arg("bias"), Value(f, PTR, "null")), "given"), f.loop("row", 0, f.arg("rows")) as r:
        f.store(f.load(f.arg("bias") + f.arg("first") + r.index, F32), f.arg("target") + r.index)
    f.ret()
    return f


def _compute_function(tile: Tile, ending: Ending) -> Function:
    """compute(args, panels, window, sums, out, addends, before, operands, first, tiles, block, done, z, y, x): a block
    of channels for all pixels of the box whose first place is (z, y, x), and `tiles` tiles of output channels from the
    first on.

    before: the sums of the blocks before, or minus zeros; addends: biases of a tile, or minus zeros. done: 1 to
    finish the sums of a single tile, and store them in an output with channels last; else they stay where they are.
    """
    pointers = [(n, PTR) for n in ("args", "panels", "window", "sums", "out", "addends", "before")]
    numbers = [(n, I64) for n in ("first", "tiles", "block", "done", "z", "y", "x")]
    f = Function("compute", [*pointers, *ending.parameters, *numbers], private=True)
    a = job_words(f, WORDS, *(n for n in WORDS if n not in ("window", "phase_table")))
    table, width = f.word(f.arg("args"), RESERVED_WORDS, "phase_table", PTR), tile.vectors * tile.lanes
    functions = [broadcast_tile(n, tile.vectors, tile.lanes, ending) for n in range(1, tile.rows + 1)]
    last = f.constant(tile.rows - 1)
    straight = f.arg("done").equals(1)
    pitch = {"z": a["sums_z"], "y": a["sums_y"], "x": f.constant(width)}
    out_pitch = {axis: a[f"out_{axis}"] for axis in AXES}
    step = {axis: a[f"step_{axis}"] * pitch[axis] for axis in AXES}
    out_step = {axis: a[f"step_{axis}"] * out_pitch[axis] for axis in AXES}
    apart = a["cell"] * a["stride_x"]
    added = f.compare("eq", f.arg("before"), f.arg("sums"))
    before_x = f.select(added, step["x"], 0, "before_x")
    with f.loop("phase", 0, a["phases"]) as phase:
        at = f.offset(table, phase.index * len(PHASE), I64, "phase")
        table_of_terms, *words, summed = (
            f.word(at, i, n, PTR if n in ("offsets", "summed") else I64) for i, n in enumerate(PHASE)
        )
        taps, before = words[:2]
        sums, out = f.arg("sums"), f.arg("out")
        count = {}
        for axis, start, places in zip(AXES, words[2:5], words[5:], strict=True):
            sums, out = sums + start * pitch[axis], out + start * out_pitch[axis]
            count[axis] = f.minimum(a[f"box_{axis}"], places - f.arg(axis))
        runs = (count["x"] + (tile.rows - 1)) // tile.rows
        divisor = f.maximum(runs, 1)
        # So many runs are a pixel longer than the others.
        short, longer = count["x"] // divisor, count["x"] % divisor
        # Short rows go two by two.
        pair = (short * 2 <= tile.rows) & (runs <= 1)
        of_short, of_longer, of_pair = (
            f.one_of(functions, f.minimum(f.maximum(pixels - 1, 0), last)) for pixels in (short, short + 1, short * 2)
        )
        terms = f.arg("block") * taps
        panel_tile = terms * width
        panel = f.arg("panels") + before * f.arg("block") * a["tiles"] * width + f.arg("first") * panel_tile
        # While a tile's weights are in use, the next tile's are asked for, so many bytes a term.
        at_once = f.select(pair, 2, 1, "rows_at_once")
        rows = (count["y"] + (at_once - 1)) // at_once
        all_runs = f.maximum(count["z"] * rows * runs, 1)
        asked = (all_runs + (4 * width - 1)) // all_runs
        rows_y = f.select(runs > 0, count["y"], 0)
        with (
            f.loop("t", 0, f.arg("tiles")) as t,
            f.loop("row_z", 0, count["z"]) as z,
            # Rows with no place in this phase are not visited.
            f.loop("row_y", 0, rows_y, at_once) as y,
        ):
            w, done_before = panel + t.index * panel_tile, (z.index * rows + y.index // at_once) * runs
            following = f.offset(w + panel_tile, done_before * terms * asked, "i8", "following")
            of_plane = f.offset(summed, (f.arg("z") + z.index) * 2, I64, "of_plane")
            first_tap, taps_summed = f.word(of_plane, 0, "first_tap"), f.word(of_plane, 1, "taps_summed")
            # One stretch of terms where all taps are summed, else one for each channel.
            whole = taps_summed.equals(taps)
            stretches = f.select(whole, 1, f.arg("block"), "stretches")
            stretch = f.select(whole, terms, taps_summed, "stretch")
            x = f.arg("window") + z.index * a["row_z"] + y.index * a["row_y"]
            at = z.index * step["z"] + y.index * step["y"]
            parked = sums + t.index * a["sums_t"] + at
            from_ = f.select(added, parked, f.arg("before"), "from")
            to = f.select(straight, out + z.index * out_step["z"] + y.index * out_step["y"], parked)
            to_x = f.select(straight, out_step["x"], step["x"], "to_x")

            def run(function: Value, done: Value | int, size: Value, count: Value, second: tuple[Value, ...]) -> None:
                """`count` runs of `size` pixels, behind `done` runs one longer. second: how far the other half of each
                lies.
                """
                begin = (short + 1) * done
                x_run, from_run, to_run = x + apart * begin, from_ + before_x * begin, to + to_x * begin
                f.call(
                    functions[0], w + first_tap * width, x_run, x_run + second[0],
                    f.offset(table_of_terms, first_tap, I64),
                    from_run, from_run + second[1], to_run, to_run + second[2], f.arg("addends"),
                    f.offset(following, terms * asked * done, "i8"), *ending.given(f).arguments,
                    stretches, stretch, taps - taps_summed, apart * 4, before_x, to_x, count,
                    apart * size * 4, before_x * size, to_x * size, asked, f.arg("done"), at=function,
                )  # fmt: skip

            both = pair & (y.index + 1 < count["y"])
            with f.when(longer > 0, "longer"):
                half = (short + 2) // 2
                run(of_longer, 0, short + 1, longer, (apart * half, before_x * half, to_x * half))
            half = (short + 1) // 2
            second = (
                f.select(both, a["row_y"], apart * half),
                f.select(both & added, step["y"], before_x * half),
                f.select(both, f.select(straight, out_step["y"], step["y"]), to_x * half),
            )
            run(f.select(both, of_pair, of_short), longer, short, runs - longer, second)
    f.ret()
    return f


def _store_function(tile: Tile, ending: Ending) -> Function:
    """store(args, sums, out, operands, rows, z, y, x): the sums of a box go to `rows` output channels."""
    numbers = [(n, I64) for n in ("rows", "z", "y", "x")]
    pointers = [("args", PTR), ("sums", PTR), ("out", ending.stored)]
    f = Function("store", [*pointers, *ending.parameters, *numbers], private=True)
    names = (*(f"{n}_{axis}" for n in ("box", "step", "size", "out") for axis in AXES), "out_c", "sums_z", "sums_y")
    a = job_words(f, WORDS, *names)
    width = tile.vectors * tile.lanes
    size = {}
    for axis in AXES:
        step = a[f"step_{axis}"]
        size[axis] = f.minimum(a[f"box_{axis}"] * step, a[f"size_{axis}"] - f.arg(axis) * step)
    # Rows that follow each other here and there are one.
    one = (size["x"] * width).equals(a["sums_y"]) & (size["x"] * a["out_x"]).equals(a["out_y"])
    lines, count = f.select(one, 1, size["y"]), f.select(one, size["y"] * size["x"], size["x"])
    put, operands = _put_function(tile, ending), ending.given(f).arguments
    with f.loop("plane", 0, size["z"]) as z, f.loop("line", 0, lines) as y:
        from_ = f.arg("sums") + z.index * a["sums_z"] + y.index * a["sums_y"]
        out = f.arg("out") + z.index * a["out_z"] + y.index * a["out_y"]
        f.call(put, out, from_, *operands, count, f.arg("rows"), a["out_c"], a["out_x"])
    f.ret()
    return f


def _put_function(tile: Tile, ending: Ending) -> Function:
    """put(out, sums, operands, pixels, rows, out_c, out_x): out[row·out_c + pixel·out_x] = sums[pixel·width + row],
    finished unless the sums are outputs.
    """
    numbers = [(n, I64) for n in ("pixels", "rows", "out_c", "out_x")]
    pointers = [("out", ending.stored), ("sums", PTR), *ending.parameters]
    f = Function("put", [*pointers, *numbers], private=True)
    operands = ending.given(f)

    def finished(value: Value, place: Value, row: Value, mask: Value | None = None) -> Value:
        if ending.plain:
            return value
        width = lanes if value.type != F32 else 1
        return operands.further(row).load([width])(value, place, mask)

    lanes, width = tile.lanes, tile.vectors * tile.lanes
    out, sums, pixels, rows, out_c, out_x = (f.arg(n) for n in ("out", "sums", "pixels", "rows", "out_c", "out_x"))
    side_by_side = out_x.equals(1)
    # AVX-512 stores under a mask at full speed; elsewhere the last vector overlaps, and fewer go one by one.
    masks = lanes == 16
    whole = pixels // lanes * lanes
    turned = side_by_side if masks else side_by_side & (pixels >= lanes)
    mask = f.lanes_below(pixels - whole, lanes) if masks else None

    def turn(at: Value, row: Value, mask: Value | None = None) -> None:
        from_, to = sums + at * width + row, out + row * out_c + at
        starts = [[from_ + (q + p) * width for q in range(0, lanes, 4)] for p in range(4)]
        vectors = [joined(f, [f.load(place, vector_of(4)) for place in places]) for places in starts]
        for i, vector in enumerate(transposed_quarters(f, vectors)):
            with f.when(row + i < rows, "exists"):
                place = to + out_c * i
                vector = finished(vector, place, row + i, mask)
                if mask:
                    f.store_masked(vector, place, mask)
                else:
                    f.store(vector, place)

    with f.when(turned, "turned"):
        # Four rows at a time, as long as the sums stay in L1: all rows' lines may fall into one set of the cache.
        with (
            f.loop("stretch", 0, whole, STRETCH * lanes) as stretch,
            f.loop("rows4", 0, rows, 4) as row,
            f.loop("vector", stretch.index, f.minimum(stretch.index + STRETCH * lanes, whole), lanes) as q,
        ):
            turn(q.index, row.index)
        with f.when(whole < pixels, "rest"), f.loop("rest4", 0, rows, 4) as row:
            turn(whole if masks else pixels - lanes, row.index, mask)
    with f.when(f.negate(turned), "single"):
        # Whole vectors of channels that are side by side.
        vectors = f.select(out_c.equals(1), rows // lanes * lanes, 0, "vectors")
        with f.loop("channels", 0, vectors, lanes) as r:
            finish = operands.further(r.index).load_lanes(lanes, bias=not ending.plain)
            with f.loop("place", 0, pixels) as p:
                totals = f.load(sums + p.index * width + r.index, vector_of(lanes))
                place = out + p.index * out_x + r.index
                f.store(finish(totals, place), place)
        with f.when(vectors < rows, "others"), f.loop("pixel", 0, pixels) as p, f.loop("row", vectors, rows) as r:
            total, place = f.load(sums + p.index * width + r.index, F32), out + p.index * out_x + r.index * out_c
            f.store(finished(total, place, r.index), place)
    f.ret()
    return f


def pack_function(tile: Tile, stored: Pointer = PTR) -> Function:
    """The weights in the order in which they are read: [group][block][phase][tile][c][tap][lane].

    One work item a tile of output channels; lanes beyond the last output channel are zeros. See `PACK_WORDS`.
    """
    width = tile.vectors * tile.lanes
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a = job_words(f, PACK_WORDS)
    part = _pack_part_function(tile.lanes, width, stored)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        group, number = item.index // a["tiles"], item.index % a["tiles"]
        panels = packed + group * a["tiles"] * a["channels"] * a["taps"] * width
        with f.loop("c", 0, a["channels"], a["block"]) as c, f.loop("v", 0, width, tile.lanes) as v:
            m = number * width + v.index
            block = f.minimum(a["block"], a["channels"] - c.index)
            from_ = source + group * a["from_g"] + m * a["from_m"] + c.index * a["from_c"]
            rows = f.maximum(f.minimum(a["rows"] - m, tile.lanes), 0)
            panel = panels + c.index * a["taps"] * a["tiles"] * width + v.index
            f.call(part, args, panel, from_, f.arg("scratch"), block, rows, number)
    f.ret()
    return f


# taps_at: for each tap its place in the weights, the taps of the phases before its own, those of its phase, and its
# number among these. run: what follows each other in the weights: 0 anything, 1 the taps, 2 the channels' taps.
# Channels ahead, far apart from each other, whose weights are asked for.
AHEAD = 2
PACK_WORDS = ("taps_at", "rows", "channels", "taps", "tiles", "block", "from_g", "from_m", "from_c", "run")
TAP = ("place", "before", "of_phase", "number")


def _pack_part_function(lanes: int, width: int, stored: Pointer) -> Function:
    """part(args, panel, source, buffer, block, rows, number): a vector of output channels of tile `number`, a block of
    input channels. buffer: room for a vector a tap.
    """
    pointers = [("args", PTR), ("panel", PTR), ("source", stored), ("buffer", PTR)]
    f = Function("part", [*pointers, *((n, I64) for n in ("block", "rows", "number"))], private=True)
    a: Words = job_words(f, PACK_WORDS, "taps_at", "taps", "tiles", "from_m", "from_c", "run")
    block, rows, source, buffer = f.arg("block"), f.arg("rows"), f.arg("source"), f.arg("buffer")
    fill = fill_function(lanes, stored)

    def each_tap() -> Iterator[tuple[Value, Value, Value]]:
        """Where a tap lies in the weights, where its first channel goes, and how far apart channels are there."""
        with f.loop("tap", 0, a["taps"]) as tap:
            at = f.offset(a["taps_at"], tap.index * len(TAP), I64, "tap")
            place, before, of_phase, number = (f.word(at, i, n) for i, n in enumerate(TAP))
            to = f.arg("panel") + ((before * a["tiles"] + f.arg("number") * of_phase) * block + number) * width
            yield place, to, of_phase * width

    with f.when(a["run"].equals(2), "all"):
        to = f.arg("panel") + f.arg("number") * a["taps"] * block * width
        f.call(fill, to, source, rows, 1, block * a["taps"], a["from_m"], 0, 1, 0, width, 16)
    with f.when(a["run"].equals(1), "taps"), f.loop("c", 0, block) as c:
        from_ = source + c.index * a["from_c"]
        f.call(fill, buffer, from_, rows, 1, a["taps"], a["from_m"], 0, 1, 0, lanes, a["from_c"] * AHEAD)
        for place, to, apart in each_tap():
            f.store(f.load(buffer + place * lanes, vector_of(lanes)), to + c.index * apart)
    with f.when(a["run"].equals(0), "any"):
        for place, to, apart in each_tap():
            f.call(fill, to, source + place, rows, 1, block, a["from_m"], 0, a["from_c"], 0, apart, 16)
    f.ret()
    return f
