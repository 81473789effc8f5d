"""Register tiles: the innermost loops, where all the arithmetic of a convolution happens.

An *outer-product tile* keeps rows × vectors accumulators in registers. Each step of the sum takes one weight for each
row and `vectors` neighbouring vectors of pixels:

    for k in terms:  for r in rows:  for v in vectors:  acc[r][v] += w[k][r] · x[offset[k] + v]

A *panel tile* does the same where the pixels of all terms lie at one distance, and needs no table.

A *dot-product tile* multiplies rows of one matrix with shifted rows of another, lane by lane, and adds the lanes up
at the end:

    for q in length:  for a in left:  for b in right:  acc[a][b] += left[a][q] · right[offset[b] + q]

`offset` is a table made beside the plan: it holds where each term of the sum starts, so that one tile serves every
kernel size, stride, dilation and number of dimensions.
"""

from __future__ import annotations

from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.storage import Pointer

# What outer_product_tile does with its sums: flags of `mode`.
ADD, BIAS = 1, 2


def outer_product_tile(rows: int, vectors: int, lanes: int, spaced: bool = False) -> Function:
    """tile(w, x, offsets, terms, c, pitch, mode, bias, ahead, ahead_offsets): c[r·pitch + lane] gets the sums of one
    tile.

    w holds `rows` weights a term, next to each other. `mode` is 0 to overwrite c, ADD to add to it, BIAS to add
    bias[r] last. With each term the line at ahead[ahead_offsets[k]] is asked for: pixels needed later, in rows too
    short for the processor to foresee. c is asked for before the sum begins, so that its lines are there when it
    ends.

    `spaced`: spaced_<vectors>(..., apart) takes vectors of pixels that lie `apart` numbers from each other.
    """
    pointers = [(n, PTR) for n in ("w", "x", "offsets", "c", "bias", "ahead", "ahead_offsets")]
    numbers = [(n, I64) for n in ("terms", "pitch", "mode", *(("apart",) if spaced else ()))]
    f = Function(f"spaced_{vectors}" if spaced else "tile", [*pointers, *numbers], private=True)
    places = [f.arg("apart") * v if spaced else v * lanes for v in range(vectors)]
    _ask_for_sums(f, rows, vectors, lanes)
    zero = f.constant(0.0, vector_of(lanes))
    with f.loop("k", 0, f.arg("terms"), carry=[f.arg("w")] + [zero] * (rows * vectors)) as k:
        w, *acc = k.carried
        x = f.arg("x") + f.load(f.offset(f.arg("offsets"), k.index, I64, "entry"), I64, "offset")
        f.prefetch(f.arg("ahead") + f.load(f.offset(f.arg("ahead_offsets"), k.index, I64, "entry"), I64, "offset"))
        k.carry(w + rows, *_outer_product(f, w, [x + place for place in places], acc, rows, lanes))
    _put_sums(f, k.results[1:], rows, vectors, lanes)
    f.ret()
    return f


def panel_tile(
    rows: int, vectors: int, lanes: int, odd: bool = False, stored: Pointer = PTR, fresh: int | None = None
) -> Function:
    """panel_<vectors>(w, x, c, bias, ahead, terms, x_pitch, pitch, ahead_pitch, mode): as outer_product_tile, with
    the pixels of term k at x[k·x_pitch] and the line asked for at ahead[k·ahead_pitch].

    `odd`: odd_<vectors> does one pixel more, behind the vectors: all its rows are the lanes of one accumulator.
    `stored`: what lies there. The lines come into L2: those of a whole run would drive out of L1 what is read.

    `fresh`: fresh_<vectors>(w, x, c, bias, ahead, panel, ...) reads pixels as they are stored, and leaves them at
    panel[k·fresh] for the tiles behind it.
    """
    pointers = [("w", PTR), ("x", stored if fresh else PTR), ("c", PTR), ("bias", PTR), ("ahead", stored)]
    pointers += [("panel", PTR)] if fresh else []
    numbers = [(n, I64) for n in ("terms", "x_pitch", "pitch", "ahead_pitch", "mode")]
    f = Function(f"{'fresh' if fresh else 'odd' if odd else 'panel'}_{vectors}", [*pointers, *numbers], private=True)
    _ask_for_sums(f, rows, vectors, lanes)
    zero = f.constant(0.0, vector_of(lanes))
    column = min(n for n in (4, 8, 16) if n >= min(rows, 16))
    mask = f.lanes_below(f.constant(rows), column) if odd and rows < column else None
    start = [f.arg("w"), f.arg("x"), f.arg("ahead"), *[zero] * (rows * vectors)]
    start += [f.constant(0.0, vector_of(column))] if odd else []
    start += [f.arg("panel")] if fresh else []
    with f.loop("k", 0, f.arg("terms"), carry=start, at_least_once=True) as k:
        w, x, ahead, *acc = k.carried
        panel = acc.pop() if fresh else None
        f.prefetch(ahead, level=2)
        after = _outer_product(f, w, [x + v * lanes for v in range(vectors)], acc, rows, lanes, panel)
        if odd:
            weights = f.load_masked(w, mask, column) if mask else f.load(w, vector_of(column), "weights")
            pixel = f.splat(f.load(x + vectors * lanes, F32, "pixel"), column, "pixel")
            after.append(f.fma(weights, pixel, acc[-1], "acc_odd"))
        after += [panel + fresh] if panel and fresh else []
        k.carry(w + rows, x + f.arg("x_pitch"), ahead + f.arg("ahead_pitch"), *after)
    sums = k.results[3:]
    _put_sums(f, sums[: rows * vectors], rows, vectors, lanes, sums[-1] if odd else None)
    f.ret()
    return f


