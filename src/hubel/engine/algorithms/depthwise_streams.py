"""Depthwise kernels for small kernels on planes of any height: rows stream through registers.

    for every image, channel, band of rows:                         one work item
        for columns of one or two vectors:
            for input rows, from top to bottom:                     all weights stay in registers
                load the pixels once; add them, weighted, to the sums of every output row that reads them
                the uppermost of these rows is complete: store it, begin a new one at the bottom

A row is read once for each column and offset along x, and nothing is computed twice. Rows outside of the input, and
those beside which nothing may be read, are met at the top and at the bottom of a band only, in loops of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubel.engine.algorithms.depthwise_kernels import (
    WORDS,
    finishes_of,
    first_sum,
    own_rows,
    own_target,
    own_weights,
    plane_parameters,
    put_rows,
    put_vectors,
    read_as,
    within,
    written_as,
)
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import Function, Value
from hubel.engine.ir.epilogue import PLAIN, Ending, Finish
from hubel.engine.ir.stencil import Masks, Stencil, load_masks, load_weight, outputs, stream

# Rows (in units) asked for ahead of the one that is read.
AHEAD = 8


@dataclass(frozen=True)
class Band:
    """Rows `first` to `last` of the output (in units), all of which one stream makes."""

    first: Value
    last: Value
    source: Value
    in_y: Value
    target: Value
    out_y: Value
    weights: list[Value]
    bias: Value
    finishes: list[Finish]
    ending: Ending


def stream_function(stencil: Stencil, ending: Ending = PLAIN) -> Function:
    """plane(...): rows `first` to `last` (in units) of one channel (`plane_parameters`)."""
    f = Function("plane", plane_parameters(ending), private=True)
    a = job_words(f, WORDS)
    scratch, first, last = f.arg("scratch"), f.arg("first"), f.arg("last")
    step, out_y = stencil.step, stencil.out[0]
    weights = own_weights(f, a, f.arg("weights"), scratch + a["weights_at"], stencil.lanes)
    top = f.maximum(first * step[0] + a["lead_y"], 0)
    bottom = f.minimum((last - 1) * step[0] + (stencil.span + a["lead_y"]), a["height"])
    in_at = (scratch + a["in_at"]).seen_as(read_as(ending.stored, stencil.lanes))
    source, in_y = own_rows(f, a, f.arg("source"), in_at, top, bottom, stencil.lanes)
    parked = (scratch + a["out_at"]).seen_as(written_as(ending)) + (0 - first * out_y * a["out_pitch"])
    channels = [ending.given(f)]
    band = Band(
        first, last, source, in_y, *own_target(f, a, f.arg("target"), parked, ending),
        [load_weight(f, stencil, [weights], i) for i in range(stencil.weights)],
        first_sum(channels, stencil), finishes_of(channels, stencil), ending,
    )  # fmt: skip
    size = stencil.streams * stencil.lanes

    def column(index: Value, masked: bool) -> None:
        x = f.maximum(f.minimum(index * size, a["units_x"] - size), 0)
        first_mask = index * stencil.streams
        every = [load_masks(f, stencil, a["masks"], first_mask + i) for i in range(stencil.streams)]
        _column(f, stencil, a, band, x, every if masked else [None] * stencil.streams)

    with f.loop("column", 0, a["columns"]) as each:
        if stencil.lanes == 16:
            # Masks cost nothing there.
            column(each.index, True)
        else:
            inner = (each.index >= a["inner_from"]) & (each.index < a["inner_to"])
            plain = f.select(inner, 1, 0, "plain")
            with f.when(plain.equals(1), "whole"):
                column(each.index, False)
            with f.when(plain.equals(0), "masked"):
                column(each.index, True)
    end = f.minimum(last * out_y, a["out_height"])
    put_rows(f, a, [(f.arg("target"), parked, channels[0])], first * out_y, end, stencil.lanes)
    f.ret()
    return f


def _column(f: Function, stencil: Stencil, a: Words, band: Band, x: Value, masks: Sequence[Masks | None]) -> None:
    """All rows of a band, of one column of vectors."""
    step, (out_y, out_x), depth, size = stencil.step, stencil.out, stencil.depth, stencil.streams * stencil.lanes
    zeros = (f.arg("scratch") + a["zeros_at"]).seen_as(read_as(band.ending.stored, stencil.lanes))
    dump = (f.arg("scratch") + a["dump_at"]).seen_as(written_as(band.ending))
    at = x * step[1] + a["lead_x"]
    end = band.last + (depth - 1)
    # Turns in which all rows lie inside, whole vectors may be read of them, and an output row is complete.
    clear_from = f.maximum(a["clear_top"] - a["lead_y"] + (step[0] - 1), 0) // step[0]
    clear_to = f.maximum(a["height"] - a["clear_bottom"] - a["lead_y"], 0) // step[0]
    middle = f.minimum(f.maximum(band.first + (depth - 1), clear_from), end)
    there = f.minimum(f.minimum(clear_to, a["out_height"] // out_y + (depth - 1)), end)
    below = f.maximum(middle, there)

    def store(row: int, vectors: list[list[Value]], to: Value) -> None:
        for i, (each, mask) in enumerate(zip(vectors, masks, strict=True)):
            put_vectors(f, stencil, each, [to + (x + i * stencil.lanes) * out_x], mask, band.finishes)

    def turn(sums: list[Value], rows: list[Value], outs: list[Value], guarded: bool) -> list[Value]:
        sums = stream(f, stencil, sums, rows, band.weights, masks, guarded)
        done, kept = stencil.completed(sums)
        for y, to in enumerate(outs):
            store(y, [outputs(f, stencil, each, 0, y) for each in done], to)
        return [*kept, *[band.bias] * (len(sums) - len(kept))]

    def edge(start: Value, stop: Value, sums: list[Value]) -> list[Value]:
        with f.loop("edge", start, stop, carry=sums) as block:
            line = block.index * step[0] + a["lead_y"]
            rows = [
                f.select(within(line + i, a["height"]), band.source + band.in_y * (line + i), zeros, "row") + at
                for i in range(step[0])
            ]
            unit = block.index - (depth - 1)
            outs = []
            for y in range(out_y):
                to = unit * out_y + y
                fits = (unit >= band.first) & (to < a["out_height"])
                outs.append(f.select(fits, band.target + band.out_y * to, dump, "out"))
            block.carry(*turn(block.carried, rows, outs, True))
        return block.results

    sums = edge(band.first, middle, [band.bias] * (depth * out_y * out_x * stencil.streams))
    row = band.source + band.in_y * (middle * step[0] + a["lead_y"]) + at
    out = band.target + band.out_y * ((middle - (depth - 1)) * out_y)
    with f.loop("row", middle, below, carry=[row, out, *sums]) as block:
        row, out, *sums = block.carried
        # The larger of the two is asked for: rows further down, or at the top of the next channel.
        here, pitch, each = (row, band.in_y, step) if out_x == 1 else (out + x * out_x, band.out_y, stencil.out)
        for i in range(each[0]):
            for line in range(0, size * each[1], 16):
                f.prefetch(here + pitch * (AHEAD * each[0] + i) + line, write=out_x > 1)
        rows = [row + band.in_y * i for i in range(step[0])]
        sums = turn(sums, rows, [out + band.out_y * y for y in range(out_y)], False)
        block.carry(row + band.in_y * step[0], out + band.out_y * out_y, *sums)
    edge(below, end, block.results[2:])
