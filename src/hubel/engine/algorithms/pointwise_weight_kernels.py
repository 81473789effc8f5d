"""The kernels of pointwise weight gradients, as told in `pointwise_weight_gradient.py`."""

from __future__ import annotations

from hubel.engine.algorithms.channel_lanes import ASKED, fill_function, line_of, product_function, whole_vectors
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import I64, PTR, Function, Pointer, vector_of
from hubel.engine.plan import Tile

# Pixels that a register tile adds up at a time: what it reads of both operands then stays in the L1 cache.
TERMS = 56

# The words of a job after the base pointers, in this order.
WORDS = (
    "parts", "pieces", "block_pieces", "piece_pixels", "pixels", "pieces_x",
    "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares",
    "x_n", "x_c", "x_x", "dy_n", "dy_c", "dy_x",
    "dy_pitch", "row_tiles", "item_sums", "at_panels", "at_sums", "asked",
)  # fmt: skip


def kernel_function(tile: Tile, stored: Pointer = PTR) -> Function:
    """The kernel: the sums of one share of the channels over one part of the pixels; where there is one part only, they
    go to dw. stored: how x and dy are.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), tile.lanes
    x, dy, common = (f.word(args, i, n, p) for i, n, p in ((0, "x", stored), (1, "dy", stored), (4, "shared", PTR)))
    a = job_words(f, WORDS)
    fill = fill_function(lanes, stored)
    fills = {kind: _panels_function(kind, fill, tile, stored) for kind in ("x", "dy")}
    multiply, finish = _multiply_function(tile, stored), _finish_function(tile)
    alone, width = a["parts"].equals(1), tile.vectors * lanes
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        c_share, rest = item.index % a["channel_shares"], item.index // a["channel_shares"]
        m_share, part = rest % a["row_shares"], rest // a["row_shares"]
        first_m, first_c = m_share * a["share_rows"], c_share * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        sums = f.select(alone, scratch + a["at_sums"], common + item.index * a["item_sums"], "sums")
        begin, end = part * a["pieces"] // a["parts"], (part + 1) * a["pieces"] // a["parts"]
        inputs = scratch + a["at_panels"]
        x_c, dy_c = x + first_c * a["x_c"], dy + first_m * a["dy_c"]
        with f.loop("block", begin, end, a["block_pieces"]) as block:
            images = f.minimum(a["block_pieces"], end - block.index)
            first = block.index % a["pieces_x"] * a["piece_pixels"]
            pixels = f.minimum(a["piece_pixels"], a["pixels"] - first)
            image = block.index // a["pieces_x"]
            terms = images * pixels
            gradients = inputs + whole_vectors(f, channels, width) * width * terms
            f.call(fills["x"], args, x_c, inputs, channels, image, images, first, pixels)
            f.call(fills["dy"], args, dy_c, gradients, rows, image, images, first, pixels)
            add = f.select(block.index > begin, 1, 0)
            later = block.index + a["block_pieces"]
            image, first = later // a["pieces_x"], later % a["pieces_x"] * a["piece_pixels"]
            later_x = x_c + image * a["x_n"] + first * a["x_x"]
            later_dy = dy_c + image * a["dy_n"] + first * a["dy_x"]
            f.call(multiply, args, inputs, gradients, sums, later_x, later_dy, rows, channels, terms, add)
        with f.when(alone, "alone"):
            f.call(finish, args, sums, 0, first_m, rows, first_c, channels, 0, a["row_tiles"])
    f.ret()
    return f


def _panels_function(kind: str, fill: Function, tile: Tile, stored: Pointer) -> Function:
    """panels(args, source, target, channels, image, images, first, pixels): a block of pixels, channels as lanes.

    kind "x": target[c ∕ width][pixel][c mod width], as wide as the register tile; "dy": target[pixel][m].
    """
    numbers = [(n, I64) for n in ("channels", "image", "images", "first", "pixels")]
    f = Function(f"panels_{kind}", [("args", PTR), ("source", stored), ("target", PTR), *numbers], private=True)
    a, lanes = job_words(f, WORDS, *(f"{kind}_{n}" for n in ("n", "c", "x")), "dy_pitch"), tile.lanes
    from_n, from_c, from_x = (a[f"{kind}_{n}"] for n in ("n", "c", "x"))
    images, pixels = f.arg("images"), f.arg("pixels")
    source = f.arg("source") + f.arg("image") * from_n + f.arg("first") * from_x
    with f.loop("c", 0, f.arg("channels"), lanes) as c:
        left = f.arg("channels") - c.index
        # What is read next: the same pixels of the next channels, or the next pixels of the first ones.
        ahead = f.select(left > lanes, from_c * lanes, pixels * from_x - c.index * from_c, "ahead")
        if kind == "x":
            apart = f.constant(tile.vectors * lanes)
            panel = c.index // apart * apart
            target = f.arg("target") + panel * (images * pixels) + (c.index - panel)
        else:
            apart, target = a["dy_pitch"], f.arg("target") + c.index
        place = source + c.index * from_c
        f.call(fill, target, place, left, images, pixels, from_c, from_n, from_x, pixels * apart, apart, ahead)
    f.ret()
    return f


def _multiply_function(tile: Tile, stored: Pointer) -> Function:
    """multiply(args, inputs, gradients, sums, later_x, later_dy, rows, channels, terms, add): the products of one block
    of pixels. Meanwhile the pixels of a later block are asked for, where they are contiguous.
    """
    pointers = [*((n, PTR) for n in ("args", "inputs", "gradients", "sums")), ("later_x", stored), ("later_dy", stored)]
    f = Function("multiply", [*pointers, *((n, I64) for n in ("rows", "channels", "terms", "add"))], private=True)
    a, lanes, width = (
        job_words(f, WORDS, "share_channels", "dy_pitch", "x_c", "dy_c", "asked"),
        tile.lanes,
        tile.vectors * tile.lanes,
    )
    products = {v: product_function(tile.rows, v, lanes, stored) for v in sorted({tile.vectors, 1}, reverse=True)}
    room = whole_vectors(f, a["share_channels"], lanes) * (tile.rows * lanes)
    vectors, terms = whole_vectors(f, f.arg("channels"), lanes), f.arg("terms")
    whole = vectors // tile.vectors * tile.vectors
    shares = {tile.vectors: (0, whole), 1: (whole, vectors)}
    asked = [f.constant(0)]
    with f.loop("k", 0, terms, TERMS, carry=asked) as k:
        count = f.minimum(terms - k.index, TERMS)
        add = f.select(k.index > 0, 1, f.arg("add"))
        gradients = f.arg("gradients") + k.index * a["dy_pitch"]
        asked = k.carried
        for v, (first, last) in shares.items():
            with f.loop(f"v{v}", first, last, v, carry=asked) as at:
                # The remaining vectors share the last panel.
                panel = at.index // tile.vectors * tile.vectors
                x = f.arg("inputs") + panel * lanes * terms + k.index * width + (at.index - panel) * lanes
                sums = f.arg("sums") + at.index * (tile.rows * lanes)
                with f.loop(f"m{v}", 0, f.arg("rows"), tile.rows, carry=at.carried, at_least_once=True) as m:
                    to, w = sums + m.index // tile.rows * room, gradients + m.index
                    # Rows of x, then rows of dy; then nothing new.
                    (number,) = m.carried
                    of_x = number < f.arg("channels")
                    beyond = number - f.arg("channels")
                    later = f.arg("later_dy") + f.minimum(beyond, f.arg("rows")) * a["dy_c"]
                    later = f.select(of_x, f.arg("later_x") + number * a["x_c"], later, "later")
                    skip = f.select(of_x, a["x_c"], a["dy_c"]) * a["asked"] - ASKED * line_of(stored)
                    f.call(products[v], w, x, to, later, count, a["dy_pitch"], width, add, skip)
                    m.carry(number + a["asked"] * (TERMS // ASKED))
                at.carry(m.results[0])
            asked = at.results
        k.carry(*asked)
    f.ret()
    return f


def _finish_function(tile: Tile) -> Function:
    """finish(args, sums, part_pitch, first_m, rows, first_c, channels, begin, end): dw of a share's tiles of rows
    begin ≤ tile < end, the parts' sums added in their order.
    """
    names = ("part_pitch", "first_m", "rows", "first_c", "channels", "begin", "end")
    f = Function("finish", [("args", PTR), ("sums", PTR), *((n, I64) for n in names)], private=True)
    a, lanes, vector = job_words(f, WORDS, "parts", "share_channels", "channels"), tile.lanes, vector_of(tile.lanes)
    dw = f.word(f.arg("args"), 3, "dw", PTR)
    vectors, room = whole_vectors(f, f.arg("channels"), lanes), whole_vectors(f, a["share_channels"], lanes)
    rest = f.lanes_below(f.arg("channels") - (vectors - 1) * lanes, lanes)
    with f.loop("tile", f.arg("begin"), f.arg("end")) as at:
        first = at.index * tile.rows
        with f.loop("r", 0, f.minimum(f.arg("rows") - first, tile.rows)) as r, f.loop("v", 0, vectors) as v:
            sums = f.arg("sums") + ((at.index * room + v.index) * tile.rows + r.index) * lanes
            with f.loop("part", 1, a["parts"], carry=[f.load(sums, vector)]) as part:
                part.carry(part.carried[0] + f.load(sums + part.index * f.arg("part_pitch"), vector))
            row = f.arg("first_m") + first + r.index
            place = dw + row * a["channels"] + f.arg("first_c") + v.index * lanes
            last = (v.index + 1).equals(vectors)
            with f.when(last, "last"):
                f.store_masked(part.results[0], place, rest)
            with f.when(f.negate(last), "whole"):
                f.store(part.results[0], place)
    f.ret()
    return f


def add_parts_function(tile: Tile) -> Function:
    """The second kernel: one tile of rows of one share a work item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, common = f.arg("args"), f.word(f.arg("args"), 4, "shared", PTR)
    names = ("rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares")
    a = job_words(f, WORDS, *names, "item_sums", "row_tiles")
    finish = _finish_function(tile)
    pitch = a["row_shares"] * a["channel_shares"] * a["item_sums"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        share, number = item.index // a["row_tiles"], item.index % a["row_tiles"]
        first_m = share // a["channel_shares"] * a["share_rows"]
        first_c = share % a["channel_shares"] * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        f.call(
            finish, args, common + share * a["item_sums"], pitch, first_m, rows, first_c, channels, number, number + 1
        )  # fmt: skip
    f.ret()
    return f
