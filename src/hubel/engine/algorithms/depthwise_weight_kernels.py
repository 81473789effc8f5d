"""The code of depthwise weight gradients: images, bands, passes and tiles around the tile of `engine.ir.stencil`."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.depthwise_kernels import Words, within
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.rows import copy_row, gather_row, zero_row
from hubel.engine.ir.stencil import Stencil, correlate, load_masks
from hubel.engine.ir.tile import horizontal_sums
from hubel.engine.threads import RESERVED_WORDS

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "multiplier", "images", "share", "images_at_once",
    "tiles", "per_band", "columns", "inner_from", "inner_to", "masks", "lead_y", "lead_x",
    "x_n", "x_c", "x_y", "x_x", "height", "width",
    "dy_n", "dy_c", "dy_y", "dy_x", "dy_height", "dy_width",
    "copy_x", "copy_dy", "x_image", "dy_image", "partial",
    "zeros_at", "sums_at", "x_at", "dy_at",
)  # fmt: skip
REDUCE_WORDS = ("numbers", "shares")

Passes = tuple[tuple[int, ...], ...]


def correlation_function(stencil: Stencil, passes: Passes) -> Function:
    """The kernel: the sums of one output channel over one share of the images an item, into dw or shared memory."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), stencil.lanes
    x, dy, dw, shared = (f.word(args, i, n, PTR) for i, n in ((0, "x"), (1, "dy"), (3, "dw"), (4, "shared")))
    a = Words(f, WORDS)
    band = _band_function(stencil, passes)
    zeros, sums = scratch + a["zeros_at"], scratch + a["sums_at"]
    zero_row(f, zeros, f.maximum(a["width"], a["dy_width"]), lanes)
    target = f.select(a["partial"].equals(1), shared, dw, "target")
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        channel, share = item.index % a["channels"], item.index // a["channels"]
        x_c = x + channel // a["multiplier"] * a["x_c"]
        dy_c = dy + channel * a["dy_c"]
        zero_row(f, sums, f.constant(stencil.weights * lanes), lanes)
        image = share * a["share"]
        beyond = f.minimum(image + a["share"], a["images"])
        with f.loop("n", image, beyond, a["images_at_once"]) as n:
            count = f.minimum(a["images_at_once"], beyond - n.index)
            with f.loop("t", 0, a["tiles"], a["per_band"]) as t:
                last = f.minimum(t.index + a["per_band"], a["tiles"])
                f.call(band, args, scratch, x_c + n.index * a["x_n"], dy_c + n.index * a["dy_n"], count, t.index, last)
        vectors = [f.load(sums + i * lanes, vector_of(lanes), f"sum_{i}") for i in range(stencil.weights)]
        for i, packed in enumerate(horizontal_sums(f, vectors, lanes)):
            f.store(packed, sums + (stencil.weights + i) * lanes)
        copy_row(
            f, target + item.index * stencil.weights, sums + stencil.weights * lanes, f.constant(stencil.weights), lanes
        )
    f.ret()
    return f


def _band_function(stencil: Stencil, passes: Passes) -> Function:
    """band(args, scratch, x, dy, count, first, last): adds what these tiles of `count` images give to the sums."""
    pointers = [(n, PTR) for n in ("args", "scratch", "x", "dy")]
    f = Function("band", [*pointers, ("count", I64), ("first", I64), ("last", I64)], private=True)
    a = Words(f, WORDS)
    scratch, rows, lanes = f.arg("scratch"), stencil.rows, stencil.lanes
    low, high = f.arg("first") * rows, f.minimum(f.arg("last") * rows, a["dy_height"])
    x_low = f.maximum(low * stencil.step[0] + a["lead_y"], 0)
    reach = stencil.span - stencil.rows * stencil.step[0]
    # Also what the last tile reads beside rows of dy that do not exist: it is multiplied by zeros.
    x_high = f.minimum(f.arg("last") * rows * stencil.step[0] + a["lead_y"] + reach, a["height"])
    count = f.arg("count")
    x = side_by_side(f, a, "x", f.arg("x"), scratch + a["x_at"], count, (x_low, x_high))
    dy = side_by_side(f, a, "dy", f.arg("dy"), scratch + a["dy_at"], count, (low, high))
    sums = scratch + a["sums_at"]
    for loads in passes:
        columns = [stencil.loads[number] + i for number in loads for i in range(stencil.step[1])]
        weights = [tap.weight for tap in stencil.taps if tap.column in columns]
        none = [f.constant(0.0, vector_of(lanes))] * len(weights)
        with f.loop("image", 0, count, carry=none, at_least_once=True) as image:
            with f.loop("tile", f.arg("first"), f.arg("last"), carry=image.carried, at_least_once=True) as tile:
                at = tuple(base + image.index * step for base, step, _ in (x, dy))
                pitches = x[2], dy[2]
                tile.carry(*_tile_row(f, stencil, a, loads, weights, tile.index * rows, at, pitches, tile.carried))
            image.carry(*tile.results)
        for weight, total in zip(weights, image.results, strict=True):
            f.store(f.load(sums + weight * lanes, vector_of(lanes)) + total, sums + weight * lanes)
    f.ret()
    return f