def _ask_for_sums(f: Function, rows: int, vectors: int, lanes: int) -> None:
    for r in range(rows):
        for line in range(max(1, vectors * lanes // 16)):
            f.prefetch(f.arg("c") + f.arg("pitch") * r + line * 16, write=True)


def _outer_product(
    f: Function, w: Value, places: list[Value], sums: list[Value], rows: int, lanes: int, panel: Value | None = None
) -> list[Value]:
    """The sums after one more term: rows of weights at w, a vector of pixels at each place, left at `panel` too."""
    pixels = [f.load(place, vector_of(lanes), f"pixels_{v}") for v, place in enumerate(places)]
    if panel:
        for v, x in enumerate(pixels):
            f.store(x, panel + v * lanes)
    after = []
    for r in range(rows):
        weight = f.splat(f.load(w + r, F32, f"w_{r}"), lanes, f"weight_{r}")
        for v, x in enumerate(pixels):
            after.append(f.fma(weight, x, sums[r * len(pixels) + v], f"acc_{r}_{v}"))
    return after


def _put_sums(f: Function, sums: list[Value], rows: int, vectors: int, lanes: int, column: Value | None = None) -> None:
    """c[r·pitch + lane] = or += the sums, bias[r] added last, as `mode` says; behind them lane r of the column."""
    for mode in (0, ADD, BIAS, ADD | BIAS):
        with f.when(f.arg("mode").equals(mode), f"mode{mode}"):
            for r in range(rows):
                row = f.arg("c") + f.arg("pitch") * r
                bias = f.load(f.arg("bias") + r, F32, "bias") if mode & BIAS else None
                biases = f.splat(bias, lanes) if bias else None
                pieces = [(sums[r * vectors + v], row + v * lanes, biases) for v in range(vectors)]
                if column:
                    pieces.append((f.lane(column, r), row + vectors * lanes, bias))
                for total, place, addend in pieces:
                    if mode & ADD:
                        total = f.load(place, total.type) + total
                    f.store(total if addend is None else total + addend, place)


def dot_product_tile(left: int, right: int, lanes: int) -> Function:
    """dots(a, a_pitch, b, offsets, length, images, image_pitch, sums): over all images and q < length,
    sums[i·right + j] += Σ a[image][i·a_pitch + q] · b[image][offsets[j] + q].

    `length` is a multiple of the lanes. The sums are stored as ⌈left·right ∕ lanes⌉ whole vectors.
    """
    pointers = [(n, PTR) for n in ("a", "b", "offsets", "sums")]
    f = Function("dots", [*pointers, *((n, I64) for n in ("a_pitch", "length", "images", "image_pitch"))], private=True)
    vector = vector_of(lanes)
    offsets = [f.load(f.offset(f.arg("offsets"), j, I64), I64, f"offset_{j}") for j in range(right)]
    with f.loop("image", 0, f.arg("images"), carry=[f.constant(0.0, vector)] * (left * right)) as image:
        first = image.index * f.arg("image_pitch")
        starts_a = [f.arg("a") + first + f.arg("a_pitch") * i for i in range(left)]
        starts_b = [f.arg("b") + first + offset for offset in offsets]
        with f.loop("q", 0, f.arg("length"), lanes, carry=image.carried) as q:
            acc = list(q.carried)
            a = [f.load(start + q.index, vector, f"a_{i}") for i, start in enumerate(starts_a)]
            for j, start in enumerate(starts_b):
                b = f.load(start + q.index, vector, f"b_{j}")
                for i in range(left):
                    acc[i * right + j] = f.fma(a[i], b, acc[i * right + j], f"acc_{i}_{j}")
            q.carry(*acc)
        image.carry(*q.results)
    for i, total in enumerate(horizontal_sums(f, image.results, lanes)):
        place = f.arg("sums") + i * lanes
        f.store(f.load(place, vector) + total, place)
    f.ret()
    return f


def horizontal_sums(f: Function, vectors: list[Value], lanes: int) -> list[Value]:
    """The sum over the lanes of each vector, packed: lane i of result n is the sum of vector n·lanes + i.

    Two vectors are folded into one until one is left: 3 instructions a vector, not 2·log₂(lanes). Pairing vector i
    with vector i + half each time leaves the sums in order.
    """
    packed = []
    zero = f.constant(0.0, vector_of(lanes))
    for start in range(0, len(vectors), lanes):
        group = vectors[start : start + lanes]
        group += [zero] * (lanes - len(group))
        span = lanes
        while span > 1:
            half = len(group) // 2
            pairs = zip(group[:half], group[half:], strict=True)
            group = [_fold(f, a, b, span, lanes) if not (a is zero and b is zero) else zero for a, b in pairs]
            span //= 2
        packed.append(group[0])
    return packed


def _fold(f: Function, a: Value, b: Value, span: int, lanes: int) -> Value:
    """a and b hold groups of `span` partial sums: each group's halves are added, a's groups interleaved with b's."""
    half = span // 2
    starts = [origin + base for base in range(0, lanes, span) for origin in (0, lanes)]
    lower = [start + i for start in starts for i in range(half)]
    return f.shuffle(a, b, lower, "lower") + f.shuffle(a, b, [i + half for i in lower], "upper")
