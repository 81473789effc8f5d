"""The kernels of Winograd's weight gradient: the steps, and the loops around them (`winograd_weight_gradient.py`).

    region      a few rows of an image of `lanes` channels → region[y][x][channel], padding and what hangs over as zeros
    transform   region → transformed[ξ][tile][channel], of inputs Bᵀ d B, of output gradients A g Aᵀ
    product     the register tile: sums[ξ][row][channel] += Σ_tiles gradients[ξ][tile][row] · inputs[ξ][tile][channel]
    finish      sums → dw: Gᵀ s G, after adding the parts' sums in their order

Lanes are channels throughout, so that the sum over tiles needs no adding-up of lanes. All pitches count float32
numbers.
"""

from __future__ import annotations

from hubel.engine.algorithms.channel_lanes import product_function, region_function, whole_vectors
from hubel.engine.algorithms.winograd_transforms import Matrix, Transforms
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.linear import multiply, multiply_columns
from hubel.engine.plan import Tile

# The words of a job after the base pointers, in this order.
WORDS = (
    "parts", "pieces", "block_pieces", "piece_tiles", "tiles_y", "pieces_x",
    "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares",
    "x_size_y", "x_size_x", "x_n", "x_c", "x_y", "x_x", "pad_y", "pad_x",
    "dy_size_y", "dy_size_x", "dy_n", "dy_c", "dy_y", "dy_x",
    "region_pitch", "step", "sums_step", "item_sums", "row_tiles",
    "at_region", "at_transformed", "at_sums", "at_stage",
)  # fmt: skip


# --- steps ---


def transform_function(name: str, matrix: Matrix, lanes: int) -> Function:
    """name(source, pitch, target, step): matrix · d · matrixᵀ of the square d of vectors that begins at source.

    Rows of d lie `pitch` apart; value ξ goes to target[ξ·step]. Rows of the matrix that share their halves are done
    together, all others alone, so that few values are alive at a time.
    """
    f = Function(name, [("source", PTR), ("pitch", I64), ("target", PTR), ("step", I64)], private=True)
    n, width, vector = len(matrix), len(matrix[0]), vector_of(lanes)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(matrix):
        groups.setdefault(tuple(abs(c) for c in row), []).append(i)
    lines = [f.arg("source") + f.arg("pitch") * k for k in range(width)]
    for group in groups.values():
        needed = [any(matrix[i][k] for i in group) for k in range(width)]
        columns = []
        for j in range(width):
            column = [f.load(lines[k] + j * lanes, vector) if needed[k] else None for k in range(width)]
            columns.append(multiply(f, [matrix[i] for i in group], column))
        for place, i in enumerate(group):
            target = f.arg("target") + f.arg("step") * (i * n)
            for result in multiply(f, matrix, [column[place] for column in columns]):
                f.store(result, target)
                target = target + f.arg("step")
    f.ret()
    return f


