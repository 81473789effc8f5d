"""The code of depthwise weight gradients: images, bands, passes and tiles around the tile of `engine.ir.stencil`."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.algorithms.depthwise_kernels import ask, within
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.rows import copy_row, copy_rows, gather_row, zero_row
from hubel.engine.ir.stencil import Stencil, correlate, load_masks
from hubel.engine.ir.storage import stored_as
from hubel.engine.ir.tile import horizontal_sums

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "multiplier", "block", "images", "share", "images_at_once",
    "tiles", "per_band", "columns", "inner_from", "inner_to", "masks", "lead_y", "lead_x",
    "clear_top", "clear_bottom", "clear_dy",
    "x_n", "x_c", "x_y", "x_x", "height", "width",
    "dy_n", "dy_c", "dy_y", "dy_x", "dy_height", "dy_width",
    "copy_x", "copy_dy", "x_image", "dy_image", "partial",
    "zeros_at", "sums_at", "packed_at", "x_at", "dy_at",
)  # fmt: skip
REDUCE_WORDS = ("numbers", "shares")

Passes = tuple[tuple[int, ...], ...]


# visit(f, words, set, n, count, sums): adds what a set of channels of `count` images from n on gives to its sums.
Visit = Callable[[Function, Words, Value, Value, Value, Value], None]


def items_function(stencil: Stencil, visit: Visit) -> Function:
    """The kernel: the sums of a block of channels over one share of the images an item, into dw or shared memory.

    Channels go in sets, as many as share a vector. Where their number is odd, the last one is done twice.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, size = f.arg("args"), f.arg("scratch"), stencil.weights * stencil.lanes
    a = job_words(f, WORDS)
    zero_row(f, scratch + a["zeros_at"], f.maximum(a["width"], a["dy_width"]), stencil.lanes)
    target = f.select(a["partial"].equals(1), f.word(args, 4, "shared", PTR), f.word(args, 3, "dw", PTR), "target")
    sets = (a["channels"] + (stencil.planes - 1)) // stencil.planes
    blocks = (sets + (a["block"] - 1)) // a["block"]
    begin, sums = f.arg("begin"), scratch + a["sums_at"]
    with f.loop("item", begin, f.arg("end"), carry=[begin % blocks, begin // blocks]) as item:
        block, share = item.carried
        first = block * a["block"]
        last = f.minimum(first + a["block"], sets)
        zero_row(f, sums, (last - first) * size, stencil.lanes)
        image = share * a["share"]
        beyond = f.minimum(image + a["share"], a["images"])
        with f.loop("n", image, beyond, a["images_at_once"]) as n:
            count = f.minimum(a["images_at_once"], beyond - n.index)
            with f.loop("set", first, last, at_least_once=True) as each:
                visit(f, a, each.index, n.index, count, sums + (each.index - first) * size)
        with f.loop("set", first, last, at_least_once=True) as each:
            for i in range(stencil.planes):
                channel = f.minimum(each.index * stencil.planes + i, a["channels"] - 1)
                to = target + (share * a["channels"] + channel) * stencil.weights
                _add_lanes(f, stencil, a, sums + (each.index - first) * size + i * stencil.width, to)
        over = block + 1 >= blocks
        item.carry(f.select(over, 0, block + 1), f.select(over, share + 1, share))
    f.ret()
    return f


def _add_lanes(f: Function, stencil: Stencil, a: Words, sums: Value, target: Value) -> None:
    """The sums of one channel, its lanes added up, go to `target`."""
    lanes, width, packed = stencil.lanes, stencil.width, f.arg("scratch") + a["packed_at"]
    vectors = [f.load(sums + i * lanes, vector_of(width), f"sum_{i}") for i in range(stencil.weights)]
    for i, vector in enumerate(horizontal_sums(f, vectors, width)):
        f.store(vector, packed + i * width)
    copy_row(f, target, packed, f.constant(stencil.weights), lanes)


def correlation_function(stencil: Stencil, passes: Passes, stored: Pointer = PTR) -> Function:
    """The kernel for any plane: bands of its rows, as many as the L1 cache holds."""
    band = _band_function(stencil, passes, stored)

    def visit(f: Function, a: Words, channel: Value, n: Value, count: Value, sums: Value) -> None:
        args, scratch = f.arg("args"), f.arg("scratch")
        x = f.word(args, 0, "x", stored) + n * a["x_n"] + channel // a["multiplier"] * a["x_c"]
        dy = f.word(args, 1, "dy", stored) + n * a["dy_n"] + channel * a["dy_c"]
        with f.loop("t", 0, a["tiles"], a["per_band"]) as t:
            last = f.minimum(t.index + a["per_band"], a["tiles"])
            f.call(band, args, scratch, x, dy, sums, count, t.index, last)

    return items_function(stencil, visit)


def _band_function(stencil: Stencil, passes: Passes, stored: Pointer) -> Function:
    """band(args, scratch, x, dy, sums, count, first, last): adds what these tiles of `count` images give to `sums`."""
    pointers = [("args", PTR), ("scratch", PTR), ("x", stored), ("dy", stored), ("sums", PTR)]
    f = Function("band", [*pointers, ("count", I64), ("first", I64), ("last", I64)], private=True)
    a = job_words(f, WORDS)
    scratch, rows, lanes = f.arg("scratch"), stencil.rows, stencil.lanes
    low, high = f.arg("first") * rows, f.minimum(f.arg("last") * rows, a["dy_height"])
    x_low = f.maximum(low * stencil.step[0] + a["lead_y"], 0)
    reach = stencil.span - stencil.rows * stencil.step[0]
    # Also what the last tile reads beside rows of dy that do not exist: it is multiplied by zeros.
    x_high = f.minimum(f.arg("last") * rows * stencil.step[0] + a["lead_y"] + reach, a["height"])
    count = f.arg("count")
    x = side_by_side(f, a, "x", f.arg("x"), scratch + a["x_at"], count, (x_low, x_high), lanes)
    dy = side_by_side(f, a, "dy", f.arg("dy"), scratch + a["dy_at"], count, (low, high), lanes)
    sums, bounds = f.arg("sums"), _inside(f, stencil, a)
    for loads in passes:
        columns = [stencil.loads[number] + i for number in loads for i in range(stencil.step[1])]
        weights = [tap.weight for tap in stencil.taps if tap.column in columns]
        none = [f.constant(0.0, vector_of(lanes))] * len(weights)
        with f.loop("image", 0, count, carry=none, at_least_once=True) as image:
            at = tuple(base + image.index * step for base, step, _ in (x, dy))
            carried = image.carried
            for part, inside in enumerate((False, True, False)):
                with f.loop("tile", bounds[part], bounds[part + 1], carry=carried) as tile:
                    y, pitches = tile.index * rows, (x[2], dy[2])
                    tile.carry(*_tile_row(f, stencil, a, loads, weights, y, at, pitches, tile.carried, inside))
                carried = tile.results
            image.carry(*carried)
        for weight, total in zip(weights, image.results, strict=True):
            f.store(f.load(sums + weight * lanes, vector_of(lanes)) + total, sums + weight * lanes)
    f.ret()
    return f


def _inside(f: Function, stencil: Stencil, a: Words) -> tuple[Value, Value, Value, Value]:
    """(the first tile, the first all of whose rows lie so far inside that whole vectors may be read, the first below
    that does not, the end).
    """
    first, last, rows = f.arg("first"), f.arg("last"), stencil.rows
    step = rows * stencil.step[0]
    begin = f.maximum(a["clear_top"] - a["lead_y"] + (step - 1), 0) // step
    x_end = f.maximum(a["height"] - a["clear_bottom"] - a["lead_y"] + (step - stencil.span), 0) // step
    dy_end = f.maximum(a["dy_height"] - a["clear_dy"], 0) // rows
    begin = f.minimum(f.maximum(first, begin), last)
    return first, begin, f.maximum(begin, f.minimum(f.minimum(x_end, dy_end), last)), last


def side_by_side(
    f: Function, a: Words, name: str, source: Value, copy: Value, count: Value, rows: tuple[Value, Value], lanes: int
) -> tuple[Value, Value, Value]:
    """(row 0 of the first image, distance of images, distance of rows) of a channel, float32 pixels side by side.

    Where they lie so, or a range of `rows` of `count` images copied, beginning at `copy`. name: "x" or "dy".
    """
    width, (low, high) = a["width" if name == "x" else "dy_width"], rows
    if stored_as(source) is not PTR:
        with f.loop("image", 0, count) as image:
            at = source + image.index * a[f"{name}_n"] + low * a[f"{name}_y"]
            to = copy + image.index * a[f"{name}_image"]
            copy_rows(f, to, at, high - low, width, a[f"{name}_y"], a[f"{name}_x"], lanes)
        return copy + (0 - low * width), a[f"{name}_image"], width
    copied = a[f"copy_{name}"].equals(1)
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
    inside: bool,
) -> list[Value]:
    """All tiles of a row of tiles whose first row of dy is y. inside: whether whole vectors may be read of its rows."""
    zeros = f.arg("scratch") + a["zeros_at"]
    top = y * stencil.step[0] + a["lead_y"]
    base, dy = at[0] + top * pitches[0], at[1] + y * pitches[1]
    if inside:
        ahead = base + pitches[0] * stencil.span, dy + pitches[1] * stencil.rows
        xs = [base + pitches[0] * i for i in range(stencil.span)]
        dys = [dy + pitches[1] * j for j in range(stencil.rows)]
        return _columns(f, stencil, a, loads, weights, lambda i: xs[i], lambda j: dys[j], sums, ahead)
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
    ahead: tuple[Value, Value] | None = None,
) -> list[Value]:
    """From left to right: the masked columns before the inner ones, these, and the masked ones behind them.

    ahead: (input, output gradient) a tile further down, or at the top of the next channel, where lines are asked for;
    whole vectors may be read of the rows then.
    """
    lanes, guarded = stencil.lanes, ahead is None

    def run(first: Value | int, last: Value, masked: bool, sums: list[Value]) -> list[Value]:
        with f.loop("masked" if masked else "whole", first, last, carry=sums) as column:
            x = column.index * lanes
            at = x * stencil.step[1] + a["lead_x"]
            if ahead and 0 in loads:
                ask(f, stencil, ahead[0], column.index, stencil.step)
                ask(f, stencil, ahead[1], column.index)
            masks = load_masks(f, stencil, a["masks"], column.index) if masked else None
            carried = dict(zip(weights, column.carried, strict=True))
            added = correlate(
                f, stencil, loads, lambda i: row(i) + at, lambda j: dy(j) + x, carried, masks,
                lambda i: guarded, lambda j: guarded,
            )  # fmt: skip
            column.carry(*(added[weight] for weight in weights))
        return column.results

    if lanes == 16 and ahead:
        # Masks cost nothing there but for loads.
        return run(0, a["columns"], True, sums)
    sums = run(0, a["inner_from"], True, sums)
    sums = run(a["inner_from"], a["inner_to"], False, sums)
    return run(a["inner_to"], a["columns"], True, sums)


def reduce_function() -> Function:
    """Numbers of the weight gradient an item: the shares' sums, added in order."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    target, shared = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    numbers, shares = job_words(f, REDUCE_WORDS).values()
    with f.loop("i", f.arg("begin"), f.arg("end")) as i:
        with f.loop("share", 1, shares, carry=[f.load(shared + i.index, F32)]) as share:
            share.carry(share.carried[0] + f.load(shared + (share.index * numbers + i.index), F32))
        f.store(share.results[0], target + i.index)
    f.ret()
    return f
