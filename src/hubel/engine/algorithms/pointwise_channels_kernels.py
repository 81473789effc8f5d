"""The kernels of 1×1 convolutions with output channels in lanes, as told in `pointwise_channels.py`."""

from __future__ import annotations

from hubel.engine.algorithms.channel_lanes import fill_function, turn_back_function
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.rows import copy_row, store_rows_function
from hubel.engine.plan import Tile

# The words of a job after the base pointers, in this order.
WORDS = (
    "places", "held", "groups", "channels", "rows", "block", "chunk_tiles", "chunks", "tiles",
    "pixels", "piece", "pieces", "in_n", "in_g", "in_c", "in_x", "whole", "held_c", "held_run",
    "out_n", "out_c", "out_x", "bias_from", "sums_from",
)  # fmt: skip
# What a register tile does with its sums: add them to those of the blocks before; make outputs of them.
ADD, LAST = 1, 2
PACK_WORDS = ("groups", "rows", "channels", "tiles", "from_g", "from_m", "from_c")


def product_function(tile: Tile, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`. tile.rows are pixels, tile.vectors of output channels.

    What an item reads is first copied to scratch where it is not stored as float32, or pixels are side by side: a run
    of them then follows that of the channel before.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes, width = f.arg("args"), f.arg("scratch"), tile.lanes, tile.vectors * tile.lanes
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS)
    multiply, put = _multiply_function(tile, ending), _put_function(tile, ending)
    hold = _hold_function(tile, ending.stored)
    addends, parked = scratch + a["bias_from"], scratch + a["sums_from"]
    last, holds = a["out_c"].equals(1), a["held_c"] > 0
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, chunk = item.index // a["chunks"], item.index % a["chunks"]
        rest, piece = rest // a["pieces"], rest % a["pieces"]
        group, image = rest % a["groups"], rest // a["groups"]
        first = piece * a["piece"]
        pixels = f.minimum(a["piece"], a["pixels"] - first)
        first_tile = chunk * a["chunk_tiles"]
        tiles = f.minimum(a["chunk_tiles"], a["tiles"] - first_tile)
        x = source + image * a["in_n"] + group * a["in_g"] + first * a["in_x"]
        places = f.offset(a["places"], first * a["whole"], I64)
        f.call(hold, args, scratch, x, places, pixels)
        x, places = f.select(holds, scratch, x.seen_as(PTR), "x"), f.select(holds, a["held"], places, "places")
        x_c = f.select(holds, a["held_c"], a["in_c"], "x_c")
        out = target + image * a["out_n"] + first * a["out_x"]
        with f.loop("t", first_tile, first_tile + tiles) as t:
            row = t.index * width
            there = f.minimum(a["rows"] - row, width)
            row = group * a["rows"] + row
            # Whole vectors of channels side by side are finished as they leave the registers, where that is short.
            straight = last & there.equals(width) if ending.short else Value(f, "i1", "false")
            added = Value(f, "i1", "true") if ending.plain else straight
            _collect(f, ending, operands.arguments, addends, row, f.select(added, there, 0), width, lanes)
            to = out + row * a["out_c"]
            panels = weights + (group * a["tiles"] + t.index) * a["channels"] * width
            f.call(
                multiply, args, panels, x, places, f.select(straight, to.seen_as(PTR), parked, "to"), addends,
                *operands.further(row).arguments, pixels, x_c, f.select(straight, a["out_x"], lanes),
                f.select(straight, lanes, a["piece"] * lanes), f.select(added, LAST, 0),
            )  # fmt: skip
            with f.when(f.negate(straight), "put"):
                f.call(put, args, to, parked, *operands.further(row).arguments, pixels, there)
    f.ret()
    return f


def _collect(
    f: Function,
    ending: Ending,
    operands: tuple[Value, ...],
    to: Value,
    first: Value,
    count: Value,
    width: int,
    lanes: int,
) -> None:
    """to[i] = bias[first + i] for i < count; minus zeros up to the width: adding them changes not even −0."""
    for at in range(0, width, lanes):
        f.store(f.constant(-0.0, vector_of(lanes)), to + at)
    bias = operands[0] if ending.epilogue is None else f.word(operands[0], 0, "bias", ending.stored)
    given = f.compare("ne", bias, Value(f, PTR, "null"))
    with f.when(given, "given"), f.loop("channel", 0, count) as c:
        f.store(f.load(bias + first + c.index, F32), to + c.index)


def _multiply_function(tile: Tile, ending: Ending) -> Function:
    """multiply(args, panels, x, places, to, addends, operands, pixels, x_c, to_pitch, to_vector, last): one tile of
    output channels of all pixels of an item; that of pixel p and vector v goes to to[p·to_pitch + v·to_vector].

    last: LAST to make outputs of the sums.

    The pixels fall into runs of about equal length, as long as the register tile or a little less. All runs together
    ask for the weights of the next block. A single run does not: the processor foresees them, and asked for in L1 they
    were there too early (25,088 → 4,096 at one pixel: 6 % slower; Zen 3).
    """
    width = tile.vectors * tile.lanes
    pointers = [(n, PTR) for n in ("args", "panels", "x", "places", "to", "addends")]
    numbers = [(n, I64) for n in ("pixels", "x_c", "to_pitch", "to_vector", "last")]
    f = Function("multiply", [*pointers, *ending.parameters, *numbers], private=True)
    a, pixels, x_c = job_words(f, WORDS, "channels", "block", "held_run"), f.arg("pixels"), f.arg("x_c")
    functions = [_tile_function(n, tile.vectors, tile.lanes, ending) for n in range(1, tile.rows + 1)]
    runs, short, longer = _runs(pixels, tile.rows)
    in_runs = a["held_run"] > 0
    by_size = [f.one_of(functions, f.minimum(short - 1 + more, tile.rows - 1)) for more in (0, 1)]
    asked = (runs + (4 * width - 1)) // runs
    with f.loop("c", 0, a["channels"], a["block"]) as c:
        terms = f.minimum(a["block"], a["channels"] - c.index)
        mode = f.select(c.index > 0, ADD, 0) + f.select(c.index + terms >= a["channels"], f.arg("last"), 0)
        w, x = f.arg("panels") + c.index * width, f.arg("x") + c.index * x_c
        following = w + f.select(runs.equals(1), 0, terms) * width
        with f.loop("run", 0, runs) as run:
            begin = run.index * short + f.minimum(run.index, longer)
            places = f.offset(f.arg("places"), f.select(in_runs, 0, begin), I64)
            f.call(
                functions[0], w, x + run.index * a["held_run"], places, f.arg("to") + begin * f.arg("to_pitch"),
                f.arg("addends"), f.offset(following, run.index * terms * asked, "i8"), *ending.given(f).arguments,
                terms, x_c, f.arg("to_pitch"), f.arg("to_vector"), asked, mode,
                at=f.select(run.index < longer, by_size[1], by_size[0], "function"),
            )  # fmt: skip
    f.ret()
    return f


def _tile_function(pixels: int, vectors: int, lanes: int, ending: Ending) -> Function:
    """tile_<pixels>(w, x, places, to, addends, ahead, operands, terms, x_c, to_pitch, to_vector, asked, mode): the sums
    of so many pixels and vectors of output channels.

        to[p·to_pitch + v·to_vector + lane] =
            (ADD: that +) Σ_k x[places[p] + k·x_c] · w[k][v][lane] (LAST: + addends[v][lane], and finished)

    With each term the line `asked` bytes behind the one before is asked for, from `ahead` on. LAST is there where the
    ending is short.
    """
    pointers = [(n, PTR) for n in ("w", "x", "places", "to", "addends", "ahead")]
    numbers = [(n, I64) for n in ("terms", "x_c", "to_pitch", "to_vector", "asked", "mode")]
    f = Function(f"tile_{pixels}", [*pointers, *ending.parameters, *numbers], private=True)
    vector, width = vector_of(lanes), vectors * lanes
    starts = [f.arg("x") + f.load(f.offset(f.arg("places"), p, I64), I64, "place") for p in range(pixels)]
    zero = f.constant(0.0, vector)
    start = [f.arg("w"), f.constant(0), f.arg("ahead"), *[zero] * (pixels * vectors)]
    with f.loop("k", 0, f.arg("terms"), carry=start, at_least_once=True) as k:
        w, at, ahead, *acc = k.carried
        f.prefetch(ahead)
        weights = [f.load(w + v * lanes, vector, f"weights_{v}") for v in range(vectors)]
        after: list[Value] = []
        for place in starts:
            every = f.splat(f.load(place + at, F32, "pixel"), lanes, "pixels")
            for weight in weights:
                after.append(f.fma(every, weight, acc[len(after)], f"acc_{len(after)}"))
        k.carry(w + width, at + f.arg("x_c"), f.offset(ahead, f.arg("asked"), "i8"), *after)
    sums = k.results[3:]
    for mode in (0, ADD, LAST, ADD | LAST) if ending.short else (0, ADD):
        with f.when(f.arg("mode").equals(mode), f"mode{mode}"):
            for v in range(vectors):
                if mode & LAST:
                    addend = f.load(f.arg("addends") + v * lanes, vector, "addend")
                    finish = ending.given(f).further(v * lanes).load_lanes(lanes)
                for p in range(pixels):
                    place, total = f.arg("to") + f.arg("to_pitch") * p + f.arg("to_vector") * v, sums[p * vectors + v]
                    if mode & ADD:
                        total = f.load(place, vector) + total
                    f.store(finish(total + addend, place) if mode & LAST else total, place)
    f.ret()
    return f


def _runs(pixels: Value, most: int) -> tuple[Value, Value, Value]:
    """How many runs so many pixels fall into, the pixels of a short one, and how many have one more: the first ones."""
    runs = (pixels + (most - 1)) // most
    return runs, pixels // runs, pixels % runs


def _hold_function(tile: Tile, stored: Pointer) -> Function:
    """hold(args, to, source, places, pixels): what an item reads, as float32, where that is wanted.

    Channels side by side stay so, a row of them a pixel; else a run of pixels of one channel follows that of the
    channel before, and all channels of a run those of the run before.
    """
    parameters = [("args", PTR), ("to", PTR), ("source", stored), ("places", PTR), ("pixels", I64)]
    f = Function("hold", parameters, private=True)
    a, pixels, places = job_words(f, WORDS, "channels", "held", "in_c", "held_c"), f.arg("pixels"), f.arg("places")
    with f.when(a["held_c"].equals(1), "cells"), f.loop("p", 0, pixels) as p:
        at, held = (f.load(f.offset(table, p.index, I64), I64, "place") for table in (places, a["held"]))
        copy_row(f, f.arg("to") + held, f.arg("source") + at, a["channels"], tile.lanes)
    with f.when(a["held_c"] > 1, "runs"):
        first, end = (f.load(f.offset(places, at, I64), I64, "place") for at in (f.constant(0), pixels - 1))
        # A vector longer than a run reads into the next channel, and writes what that overwrites.
        dense = (end - first).equals(pixels - 1) & (a["in_c"] >= _wide(tile.rows))
        whole = f.select(dense, a["channels"] - 1, 0, "whole")
        f.call(_hold_runs_function(tile.rows, stored, True), *(f.arg(n) for n, _ in parameters), 0, whole)
        f.call(_hold_runs_function(tile.rows, stored, False), *(f.arg(n) for n, _ in parameters), whole, a["channels"])
    f.ret()
    return f


def _wide(rows: int) -> int:
    """Lanes of a vector that holds a run."""
    return next(n for n in (4, 8, 16) if n >= rows)


def _hold_runs_function(rows: int, stored: Pointer, dense: bool) -> Function:
    """hold_<dense or single>(args, to, source, places, pixels, begin, end): the runs of channels begin ≤ c < end, a
    vector each, or number by number.
    """
    pointers = [("args", PTR), ("to", PTR), ("source", stored), ("places", PTR)]
    parameters = [*pointers, *((n, I64) for n in ("pixels", "begin", "end"))]
    f = Function(f"hold_{'dense' if dense else 'single'}", parameters, private=True)
    a = job_words(f, WORDS, "in_c", "held_run")
    runs, short, longer = _runs(f.arg("pixels"), rows)
    first = f.load(f.arg("places"), I64, "first")
    with f.loop("c", f.arg("begin"), f.arg("end")) as c:
        row, to = f.arg("source") + c.index * a["in_c"], f.arg("to") + c.index * rows
        with f.loop("run", 0, runs, carry=[f.constant(0), to]) as run:
            begin, to = run.carried
            size = short + f.select(run.index < longer, 1, 0)
            if dense:
                f.store(f.load(row + first + begin, vector_of(_wide(rows))), to)
            else:
                with f.loop("p", 0, size) as p:
                    at = f.load(f.offset(f.arg("places"), begin + p.index, I64), I64, "place")
                    f.store(f.load(row + at, F32), to + p.index)
            run.carry(begin + size, to + a["held_run"])
    f.ret()
    return f


def _put_function(tile: Tile, ending: Ending) -> Function:
    """put(args, out, sums, operands, pixels, rows): the sums of `rows` output channels of an item, which lie as
    sums[vector][pixel][lane], go where they belong.
    """
    lanes = tile.lanes
    pointers = [("args", PTR), ("out", ending.stored), ("sums", PTR), *ending.parameters]
    f = Function("put", [*pointers, *((n, I64) for n in ("pixels", "rows"))], private=True)
    a, pixels, operands = job_words(f, WORDS, "piece", "out_c", "out_x"), f.arg("pixels"), ending.given(f)
    turn_back = turn_back_function(lanes, fill_function(lanes))
    finish_rows = store_rows_function(lanes, ending)
    last = a["out_c"].equals(1)
    beside = f.arg("sums") + a["piece"] * (tile.vectors * lanes)
    with f.loop("row", 0, f.arg("rows"), lanes) as row:
        count = f.minimum(f.arg("rows") - row.index, lanes)
        sums, out = f.arg("sums") + row.index * a["piece"], f.arg("out") + row.index * a["out_c"]
        with f.when(last & count.equals(lanes), "whole"):
            finish = operands.further(row.index).load_lanes(lanes, bias=not ending.plain)
            with f.loop("p", 0, pixels) as p:
                value, place = f.load(sums + p.index * lanes, vector_of(lanes)), out + p.index * a["out_x"]
                f.store(finish(value, place), place)
        with f.when(last & (count < lanes), "some"), f.loop("c", 0, count) as c:
            finish = operands.further(row.index + c.index).load_lanes(1, bias=not ending.plain)
            with f.loop("q", 0, pixels) as p:
                value, place = f.load(sums + p.index * lanes + c.index, F32), out + p.index * a["out_x"] + c.index
                f.store(finish(value, place), place)
        with f.when(f.negate(last), "turned"):
            if ending.plain:
                f.call(turn_back, out, sums, pixels, count, a["out_c"], a["out_x"])
            else:
                f.call(turn_back, beside, sums, pixels, count, pixels, 1)
                with f.loop("channel", 0, count) as c:
                    to, of_channel = out + c.index * a["out_c"], operands.further(row.index + c.index).arguments
                    f.call(finish_rows, to, beside + c.index * pixels, *of_channel, 1, 0, 0, pixels, a["out_x"])
    f.ret()
    return f


def pack_function(tile: Tile, stored: Pointer = PTR) -> Function:
    """The weights of a tile of output channels a work item, in the order of the sums: [c][lane]; lanes beyond the last
    output channel are zeros.
    """
    lanes, width = tile.lanes, tile.vectors * tile.lanes
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a, fill = job_words(f, PACK_WORDS), fill_function(lanes, stored)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        group, row = item.index // a["tiles"], item.index % a["tiles"] * width
        panel = packed + item.index * a["channels"] * width
        for at in range(0, width, lanes):
            first = row + at
            there = first < a["rows"]
            with f.when(there, "there"):
                from_ = source + group * a["from_g"] + first * a["from_m"]
                f.call(
                    fill, panel + at, from_, a["rows"] - first, 1, a["channels"],
                    a["from_m"], 0, a["from_c"], 0, width, 16,
                )  # fmt: skip
            with f.when(f.negate(there), "nothing"), f.loop("c", 0, a["channels"]) as c:
                f.store(f.constant(0.0, vector_of(lanes)), panel + at + c.index * width)
    f.ret()
    return f
