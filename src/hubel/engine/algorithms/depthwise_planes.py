"""Depthwise kernels for small planes: the whole plane is written out, one or two channels at a time.

The planes of the last layers of a network (7×7, 14×14) are done in some hundred cycles: too few to set anything up
for. So heights are compiled in: rows of padding are left out, with their multiplications, and only addresses change.
Planes of up to half a vector's width go in twos, one in each half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hubel.engine.algorithms.depthwise_kernels import (
    WORDS,
    finishes_of,
    first_sum,
    own_rows,
    own_weights,
    put_rows,
    put_vectors,
    read_as,
    written_as,
)
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import I64, PTR, Function, Value
from hubel.engine.ir.epilogue import PLAIN, Channels, Ending
from hubel.engine.ir.rows import zero_row
from hubel.engine.ir.stencil import Masks, Stencil, load_masks, load_weight, outputs, sweep, sweep_by_rows
from hubel.engine.ir.storage import stored_as


@dataclass(frozen=True)
class Plane:
    """The heights of input and output, the units of the output, and the row of the input at which the first of them
    begins. clear: rows at the top and at the bottom of which no whole vectors may be read. narrow: outputs of a row, if
    that is compiled in, too: they fill more than half a vector, and less than one.
    """

    height: int
    out_height: int
    units: int
    lead: int
    clear: tuple[int, int]
    narrow: int = 0

    def tiles(self, stencil: Stencil) -> Iterator[tuple[int, Stencil]]:
        """(first unit, stencil) of each tile."""
        for first in range(0, self.units, stencil.rows):
            yield first, replace(stencil, rows=min(stencil.rows, self.units - first))


@dataclass(frozen=True)
class Side:
    """The planes that share a vector, of what is read or written: row 0 of the first, how far behind it the others
    lie, the distance of rows.
    """

    base: Value
    apart: list[Value | int]
    pitch: Value

    def rows(self, x: Value | int, count: int) -> list[list[Value]]:
        """For each row where pixel x of each plane lies. Every row is found from the one before it: one addition."""
        rows = [self.base + x]
        for _ in range(1, count):
            rows.append(rows[-1] + self.pitch)
        return [[row + distance for distance in self.apart] for row in rows]


def plane_function(stencil: Stencil, plane: Plane, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; an item is as many input channels as share a vector."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", ending.stored)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    a = job_words(f, WORDS)
    zeros = scratch + a["zeros_at"]
    zero_row(f, zeros, f.constant(stencil.lanes), stencil.lanes)
    begin, count = f.arg("begin"), stencil.planes
    sets = (a["channels"] + (count - 1)) // count
    with f.loop("item", begin, f.arg("end"), carry=[begin % sets * count, begin // sets]) as item:
        first, n = item.carried
        # Where the number of channels is odd, the last one is done twice.
        channels = [f.minimum(first + i, a["channels"] - 1) for i in range(count)]
        source_side = _source(f, plane, a, source + n * a["in_n"], channels, stencil.lanes)
        with f.loop("m", 0, a["multiplier"], at_least_once=True) as m:
            outs = [c * a["multiplier"] + m.index for c in channels]
            taps = [
                own_weights(
                    f, a, weights + out * a["w_o"], scratch + a["weights_at"] + i * stencil.weights, stencil.lanes
                )
                for i, out in enumerate(outs)
            ]
            of_channels = [operands.further(out) for out in outs]
            targets = [target + n * a["out_n"] + out * a["out_c"] for out in outs]
            if stencil.out[1] > 1:
                # Four outputs to an input: the planes to be written next are asked for.
                for line in range(0, plane.out_height * stencil.out[1] * stencil.lanes, 16):
                    f.prefetch(targets[0] + a["out_c"] * count + line, write=True)
            to, parked = _target(f, plane, a, targets, outs, ending)
            _plane(f, stencil, plane, a, source_side, to, taps, of_channels)
            done = list(zip(targets, parked, of_channels, strict=True))
            put_rows(f, a, done, f.constant(0), f.constant(plane.out_height), stencil.lanes)
        following = first + count
        over = following >= a["channels"]
        item.carry(f.select(over, 0, following), f.select(over, n + 1, n))
    f.ret()
    return f


def _source(f: Function, plane: Plane, a: Words, image: Value, channels: list[Value], lanes: int) -> Side:
    """The planes to read, where they lie or copied to scratch."""
    size = a["width"] * plane.height
    rows = f.constant(0), f.constant(plane.height)
    start = (f.arg("scratch") + a["in_at"]).seen_as(read_as(stored_as(image), lanes))
    copies = [start + size * i for i in range(len(channels))]
    places = [own_rows(f, a, image + c * a["in_c"], at, *rows, lanes) for c, at in zip(channels, copies, strict=True)]
    if read_as(stored_as(image), lanes) is not stored_as(image):
        return Side(places[0][0], [size * i for i in range(len(channels))], places[0][1])
    copied = a["copy_in"].equals(1)
    apart = [
        f.select(copied, size * i, (c - channels[0]) * a["in_c"], "apart") for i, c in enumerate(channels) if i > 0
    ]
    return Side(places[0][0], [0, *apart], places[0][1])


def _target(
    f: Function, plane: Plane, a: Words, targets: list[Value], channels: list[Value], ending: Ending
) -> tuple[Side, list[Value]]:
    """(the planes to write, where they lie or in scratch; where each begins in scratch)"""
    size, copied = a["out_pitch"] * plane.out_height, a["copy_out"].equals(1)
    start = (f.arg("scratch") + a["out_at"]).seen_as(written_as(ending))
    parked = [start + size * i for i in range(len(targets))]
    if not ending.local:
        return Side(parked[0], [size * i for i in range(len(targets))], a["out_pitch"]), parked
    apart = [
        f.select(copied, size * i, (c - channels[0]) * a["out_c"], "apart") for i, c in enumerate(channels) if i > 0
    ]
    base = f.select(copied, parked[0], targets[0], "to")
    return Side(base, [0, *apart], f.select(copied, a["out_pitch"], a["out_y"], "to_y")), parked


def _plane(
    f: Function,
    stencil: Stencil,
    plane: Plane,
    a: Words,
    source: Side,
    target: Side,
    taps: list[Value],
    channels: list[Channels],
) -> None:
    """One plane of each channel."""
    bias, finishes = first_sum(channels, stencil), finishes_of(channels, stencil)

    def weight(index: int) -> Value:
        return load_weight(f, stencil, taps, index)

    def column(x: Value, masks: Masks) -> None:
        rows = source.rows(x * stencil.step[1] + a["lead_x"], plane.height)
        outs = target.rows(x * stencil.out[1], plane.out_height)
        for first, tile in plane.tiles(stencil):
            top = first * tile.step[0] + plane.lead

            def row(i: int, top: int = top) -> list[Value] | None:
                return rows[top + i] if 0 <= top + i < plane.height else None

            def guarded(i: int, top: int = top) -> bool:
                return not plane.clear[0] <= top + i < plane.height - plane.clear[1]

            if plane.narrow and tile.shifts:
                sums = sweep_by_rows(f, tile, row, weight, bias, masks)
            else:
                sums = sweep(f, tile, row, weight, bias, masks, guarded)
            for j in range(tile.rows):
                for y in range(stencil.out[0]):
                    line = (first + j) * stencil.out[0] + y
                    if line < plane.out_height:
                        vectors = outputs(f, tile, sums, j, y)
                        if plane.narrow:
                            (vector,), (place,) = vectors, outs[line]
                            _put_narrow(f, finishes[0](vector, place), place, stencil.lanes, plane.narrow)
                        else:
                            put_vectors(f, tile, vectors, outs[line], masks, finishes)

    if stencil.lanes == 16:
        # Planes are no wider than a vector.
        column(f.constant(0), load_masks(f, stencil, a["masks"], f.constant(0)))
    else:
        with f.loop("column", 0, a["columns"], at_least_once=True) as each:
            x = f.maximum(f.minimum(each.index * stencil.width, a["units_x"] - stencil.width), 0)
            column(x, load_masks(f, stencil, a["masks"], each.index))


def _put_narrow(f: Function, vector: Value, place: Value, lanes: int, count: int) -> None:
    """The first `count` numbers of a vector in two halves of it, which overlap: AVX2's masked stores take longer."""
    half = lanes // 2
    for first in (0, count - half):
        f.store(f.shuffle(vector, vector, range(first, first + half), "part"), place + first)
