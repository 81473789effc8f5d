"""The code of depthwise kernels: planes, tiles and columns around the register tile of `hubel.engine.ir.stencil`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.epilogue import PLAIN, Channels, Ending, Finish
from hubel.engine.ir.rows import copy_rows, gather_row, store_rows_function, zero_row
from hubel.engine.ir.stencil import Masks, Stencil, halves, load_masks, load_weight, outputs, sweep
from hubel.engine.ir.storage import stored_as

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "multiplier", "bands", "per_band", "tiles", "units_y", "units_x", "lead_y", "lead_x",
    "in_n", "in_c", "in_y", "in_x", "height", "width",
    "out_n", "out_c", "out_y", "out_x", "out_height", "out_width",
    "w_o", "w_y", "w_x", "k_y", "k_x",
    "columns", "inner_from", "inner_to", "masks",
    "clear_top", "clear_bottom", "copy_in", "copy_out", "copy_weights", "out_pitch",
    "zeros_at", "dump_at", "weights_at", "in_at", "out_at",
)  # fmt: skip


def depthwise_function(stencil: Stencil, plane: Function | None = None, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`, a band of rows of one channel of one image an item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", ending.stored)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(
        f,
        WORDS,
        "channels",
        "multiplier",
        "bands",
        "per_band",
        "tiles",
        "in_n",
        "in_c",
        "out_n",
        "out_c",
        "w_o",
        "width",
        "zeros_at",
    )
    plane = plane or _plane_function(stencil, ending)
    zeros = scratch + a["zeros_at"]
    zero_row(f, zeros, a["width"], stencil.lanes)
    begin = f.arg("begin")
    rest = begin // a["bands"]
    start = [begin % a["bands"], rest % a["channels"], rest // a["channels"]]
    with f.loop("item", begin, f.arg("end"), carry=start) as item:
        band, c, n = item.carried
        from_c = source + n * a["in_n"] + c * a["in_c"]
        first = band * a["per_band"]
        last = f.minimum(first + a["per_band"], a["tiles"])
        with f.loop("m", 0, a["multiplier"], at_least_once=True) as m:
            channel = c * a["multiplier"] + m.index
            of_channel = operands.further(channel).arguments
            to_c = target + n * a["out_n"] + channel * a["out_c"]
            f.call(plane, args, scratch, from_c, to_c, weights + channel * a["w_o"], *of_channel, first, last)
        following = band + 1
        over = following >= a["bands"]
        next_c = f.select(over, c + 1, c, "next_c")
        beyond = next_c >= a["channels"]
        item.carry(f.select(over, 0, following), f.select(beyond, 0, next_c), f.select(beyond, n + 1, n))
    f.ret()
    return f


def plane_parameters(ending: Ending) -> list[tuple[str, str]]:
    """(args, scratch, source, target, weights, operands, first, last)"""
    pointers = [("args", PTR), ("scratch", PTR), *((n, ending.stored) for n in ("source", "target", "weights"))]
    return [*pointers, *ending.parameters, ("first", I64), ("last", I64)]


def first_sum(channels: Sequence[Channels], stencil: Stencil) -> Value:
    """What sums begin with: the bias of each plane, where sums are finished in registers."""
    f = channels[0].f
    if not channels[0].ending.local:
        return f.constant(0.0, vector_of(stencil.lanes))
    splats = [f.splat(each.bias(), stencil.lanes, "bias") for each in channels]
    return splats[0] if len(splats) == 1 else halves(f, *splats)


def finishes_of(channels: Sequence[Channels], stencil: Stencil) -> list[Finish]:
    """What is done to the sums of each plane before they are stored: in scratch for other endings than local ones."""
    if not channels[0].ending.local:
        return []
    return [each.load([stencil.stored[1]], bias=False) for each in channels]


def read_as(stored: Pointer, lanes: int) -> Pointer:
    """What the register tile reads. Only AVX-512 loads numbers of 16 bits under a mask: elsewhere rows are widened."""
    return stored if lanes == 16 else PTR


def written_as(ending: Ending) -> Pointer:
    """What the register tile writes: a residual's place is known of outputs alone, not of rows in scratch."""
    return ending.stored if ending.local else PTR


