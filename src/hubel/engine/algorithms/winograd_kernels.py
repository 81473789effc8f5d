"""The kernels of Winograd's algorithm: the loops around its steps, as told in `algorithms/winograd.py`."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.winograd_forms import Form
from hubel.engine.algorithms.winograd_steps import (
    filters_function,
    finish_function,
    gather_function,
    product_function,
    put_function,
    transform_function,
)
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.plan import Tile

# Tiles of a strip at most; with it the pitch of gathered values is compiled in.
MOST_TILES = 64

# The words of a job after the base pointers, in this order.
WORDS = (
    "groups", "channels", "rows", "tiles", "block", "taps",
    "strips", "unit", "units", "plane_parts", "planes", "all_planes",
    "channel_parts", "row_parts", "part_tiles", "sub_tiles", "transforming", "multiplying",
    "total", "tiles_y", "tiles_x", "size_z", "size_y", "size_x", "out_size_y", "out_size_x", "pad_z", "pad_y", "pad_x",
    "in_n", "in_c", "in_z", "in_y", "in_x", "out_n", "out_c", "out_z", "out_y", "out_x",
    "weights_step", "shared", "transformed_block", "transformed_step", "sums_step", "pitch", "sums_pitch",
    "at_transformed", "at_values", "at_sums", "at_stage", "at_line", "at_pieces",
)  # fmt: skip
# What is known of a piece of a row of tiles, in 64-bit words: where its inputs and outputs start, (x, y) of the first
# input, the first tile's place in the strip, and the rows and columns of outputs that exist.
PIECE = ("input", "x", "y", "at", "output", "out_rows", "out_cols", "unused")


def kernel_function(form: Form, tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`. z is the outer axis."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    common = f.word(args, 4, "common", PTR)
    a = job_words(f, WORDS)
    find, prepare = _pieces_function(form, tile.lanes), _prepare_function(form, tile.lanes, ending.stored)
    multiply, finish = _multiply_function(form, tile), _finish_function(form, tile, ending)
    pieces, sums_at = scratch + a["at_pieces"], scratch + a["at_sums"]
    home = f.select(a["shared"].equals(1), common, scratch + a["at_transformed"], "home")
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        row_part, rest = item.index % a["row_parts"], item.index // a["row_parts"]
        channel_part, block = rest % a["channel_parts"], rest // a["channel_parts"]
        strip, rest = block % a["strips"], block // a["strips"]
        plane_part, group = rest % a["plane_parts"], rest // a["plane_parts"]
        first, after = (at * a["units"] // a["strips"] * a["unit"] for at in (strip, strip + 1))
        tiles = f.minimum(after, a["total"]) - first
        z = plane_part * a["planes"]
        planes = f.minimum(a["planes"], a["all_planes"] - z)
        f.call(find, args, pieces, first, first + tiles)
        transformed = home + block * a["transformed_block"]
        from_c = channel_part * a["channels"] // a["channel_parts"]
        to_c = (channel_part + 1) * a["channels"] // a["channel_parts"]
        with f.when(a["transforming"].equals(1), "transform"):
            source_g = source + group * a["channels"] * a["in_c"]
            inputs = planes + a["taps"] - 1
            f.call(prepare, args, source_g, scratch, transformed, pieces, tiles, z - a["pad_z"], inputs, from_c, to_c)
        with f.when(a["multiplying"].equals(1), "multiply"):
            start = row_part * a["part_tiles"]
            stop = f.minimum(start + a["part_tiles"], a["tiles"])
            panels = weights + group * a["weights_step"] * form.points
            vectors = (tiles * planes + (tile.lanes - 1)) // tile.lanes
            with f.loop("sub", start, stop, a["sub_tiles"]) as sub:
                row_tiles = f.minimum(a["sub_tiles"], stop - sub.index)
                f.call(multiply, args, panels, transformed, sums_at, vectors, tiles, sub.index, row_tiles)
                first_row = sub.index * tile.rows
                rows = f.minimum(row_tiles * tile.rows, a["rows"] - first_row)
                row = group * a["rows"] + first_row
                out, of_row = target + row * a["out_c"] + z * a["out_z"], operands.further(row).arguments
                stage = scratch + a["at_stage"]
                f.call(finish, args, sums_at, stage, out, *of_row, pieces, vectors, tiles, planes, rows)
    f.ret()
    return f


def _pieces_function(form: Form, lanes: int) -> Function:
    """pieces(args, table, begin, end): tiles begin ≤ tile < end as pieces of rows, each within a vector.

    The table's first word is the number of pieces; then follow their words (`PIECE`).
    """
    f = Function("pieces", [("args", PTR), ("table", PTR), ("begin", I64), ("end", I64)], private=True)
    names = ("tiles_y", "tiles_x", "pad_y", "pad_x", "out_size_y", "out_size_x")
    a = job_words(f, WORDS, *names, "in_n", "in_y", "in_x", "out_n", "out_y", "out_x")
    begin, end, most = f.arg("begin"), f.arg("end"), lanes - form.halo
    high, wide = form.outputs
    rows = begin // a["tiles_x"], (end - 1) // a["tiles_x"] + 1
    with f.loop("row", *rows, carry=[f.constant(0)]) as row:
        image, y = row.index // a["tiles_y"], row.index % a["tiles_y"] * high
        base = row.index * a["tiles_x"]
        stop = f.minimum(end - base, a["tiles_x"])
        with f.loop("x", f.maximum(begin - base, 0), stop, most, carry=row.carried) as x:
            (count,) = x.carried
            left, tiles = x.index * wide, f.minimum(stop - x.index, most)
            from_y, from_x = y - a["pad_y"], left - a["pad_x"]
            words = (
                image * a["in_n"] + from_y * a["in_y"] + from_x * a["in_x"], from_x, from_y, base + x.index - begin,
                image * a["out_n"] + y * a["out_y"] + left * a["out_x"],
                f.minimum(a["out_size_y"] - y, high), f.minimum(a["out_size_x"] - left, tiles * wide),
            )  # fmt: skip
            piece = f.offset(f.arg("table"), count * len(PIECE) + 1, I64)
            for i, word in enumerate(words):
                f.store(word, f.offset(piece, i, I64))
            x.carry(count + 1)
        row.carry(*x.results)
    f.store(row.results[0], f.arg("table"))
    f.ret()
    return f


def _each_piece(f: Function, table: Value) -> tuple[Value, Callable[[Value], dict[str, Value]]]:
    """(number of pieces, the words of the piece with this index)"""

    def piece(index: Value) -> dict[str, Value]:
        at = f.offset(table, index * len(PIECE) + 1, I64)
        return {name: f.word(at, i, name) for i, name in enumerate(PIECE[:-1])}

    return f.load(table, I64, "pieces"), piece


def _prepare_function(form: Form, lanes: int, stored: Pointer) -> Function:
    """prepare(args, source, scratch, transformed, pieces, tiles, z, planes, begin, end): Bᵀ d B of channels
    begin ≤ c < end, of so many planes from z on, one behind the other; planes outside are zeros."""
    pointers = [("args", PTR), ("source", stored), *((n, PTR) for n in ("scratch", "transformed", "pieces"))]
    numbers = [(n, I64) for n in ("tiles", "z", "planes", "begin", "end")]
    f = Function("prepare", [*pointers, *numbers], private=True)
    names = ("in_c", "in_z", "in_y", "in_x", "size_z", "size_y", "size_x", "at_values", "at_line", "pitch")
    a = job_words(f, WORDS, *names, "transformed_step")
    pitch = MOST_TILES + lanes
    gather, transform = gather_function(form, lanes, pitch, stored), transform_function(form, lanes, pitch)
    values, line = f.arg("scratch") + a["at_values"], f.arg("scratch") + a["at_line"]
    count, piece_at = _each_piece(f, f.arg("pieces"))
    last = f.arg("planes") - 1
    next_channel = a["in_c"] - last * a["in_z"]
    with f.loop("c", f.arg("begin"), f.arg("end")) as c, f.loop("plane", 0, f.arg("planes")) as plane:
        z = f.arg("z") + plane.index
        source = f.arg("source") + c.index * a["in_c"] + z * a["in_z"]
        inside = (z >= 0) & (z < a["size_z"])
        ahead = f.select(plane.index < last, a["in_z"], next_channel, "ahead")
        with f.loop("piece", 0, count) as p:
            piece = piece_at(p.index)
            f.call(
                gather, values + piece["at"], source + piece["input"],
                piece["x"], f.select(inside, piece["y"], a["size_y"], "y"),
                a["size_x"], a["size_y"], a["in_x"], a["in_y"], ahead, line,
            )  # fmt: skip
        target = f.arg("transformed") + c.index * a["pitch"] + plane.index * f.arg("tiles")
        # The last vector runs over into the next plane, which is written afterwards.
        with f.loop("v", 0, f.arg("tiles"), lanes) as v:
            f.call(transform, values + v.index, target + v.index, a["transformed_step"])
    f.ret()
    return f


def _multiply_function(form: Form, tile: Tile) -> Function:
    """multiply(args, panels, transformed, sums, vectors, plane, first, tiles): the products of a few tiles of rows.

    plane: tiles from a plane to the next, where the next tap of the outer axis reads."""
    pointers = [(n, PTR) for n in ("args", "panels", "transformed", "sums")]
    f = Function("multiply", [*pointers, *((n, I64) for n in ("vectors", "plane", "first", "tiles"))], private=True)
    names = "channels", "block", "taps", "tiles", "weights_step", "transformed_step", "sums_step", "pitch", "sums_pitch"
    a = job_words(f, WORDS, *names)
    products = {v: product_function(tile.rows, v, tile.lanes) for v in (tile.vectors, 1)}
    vectors, lanes = f.arg("vectors"), tile.lanes
    whole = vectors // tile.vectors * tile.vectors
    shares = {tile.vectors: (0, whole), 1: (whole, vectors)}
    term = a["tiles"] * tile.rows
    loops = f.loop("xi", 0, form.points), f.loop("tap", 0, a["taps"]), f.loop("c", 0, a["channels"], a["block"])
    with loops[0] as xi, loops[1] as tap, loops[2] as c:
        channels = f.minimum(a["block"], a["channels"] - c.index)
        panel = channels * tile.rows
        of_point = f.arg("panels") + xi.index * a["weights_step"]
        here = tap.index * a["channels"] + c.index
        weights = of_point + here * term + f.arg("first") * panel
        # The same tiles of the next block of channels, or of the first one of the next tap or ξ.
        left = a["channels"] - c.index - channels
        following = f.minimum(f.select(left > 0, left, a["channels"]), a["block"]) * tile.rows
        more = here + channels < a["taps"] * a["channels"]
        start = f.select(more, (here + channels) * term, a["weights_step"], "start")
        after = of_point + start + f.arg("first") * following
        x = f.arg("transformed") + xi.index * a["transformed_step"] + c.index * a["pitch"] + tap.index * f.arg("plane")
        add = f.select(here > 0, 1, 0)
        with f.loop("t", 0, f.arg("tiles")) as r:
            w = weights + r.index * panel
            ahead = f.select(r.index + 1 < f.arg("tiles"), w + panel, after, "ahead")
            to = f.arg("sums") + xi.index * a["sums_step"] + r.index * (a["sums_pitch"] * tile.rows)
            for width, (start, stop) in shares.items():
                with f.loop(f"v{width}", start, stop, width) as v:
                    at = v.index * lanes
                    f.call(products[width], w, x + at, to + at, ahead, channels, a["pitch"], a["sums_pitch"], add)
    f.ret()
    return f


def _finish_function(form: Form, tile: Tile, ending: Ending) -> Function:
    """finish_rows(args, sums, stage, out, operands, pieces, vectors, tiles, planes, rows): the outputs of some
    output channels, in planes of so many tiles."""
    pointers = [("args", PTR), ("sums", PTR), ("stage", PTR), ("out", ending.stored), *ending.parameters]
    numbers = [(n, I64) for n in ("vectors", "tiles", "planes", "rows")]
    f = Function("finish_rows", [*pointers, ("pieces", PTR), *numbers], private=True)
    a = job_words(f, WORDS, "sums_step", "sums_pitch", "out_c", "out_z", "out_y", "out_x")
    finish, put, operands = finish_function(form, tile.lanes), put_function(tile.lanes, ending), ending.given(f)
    wide = form.cols.outputs
    stage, stage_pitch = f.arg("stage"), a["sums_pitch"] * wide
    count, piece_at = _each_piece(f, f.arg("pieces"))
    with f.loop("row", 0, f.arg("rows")) as row:
        sums_at = f.arg("sums") + row.index * a["sums_pitch"]
        with f.loop("v", 0, f.arg("vectors")) as v:
            at = v.index * tile.lanes
            f.call(finish, sums_at + at, a["sums_step"], stage + at * wide, stage_pitch)
        of_row = operands.further(row.index).arguments
        with f.loop("plane", 0, f.arg("planes")) as plane, f.loop("piece", 0, count) as p:
            out = f.arg("out") + row.index * a["out_c"] + plane.index * a["out_z"]
            piece = piece_at(p.index)
            f.call(
                put, out + piece["output"], stage + (plane.index * f.arg("tiles") + piece["at"]) * wide,
                *of_row, piece["out_rows"], piece["out_cols"], a["out_y"], a["out_x"], stage_pitch, a["out_c"],
            )  # fmt: skip
    f.ret()
    return f


# Filters that are transformed at once, in as many lanes of float64.
AT_ONCE = 8

PACK_WORDS = (
    "taps_at", "rows", "channels", "tiles", "block", "blocks", "taps", "from_g", "from_m", "from_c", "weights_step",
)  # fmt: skip


def pack_function(form: Form, rows: int, stored: Pointer = PTR) -> Function:
    """Transformed weights as the register tile reads them: [group][ξ][outer tap][block of channels][tile][c][row].

    One work item a tile and block of channels; rows beyond the last output channel are zeros.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, points = f.arg("args"), form.points
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a = job_words(f, PACK_WORDS)
    at_once = {row: min(AT_ONCE, rows - row) for row in range(0, rows, AT_ONCE)}
    filters = {width: filters_function(form, width, stored) for width in sorted(set(at_once.values()))}
    step, offsets = a["weights_step"], form.taps[0] * form.taps[1]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        number, rest = item.index % a["blocks"], item.index // a["blocks"]
        tile, group = rest % a["tiles"], rest // a["tiles"]
        first = number * a["block"]
        channels = f.minimum(a["block"], a["channels"] - first)
        panel = packed + group * step * points + (first * a["tiles"] + tile * channels) * rows
        from_c = source + group * a["from_g"] + first * a["from_c"]
        of_tap = a["channels"] * a["tiles"] * rows
        # Nothing is left unwritten, so that equal weights have equal packed forms: zeros between one ξ and the next.
        last = (tile + 1).equals(a["tiles"]) & (number + 1).equals(a["blocks"])
        with f.when(last, "gap"), f.loop("xi", 0, points) as xi:
            place = packed + (group * points + xi.index) * step
            with f.loop("zero", of_tap * a["taps"], step) as zero:
                f.store(f.constant(0.0, F32), place + zero.index)
        with f.loop("tap", 0, a["taps"]) as tap, f.loop("c", 0, channels) as c:
            at, to = from_c + c.index * a["from_c"], panel + tap.index * of_tap + c.index * rows
            table = f.offset(a["taps_at"], tap.index * offsets, I64)
            for row, width in at_once.items():
                f.call(filters[width], at, table, a["from_m"], tile * rows + row, a["rows"], to + row, step)
    f.ret()
    return f