def interleave(f: Function, vectors: list[Value]) -> list[Value]:
    """Vectors whose numbers are laid end to end by turns: the first of each, the second of each, and so on."""
    if len(vectors) == 1:
        return vectors
    lanes = int(vectors[0].type[1:].split()[0])
    low = [k // 2 + lanes * (k % 2) for k in range(lanes)]
    results = []
    for a, b in zip(interleave(f, vectors[::2]), interleave(f, vectors[1::2]), strict=True):
        results += [f.shuffle(a, b, low, "low"), f.shuffle(a, b, [k + lanes // 2 for k in low], "high")]
    return results


def filter_function(t: Transforms, lanes: int) -> Function:
    """filter(sums, step, parts, part_pitch, target): Gᵀ s G of `lanes` channels, s added up over the parts in order.

    Sum ξ of a part lies at sums[part·part_pitch + ξ·step]; target[c·9 + tap] gets the 3 × 3 results.
    """
    numbers = [(n, I64) for n in ("step", "parts", "part_pitch")]
    f = Function("filter", [("sums", PTR), *numbers, ("target", PTR)], private=True)
    n, taps, vector = t.size, t.taps, vector_of(lanes)
    matrix = [[t.filters[i][k] for i in range(n)] for k in range(taps)]
    columns: list[list[Value]] = []
    for j in range(n):
        places = [f.arg("sums") + f.arg("step") * (i * n + j) for i in range(n)]
        start = [f.load(place, vector) for place in places]
        with f.loop(f"part_{j}", 1, f.arg("parts"), carry=start) as part:
            behind = part.index * f.arg("part_pitch")
            part.carry(*(a + f.load(p + behind, vector) for a, p in zip(part.carried, places, strict=True)))
        columns.append(multiply_columns(f, matrix, part.results))
    results = [value for k in range(taps) for value in multiply_columns(f, matrix, [column[k] for column in columns])]
    *eight, ninth = results
    target = f.arg("target")
    for i, vector_of_taps in enumerate(interleave(f, eight)):
        # Each holds 8 taps of one channel, or of two, or half of them.
        span = min(lanes, 8)
        for half in range(0, lanes, span):
            number = i * lanes + half
            part_of = f.shuffle(vector_of_taps, vector_of_taps, range(half, half + span), "taps")
            f.store(part_of, target + number // 8 * 9 + number % 8)
    for c in range(lanes):
        f.store(f.lane(ninth, c), target + c * 9 + 8)
    f.ret()
    return f


# --- loops ---


def kernel_function(t: Transforms, tile: Tile, stored: Pointer = PTR) -> Function:
    """The kernel: the sums of one share of the channels over one part of the tiles; where there is one part only,
    their end too. stored: how x and dy are.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), tile.lanes
    x, dy, common = (f.word(args, i, n, p) for i, n, p in ((0, "x", stored), (1, "dy", stored), (4, "shared", PTR)))
    names = (
        "parts", "pieces", "block_pieces", "piece_tiles", "step", "item_sums", "row_tiles",
        "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares",
        "x_c", "dy_c", "at_region", "at_transformed", "at_sums",
    )  # fmt: skip
    a = job_words(f, WORDS, *names)
    fill = region_function(lanes, stored=stored)
    sources = {kind: prepare_function(kind, fill, t, lanes, stored) for kind in ("x", "dy")}
    multiply_tiles, finish = multiply_function(t, tile), finish_function(t, tile)
    alone = a["parts"].equals(1)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        c_share, rest = item.index % a["channel_shares"], item.index // a["channel_shares"]
        m_share, rest = rest % a["row_shares"], rest // a["row_shares"]
        part, group = rest % a["parts"], rest // a["parts"]
        first_m, first_c = m_share * a["share_rows"], c_share * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        sums = f.select(alone, scratch + a["at_sums"], common + item.index * a["item_sums"], "sums")
        begin, end = part * a["pieces"] // a["parts"], (part + 1) * a["pieces"] // a["parts"]
        inputs = scratch + a["at_transformed"]
        w_pitch, x_pitch = (whole_vectors(f, n, lanes) * lanes for n in (rows, channels))
        with f.loop("block", begin, end, a["block_pieces"]) as block:
            stop = f.minimum(block.index + a["block_pieces"], end)
            tiles = (stop - block.index) * a["piece_tiles"]
            gradients = inputs + tiles * x_pitch
            region = scratch + a["at_region"]
            x_c = x + (group * a["channels"] + first_c) * a["x_c"]
            dy_c = dy + (group * a["rows"] + first_m) * a["dy_c"]
            f.call(sources["x"], args, x_c, inputs, region, channels, x_pitch, block.index, stop)
            f.call(sources["dy"], args, dy_c, gradients, region, rows, w_pitch, block.index, stop)
            add = f.select(block.index > begin, 1, 0)
            f.call(multiply_tiles, args, inputs, gradients, sums, rows, channels, tiles, add)
        with f.when(alone, "alone"):
            row = group * a["rows"] + first_m
            f.call(finish, args, scratch, sums, 0, row, rows, first_c, channels, 0, a["row_tiles"])
    f.ret()
    return f


def prepare_function(kind: str, fill: Function, t: Transforms, lanes: int, stored: Pointer) -> Function:
    """prepare(args, source, target, region, channels, pitch, begin, stop): pieces begin ≤ piece < stop transformed.

    A piece is `piece_tiles` neighbouring tiles of a row of tiles; pieces are counted downwards first, then to the
    right, then through the images. kind: "x", or "dy" for output gradients.
    """
    numbers = [(n, I64) for n in ("channels", "pitch", "begin", "stop")]
    pointers = [("args", PTR), ("source", stored), ("target", PTR), ("region", PTR)]
    f = Function(f"prepare_{kind}", [*pointers, *numbers], private=True)
    names = [f"{kind}_{n}" for n in ("size_y", "size_x", "n", "c", "y", "x")]
    a = job_words(f, WORDS, "piece_tiles", "tiles_y", "pieces_x", "region_pitch", "step", "pad_y", "pad_x", *names)
    size_y, size_x, from_n, from_c, from_y, from_x = (a[n] for n in names)
    m, halo = t.outputs, t.size - t.outputs if kind == "x" else 0
    matrix = t.inputs if kind == "x" else tuple(zip(*t.results, strict=True))
    transform = transform_function(f"transform_{kind}", matrix, lanes)
    begin, stop, pitch = f.arg("begin"), f.arg("stop"), a["region_pitch"]
    rows_below = (stop - begin) * from_y * m
    columns = begin // a["tiles_y"], (stop - 1) // a["tiles_y"] + 1
    with f.loop("c", 0, f.arg("channels"), lanes) as c:
        source = f.arg("source") + c.index * from_c
        left = f.arg("channels") - c.index
        # What is read next: the same rows of the next channels, or the rows below of the first ones.
        ahead = f.select(left > lanes, from_c * lanes, rows_below - c.index * from_c, "ahead")
        with f.loop("column", *columns, at_least_once=True) as column:
            image, piece_x = column.index // a["pieces_x"], column.index % a["pieces_x"]
            base = column.index * a["tiles_y"]
            first = f.maximum(begin - base, 0)
            count = f.minimum(stop - base, a["tiles_y"]) - first
            y, x = first * m, piece_x * a["piece_tiles"] * m
            if kind == "x":
                y, x = y - a["pad_y"], x - a["pad_x"]
            f.call(
                fill, f.arg("region"), source + image * from_n, left, y, x, count * m + halo,
                a["piece_tiles"] * m + halo, size_y, size_x, from_c, from_y, from_x, pitch, ahead,
            )  # fmt: skip
            target = f.arg("target") + (base + first - begin) * a["piece_tiles"] * f.arg("pitch") + c.index
            with f.loop("row", 0, count) as row:
                line = f.arg("region") + row.index * pitch * m
                to = target + row.index * a["piece_tiles"] * f.arg("pitch")
                with f.loop("tile", 0, a["piece_tiles"]) as at:
                    place = line + at.index * (m * lanes)
                    f.call(transform, place, pitch, to + at.index * f.arg("pitch"), a["step"])
    f.ret()
    return f


def multiply_function(t: Transforms, tile: Tile) -> Function:
    """multiply(args, inputs, gradients, sums, rows, channels, tiles, add): the n² products of one block of tiles."""
    pointers = [(n, PTR) for n in ("args", "inputs", "gradients", "sums")]
    f = Function("multiply", [*pointers, *((n, I64) for n in ("rows", "channels", "tiles", "add"))], private=True)
    a, lanes = job_words(f, WORDS, "step", "sums_step", "share_channels"), tile.lanes
    products = {width: product_function(tile.rows, width, lanes) for width in sorted({tile.vectors, 1}, reverse=True)}
    room = whole_vectors(f, a["share_channels"], lanes) * (tile.rows * lanes)
    vectors = whole_vectors(f, f.arg("channels"), lanes)
    w_pitch, x_pitch = whole_vectors(f, f.arg("rows"), lanes) * lanes, vectors * lanes
    whole = vectors // tile.vectors * tile.vectors
    shares = {tile.vectors: (0, whole), 1: (whole, vectors)}
    tiles = f.arg("tiles")
    lines = tiles * 16
    with f.loop("xi", 0, t.size * t.size) as xi:
        inputs, gradients = (f.arg(n) + xi.index * a["step"] for n in ("inputs", "gradients"))
        ahead = inputs + a["step"]
        sums = f.arg("sums") + xi.index * a["sums_step"]
        for width, (first, last) in shares.items():
            with f.loop(f"v{width}", first, last, width, carry=[ahead]) as v:
                start = sums + v.index * (tile.rows * lanes)
                with f.loop(f"m{width}", 0, f.arg("rows"), tile.rows, carry=v.carried, at_least_once=True) as m:
                    to = start + m.index // tile.rows * room
                    place, following = inputs + v.index * lanes, m.carried[0]
                    w = gradients + m.index
                    f.call(products[width], w, place, to, following, tiles, w_pitch, x_pitch, f.arg("add"), 0)
                    m.carry(following + lines)
                v.carry(m.results[0])
            ahead = v.results[0]
    f.ret()
    return f


def finish_function(t: Transforms, tile: Tile) -> Function:
    """finish_rows(args, scratch, sums, part_pitch, first_m, rows, first_c, channels, begin, end): dw of a share's tiles
    of rows begin ≤ tile < end. first_m is counted through all groups, first_c within one.
    """
    pointers = [(n, PTR) for n in ("args", "scratch", "sums")]
    names = ("part_pitch", "first_m", "rows", "first_c", "channels", "begin", "end")
    f = Function("finish_rows", [*pointers, *((n, I64) for n in names)], private=True)
    a, lanes, taps = (
        job_words(f, WORDS, "parts", "sums_step", "share_channels", "channels", "at_stage"),
        tile.lanes,
        t.taps**2,
    )
    dw = f.word(f.arg("args"), 3, "dw", PTR)
    one = filter_function(t, lanes)
    stage = f.arg("scratch") + a["at_stage"]
    vectors, room = whole_vectors(f, f.arg("channels"), lanes), whole_vectors(f, a["share_channels"], lanes)
    with f.loop("tile", f.arg("begin"), f.arg("end")) as at, f.loop("v", 0, vectors) as v:
        first = at.index * tile.rows
        sums = f.arg("sums") + (at.index * room + v.index) * (tile.rows * lanes)
        c = v.index * lanes
        left = f.minimum(f.arg("channels") - c, lanes)
        with f.loop("r", 0, f.minimum(f.arg("rows") - first, tile.rows)) as r:
            row = f.arg("first_m") + first + r.index
            place = dw + (row * a["channels"] + f.arg("first_c") + c) * taps
            whole = left.equals(lanes)
            to = f.select(whole, place, stage, "to")
            f.call(one, sums + r.index * lanes, a["sums_step"], a["parts"], f.arg("part_pitch"), to)
            with f.when(f.negate(whole), "rest"), f.loop("i", 0, left * taps) as i:
                f.store(f.load(stage + i.index, F32), place + i.index)
    f.ret()
    return f


def add_parts_function(t: Transforms, tile: Tile) -> Function:
    """The second kernel: one tile of rows of one share a work item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    common = f.word(args, 4, "shared", PTR)
    names = ("parts", "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares")
    a = job_words(f, WORDS, *names, "item_sums", "row_tiles")
    finish = finish_function(t, tile)
    shares = a["row_shares"] * a["channel_shares"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, number = item.index // a["row_tiles"], item.index % a["row_tiles"]
        share, group = rest % shares, rest // shares
        first_m = share // a["channel_shares"] * a["share_rows"]
        first_c = share % a["channel_shares"] * a["share_channels"]
        rows = f.minimum(a["share_rows"], a["rows"] - first_m)
        channels = f.minimum(a["share_channels"], a["channels"] - first_c)
        sums = common + (group * a["parts"] * shares + share) * a["item_sums"]
        pitch, row = shares * a["item_sums"], group * a["rows"] + first_m
        f.call(finish, args, f.arg("scratch"), sums, pitch, row, rows, first_c, channels, number, number + 1)
    f.ret()
    return f