def side_by_side(
    f: Function, a: Words, name: str, source: Value, copy: Value, count: Value, rows: tuple[Value, Value]
) -> tuple[Value, Value, Value]:
    """(row 0 of the first image, distance of images, distance of rows) of a channel with pixels side by side.

    Where they lie so, or a range of `rows` of `count` images copied, beginning at `copy`. name: "x" or "dy".
    """
    copied = a[f"copy_{name}"].equals(1)
    width, (low, high) = a["width" if name == "x" else "dy_width"], rows
    copy = copy + (0 - low * width)
    with f.when(copied, f"copy_{name}"), f.loop("image", 0, count) as image, f.loop("line", low, high) as line:
        at = source + image.index * a[f"{name}_n"] + line.index * a[f"{name}_y"]
        gather_row(f, copy + image.index * a[f"{name}_image"] + line.index * width, at, width, a[f"{name}_x"])
    return (
        f.select(copied, copy, source, name),
        f.select(copied, a[f"{name}_image"], a[f"{name}_n"], f"{name}_step"),
        f.select(copied, width, a[f"{name}_y"], f"{name}_pitch"),
    )


def _tile_row(
    f: Function,
    stencil: Stencil,
    a: Words,
    loads: tuple[int, ...],
    weights: list[int],
    y: Value,
    at: tuple[Value, ...],
    pitches: tuple[Value, Value],
    sums: list[Value],
) -> list[Value]:
    """All tiles of a row of tiles whose first row of dy is y."""
    zeros = f.arg("scratch") + a["zeros_at"]
    top = y * stencil.step[0] + a["lead_y"]
    base, dy = at[0] + top * pitches[0], at[1] + y * pitches[1]
    xs = [f.select(within(top + i, a["height"]), base + pitches[0] * i, zeros, f"row_{i}") for i in range(stencil.span)]
    dys = [f.select(y + j < a["dy_height"], dy + pitches[1] * j, zeros, f"dy_{j}") for j in range(stencil.rows)]
    return _columns(f, stencil, a, loads, weights, lambda i: xs[i], lambda j: dys[j], sums)


def _columns(
    f: Function,
    stencil: Stencil,
    a: Words,
    loads: tuple[int, ...],
    weights: list[int],
    row: Callable[[int], Value],
    dy: Callable[[int], Value],
    sums: list[Value],
) -> list[Value]:
    """From left to right: the masked columns before the inner ones, these, and the masked ones behind them."""
    lanes = stencil.lanes

    def run(first: Value | int, last: Value, masked: bool, sums: list[Value]) -> list[Value]:
        with f.loop("masked" if masked else "whole", first, last, carry=sums) as column:
            x = column.index * lanes
            at = x * stencil.step[1] + a["lead_x"]
            masks = load_masks(f, stencil, a["masks"], column.index) if masked else None
            carried = dict(zip(weights, column.carried, strict=True))
            added = correlate(f, stencil, loads, lambda i: row(i) + at, lambda j: dy(j) + x, carried, masks)
            column.carry(*(added[weight] for weight in weights))
        return column.results

    sums = run(0, a["inner_from"], True, sums)
    sums = run(a["inner_from"], a["inner_to"], False, sums)
    return run(a["inner_to"], a["columns"], True, sums)


def reduce_function() -> Function:
    """Numbers of the weight gradient an item: the shares' sums, added in order."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    target, shared = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    numbers, shares = (f.word(args, RESERVED_WORDS + i, name) for i, name in enumerate(REDUCE_WORDS))
    with f.loop("i", f.arg("begin"), f.arg("end")) as i:
        with f.loop("share", 1, shares, carry=[f.load(shared + i.index, F32)]) as share:
            share.carry(share.carried[0] + f.load(shared + (share.index * numbers + i.index), F32))
        f.store(share.results[0], target + i.index)
    f.ret()
    return f
