"""The kernels of Winograd's algorithm: the loops around its steps, as told in `algorithms/winograd.py`."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.winograd_steps import (
    filters_function,
    finish_function,
    gather_function,
    product_function,
    put_function,
    transform_function,
)
from hubel.engine.algorithms.winograd_transforms import Transforms
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.plan import Tile

# Tiles of a block at most; with it the pitch of gathered values is compiled in.
MOST_TILES = 64

# The words of a job after the base pointers, in this order.
WORDS = (
    "groups", "channels", "rows", "tiles", "block",
    "blocks", "channel_parts", "row_parts", "part_tiles", "sub_tiles", "transforming", "multiplying",
    "vectors", "total", "tiles_y", "tiles_x", "size_y", "size_x", "out_size_y", "out_size_x", "pad_y", "pad_x",
    "in_n", "in_c", "in_y", "in_x", "out_n", "out_c", "out_y", "out_x",
    "weights_step", "shared", "transformed_block", "transformed_step", "sums_step", "pitch",
    "at_transformed", "at_values", "at_sums", "at_stage", "at_line", "at_pieces",
)  # fmt: skip
# What is known of a piece of a row of tiles, in 64-bit words: where its inputs and outputs start, (x, y) of the first
# input, the first tile's place in the block, and the rows and columns of outputs that exist.
PIECE = ("input", "x", "y", "at", "output", "out_rows", "out_cols", "unused")


def kernel_function(t: Transforms, tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    common = f.word(args, 4, "common", PTR)
    a = job_words(f, WORDS)
    find, prepare = _pieces_function(t, tile.lanes), _prepare_function(t, tile.lanes, ending.stored)
    multiply, finish = _multiply_function(t, tile), _finish_function(t, tile, ending)
    pieces, sums_at = scratch + a["at_pieces"], scratch + a["at_sums"]
    home = f.select(a["shared"].equals(1), common, scratch + a["at_transformed"], "home")
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        row_part, rest = item.index % a["row_parts"], item.index // a["row_parts"]
        channel_part, rest = rest % a["channel_parts"], rest // a["channel_parts"]
        block, group = rest % a["blocks"], rest // a["blocks"]
        first = block * a["vectors"] // a["blocks"]
        vectors = (block + 1) * a["vectors"] // a["blocks"] - first
        f.call(find, args, pieces, first * tile.lanes, f.minimum((first + vectors) * tile.lanes, a["total"]))
        transformed = home + rest * a["transformed_block"]
        from_c = channel_part * a["channels"] // a["channel_parts"]
        to_c = (channel_part + 1) * a["channels"] // a["channel_parts"]
        with f.when(a["transforming"].equals(1), "transform"):
            source_g = source + group * a["channels"] * a["in_c"]
            f.call(prepare, args, source_g, scratch, transformed, pieces, vectors, from_c, to_c)
        with f.when(a["multiplying"].equals(1), "multiply"):
            start = row_part * a["part_tiles"]
            stop = f.minimum(start + a["part_tiles"], a["tiles"])
            panels = weights + group * a["weights_step"] * (t.size * t.size)
            with f.loop("sub", start, stop, a["sub_tiles"]) as sub:
                tiles = f.minimum(a["sub_tiles"], stop - sub.index)
                f.call(multiply, args, panels, transformed, sums_at, vectors, sub.index, tiles)
                first_row = sub.index * tile.rows
                rows = f.minimum(tiles * tile.rows, a["rows"] - first_row)
                row = group * a["rows"] + first_row
                out, of_row = target + row * a["out_c"], operands.further(row).arguments
                f.call(finish, args, sums_at, scratch + a["at_stage"], out, *of_row, pieces, vectors, rows)
    f.ret()
    return f


def _pieces_function(t: Transforms, lanes: int) -> Function:
    """pieces(args, table, begin, end): tiles begin ≤ tile < end as pieces of rows, of at most lanes − 1 tiles each.

    The table's first word is the number of pieces; then follow their words (`PIECE`).
    """
    f = Function("pieces", [("args", PTR), ("table", PTR), ("begin", I64), ("end", I64)], private=True)
    names = ("tiles_y", "tiles_x", "pad_y", "pad_x", "out_size_y", "out_size_x")
    a = job_words(f, WORDS, *names, "in_n", "in_y", "in_x", "out_n", "out_y", "out_x")
    begin, end, m = f.arg("begin"), f.arg("end"), t.outputs
    rows = begin // a["tiles_x"], (end - 1) // a["tiles_x"] + 1
    with f.loop("row", *rows, carry=[f.constant(0)]) as row:
        image, y = row.index // a["tiles_y"], row.index % a["tiles_y"] * m
        base = row.index * a["tiles_x"]
        stop = f.minimum(end - base, a["tiles_x"])
        with f.loop("x", f.maximum(begin - base, 0), stop, lanes - 1, carry=row.carried) as x:
            (count,) = x.carried
            left, tiles = x.index * m, f.minimum(stop - x.index, lanes - 1)
            from_y, from_x = y - a["pad_y"], left - a["pad_x"]
            words = (
                image * a["in_n"] + from_y * a["in_y"] + from_x * a["in_x"], from_x, from_y, base + x.index - begin,
                image * a["out_n"] + y * a["out_y"] + left * a["out_x"],
                f.minimum(a["out_size_y"] - y, m), f.minimum(a["out_size_x"] - left, tiles * m),
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


def _prepare_function(t: Transforms, lanes: int, stored: Pointer) -> Function:
    """prepare(args, source, scratch, transformed, pieces, vectors, begin, end): Bᵀ d B of channels begin ≤ c < end."""
    pointers = [("args", PTR), ("source", stored), *((n, PTR) for n in ("scratch", "transformed", "pieces"))]
    f = Function("prepare", [*pointers, *((n, I64) for n in ("vectors", "begin", "end"))], private=True)
    names = ("in_c", "in_y", "in_x", "size_y", "size_x", "at_values", "at_line", "pitch", "transformed_step")
    a = job_words(f, WORDS, *names)
    pitch = MOST_TILES + lanes
    gather, transform = gather_function(t, lanes, pitch, stored), transform_function(t, lanes, pitch)
    values, line = f.arg("scratch") + a["at_values"], f.arg("scratch") + a["at_line"]
    count, piece_at = _each_piece(f, f.arg("pieces"))
    with f.loop("c", f.arg("begin"), f.arg("end")) as c:
        channel = f.arg("source") + c.index * a["in_c"]
        with f.loop("piece", 0, count) as p:
            piece = piece_at(p.index)
            f.call(
                gather, values + piece["at"], channel + piece["input"], piece["x"], piece["y"],
                a["size_x"], a["size_y"], a["in_x"], a["in_y"], a["in_c"], line,
            )  # fmt: skip
        target = f.arg("transformed") + c.index * a["pitch"]
        with f.loop("v", 0, f.arg("vectors")) as v:
            f.call(transform, values + v.index * lanes, target + v.index * lanes, a["transformed_step"])
    f.ret()
    return f


def _multiply_function(t: Transforms, tile: Tile) -> Function:
    """multiply(args, panels, transformed, sums, vectors, first, tiles): the n² products of a few tiles of rows."""
    pointers = [(n, PTR) for n in ("args", "panels", "transformed", "sums")]
    f = Function("multiply", [*pointers, *((n, I64) for n in ("vectors", "first", "tiles"))], private=True)
    a = job_words(f, WORDS, "channels", "block", "tiles", "weights_step", "transformed_step", "sums_step", "pitch")
    products = {v: product_function(tile.rows, v, tile.lanes) for v in (tile.vectors, 1)}
    vectors, lanes = f.arg("vectors"), tile.lanes
    whole = vectors // tile.vectors * tile.vectors
    shares = {tile.vectors: (0, whole), 1: (whole, vectors)}
    with f.loop("xi", 0, t.size * t.size) as xi, f.loop("c", 0, a["channels"], a["block"]) as c:
        channels = f.minimum(a["block"], a["channels"] - c.index)
        panel = channels * tile.rows
        term = a["tiles"] * tile.rows
        of_point = f.arg("panels") + xi.index * a["weights_step"]
        weights = of_point + c.index * term + f.arg("first") * panel
        # The same tiles of the next block of channels, or of the first one of the next ξ.
        left = a["channels"] - c.index - channels
        following = f.minimum(f.select(left > 0, left, a["channels"]), a["block"]) * tile.rows
        start = f.select(left > 0, (c.index + channels) * term, a["weights_step"], "start")
        after = of_point + start + f.arg("first") * following
        x = f.arg("transformed") + xi.index * a["transformed_step"] + c.index * a["pitch"]
        add = f.select(c.index > 0, 1, 0)
        with f.loop("t", 0, f.arg("tiles")) as r:
            w = weights + r.index * panel
            ahead = f.select(r.index + 1 < f.arg("tiles"), w + panel, after, "ahead")
            to = f.arg("sums") + xi.index * a["sums_step"] + r.index * (a["pitch"] * tile.rows)
            for width, (start, stop) in shares.items():
                with f.loop(f"v{width}", start, stop, width) as v:
                    at = v.index * lanes
                    f.call(products[width], w, x + at, to + at, ahead, channels, a["pitch"], a["pitch"], add)
    f.ret()
    return f


def _finish_function(t: Transforms, tile: Tile, ending: Ending) -> Function:
    """finish_rows(args, sums, stage, out, operands, pieces, vectors, rows): the outputs of some output channels."""
    pointers = [("args", PTR), ("sums", PTR), ("stage", PTR), ("out", ending.stored), *ending.parameters]
    numbers = [("vectors", I64), ("rows", I64)]
    f = Function("finish_rows", [*pointers, ("pieces", PTR), *numbers], private=True)
    a = job_words(f, WORDS, "sums_step", "pitch", "out_c", "out_y", "out_x")
    finish, put, operands = finish_function(t, tile.lanes), put_function(tile.lanes, ending), ending.given(f)
    stage, stage_pitch = f.arg("stage"), a["pitch"] * t.outputs
    count, piece_at = _each_piece(f, f.arg("pieces"))
    with f.loop("row", 0, f.arg("rows")) as row:
        sums_at = f.arg("sums") + row.index * a["pitch"]
        with f.loop("v", 0, f.arg("vectors")) as v:
            at = v.index * tile.lanes
            f.call(finish, sums_at + at, a["sums_step"], stage + at * t.outputs, stage_pitch)
        out, of_row = f.arg("out") + row.index * a["out_c"], operands.further(row.index).arguments
        with f.loop("piece", 0, count) as p:
            piece = piece_at(p.index)
            f.call(
                put, out + piece["output"], stage + piece["at"] * t.outputs, *of_row,
                piece["out_rows"], piece["out_cols"], a["out_y"], a["out_x"], stage_pitch, a["out_c"],
            )  # fmt: skip
    f.ret()
    return f


# Filters that are transformed at once, in as many lanes of float64.
AT_ONCE = 8

PACK_WORDS = ("taps_at", "rows", "channels", "tiles", "block", "blocks", "from_g", "from_m", "from_c", "weights_step")


def pack_function(t: Transforms, rows: int, stored: Pointer = PTR) -> Function:
    """Transformed weights as the register tile reads them: [group][ξ][block of channels][tile][c][row].

    One work item a tile and block of channels; rows beyond the last output channel are zeros.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, points = f.arg("args"), t.size * t.size
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a = job_words(f, PACK_WORDS)
    at_once = {row: min(AT_ONCE, rows - row) for row in range(0, rows, AT_ONCE)}
    filters = {width: filters_function(t, width, stored) for width in sorted(set(at_once.values()))}
    step = a["weights_step"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        number, rest = item.index % a["blocks"], item.index // a["blocks"]
        tile, group = rest % a["tiles"], rest // a["tiles"]
        first = number * a["block"]
        channels = f.minimum(a["block"], a["channels"] - first)
        panel = packed + group * step * points + (first * a["tiles"] + tile * channels) * rows
        from_c = source + group * a["from_g"] + first * a["from_c"]
        # Nothing is left unwritten, so that equal weights have equal packed forms: zeros between one ξ and the next.
        last = (tile + 1).equals(a["tiles"]) & (number + 1).equals(a["blocks"])
        with f.when(last, "gap"), f.loop("xi", 0, points) as xi:
            written = a["channels"] * a["tiles"] * rows
            place = packed + (group * points + xi.index) * step
            with f.loop("zero", written, step) as zero:
                f.store(f.constant(0.0, F32), place + zero.index)
        with f.loop("c", 0, channels) as c:
            at, to = from_c + c.index * a["from_c"], panel + c.index * rows
            for row, width in at_once.items():
                first_row = tile * rows + row
                f.call(filters[width], at, a["taps_at"], a["from_m"], first_row, a["rows"], to + row, step)
    f.ret()
    return f
