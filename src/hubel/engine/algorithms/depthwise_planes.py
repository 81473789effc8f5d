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
    Words,
    own_rows,
    own_weights,
    put_rows,
    put_vectors,
)
from hubel.engine.ir import F32, I64, PTR, Function, Value
from hubel.engine.ir.rows import zero_row
from hubel.engine.ir.stencil import Stencil, halves, load_masks, load_weight, outputs, sweep


@dataclass(frozen=True)
class Plane:
    """The heights of input and output, the units of the output, and the row of the input at which the first of them
    begins. clear: rows at the top and at the bottom of which no whole vectors may be read.
    """

    height: int
    out_height: int
    units: int
    lead: int
    clear: tuple[int, int]

    def tiles(self, stencil: Stencil) -> Iterator[tuple[int, Stencil]]:
        """(first unit, stencil) of each tile."""
        for first in range(0, self.units, stencil.rows):
            yield first, replace(stencil, rows=min(stencil.rows, self.units - first))


def plane_function(stencil: Stencil, plane: Plane) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; an item is as many input channels as share a vector."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, weights, bias, target = (
        f.word(args, i, n, PTR) for i, n in enumerate(("input", "weights", "bias", "output"))
    )
    a = Words(f, WORDS)
    zeros = scratch + a["zeros_at"]
    zero_row(f, zeros, f.constant(stencil.lanes), stencil.lanes)
    has_bias = f.compare("ne", bias, Value(f, PTR, "null"))
    begin, count = f.arg("begin"), stencil.planes
    sets = (a["channels"] + (count - 1)) // count
    with f.loop("item", begin, f.arg("end"), carry=[begin % sets * count, begin // sets]) as item:
        first, n = item.carried
        # Where the number of channels is odd, the last one is done twice.
        channels = [f.minimum(first + i, a["channels"] - 1) for i in range(count)]
        inputs = []
        for i, c in enumerate(channels):
            copy = scratch + a["in_at"] + plane.height * i * a["width"]
            from_c = source + n * a["in_n"] + c * a["in_c"]
            inputs.append(own_rows(f, a, from_c, copy, f.constant(0), f.constant(plane.height)))
        with f.loop("m", 0, a["multiplier"], at_least_once=True) as m:
            outs = [c * a["multiplier"] + m.index for c in channels]
            taps = [
                own_weights(f, a, weights + out * a["w_o"], scratch + a["weights_at"] + i * stencil.weights)
                for i, out in enumerate(outs)
            ]
            biases = [f.load(f.select(has_bias, bias + out, zeros, "bias_at"), F32, "bias") for out in outs]
            targets = [target + n * a["out_n"] + out * a["out_c"] for out in outs]
            _plane(f, stencil, plane, a, inputs, targets, taps, biases)
        following = first + count
        over = following >= a["channels"]
        item.carry(f.select(over, 0, following), f.select(over, n + 1, n))
    f.ret()
    return f


def _plane(
    f: Function,
    stencil: Stencil,
    plane: Plane,
    a: Words,
    inputs: list[tuple[Value, Value]],
    targets: list[Value],
    taps: list[Value],
    biases: list[Value],
) -> None:
    """One plane of each channel: from `inputs` (row 0, distance of rows) to `targets`."""
    out_y, out_x = stencil.out
    splats = [f.splat(b, stencil.lanes, "bias") for b in biases]
    bias = splats[0] if len(splats) == 1 else halves(f, *splats)

    def weight(index: int) -> Value:
        return load_weight(f, stencil, taps, index)

    copied_out = a["copy_out"].equals(1)
    parked = [f.arg("scratch") + a["out_at"] + i * plane.out_height * a["out_pitch"] for i in range(len(targets))]
    to = [f.select(copied_out, at, target, "to") for at, target in zip(parked, targets, strict=True)]
    to_y = f.select(copied_out, a["out_pitch"], a["out_y"], "to_y")
    with f.loop("column", 0, a["columns"], at_least_once=True) as column:
        x = f.maximum(f.minimum(column.index * stencil.width, a["units_x"] - stencil.width), 0)
        masks = load_masks(f, stencil, a["masks"], column.index)
        at = x * stencil.step[1] + a["lead_x"]
        for first, tile in plane.tiles(stencil):
            top = first * tile.step[0] + plane.lead

            def row(i: int, top: int = top) -> list[Value] | None:
                if not 0 <= top + i < plane.height:
                    return None
                return [base + pitch * (top + i) + at for base, pitch in inputs]

            def guarded(i: int, top: int = top) -> bool:
                return not plane.clear[0] <= top + i < plane.height - plane.clear[1]

            sums = sweep(f, tile, row, weight, bias, masks, guarded)
            for j in range(tile.rows):
                for y in range(out_y):
                    line = (first + j) * out_y + y
                    if line < plane.out_height:
                        rows = [base + to_y * line + x * out_x for base in to]
                        put_vectors(f, tile, outputs(f, tile, sums, j, y), rows, masks)
    put_rows(f, a, targets, parked, f.constant(0), f.constant(plane.out_height), stencil.lanes)
