"""What kernels share whose lanes are channels: how pixels come to lie so, and the register tile of weight gradients.

A weight gradient sums over pixels (or tiles of them). With neighbouring channels in the lanes of a vector such a sum is
an outer product for each pixel, and no lanes are added up. All pitches count float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hubel.engine.algorithms.tiling import rows_that_fit, step_cycles
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.rows import zero_row
from hubel.engine.ir.storage import Pointer
from hubel.engine.ir.turn import QUAD, reading, turn_function
from hubel.engine.machine import Machine
from hubel.engine.plan import Tile

# Vectors of the register tile.
WIDTH = 2


def even_share(count: int, most: int, unit: int) -> int:
    """The size of about equal shares of at most so many, in whole units."""
    each = -(-count // -(-count // most))
    return -(-each // unit) * unit


def register_tile(machine: Machine, rows: int) -> Tile:
    """Two vectors wide; of the tiles that need the fewest cycles, that with the most rows."""
    fit = range(1, rows_that_fit(machine, WIDTH) + 1)

    def cycles(r: int) -> float:
        return -(-rows // r) * (step_cycles(machine, r, WIDTH, 1) + 1)

    return Tile(min(fit, key=lambda r: (round(cycles(r), 6), -r)), WIDTH, machine.lanes)


def odd_lines(numbers: int) -> int:
    """At least so many numbers, in an odd number of cache lines: places that far apart fall into different sets."""
    lines = -(-numbers // 16)
    return 16 * (lines + 1 - lines % 2)


def whole_vectors(f: Function, count: Value, lanes: int) -> Value:
    """Vectors that hold so many numbers."""
    return (count + (lanes - 1)) // lanes


def multiples(f: Function, distance: Value, most: int) -> Callable[[Value, int], Value]:
    """place(start, i): `start` moved by i times so many bytes, for 0 ≤ i ≤ most, in the fewest registers: x86 addresses
    scale by 2, 4 and 8 themselves.
    """
    odd = {n: distance * n for n in range(1, most + 1, 2)}

    def place(start: Value, i: int) -> Value:
        if i == 0:
            return start
        scale = min(i & -i, 8)
        return f.offset(start, (odd[i // scale] if i // scale in odd else distance * (i // scale)) * scale, "i8")

    return place


def region_function(lanes: int, fill: Function | None = None, stored: Pointer = PTR) -> Function:
    """region(target, source, channels, y, x, rows, cols, sizes, strides, pitch, ahead): a part of an image, as `fill`
    does it with pixels `lanes` apart.

    `source` is the first channel's pixel (0, 0); (y, x) is the place in the image of the region's first pixel, which
    may lie outside, where there are zeros. fill: the function of a module that calls it elsewhere, too. stored: what
    lies at `source`.
    """
    numbers = ("channels", "y", "x", "rows", "cols", "size_y", "size_x", "stride_c", "stride_y", "stride_x", "pitch")
    parameters = [("target", PTR), ("source", stored), *((n, I64) for n in (*numbers, "ahead"))]
    f = Function("region", parameters, private=True)
    rows, cols, pitch = f.arg("rows"), f.arg("cols"), f.arg("pitch")
    (top, bottom), (left, right) = (
        _inside(f, f.arg(axis), f.arg(f"size_{axis}"), n) for axis, n in (("y", rows), ("x", cols))
    )
    source = f.arg("source") + (f.arg("y") + top) * f.arg("stride_y") + (f.arg("x") + left) * f.arg("stride_x")
    inside = f.arg("target") + top * pitch
    for name, start, stop in (("above", 0, top), ("below", bottom, rows)):
        with f.loop(name, start, stop) as row:
            zero_row(f, f.arg("target") + row.index * pitch, cols * lanes, lanes)
    with f.loop("beside", 0, bottom - top) as row:
        target = inside + row.index * pitch
        zero_row(f, target, left * lanes, lanes)
        zero_row(f, target + right * lanes, (cols - right) * lanes, lanes)
    strides = (f.arg(f"stride_{axis}") for axis in "cyx")
    size = f.arg("channels"), bottom - top, right - left
    fill = fill or fill_function(lanes, stored)
    f.call(fill, inside + left * lanes, source, *size, *strides, pitch, lanes, f.arg("ahead"))
    f.ret()
    return f


def _inside(f: Function, first: Value, size: Value, count: Value) -> tuple[Value, Value]:
    """(begin, end) of the places first + i, 0 ≤ i < count, that lie within the size."""
    begin = f.minimum(f.maximum(0 - first, 0), count)
    return begin, f.maximum(f.minimum(size - first, count), begin)


def fill_function(lanes: int, stored: Pointer = PTR) -> Function:
    """fill(target, source, channels, rows, cols, strides, pitch, apart, ahead): target[row·pitch + col·apart + c] =
    source[row·stride_y + col·stride_x + c·stride_c].

    Of `lanes` channels, `channels` exist, at least one; the others are zeros. What lies `ahead` of what is read is
    asked for.
    """
    numbers = ("channels", "rows", "cols", "stride_c", "stride_y", "stride_x", "pitch", "apart", "ahead")
    parameters = [("target", PTR), ("source", stored), *((n, I64) for n in numbers)]
    f = Function(reading("fill", stored), parameters, private=True)
    rows, cols, apart, vector = f.arg("rows"), f.arg("cols"), f.arg("apart"), vector_of(lanes)
    whole = f.arg("channels") >= lanes
    turned = whole & f.arg("stride_x").equals(1) & (cols >= QUAD) & (rows > 0)
    copied = whole & f.arg("stride_c").equals(1) & f.negate(turned)
    with f.when(turned, "turned"):
        strides = f.arg("stride_c"), f.arg("stride_y"), f.arg("pitch"), apart, f.arg("ahead")
        f.call(turn_function(lanes, stored), f.arg("target"), f.arg("source"), rows, cols, *strides)
    with f.when(copied, "copied"), f.loop("y", 0, rows) as y, f.loop("col", 0, cols) as col:
        place = f.arg("source") + y.index * f.arg("stride_y") + col.index * f.arg("stride_x")
        f.prefetch(place + f.arg("ahead"))
        f.store(f.load(place, vector), f.arg("target") + y.index * f.arg("pitch") + col.index * apart)
    with f.when(f.negate(turned | copied), "single"), f.loop("line", 0, rows) as y:
        target = f.arg("target") + y.index * f.arg("pitch")
        line = f.arg("source") + y.index * f.arg("stride_y")
        with f.loop("zero", 0, cols) as col:
            f.store(f.constant(0.0, vector), target + col.index * apart)
        with f.loop("c", 0, f.minimum(f.arg("channels"), lanes)) as c, f.loop("one", 0, cols) as one:
            pixel = f.load(line + c.index * f.arg("stride_c") + one.index * f.arg("stride_x"), F32)
            f.store(pixel, target + one.index * apart + c.index)
    f.ret()
    return f


def turn_back_function(lanes: int, fill: Function) -> Function:
    """turn_back(target, sums, pixels, count, stride, stride_x): target[i·stride + pixel·stride_x] =
    sums[pixel·lanes + i], for i < count: images, or channels.

    Whole vectors of pixels, the last overlapping the one before. Fewer pixels than lanes, or pixels that lie apart, go
    one by one.
    """
    parameters = [("target", PTR), ("sums", PTR), *((n, I64) for n in ("pixels", "count", "stride", "stride_x"))]
    f = Function("turn_back", parameters, private=True)
    target, sums_at, pixels, count, stride, stride_x = (f.arg(n) for n, _ in parameters)
    last = pixels - lanes
    vectors = (last >= 0) & stride_x.equals(1)
    with f.when(vectors, "vectors"), f.loop("q", 0, pixels, lanes) as q:
        at = f.minimum(q.index, last)
        f.call(fill, target + at, sums_at + at * lanes, lanes, 1, count, lanes, 0, 1, 0, stride, 0)
    with f.when(f.negate(vectors), "single"), f.loop("i", 0, count) as i, f.loop("p", 0, pixels) as p:
        f.store(f.load(sums_at + p.index * lanes + i.index, F32), target + i.index * stride + p.index * stride_x)
    f.ret()
    return f


# Lines that a register tile asks for before it skips to the next row of them.
ASKED = 14


def line_of(stored: Pointer) -> int:
    """Numbers in a cache line."""
    return 64 // stored.bytes


def product_function(rows: int, vectors: int, lanes: int) -> Function:
    """product(w, x, c, ahead, terms, w_pitch, x_pitch, add, skip): the sums of one tile of rows and lanes.

    c[v·rows·lanes + r·lanes + lane] (+)= Σ_k w[k·w_pitch + r] · x[k·x_pitch + v·lanes + lane]

    With each term a line is asked for that is read later: those from `ahead` on, `skip` numbers left out after every
    `ASKED` lines. add: 0 to overwrite c.
    """
    pointers = [("w", PTR), ("x", PTR), ("c", PTR), ("ahead", PTR)]
    numbers = [(n, I64) for n in ("terms", "w_pitch", "x_pitch", "add", "skip")]
    f = Function(f"product_{vectors}", [*pointers, *numbers], private=True)
    vector = vector_of(lanes)
    zero = f.constant(0.0, vector)
    for line in range(0, rows * vectors * lanes, 16):
        f.prefetch(f.arg("c") + line, write=True)
    start = [f.arg("w"), f.arg("x"), f.arg("ahead"), *[zero] * (rows * vectors)]
    with f.loop("lines", 0, f.arg("terms"), ASKED, carry=start, at_least_once=True) as lines:
        count = f.minimum(f.arg("terms") - lines.index, ASKED)
        with f.loop("k", 0, count, carry=lines.carried, at_least_once=True) as k:
            w, x, ahead, *acc = k.carried
            f.prefetch(ahead)
            pixels = [f.load(x + v * lanes, vector, f"pixels_{v}") for v in range(vectors)]
            for r in range(rows):
                weight = f.splat(f.load(w + r, F32, f"w_{r}"), lanes, f"weight_{r}")
                for v in range(vectors):
                    acc[r * vectors + v] = f.fma(weight, pixels[v], acc[r * vectors + v], f"acc_{r}_{v}")
            k.carry(w + f.arg("w_pitch"), x + f.arg("x_pitch"), ahead + 16, *acc)
        w, x, ahead, *acc = k.results
        lines.carry(w, x, ahead + f.arg("skip"), *acc)
    add_to_sums(f, f.arg("c"), lines.results[3:], rows, vectors, lanes)
    f.ret()
    return f


def add_to_sums(f: Function, c: Value, sums: Sequence[Value], rows: int, vectors: int, lanes: int) -> None:
    """c[v·rows·lanes + r·lanes + lane] = the sums of a register tile, added to what is there unless f's `add` is 0."""
    for add in (0, 1):
        with f.when(f.arg("add").equals(add), "add" if add else "overwrite"):
            for v in range(vectors):
                for r in range(rows):
                    place, total = c + (v * rows + r) * lanes, sums[r * vectors + v]
                    f.store(f.load(place, vector_of(lanes)) + total if add else total, place)
