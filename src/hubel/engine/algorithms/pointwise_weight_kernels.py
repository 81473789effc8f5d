"""The kernels of pointwise weight gradients, as told in `pointwise_weight_gradient.py`."""

from __future__ import annotations

from hubel.engine.algorithms.channel_lanes import WIDTH, add_to_sums, fill_function, line_of, multiples, whole_vectors
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.opaque import OpaqueFunction
from hubel.engine.plan import Tile

# Pixels of a register tile for each line that it asks for; numbers in a run of lines that one call asks for.
LINE, RUN = 16, 256

# The words of a job after the base pointers, in this order. rows_are_x: whether the channels that are rows are the
# input's; row_, lane_: strides of the tensor whose channels are rows, and of the other, whose channels are lanes;
# ask_: between the lines of the latter that a call asks for, between calls, and what remains between images; runs_:
# between runs of lines of the former, and how many; dw_: strides of the result.
WORDS = (
    "rows_are_x", "copied", "parts", "pieces", "block_pieces", "piece_pixels", "pixels", "pieces_x",
    "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares",
    "row_n", "row_c", "row_x", "lane_n", "lane_c", "lane_x", "ask_n", "ask_c", "ask_x", "runs_apart", "runs",
    "pitch", "panels", "item_sums", "at_rows", "at_sums", "dw_row", "dw_lane",
)  # fmt: skip


def kernel_function(tile: Tile, stored: Pointer = PTR) -> Function:
    """The kernel: the sums of one share of the channels over one part of the pixels; where there is one part only, they
    go to dw. stored: how x and dy are.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    x, dy, common = (f.word(args, i, n, p) for i, n, p in ((0, "x", stored), (1, "dy", stored), (4, "shared", PTR)))
    a = job_words(f, WORDS)
    copy, multiply, finish = _copy_function(tile, stored), _multiply_function(tile, stored), _finish_function(tile)
    alone, copied, rows_are_x = (a[n].equals(1) for n in ("parts", "copied", "rows_are_x"))
    of_rows, of_lanes = f.select(rows_are_x, x, dy, "of_rows"), f.select(rows_are_x, dy, x, "of_lanes")
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        c_share, rest = item.index % a["channel_shares"], item.index // a["channel_shares"]
        m_share, part = rest % a["row_shares"], rest // a["row_shares"]
        first_m, first_c = m_share * a["share_rows"], c_share * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        sums = f.select(alone, scratch + a["at_sums"], common + item.index * a["item_sums"], "sums")
        begin, end = part * a["pieces"] // a["parts"], (part + 1) * a["pieces"] // a["parts"]

        def places(piece: Value, first_m: Value = first_m, first_c: Value = first_c) -> tuple[Value, Value]:
            """Where the share's numbers begin in both tensors."""
            image, pixel = piece // a["pieces_x"], piece % a["pieces_x"] * a["piece_pixels"]
            row = of_rows + first_m * a["row_c"] + image * a["row_n"] + pixel * a["row_x"]
            return row, of_lanes + first_c * a["lane_c"] + image * a["lane_n"] + pixel * a["lane_x"]

        with f.loop("block", begin, end, a["block_pieces"]) as block:
            images = f.minimum(a["block_pieces"], end - block.index)
            first = block.index % a["pieces_x"] * a["piece_pixels"]
            pixels = f.minimum(a["piece_pixels"], a["pixels"] - first)
            row, lane = places(block.index)
            rows_at = scratch + a["at_rows"]
            with f.when(copied, "copied"):
                f.call(copy, args, row, rows_at, rows, images, pixels)
            if stored is PTR:
                rows_at = f.select(copied, rows_at, row, "rows_at")
            later = places(block.index + a["block_pieces"])
            add = f.select(block.index > begin, 1, 0)
            f.call(multiply, args, rows_at, lane, scratch, sums, *later, rows, channels, images, pixels, add)
        with f.when(alone, "alone"):
            f.call(finish, args, sums, 0, first_m, rows, first_c, channels, 0, a["panels"])
    f.ret()
    return f


