"""The code of depthwise weight gradients with channels in the lanes: strips, rows, and runs of tiles along a row."""

from __future__ import annotations

from hubel.engine.algorithms.depthwise_channels_kernels import Pattern, multiples, taps_in_groups
from hubel.engine.algorithms.depthwise_kernels import within
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.rows import zero_row

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "vectors", "block", "blocks", "pieces", "share", "bands", "per_band", "strips", "strip",
    "taps", "rows", "lead_y", "apart_y", "lead_x", "step_y", "step_x", "height", "width", "dy_height", "dy_width",
    "x_n", "x_y", "x_x", "dy_n", "dy_y", "dy_x", "swept", "partial", "zeros_at", "sums_at",
)  # fmt: skip
REDUCE_WORDS = ("channels", "vectors", "taps", "shares")
# Sums that are under way at a time, so that none waits for the one before it: four cycles, two a cycle.
CHAINS = 8


def correlation_function(pattern: Pattern, pixels: int, lanes: int, registers: int, stored: Pointer = PTR) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; the sums of a block of channels over one share of the pieces, a
    band of rows of an image each, an item.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    x, dy = f.word(args, 0, "x", stored), f.word(args, 1, "dy", stored)
    shared, target = f.word(args, 4, "shared", PTR), f.word(args, 3, "dw", PTR)
    a = job_words(f, WORDS)
    zeros, sums = scratch + a["zeros_at"], scratch + a["sums_at"]
    zero_row(f, zeros, f.constant(lanes), lanes)
    rows, size, vector = _rows_function(pattern, pixels, lanes, registers, stored), a["taps"] * lanes, vector_of(lanes)
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
                with f.loop("y", top, bottom, a["swept"]) as y, f.loop("v", first, last) as v:
                    channel = f.minimum(v.index * lanes, a["channels"] - lanes)
                    from_x, from_dy = x + n * a["x_n"] + channel, dy + n * a["dy_n"] + channel
                    to = sums + (v.index - first) * size
                    below = f.minimum(y.index + a["swept"], bottom)
                    f.call(rows, args, from_x, from_dy, to, zeros, y.index, below, left, right)
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


def _rows_function(pattern: Pattern, pixels: int, lanes: int, registers: int, stored: Pointer) -> Function:
    """rows(args, x, dy, sums, zeros, top, bottom, left, right): what rows of dy, from pixel `left` to `right`, give to
    the sums of a vector of channels. x, dy: the image's first pixels.
    """
    pointers = [("args", PTR), ("x", stored), ("dy", stored), ("sums", PTR), ("zeros", PTR)]
    f = Function("rows", [*pointers, *((n, I64) for n in ("top", "bottom", "left", "right"))], private=True)
    names = ("rows", "lead_y", "apart_y", "lead_x", "step_y", "step_x", "height", "width", "dy_width")
    a = job_words(f, WORDS, *names, "x_y", "x_x", "dy_y", "dy_x")
    taps, span = len(pattern.columns), pattern.span(pixels)
    place = multiples(f, a["x_x"] * stored.bytes, span - 1)
    put = multiples(f, a["dy_x"] * stored.bytes, pixels - 1)
    left, right = f.arg("left"), f.arg("right")
    # Tiles from the first whose columns lie in the image to the last whose columns, and pixels of dy, do.
    missing = f.maximum((a["step_x"] - 1) - a["lead_x"], 0) // a["step_x"] - left
    middle = f.minimum(left + (f.maximum(missing, 0) + (pixels - 1)) // pixels * pixels, right)
    reach = f.maximum(a["width"] - a["lead_x"] - span + a["step_x"], 0) // a["step_x"] + (pixels - 1)
    there = middle + f.maximum(f.minimum(right, reach) - middle, 0) // pixels * pixels
    zeros, zero = f.arg("zeros").seen_as(stored), f.constant(0.0, vector_of(lanes))

    def tile(rows: tuple[Value, Value], acc: list[Value], index: Value, group: range, kind: str) -> list[Value]:
        """The sums after one more tile. rows: of x and of dy."""
        (row, line), sets, edge = rows, len(acc) // len(group), kind != "inner"
        # One tile at the left has all columns that are missing there, and pixels of dy of its own.
        again = kind == "right" or (edge and pattern.left > pixels * pattern.step)
        unit = f.minimum(index, a["dy_width"] - pixels) if again else index
        column = unit * a["step_x"] + a["lead_x"]
        at, from_dy = row + column * a["x_x"], line + unit * a["dy_x"]
        gradients: dict[int, Value] = {}
        acc = list(acc)
        for c, readers in pattern.readers(pixels, group).items():
            pixel_at = place(at, c)
            if edge and (c < pattern.left or c >= span - pattern.right):
                pixel_at = f.select(within(column + c, a["width"]), pixel_at, zeros, "pixel_at")
            pixel = f.load(pixel_at, vector_of(lanes), f"x_{c}")
            for output, tap in readers:
                if output not in gradients:
                    dy_at = put(from_dy, output)
                    if again:
                        counted = (unit + output >= index) & (unit + output < right)
                        dy_at = f.select(counted, dy_at, zeros, "dy_at")
                    gradients[output] = f.load(dy_at, vector_of(lanes), f"dy_{output}")
                chain = output % sets * len(group) + tap - group[0]
                acc[chain] = f.fma(gradients[output], pixel, acc[chain], f"acc_{tap}")
        return acc

    for group in taps_in_groups(taps, max(1, (registers - 2) // 2)):
        sets = min(pixels, -(-CHAINS // len(group)))
        if len(group) * (sets + 1) + 1 > registers:
            sets = max(1, (registers - 1) // len(group) - 1)
        with f.loop("ky", 0, a["rows"]) as ky:
            # Rows of dy that meet this row of the kernel within the image.
            start = ky.index * a["apart_y"] + a["lead_y"]
            above = f.maximum(f.maximum((a["step_y"] - 1) - start, 0) // a["step_y"], f.arg("top"))
            reached = f.maximum(a["height"] - start + (a["step_y"] - 1), 0) // a["step_y"]
            last, acc = f.minimum(reached, f.arg("bottom")), [zero] * (len(group) * sets)
            # One after the other for all rows: the sums then share the registers with one kind of tile alone.
            for name, begin, end in (("left", left, middle), ("inner", middle, there), ("right", there, right)):
                with f.loop("y", above, f.select(begin < end, last, above), carry=acc) as y:
                    row = f.arg("x") + (y.index * a["step_y"] + start) * a["x_y"]
                    line = f.arg("dy") + y.index * a["dy_y"]
                    with f.loop(name, begin, end, pixels, carry=y.carried, at_least_once=True) as along:
                        along.carry(*tile((row, line), along.carried, along.index, group, name))
                    y.carry(*along.results)
                acc = y.results
            to = f.arg("sums") + (ky.index * taps + group[0]) * lanes
            for i in range(len(group)):
                total = acc[i]
                for n in range(1, sets):
                    total = total + acc[n * len(group) + i]
                f.store(f.load(to + i * lanes, vector_of(lanes)) + total, to + i * lanes)
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