def _plane_function(stencil: Stencil, ending: Ending) -> Function:
    """plane(...): tiles `first` to `last` of one channel (`plane_parameters`)."""
    f = Function("plane", plane_parameters(ending), private=True)
    a = job_words(f, WORDS)
    scratch, rows = f.arg("scratch"), stencil.rows
    zeros = (scratch + a["zeros_at"]).seen_as(read_as(ending.stored, stencil.lanes))
    dump = (scratch + a["dump_at"]).seen_as(written_as(ending))
    channels = [ending.given(f)]

    def place(tile: Value) -> Value:
        """The first row of a tile; the last tile overlaps the one before it instead of running over the end."""
        return f.maximum(f.minimum(tile * rows, a["units_y"] - rows), 0)

    low = place(f.arg("first"))
    high = f.minimum(f.arg("last") * rows, a["units_y"])
    weights = own_weights(f, a, f.arg("weights"), scratch + a["weights_at"], stencil.lanes)
    top = f.maximum(low * stencil.step[0] + a["lead_y"], 0)
    reach = stencil.span - rows * stencil.step[0] + a["lead_y"]
    bottom = f.minimum(f.maximum(high, low + rows) * stencil.step[0] + reach, a["height"])
    in_at = (scratch + a["in_at"]).seen_as(read_as(ending.stored, stencil.lanes))
    source, in_y = own_rows(f, a, f.arg("source"), in_at, top, bottom, stencil.lanes)
    parked = (scratch + a["out_at"]).seen_as(written_as(ending)) + (0 - low * stencil.out[0] * a["out_pitch"])
    target, out_y = own_target(f, a, f.arg("target"), parked, ending)
    bias, finishes = first_sum(channels, stencil), finishes_of(channels, stencil)

    def weight(index: int) -> Value:
        return load_weight(f, stencil, [weights], index)

    # A tile further down, or the top of the next channel.
    out_below = out_y * (rows * stencil.out[0])
    with f.loop("tile", f.arg("first"), f.arg("last")) as tile:
        y = place(tile.index)
        top, out_top = y * stencil.step[0] + a["lead_y"], y * stencil.out[0]
        # Rows so far inside that whole vectors may be read of them.
        clear = (top >= a["clear_top"]) & (top + stencil.span + a["clear_bottom"] <= a["height"])
        whole = clear & (out_top + rows * stencil.out[0] <= a["out_height"])
        inside = f.select(whole, 1, 0, "inside")
        base, out = source + top * in_y, target + out_top * out_y
        ahead = base + (in_y * stencil.span), out + out_below
        with f.when(inside.equals(1), "middle"):
            _columns(
                f, stencil, a, lambda i: base + in_y * i, lambda i: out + out_y * i, weight, bias, finishes, ahead, True
            )
        with f.when(inside.equals(0), "edge"):
            ins = [
                f.select(within(top + i, a["height"]), base + in_y * i, zeros, f"row_{i}") for i in range(stencil.span)
            ]
            count = rows * stencil.out[0]
            outs = [f.select(out_top + i < a["out_height"], out + out_y * i, dump, f"out_{i}") for i in range(count)]
            _columns(f, stencil, a, lambda i: ins[i], lambda i: outs[i], weight, bias, finishes, ahead, False)
    end = f.minimum(high * stencil.out[0], a["out_height"])
    put_rows(f, a, [(f.arg("target"), parked, channels[0])], low * stencil.out[0], end, stencil.lanes)
    f.ret()
    return f


def within(at: Value, size: Value) -> Value:
    return (at >= 0) & (at < size)


def own_weights(f: Function, a: Words, weights: Value, copy: Value, lanes: int) -> Value:
    """The channel's weights, row by row without gaps, as float32: where they lie, or copied."""
    if stored_as(weights) is not PTR:
        copy_rows(f, copy, weights, a["k_y"], a["k_x"], a["w_y"], a["w_x"], lanes)
        return copy
    copied = a["copy_weights"].equals(1)
    with f.when(copied, "weights"), f.loop("ky", 0, a["k_y"]) as y:
        gather_row(f, copy + y.index * a["k_x"], weights + y.index * a["w_y"], a["k_x"], a["w_x"])
    return f.select(copied, copy, weights, "taps")


def own_rows(
    f: Function, a: Words, source: Value, copy: Value, first: Value, last: Value, lanes: int
) -> tuple[Value, Value]:
    """(pointer to row 0 of the channel, distance of rows) with pixels side by side, as `read_as` says.

    Where it lies, or rows `first` to `last` copied, beginning at `copy`.
    """
    stored = stored_as(source)
    if read_as(stored, lanes) is not stored:
        from_row = source + first * a["in_y"]
        copy_rows(f, copy, from_row, last - first, a["width"], a["in_y"], a["in_x"], lanes)
        return copy + (0 - first * a["width"]), a["width"]
    copied = a["copy_in"].equals(1)
    copy = copy + (0 - first * a["width"])
    with f.when(copied, "in"), f.loop("line", first, last) as line:
        from_row = source + line.index * a["in_y"]
        gather_row(f, copy + line.index * a["width"], from_row, a["width"], a["in_x"])
    return f.select(copied, copy, source, "from"), f.select(copied, a["width"], a["in_y"], "from_y")