def _copy_function(tile: Tile, stored: Pointer) -> Function:
    """copy(args, source, target, rows, images, pixels): where rows are side by side in memory, target[tile][pixel][row]
    with tiles `pitch` apart, of which the last ends with the last row; elsewhere target[row][pixel].
    """
    numbers = [(n, I64) for n in ("rows", "images", "pixels")]
    f = Function("copy", [("args", PTR), ("source", stored), ("target", PTR), *numbers], private=True)
    a, pixels, lanes = job_words(f, WORDS, "row_n", "row_c", "row_x", "pitch"), f.arg("pixels"), tile.lanes
    side_by_side = a["row_c"].equals(1)
    # What a vector writes behind its tile's rows the next pixel, or the space between tiles, takes.
    masks = [f.lanes_below(f.constant(tile.rows - at), lanes) for at in range(0, tile.rows, lanes)]
    with f.when(side_by_side, "tiles"), f.loop("n", 0, f.arg("images")) as n, f.loop("p", 0, pixels) as p:
        source = f.arg("source") + n.index * a["row_n"] + p.index * a["row_x"]
        target = f.arg("target") + (n.index * pixels + p.index) * tile.rows
        with f.loop("m", 0, f.arg("rows"), tile.rows, carry=[target]) as m:
            place = source + f.minimum(m.index, f.arg("rows") - tile.rows)
            for i, mask in enumerate(masks):
                f.store(f.load_masked(place + i * lanes, mask, lanes), m.carried[0] + i * lanes)
            m.carry(m.carried[0] + a["pitch"])
    with (
        f.when(f.negate(side_by_side), "rows"),
        f.loop("r", 0, f.arg("rows")) as r,
        f.loop("image", 0, f.arg("images")) as image,
    ):
        source = f.arg("source") + r.index * a["row_c"] + image.index * a["row_n"]
        target = f.arg("target") + (r.index * f.arg("images") + image.index) * pixels
        whole = f.select(a["row_x"].equals(1), pixels // lanes * lanes, 0)
        with f.loop("q", 0, whole, lanes) as q:
            f.store(f.load(source + q.index, vector_of(lanes)), target + q.index)
        with f.loop("one", whole, pixels) as one:
            f.store(f.load(source + one.index * a["row_x"], F32), target + one.index)
    f.ret()
    return f


def _multiply_function(tile: Tile, stored: Pointer) -> Function:
    """multiply(args, rows_at, source, panel, sums, later_rows, later, rows, channels, images, pixels, add): the
    products of one block of pixels, for each panel of lanes those with all rows.

    Meanwhile the next panel's lines are asked for (the first's of the block at `later`), and that block's rows if they
    are copied.
    """
    pointers = [("rows_at", PTR), ("source", stored), ("panel", PTR), ("sums", PTR)]
    pointers = [("args", PTR), *pointers, ("later_rows", stored), ("later", stored)]
    f = Function(
        "multiply", [*pointers, *((n, I64) for n in ("rows", "channels", "images", "pixels", "add"))], private=True
    )
    a, lanes, width = job_words(f, WORDS), tile.lanes, tile.vectors * tile.lanes
    rows, images, pixels, panel = (f.arg(n) for n in ("rows", "images", "pixels", "panel"))
    copied, terms, tiles = a["copied"].equals(1), images * pixels, (rows + (tile.rows - 1)) // tile.rows
    in_tiles = copied & a["row_c"].equals(1)
    w_c = f.select(in_tiles, 1, f.select(copied, terms, a["row_c"]))
    w_x = f.select(in_tiles, tile.rows, f.select(copied, 1, a["row_x"]))
    w_n = f.select(copied, 0, a["row_n"] - pixels * a["row_x"])
    steps = w_c * 4, w_x * 4, w_n * 4, images, pixels, f.arg("add"), a["ask_x"], a["ask_n"], a["runs_apart"]
    room = whole_vectors(f, a["share_channels"], lanes) * (tile.rows * lanes)
    fill = fill_function(lanes, stored)
    products = {v: _product_function(tile.rows, v, lanes, stored) for v in sorted({tile.vectors, 1}, reverse=True)}
    with f.loop("c", 0, f.arg("channels"), width) as c:
        left = f.arg("channels") - c.index
        source = f.arg("source") + c.index * a["lane_c"]
        following = f.select(left > width, source + a["lane_c"] * width, f.arg("later"), "following")
        with f.loop("v", 0, f.minimum(left, width), lanes) as v:
            f.call(
                fill, panel + v.index, source + v.index * a["lane_c"], left - v.index, images, pixels,
                a["lane_c"], a["lane_n"], a["lane_x"], pixels * width, width, a["lane_c"] * lanes,
            )  # fmt: skip
        sums = f.arg("sums") + c.index * tile.rows
        for vectors, chosen in {tile.vectors: left > lanes, 1: left <= lanes}.items():
            with f.when(chosen, f"wide_{vectors}"), f.loop(f"m{vectors}", 0, tiles, carry=[sums]) as m:
                row = f.minimum(m.index * tile.rows, rows - tile.rows)
                w = f.arg("rows_at") + f.select(in_tiles, m.index * a["pitch"], row * w_c)
                run = f.minimum((c.index // width * tiles + m.index) * 2, a["runs"])
                asked = following + m.index * a["ask_c"], f.arg("later_rows") + run * a["runs_apart"]
                f.call(products[vectors], w, panel, m.carried[0], *asked, *steps)
                m.carry(m.carried[0] + room)
    f.ret()
    return f


def _product_function(rows: int, vectors: int, lanes: int, stored: Pointer) -> Function:
    """product(w, x, c, ahead, run, w_c, w_x, w_n, images, pixels, add, ask_x, ask_n, runs_apart): the sums of one tile.

    c[v·rows·lanes + r·lanes + lane] (+)= Σ_k w[r·w_c + k·w_x] · x[k·WIDTH·lanes + v·lanes + lane], where w moves on by
    w_n after each image's pixels (all three in bytes). Every `LINE` pixels lines are asked for: of those `ask_x` apart
    from `ahead` on, and of two runs.
    """
    pointers = [("w", PTR), ("x", PTR), ("c", PTR), ("ahead", stored), ("run", stored)]
    numbers = ("w_c", "w_x", "w_n", "images", "pixels", "add", "ask_x", "ask_n", "runs_apart")
    f = OpaqueFunction(f"product_{vectors}", [*pointers, *((n, I64) for n in numbers)], private=True)
    vector, zero = vector_of(lanes), f.constant(0.0, vector_of(lanes))
    place = multiples(f, f.arg("w_c"), rows - 1)
    for line in range(0, rows * vectors * lanes, 16):
        f.prefetch(f.arg("c") + line, write=True)
    start = [f.arg("w"), f.arg("x"), f.arg("ahead"), f.arg("run"), *[zero] * (rows * vectors)]
    with f.loop("image", 0, f.arg("images"), carry=start, at_least_once=True) as image:
        with f.loop("line", 0, f.arg("pixels"), LINE, carry=image.carried, at_least_once=True) as line:
            w, x, ahead, run, *acc = line.carried
            f.prefetch(ahead)
            f.prefetch(run, level=2)
            f.prefetch(run + f.arg("runs_apart"), level=2)
            count = f.minimum(f.arg("pixels") - line.index, LINE)
            with f.loop("k", 0, count, carry=[w, x, *acc], at_least_once=True) as k:
                w, x, *acc = k.carried
                w = f.opaque(w)
                pixels = [f.load(x + v * lanes, vector, f"pixels_{v}") for v in range(vectors)]
                for r in range(rows):
                    weight = f.splat(f.load(place(w, r), F32, f"w_{r}"), lanes, f"weight_{r}")
                    for v in range(vectors):
                        acc[r * vectors + v] = f.fma(weight, pixels[v], acc[r * vectors + v], f"acc_{r}_{v}")
                k.carry(f.offset(w, f.arg("w_x"), "i8"), x + WIDTH * lanes, *acc)
            w, x, *acc = k.results
            line.carry(w, x, ahead + f.arg("ask_x"), run + line_of(stored), *acc)
        w, x, ahead, run, *acc = line.results
        image.carry(f.offset(w, f.arg("w_n"), "i8"), x, ahead + f.arg("ask_n"), run, *acc)
    add_to_sums(f, f.arg("c"), image.results[4:], rows, vectors, lanes)
    f.ret()
    return f


def _finish_function(tile: Tile) -> Function:
    """finish(args, sums, part_pitch, first_m, rows, first_c, channels, begin, end): dw of a share's panels of lanes
    begin ≤ panel < end, the parts' sums added in their order.
    """
    names = ("part_pitch", "first_m", "rows", "first_c", "channels", "begin", "end")
    f = Function("finish", [("args", PTR), ("sums", PTR), *((n, I64) for n in names)], private=True)
    a, lanes = job_words(f, WORDS, "parts", "share_channels", "dw_row", "dw_lane"), tile.lanes
    vector = vector_of(lanes)
    dw = f.word(f.arg("args"), 3, "dw", PTR) + f.arg("first_m") * a["dw_row"] + f.arg("first_c") * a["dw_lane"]
    vectors, room = whole_vectors(f, f.arg("channels"), lanes), whole_vectors(f, a["share_channels"], lanes)
    rest = f.lanes_below(f.arg("channels") - (vectors - 1) * lanes, lanes)
    begin = f.arg("begin") * tile.vectors
    end, last_row = f.minimum(f.arg("end") * tile.vectors, vectors), f.arg("rows") - tile.rows
    tiles = (f.arg("rows") + (tile.rows - 1)) // tile.rows

    def total(tile_index: Value, v: Value, r: Value) -> Value:
        place = f.arg("sums") + ((tile_index * room + v) * tile.rows + r) * lanes
        with f.loop("part", 1, a["parts"], carry=[f.load(place, vector)]) as part:
            part.carry(part.carried[0] + f.load(place + part.index * f.arg("part_pitch"), vector))
        return part.results[0]

    in_line = a["dw_lane"].equals(1)
    with (
        f.when(in_line, "in_line"),
        f.loop("tile", 0, tiles) as at,
        f.loop("r", 0, tile.rows) as r,
        f.loop("v", begin, end) as v,
    ):
        place = dw + (f.minimum(at.index * tile.rows, last_row) + r.index) * a["dw_row"] + v.index * lanes
        found, last = total(at.index, v.index, r.index), (v.index + 1).equals(vectors)
        with f.when(last, "last"):
            f.store_masked(found, place, rest)
        with f.when(f.negate(last), "whole"):
            f.store(found, place)
    # Lines of dw are filled from one end to the other.
    with (
        f.when(f.negate(in_line), "apart"),
        f.loop("v", begin, end) as v,
        f.loop("tile", 0, tiles) as at,
        f.loop("r", 0, tile.rows) as r,
    ):
        row = (f.minimum(at.index * tile.rows, last_row) + r.index) * a["dw_row"]
        found, left = total(at.index, v.index, r.index), f.arg("channels") - v.index * lanes
        for lane in range(lanes):
            with f.when(left > lane, f"lane_{lane}"):
                f.store(f.lane(found, lane), dw + row + (v.index * lanes + lane) * a["dw_lane"])
    f.ret()
    return f


def add_parts_function(tile: Tile) -> Function:
    """The second kernel: one panel of lanes of one share a work item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, common = f.arg("args"), f.word(f.arg("args"), 4, "shared", PTR)
    names = ("rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares")
    a = job_words(f, WORDS, *names, "item_sums", "panels")
    finish = _finish_function(tile)
    pitch = a["row_shares"] * a["channel_shares"] * a["item_sums"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        share, number = item.index // a["panels"], item.index % a["panels"]
        first_m = share // a["channel_shares"] * a["share_rows"]
        first_c = share % a["channel_shares"] * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        f.call(
            finish, args, common + share * a["item_sums"], pitch, first_m, rows, first_c, channels, number, number + 1
        )  # fmt: skip
    f.ret()
    return f
