"""The code of direct convolutions: boxes of outputs, the sums that share a window, runs of pixels, and the packing."""

from __future__ import annotations

from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.rows import store_rows_function
from hubel.engine.ir.tile import ADD, BIAS, outer_product_tile
from hubel.engine.ir.window import WindowWords, fill_window_function
from hubel.engine.plan import Tile
from hubel.engine.threads import RESERVED_WORDS

# Sums of so few terms that writing them takes as long: a tile of output channels then does all pixels of a row or
# plane, and what is written at a time lies in a few long stretches, not in short ones of all channels, which fall into
# the same sets of the caches (1 → 64 channels on 64×1000: 1.57 and 0.84 ms; Zen 3, 2026-11).
ALONG = 32
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