def own_target(f: Function, a: Words, target: Value, parked: Value, ending: Ending) -> tuple[Value, Value]:
    """(where row 0 of the sums goes, distance of rows): into the output, or into scratch."""
    if not ending.local:
        return parked, a["out_pitch"]
    copied = a["copy_out"].equals(1)
    return f.select(copied, parked, target, "to"), f.select(copied, a["out_pitch"], a["out_y"], "to_y")


def put_rows(
    f: Function, a: Words, planes: list[tuple[Value, Value, Channels]], first: Value, last: Value, lanes: int
) -> None:
    """Rows `first` to `last` of outputs leave scratch, if they are there, finished if they were not before.

    planes: (the output's row 0, where row 0 would be in scratch, the operands of its channel).
    """
    ending, pitches = planes[0][2].ending, (a["out_y"], a["out_pitch"])
    left = Ending(ending.stored) if ending.local else ending
    put = store_rows_function(lanes, left, written_as(ending))
    with f.when(a["copy_out"].equals(1), "out"):
        for target, source, channels in planes:
            to, at = target + first * a["out_y"], source + first * a["out_pitch"]
            operands = (Value(f, PTR, "null"),) if ending.local else channels.arguments
            f.call(put, to, at, *operands, last - first, *pitches, a["out_width"], a["out_x"])


def _columns(
    f: Function,
    stencil: Stencil,
    a: Words,
    row: Callable[[int], Value],
    out: Callable[[int], Value],
    weight: Callable[[int], Value],
    bias: Value,
    finishes: list[Finish],
    ahead: tuple[Value, Value],
    middle: bool,
) -> None:
    """All tiles of a row of tiles, from left to right.

    middle: whether whole vectors may be read of its rows. ahead: (input, output) a tile further down, or at the top of
    the next channel: lines are asked for there, of the output where it is not the smaller of the two.
    """
    lanes, (out_y, out_x) = stencil.lanes, stencil.out

    def tile(number: Value, x: Value, masks: Masks | None) -> None:
        at = x * stencil.step[1] + a["lead_x"]
        if out_x == 1:
            ask(f, stencil, ahead[0], number, stencil.step)
        if stencil.step[1] == 1:
            ask(f, stencil, ahead[1], number, stencil.out, write=True)
        sums = sweep(f, stencil, lambda i: row(i) + at, weight, bias, masks, lambda i: not middle)
        for j in range(stencil.rows):
            for y in range(out_y):
                to = out(j * out_y + y) + x * out_x
                put_vectors(f, stencil, outputs(f, stencil, sums, j, y), [to], masks, finishes)

    with f.loop("column", 0, a["columns"]) as column:
        x = f.maximum(f.minimum(column.index * lanes, a["units_x"] - lanes), 0)
        inner = (column.index >= a["inner_from"]) & (column.index < a["inner_to"])
        plain = f.select(inner, 1, 0, "plain")
        with f.when(plain.equals(1), "whole"):
            tile(column.index, x, None)
        with f.when(plain.equals(0), "masked"):
            tile(column.index, x, load_masks(f, stencil, a["masks"], column.index))


def ask(
    f: Function, stencil: Stencil, start: Value, column: Value, step: tuple[int, int] = (1, 1), write: bool = False
) -> None:
    """Asks for a column's share of the rows of a tile from `start` on, `step` numbers of them for each it has.

    Line after line: asked for row by row, in the columns where they are used, they come from memory in a quarter to a
    third more time (64 to 144 channels, 16 images, stride 2: 1.2 to 4.3 ms, and 0.9 to 3.2 so; Zen 3, 2026-11).
    """
    lines = -(-stencil.rows * step[0] * stencil.lanes * step[1] // 16)
    first = start + column * (lines * 16)
    for i in range(lines):
        f.prefetch(first + i * 16, write=write)


def put_vectors(
    f: Function,
    stencil: Stencil,
    vectors: list[Value],
    rows: list[Value],
    masks: Masks | None,
    finishes: list[Finish],
) -> None:
    """Store the vectors of one output row, side by side, or one in each plane, finished as each plane's `finishes` say.

    Only AVX-512 has masks for it: for the others, whatever runs over the end of a row goes to scratch (`copy_out`).
    """
    count, width = stencil.stored
    places = [row + i * width for row in rows for i in range(count)]
    for i, (vector, place) in enumerate(zip(vectors, places, strict=True)):
        if finishes:
            vector = finishes[i // count](vector, place)
        if masks and stencil.lanes == 16:
            f.store_masked(vector, place, masks.stores[i % count])
        else:
            f.store(vector, place)
