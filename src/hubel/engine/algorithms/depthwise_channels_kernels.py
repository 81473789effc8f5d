"""The code of depthwise kernels with channels in the lanes: parts, rows, tiles of pixels and vectors of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from hubel.engine.algorithms.channel_lanes import fill_function, multiples
from hubel.engine.algorithms.depthwise_kernels import within
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.epilogue import PLAIN, Channels, Ending
from hubel.engine.ir.rows import zero_row

# The words of a job after the base pointers, in this order.
WORDS = (
    "channels", "vectors", "block", "blocks", "units_y", "bands", "per_band", "units_x", "strips", "strip",
    "taps", "phase_table", "parts", "step_y", "step_x", "height", "width",
    "in_n", "in_y", "in_x", "out_n", "out_y", "out_x", "out_step_y", "out_width",
    "zeros_at", "bias_at",
)  # fmt: skip
# What a table says of each part: how many rows of the kernel take part, where the first of them and its leftmost
# column lie for unit (0, 0), how far apart rows are; units; where outputs begin; taps before it; which pattern it has.
PART = ("rows", "lead_y", "apart_y", "lead_x", "units_y", "units_x", "start_y", "start_x", "before", "pattern")
PACK_WORDS = ("channels", "taps", "places", "apart", "contiguous")


@dataclass(frozen=True)
class Pattern:
    """What a row of the kernel reads of a row of pixels, by units: a unit is one output, or those that lie beside each
    other where the outputs of an input gradient fall apart into several sums.

    columns: one a tap, from the leftmost on; step: pixels from a unit to the next. left, right: how many columns of a
    tile may lie outside of the image, on either side. phases: for each tap, which output of the unit it adds to;
    outputs: of a unit; apart: outputs from a unit to the next.
    """

    columns: tuple[int, ...]
    step: int
    left: int
    right: int
    phases: tuple[int, ...]
    outputs: int = 1
    apart: int = 1

    def span(self, units: int) -> int:
        """Columns that a tile of so many units reaches over."""
        return (units - 1) * self.step + (self.columns[-1] + 1 if self.columns else 1)

    def readers(self, units: int, taps: range) -> dict[int, list[tuple[int, int]]]:
        """For each column of a tile the (output, tap) that read it, for some of the taps."""
        found: dict[int, list[tuple[int, int]]] = {}
        for tap in taps:
            for unit in range(units):
                output = unit * self.outputs + self.phases[tap]
                found.setdefault(unit * self.step + self.columns[tap], []).append((output, tap))
        return dict(sorted(found.items()))


def kernel_function(
    patterns: tuple[Pattern, ...], units: int, lanes: int, registers: int, ending: Ending = PLAIN, ahead: bool = False
) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; an item is a band of rows of a strip of a block of channels.

    units: of a tile, along a row. ahead: whether lines of memory are asked for: the rows below those that are read, as
    many as the next outputs read anew, and outputs, whichever of the two is larger, or both.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS)
    zero_row(f, scratch + a["zeros_at"], f.constant(lanes), lanes)
    bias = scratch + a["bias_at"]
    _collect_bias(f, operands, bias, a["channels"], lanes)
    rows = _row_function(patterns, units, lanes, registers, ending, ahead)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        block, rest = item.index % a["blocks"], item.index // a["blocks"]
        strip, rest = rest % a["strips"], rest // a["strips"]
        band, n = rest % a["bands"], rest // a["bands"]
        first = block * a["block"]
        last = f.minimum(first + a["block"], a["vectors"])
        left = strip * a["strip"]
        right = f.minimum(left + a["strip"], a["units_x"])
        top = band * a["per_band"]
        with f.loop("y", top, f.minimum(top + a["per_band"], a["units_y"])) as y:
            from_n, to_n = source + n * a["in_n"], target + n * a["out_n"]
            f.call(
                rows, args, from_n, weights, bias, to_n, scratch + a["zeros_at"], *operands.arguments,
                y.index, left, right, first, last,
            )  # fmt: skip
    f.ret()
    return f


def _collect_bias(f: Function, operands: Channels, to: Value, channels: Value, lanes: int) -> None:
    """to[c] = the bias of channel c, −0 where there is none."""
    at, given = operands.bias_at()
    with f.when(given, "biased"), f.loop("c", 0, channels) as c:
        f.store(f.load(at + c.index, F32, "bias"), to + c.index)
    with f.when(f.negate(given), "unbiased"), f.loop("none", 0, channels, lanes) as none:
        f.store(f.constant(-0.0, vector_of(lanes)), to + none.index)


def _row_function(
    patterns: tuple[Pattern, ...], units: int, lanes: int, registers: int, ending: Ending, ahead: bool
) -> Function:
    """row(args, source, weights, biases, target, zeros, operands, y, left, right, first, last): all parts of unit row
    y, from unit `left` to `right`, of the vectors `first` to `last` of channels.
    """
    pointers = [("args", PTR), ("source", ending.stored), ("weights", PTR), ("biases", PTR), ("target", ending.stored)]
    numbers = [(n, I64) for n in ("y", "left", "right", "first", "last")]
    f = Function("row", [*pointers, ("zeros", PTR), *ending.parameters, *numbers], private=True)
    a = job_words(f, WORDS)
    y, operands = f.arg("y"), ending.given(f)
    inner, edge = (
        [_tile_function(f"{name}_{i}", p, units, at, lanes, registers, ending, ahead) for i, p in enumerate(patterns)]
        for name, at in (("inner", False), ("edge", True))
    )
    spans, counts = [p.span(units) for p in patterns], [p.outputs for p in patterns]
    with f.loop("part", 0, a["parts"], at_least_once=True) as part:
        at = f.offset(a["phase_table"], part.index * len(PART), I64, "part_at")
        p = {name: f.word(at, i, name) for i, name in enumerate(PART)}
        start = y * a["step_y"] + p["lead_y"]
        # Rows of the kernel that lie in the image.
        above = f.minimum(f.maximum(p["apart_y"] - 1 - start, 0) // p["apart_y"], p["rows"])
        below = f.minimum(f.maximum(a["height"] + (p["apart_y"] - 1) - start, 0) // p["apart_y"], p["rows"])
        count = f.maximum(below - above, 0)
        source = f.arg("source") + (start + above * p["apart_y"]) * a["in_y"]
        row_step = p["apart_y"] * a["in_y"]
        target = f.arg("target") + (y * a["out_step_y"] + p["start_y"]) * a["out_y"] + p["start_x"] * a["out_x"]
        stop = f.select(y < p["units_y"], f.minimum(f.arg("right"), p["units_x"]), f.arg("left"))
        span, outputs = (_chosen(f, each, p["pattern"]) for each in (spans, counts))
        apart = patterns[0].apart
        with f.loop("x", f.arg("left"), stop, units) as x:
            unit = f.minimum(x.index, p["units_x"] - units)
            column = unit * a["step_x"] + p["lead_x"]
            # Outputs of the tile's last unit that the image has.
            there = a["out_width"] - p["start_x"] - (unit + (units - 1)) * apart
            inside = (column >= 0) & (column + span <= a["width"]) & (there >= outputs)
            function = f.select(inside, f.one_of(inner, p["pattern"]), f.one_of(edge, p["pattern"]), "tile")
            f.call(
                inner[0], f.arg("args"), source + column * a["in_x"], f.arg("weights") + p["before"] * lanes,
                f.arg("biases"), target + unit * (a["out_x"] * apart), f.arg("zeros"), *operands.arguments,
                count, above, row_step, column, there, f.arg("first"), f.arg("last"), at=function,
            )  # fmt: skip
    f.ret()
    return f


def _chosen(f: Function, numbers: list[int], at: Value) -> Value:
    """numbers[at]"""
    chosen = f.constant(numbers[0])
    for i, number in enumerate(numbers[1:], 1):
        chosen = f.select(at.equals(i), f.constant(number), chosen)
    return chosen


def _tile_function(
    name: str, pattern: Pattern, units: int, edge: bool, lanes: int, registers: int, ending: Ending, ahead: bool
) -> Function:
    """tile(args, source, weights, biases, target, zeros, operands, rows, above, row_step, column, there, first, last):
    neighbouring outputs of one row, vector by vector of channels.

    source, target: at the tile's leftmost column and output, channel 0. rows: of the kernel, after the `above` first.
    edge: whether columns may lie outside of the image (they are read at `zeros`) and outputs, too: of the last unit
    only the first `there` are stored. ahead: as for `kernel_function`.
    """
    pointers = [("args", PTR), ("source", ending.stored), ("weights", PTR), ("biases", PTR), ("target", ending.stored)]
    numbers = [(n, I64) for n in ("rows", "above", "row_step", "column", "there", "first", "last")]
    f = Function(name, [*pointers, ("zeros", PTR), *ending.parameters, *numbers], private=True)
    a = job_words(f, WORDS, "channels", "taps", "in_x", "in_y", "out_x", "width")
    operands, taps, size = ending.given(f), len(pattern.columns), ending.stored.bytes
    outputs, span = units * pattern.outputs, pattern.span(units)
    zeros = f.arg("zeros").seen_as(ending.stored)
    place = multiples(f, a["in_x"] * size, span - 1)
    put = multiples(f, a["out_x"] * size, (units - 1) * pattern.apart + pattern.outputs - 1)
    read = row_reader(f, pattern, units, place, a["width"], zeros, lanes, edge)
    vector, width = vector_of(lanes), a["taps"] * lanes
    skipped = f.arg("above") * (taps * lanes)
    groups = taps_in_groups(taps, registers - outputs - 2)
    below = f.arg("source") + ((f.arg("rows") - 1) * f.arg("row_step") + a["in_y"])
    with f.loop("v", f.arg("first"), f.arg("last"), at_least_once=True) as v:
        channel = f.minimum(v.index * lanes, a["channels"] - lanes)
        start = f.load(f.arg("biases") + channel, vector, "bias")
        # A share for each vector, line after line, of what these outputs read below, and of the next tile's outputs.
        share = v.index - f.arg("first")
        if ahead and pattern.apart == 1:
            share = share * pattern.step
            row = share // (f.arg("last") - f.arg("first"))
            line = below + row * a["in_y"] + (share - row * (f.arg("last") - f.arg("first"))) * (units * lanes)
            for at in range(0, units * pattern.step * lanes, 16):
                f.prefetch(line + at)
        if ahead and pattern.step == 1:
            line = f.arg("target") + a["out_x"] * (units * pattern.apart) + share * (units * pattern.apart * lanes)
            for at in range(0, units * pattern.apart * lanes, 16):
                f.prefetch(line + at, write=True)
        carried = [f.arg("source") + channel, f.arg("weights") + v.index * width + skipped, *[start] * outputs]
        with f.loop("row", 0, f.arg("rows"), carry=carried) as row:
            at, w, *acc = row.carried
            for group in groups:
                weights = {tap: f.load(w + tap * lanes, vector, f"w_{tap}") for tap in group}
                for pixel, readers in read(at, group):
                    for output, tap in readers:
                        acc[output] = f.fma(weights[tap], pixel, acc[output], f"acc_{output}")
            row.carry(at + f.arg("row_step"), w + taps * lanes, *acc)
        finish = operands.further(channel).load_lanes(lanes)
        target = f.arg("target") + channel
        for output, total in enumerate(row.results[2:]):
            unit, phase = divmod(output, pattern.outputs)
            to = put(target, unit * pattern.apart + phase)
            if edge and phase and unit == units - 1:
                with f.when(f.arg("there") > phase, f"output_{output}"):
                    f.store(finish(total, to), to)
            else:
                f.store(finish(total, to), to)
    f.ret()
    return f


def row_reader(
    f: Function,
    pattern: Pattern,
    units: int,
    place: Callable[[Value, int], Value],
    width: Value,
    zeros: Value,
    lanes: int,
    edge: bool,
) -> Callable[[Value, range], Iterator[tuple[Value, list[tuple[int, int]]]]]:
    """read(at, taps): each column of a tile that these taps meet, in a row that begins at `at`, and the (output, tap)
    that meet it.

    place: where columns lie. edge: whether some may lie outside of an image of this width; they are read at `zeros`.
    """
    span = pattern.span(units)
    outside = {
        c: f.negate(within(f.arg("column") + c, width))
        for c in range(span)
        if edge and (c < pattern.left or c >= span - pattern.right)
    }

    def read(at: Value, taps: range) -> Iterator[tuple[Value, list[tuple[int, int]]]]:
        for column, readers in pattern.readers(units, taps).items():
            pixel_at = place(at, column)
            if column in outside:
                pixel_at = f.select(outside[column], zeros, pixel_at, "pixel_at")
            yield f.load(pixel_at, vector_of(lanes), f"x_{column}"), readers

    return read


def taps_in_groups(taps: int, room: int) -> list[range]:
    """The taps of a row in groups whose weights stay in registers together."""
    count = max(1, -(-taps // max(1, room)))
    bounds = [taps * i // count for i in range(count + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]


def pack_function(lanes: int, stored: Pointer = PTR) -> Function:
    """The weights of a vector of channels an item: packed[tap][lane], in the order of the table of places."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a: Words = job_words(f, PACK_WORDS)
    fill = fill_function(lanes, stored)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        channel = f.minimum(item.index * lanes, a["channels"] - lanes)
        start, to = source + channel * a["apart"], packed + item.index * a["taps"] * lanes
        with f.when(a["contiguous"].equals(1), "beside"):
            f.call(fill, scratch, start, lanes, 1, a["taps"], a["apart"], 0, 1, 0, lanes, 0)
        with f.loop("tap", 0, a["taps"]) as tap:
            place = f.load(f.offset(a["places"], tap.index, I64), I64, "place")
            with f.when(a["contiguous"].equals(1), "turned"):
                f.store(f.load(scratch + place * lanes, vector_of(lanes)), to + tap.index * lanes)
            with f.when(a["contiguous"].equals(0), "apart"):
                f.call(fill, to + tap.index * lanes, start + place, lanes, 1, 1, a["apart"], 0, 1, 0, lanes, 0)
    f.ret()
    return f
