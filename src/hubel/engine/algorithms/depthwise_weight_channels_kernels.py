"""The code of depthwise weight gradients with channels in the lanes: strips, rows, tiles and vectors of channels."""

from __future__ import annotations

from hubel.engine.algorithms.channel_lanes import multiples
from hubel.engine.algorithms.depthwise_channels_kernels import Pattern, row_reader, taps_in_groups
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.rows import zero_row

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "vectors", "block", "blocks", "pieces", "share", "bands", "per_band", "strips", "strip",
    "taps", "rows", "lead_y", "apart_y", "lead_x", "step_y", "step_x", "height", "width", "dy_height", "dy_width",
    "x_n", "x_y", "x_x", "dy_n", "dy_y", "dy_x", "partial", "zeros_at", "sums_at",
)  # fmt: skip
REDUCE_WORDS = ("channels", "vectors", "taps", "shares")


def correlation_function(
    pattern: Pattern, pixels: int, lanes: int, registers: int, stored: Pointer = PTR, ahead: bool = False
) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; the sums of a block of channels over one share of the pieces, a
    band of rows of an image each, an item.

    ahead: whether the row of dy below is asked for, and the row of x below those that are read.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    x, dy = f.word(args, 0, "x", stored), f.word(args, 1, "dy", stored)
    shared, target = f.word(args, 4, "shared", PTR), f.word(args, 3, "dw", PTR)
    a = job_words(f, WORDS)
    zeros, sums = scratch + a["zeros_at"], scratch + a["sums_at"]
    zero_row(f, zeros, f.constant(lanes), lanes)
    size, vector = a["taps"] * lanes, vector_of(lanes)
    inner, edge = (
        _tile_function(name, pattern, pixels, name == "edge", lanes, registers, stored, ahead)
        for name in ("inner", "edge")
    )
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        block, share = item.index % a["blocks"], item.index // a["blocks"]
        first = block * a["block"]
        last = f.minimum(first + a["block"], a["vectors"])
        zero_row(f, sums, (last - first) * size, lanes)
        begin = share * a["share"]
        with f.loop("piece", begin, f.minimum(begin + a["share"], a["pieces"])) as piece:
            n, top = piece.index // a["bands"], piece.index % a["bands"] * a["per_band"]
            bottom = f.minimum(top + a["per_band"], a["dy_height"])
            with f.loop("strip", 0, a["strips"]) as strip:
                left = strip.index * a["strip"]
                right = f.minimum(left + a["strip"], a["dy_width"])
                with f.loop("y", top, bottom) as y:
                    # Rows of the kernel that lie in the image.
                    start = y.index * a["step_y"] + a["lead_y"]
                    above, below = (
                        f.minimum(f.maximum(end + (a["apart_y"] - 1) - start, 0) // a["apart_y"], a["rows"])
                        for end in (f.constant(0), a["height"])
                    )
                    line = x + n * a["x_n"] + (start + above * a["apart_y"]) * a["x_y"]
                    from_dy, row_step = dy + n * a["dy_n"] + y.index * a["dy_y"], a["apart_y"] * a["x_y"]
                    to = sums + above * (a["taps"] // a["rows"] * lanes)
                    with f.loop("tile", left, right, pixels) as tile:
                        unit = f.minimum(tile.index, a["dy_width"] - pixels)
                        column, skipped = unit * a["step_x"] + a["lead_x"], tile.index - unit
                        whole = (column >= 0) & (column + pattern.span(pixels) <= a["width"]) & skipped.equals(0)
                        function = f.select(whole, f.one_of([inner], unit), f.one_of([edge], unit), "function")
                        f.call(
                            inner, args, line + column * a["x_x"], from_dy + unit * a["dy_x"], to, zeros,
                            below - above, row_step, column, skipped, first, last, at=function,
                        )  # fmt: skip
        with f.when(a["partial"].equals(1), "partial"):
            to = shared + (share * a["vectors"] + first) * size
            with f.loop("sum", 0, (last - first) * size, lanes) as each:
                f.store(f.load(sums + each.index, vector), to + each.index)
        with f.when(a["partial"].equals(0), "whole"), f.loop("v", first, last) as v, f.loop("tap", 0, a["taps"]) as t:
            total = f.load(sums + (v.index - first) * size + t.index * lanes, vector)
            _scatter(f, total, target, f.minimum(v.index * lanes, a["channels"] - lanes), a["taps"], t.index, lanes)
    f.ret()
    return f


def _scatter(f: Function, total: Value, target: Value, channel: Value, taps: Value, tap: Value, lanes: int) -> None:
    """target[channel + lane][tap] = total[lane]"""
    place = target + channel * taps + tap
    for lane in range(lanes):
        f.store(f.lane(total, lane), place)
        place = place + taps


def _tile_function(
    name: str, pattern: Pattern, pixels: int, edge: bool, lanes: int, registers: int, stored: Pointer, ahead: bool
) -> Function:
    """tile(args, x, dy, sums, zeros, rows, row_step, column, skipped, first, last): what `pixels` neighbours of a row
    of dy give to the sums of the vectors `first` to `last` of channels.

    x, dy: at the tile's leftmost column of the first row of the kernel, and at its leftmost pixel, channel 0. rows: of
    the kernel. edge: whether columns may lie outside of the image, and the first pixels be those of another tile
    (`skipped` of them): they are read at `zeros`. ahead: as for `correlation_function`.
    """
    pointers = [("args", PTR), ("x", stored), ("dy", stored), ("sums", PTR), ("zeros", PTR)]
    numbers = [(n, I64) for n in ("rows", "row_step", "column", "skipped", "first", "last")]
    f = Function(name, [*pointers, *numbers], private=True)
    a = job_words(f, WORDS, "channels", "taps", "x_x", "x_y", "dy_x", "dy_y", "width")
    taps, span, vector = len(pattern.columns), pattern.span(pixels), vector_of(lanes)
    zeros, zero = f.arg("zeros").seen_as(stored), f.constant(0.0, vector)
    place = multiples(f, a["x_x"] * stored.bytes, span - 1)
    put = multiples(f, a["dy_x"] * stored.bytes, pixels - 1)
    read = row_reader(f, pattern, pixels, place, a["width"], zeros, lanes, edge)
    skipped = [f.arg("skipped") > output for output in range(pixels)] if edge else []
    groups = taps_in_groups(taps, registers - pixels - 2)
    below = f.arg("x") + ((f.arg("rows") - 1) * f.arg("row_step") + a["x_y"])
    with f.loop("v", f.arg("first"), f.arg("last"), at_least_once=True) as v:
        channel = f.minimum(v.index * lanes, a["channels"] - lanes)
        from_dy, gradients = f.arg("dy") + channel, []
        if ahead:
            # Two vectors share a line: even pixels with the one, odd pixels with the other.
            odd = v.index % 2
            next_x, next_dy = below + (channel + odd * a["x_x"]), from_dy + (a["dy_y"] + odd * a["dy_x"])
            for pixel in range(0, pixels, 2):
                f.prefetch(place(next_x, pixel))
                f.prefetch(put(next_dy, pixel))
        for output in range(pixels):
            dy_at = put(from_dy, output)
            if edge:
                dy_at = f.select(skipped[output], zeros, dy_at, "dy_at")
            gradients.append(f.load(dy_at, vector, f"dy_{output}"))
        to = f.arg("sums") + (v.index - f.arg("first")) * (a["taps"] * lanes)
        with f.loop("row", 0, f.arg("rows"), carry=[f.arg("x") + channel, to]) as row:
            at, total = row.carried
            for group in groups:
                acc = dict.fromkeys(group, zero)
                for pixel, readers in read(at, group):
                    for output, tap in readers:
                        acc[tap] = f.fma(gradients[output], pixel, acc[tap], f"acc_{tap}")
                for tap in group:
                    f.store(f.load(total + tap * lanes, vector) + acc[tap], total + tap * lanes)
            row.carry(at + f.arg("row_step"), total + taps * lanes)
    f.ret()
    return f


def reduce_function(lanes: int) -> Function:
    """The kernel that adds the shares' sums in their order: a vector of channels an item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, vector = f.arg("args"), vector_of(lanes)
    target, shared = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    a: Words = job_words(f, REDUCE_WORDS)
    size = a["taps"] * lanes
    with f.loop("item", f.arg("begin"), f.arg("end")) as item, f.loop("tap", 0, a["taps"]) as tap:
        at = shared + item.index * size + tap.index * lanes
        with f.loop("share", 1, a["shares"], carry=[f.load(at, vector)]) as share:
            more = f.load(at + share.index * (a["vectors"] * size), vector)
            share.carry(share.carried[0] + more)
        channel = f.minimum(item.index * lanes, a["channels"] - lanes)
        _scatter(f, share.results[0], target, channel, a["taps"], tap.index, lanes)
    f.ret()
    return f
