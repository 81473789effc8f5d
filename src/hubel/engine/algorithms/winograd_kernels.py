"""The kernels of Winograd's algorithm: the loops around its steps, as told in `algorithms/winograd.py`."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.channel_lanes import region_function
from hubel.engine.algorithms.winograd_forms import Form
from hubel.engine.algorithms.winograd_steps import (
    filters_function,
    finish_function,
    product_function,
    put_function,
    transform_function,
)
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.plan import Tile

# The words of a job after the base pointers, in this order.
WORDS = (
    "groups", "channels", "rows", "tiles", "block", "taps", "step_z",
    "strips", "plane_parts", "planes", "all_planes",
    "channel_parts", "row_parts", "part_tiles", "sub_tiles", "transforming", "multiplying",
    "total", "tiles_y", "tiles_x", "size_z", "size_y", "size_x", "out_size_y", "out_size_x", "pad_z", "pad_y", "pad_x",
    "in_n", "in_c", "in_z", "in_y", "in_x", "out_n", "out_c", "out_z", "out_y", "out_x",
    "weights_step", "shared", "transformed_block", "transformed_step", "sums_step", "pitch", "sums_pitch",
    "at_transformed", "at_region", "at_sums", "at_stage", "at_line", "at_pieces",
)  # fmt: skip
# What is known of a piece of a row of tiles, in 64-bit words: where its image starts, (x, y) of the first input, the
# first tile's place in the strip and the number of tiles, where its outputs start, and how many rows and columns of
# them exist.
PIECE = ("image", "x", "y", "at", "tiles", "output", "out_rows", "out_cols")


def piece_tiles(form: Form, lanes: int) -> int:
    """Tiles of a piece at most: what is gathered of it, and its outputs, lie in the L1 cache."""
    return 512 // lanes // max(4, form.cols.advance, form.cols.outputs)


def row_counts(tile: Tile) -> list[int]:
    """The numbers of tiles that register tiles are written out for: any number from the first on is a sum of these, or
    little less than one."""
    return [*range(tile.rows, tile.rows // 2, -max(1, tile.rows // 5))][::-1]


def pitches(form: Form, lanes: int) -> tuple[int, int]:
    """From a row of a region to the next, and from a row of outputs on the stage to the next."""
    tiles, cols = piece_tiles(form, lanes), form.cols
    return (tiles * cols.advance + cols.read - cols.advance) * lanes, tiles * cols.outputs * lanes


def kernel_function(form: Form, tile: Tile, tail: bool, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`. z is the outer axis; tile.rows are tiles of an image, the
    vectors hold output channels. tail: whether the last tile of output channels has one vector."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, width = f.arg("args"), f.arg("scratch"), tile.vectors * tile.lanes
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    common = f.word(args, 4, "common", PTR)
    a = job_words(f, WORDS)
    find, prepare = _pieces_function(form, tile.lanes), _prepare_function(form, tile.lanes, ending.stored)
    multiply, finish = _multiply_function(form, tile, tail), _finish_function(form, tile, ending)
    pieces, sums_at = scratch + a["at_pieces"], scratch + a["at_sums"]
    home = f.select(a["shared"].equals(1), common, scratch + a["at_transformed"], "home")
    all_vectors = (a["channels"] + (tile.lanes - 1)) // tile.lanes
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        row_part, rest = item.index % a["row_parts"], item.index // a["row_parts"]
        channel_part, block = rest % a["channel_parts"], rest // a["channel_parts"]
        strip, rest = block % a["strips"], block // a["strips"]
        plane_part, group = rest % a["plane_parts"], rest // a["plane_parts"]
        first, after = (at * a["total"] // a["strips"] for at in (strip, strip + 1))
        tiles = after - first
        z = plane_part * a["planes"]
        planes = f.minimum(a["planes"], a["all_planes"] - z)
        f.call(find, args, pieces, first, after)
        transformed = home + block * a["transformed_block"]
        with f.when(a["transforming"].equals(1), "transform"):
            source_g, from_z = source + group * a["channels"] * a["in_c"], z * a["step_z"] - a["pad_z"]
            from_v, to_v = (at * all_vectors // a["channel_parts"] for at in (channel_part, channel_part + 1))
            f.call(prepare, args, source_g, scratch, transformed, pieces, tiles, from_z, planes, from_v, to_v)
        with f.when(a["multiplying"].equals(1), "multiply"):
            start = row_part * a["part_tiles"]
            stop = f.minimum(start + a["part_tiles"], a["tiles"])
            panels = weights + group * a["weights_step"] * form.points
            with f.loop("sub", start, stop, a["sub_tiles"]) as sub:
                row_tiles = f.minimum(a["sub_tiles"], stop - sub.index)
                first_row = sub.index * width
                rows = f.minimum(row_tiles * width, a["rows"] - first_row)
                f.call(multiply, args, panels, transformed, sums_at, planes, tiles, sub.index, row_tiles, rows)
                row = group * a["rows"] + first_row
                out, of_row = target + row * a["out_c"] + z * a["out_z"], operands.further(row).arguments
                f.call(finish, args, scratch, out, *of_row, tiles, planes, rows)
    f.ret()
    return f


def _place_of_plane(a: Words, planes: Value, plane: Value) -> Value:
    """Where a plane that is read for `planes` planes of sums lies among the transformed ones: those that one tap of the
    outer axis meets, `step_z` apart, lie one behind the other.
    """
    beside = planes + (a["taps"] - 1) // a["step_z"]
    return plane % a["step_z"] * beside + plane // a["step_z"]


def _pieces_function(form: Form, lanes: int) -> Function:
    """pieces(args, table, begin, end): tiles begin ≤ tile < end as pieces of rows.

    The table's first word is the number of pieces; then follow their words (`PIECE`).
    """
    f = Function("pieces", [("args", PTR), ("table", PTR), ("begin", I64), ("end", I64)], private=True)
    names = ("tiles_y", "tiles_x", "pad_y", "pad_x", "out_size_y", "out_size_x")
    a = job_words(f, WORDS, *names, "in_n", "out_n", "out_y", "out_x")
    begin, end, most = f.arg("begin"), f.arg("end"), piece_tiles(form, lanes)
    high, wide = form.outputs
    down, right = form.rows.advance, form.cols.advance
    rows = begin // a["tiles_x"], (end - 1) // a["tiles_x"] + 1
    with f.loop("row", *rows, carry=[f.constant(0)]) as row:
        image, tile_y = row.index // a["tiles_y"], row.index % a["tiles_y"]
        y = tile_y * high
        base = row.index * a["tiles_x"]
        stop = f.minimum(end - base, a["tiles_x"])
        with f.loop("x", f.maximum(begin - base, 0), stop, most, carry=row.carried) as x:
            (count,) = x.carried
            left, tiles = x.index * wide, f.minimum(stop - x.index, most)
            words = (
                image * a["in_n"], x.index * right - a["pad_x"], tile_y * down - a["pad_y"],
                base + x.index - begin, tiles,
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
        return {name: f.word(at, i, name) for i, name in enumerate(PIECE)}

    return f.load(table, I64, "pieces"), piece


def _prepare_function(form: Form, lanes: int, stored: Pointer) -> Function:
    """prepare(args, source, scratch, transformed, pieces, tiles, z, planes, begin, end): Bᵀ d B of vectors of channels
    begin ≤ v < end, of what so many planes of sums read from z on, each in its place; planes outside are zeros.

    Pieces within an image whose channels follow each other are read where they lie, all others copied first.
    """
    pointers = [("args", PTR), ("source", stored), *((n, PTR) for n in ("scratch", "transformed", "pieces"))]
    numbers = [(n, I64) for n in ("tiles", "z", "planes", "begin", "end")]
    f = Function("prepare", [*pointers, *numbers], private=True)
    names = ("channels", "in_c", "in_z", "in_y", "in_x", "size_z", "size_y", "size_x", "at_region", "pitch")
    a = job_words(f, WORDS, *names, "transformed_step", "taps", "step_z")
    pitch, _ = pitches(form, lanes)
    region, transform = region_function(lanes, None, stored), transform_function(form, lanes)
    copy, (high, wide), m = f.arg("scratch") + a["at_region"], (form.rows.read, form.cols.read), form.cols.advance
    count, piece_at = _each_piece(f, f.arg("pieces"))
    last = (f.arg("planes") - 1) * a["step_z"] + a["taps"] - 1
    next_channels = a["in_c"] * lanes - last * a["in_z"]
    with f.loop("v", f.arg("begin"), f.arg("end")) as v, f.loop("plane", 0, last + 1) as plane:
        z, c = f.arg("z") + plane.index, v.index * lanes
        source, left = f.arg("source") + c * a["in_c"] + z * a["in_z"], a["channels"] - c
        inside = (z >= 0) & (z < a["size_z"])
        there = inside & a["in_c"].equals(1) & (left >= lanes)
        ahead = f.select(plane.index < last, a["in_z"], next_channels, "ahead")
        with f.loop("piece", 0, count) as p:
            piece = piece_at(p.index)
            x, y, cols = piece["x"], f.select(inside, piece["y"], a["size_y"], "y"), piece["tiles"] * m + (wide - m)
            from_, row, apart = copy, f.constant(pitch), f.constant(lanes)
            whole = f.compare("ne", 0, 0)
            if stored is PTR:
                whole = there & (x >= 0) & (y >= 0) & (x + cols <= a["size_x"]) & (y + high <= a["size_y"])
                place = source + piece["image"] + y * a["in_y"] + x * a["in_x"]
                from_ = f.select(whole, place, copy, "from")
                row, apart = f.select(whole, a["in_y"], row, "row"), f.select(whole, a["in_x"], apart, "apart")
            with f.when(f.negate(whole), "copied"):
                f.call(
                    region, copy, source + piece["image"], left, y, x, high, cols,
                    a["size_y"], a["size_x"], a["in_c"], a["in_y"], a["in_x"], pitch, ahead,
                )  # fmt: skip
            place = _place_of_plane(a, f.arg("planes"), plane.index) * f.arg("tiles") + piece["at"]
            target = f.arg("transformed") + place * a["pitch"] + c
            with f.loop("tile", 0, piece["tiles"]) as at:
                to = target + at.index * a["pitch"]
                f.call(transform, from_ + at.index * apart * m, row, apart, to, a["transformed_step"])
    f.ret()
    return f


def _multiply_function(form: Form, tile: Tile, tail: bool) -> Function:
    """multiply(args, panels, transformed, sums, planes, plane, first, tiles, rows): the products of all tiles of some
    planes, `plane` each, and of a few tiles of output channels that hold `rows` of them."""
    pointers = [(n, PTR) for n in ("args", "panels", "transformed", "sums")]
    numbers = [(n, I64) for n in ("planes", "plane", "first", "tiles", "rows")]
    f = Function("multiply", [*pointers, *numbers], private=True)
    names = "channels", "block", "taps", "tiles", "weights_step", "transformed_step", "sums_step", "pitch", "sums_pitch"
    a, count = job_words(f, WORDS, *names, "step_z"), f.arg("planes") * f.arg("plane")
    lanes, width, sizes = tile.lanes, tile.vectors * tile.lanes, row_counts(tile)
    step = sizes[1] - sizes[0] if len(sizes) > 1 else 1
    functions = {
        vectors: [product_function(size, vectors, width, lanes) for size in sizes]
        for vectors in ((tile.vectors, 1) if tail else (tile.vectors,))
    }
    # Runs of about equal length, of the sizes that there are; the last one may reach beyond what is needed.
    runs = (count + (tile.rows - 1)) // tile.rows
    least, longer = count // runs, count % runs
    kinds = [f.maximum((size - (sizes[0] - step + 1)) // step, 0) for size in (least, least + 1)]
    short, long = (kind * step + sizes[0] for kind in kinds)
    found = {vectors: [f.one_of(some, kind) for kind in kinds] for vectors, some in functions.items()}
    term = a["tiles"] * width
    # All runs together ask for the next panel, the only one for a half: faster than that it does not come.
    asked = f.minimum((runs + (4 * width - 1)) // runs, 64)
    loops = f.loop("xi", 0, form.points), f.loop("tap", 0, a["taps"]), f.loop("c", 0, a["channels"], a["block"])
    with loops[0] as xi, loops[1] as tap, loops[2] as c:
        channels = f.minimum(a["block"], a["channels"] - c.index)
        panel = channels * width
        of_point = f.arg("panels") + xi.index * a["weights_step"]
        here = tap.index * a["channels"] + c.index
        weights = of_point + here * term + f.arg("first") * panel
        # The same tiles of the next block of channels, or of the first one of the next tap or ξ.
        left = a["channels"] - c.index - channels
        following = f.minimum(f.select(left > 0, left, a["channels"]), a["block"]) * width
        more = here + channels < a["taps"] * a["channels"]
        start = f.select(more, (here + channels) * term, a["weights_step"], "start")
        after = of_point + start + f.arg("first") * following
        x = f.arg("transformed") + xi.index * a["transformed_step"] + c.index
        x = x + _place_of_plane(a, f.arg("planes"), tap.index) * f.arg("plane") * a["pitch"]
        add = f.select(here > 0, 1, 0)
        with f.loop("t", 0, f.arg("tiles")) as t:
            w = weights + t.index * panel
            ahead = f.select(t.index + 1 < f.arg("tiles"), w + panel, after, "ahead")
            to = f.arg("sums") + xi.index * a["sums_step"] + t.index * width
            one = f.arg("rows") - t.index * width <= lanes
            with f.loop("run", 0, runs) as run:
                more = run.index < longer
                at = run.index * short + f.minimum(run.index, longer) * (long - short)
                address = f.select(more, found[tile.vectors][1], found[tile.vectors][0], "function")
                if tail:
                    narrow = f.select(more, found[1][1], found[1][0], "narrow")
                    address = f.select(one, narrow, address, "function")
                f.call(
                    functions[tile.vectors][0], w, x + at * a["pitch"], to + at * a["sums_pitch"],
                    f.offset(ahead, run.index * channels * asked, "i8"), channels,
                    a["pitch"], a["sums_pitch"], add, asked, at=address,
                )  # fmt: skip
    f.ret()
    return f


def _finish_function(form: Form, tile: Tile, ending: Ending) -> Function:
    """finish_rows(args, scratch, out, operands, tiles, planes, rows): the outputs of some output channels, in planes of
    so many tiles."""
    pointers = [("args", PTR), ("scratch", PTR), ("out", ending.stored), *ending.parameters]
    f = Function("finish_rows", [*pointers, *((n, I64) for n in ("tiles", "planes", "rows"))], private=True)
    names = "sums_step", "sums_pitch", "out_c", "out_z", "out_y", "out_x", "at_sums", "at_stage", "at_line", "at_pieces"
    a, lanes = job_words(f, WORDS, *names), tile.lanes
    _, pitch = pitches(form, lanes)
    finish, put, operands = finish_function(form, lanes, pitch), put_function(lanes, pitch, ending), ending.given(f)
    sums, stage, line, pieces = (f.arg("scratch") + a[f"at_{n}"] for n in ("sums", "stage", "line", "pieces"))
    wide = form.cols.outputs
    count, piece_at = _each_piece(f, pieces)
    with f.loop("row", 0, f.arg("rows"), lanes) as row:
        rows, of_row = f.minimum(f.arg("rows") - row.index, lanes), operands.further(row.index).arguments
        with f.loop("plane", 0, f.arg("planes")) as plane, f.loop("piece", 0, count) as p:
            piece = piece_at(p.index)
            from_ = sums + (plane.index * f.arg("tiles") + piece["at"]) * a["sums_pitch"] + row.index
            with f.loop("tile", 0, piece["tiles"]) as at:
                to = stage + at.index * (wide * lanes)
                f.call(finish, from_ + at.index * a["sums_pitch"], a["sums_step"], to)
            out = f.arg("out") + row.index * a["out_c"] + plane.index * a["out_z"] + piece["output"]
            f.call(
                put, out, stage, *of_row, line, rows, piece["out_rows"], piece["out_cols"],
                a["out_c"], a["out_y"], a["out_x"],
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
