"""Depthwise weight gradients of small planes: whole planes written out, as in `depthwise_planes`.

    for every share of the images, every channel, or two of them:           one work item
        for a few images:                                                   what the L1 cache holds
            for passes over the taps:                                       as many as the registers hold
                for images:  all rows of the plane, one after another       sums stay in registers
        add up the lanes

A plane of 7×7 is read in less time than a cache line takes to come, and every plane of a channel lies in another page,
where no hardware prefetcher looks ahead: the same rows of the next channels are asked for meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubel.engine.algorithms.depthwise_kernels import Words
from hubel.engine.algorithms.depthwise_planes import Plane
from hubel.engine.algorithms.depthwise_weight_kernels import WORDS, Passes, side_by_side
from hubel.engine.ir import I64, PTR, Function, Value, vector_of
from hubel.engine.ir.rows import copy_row, zero_row
from hubel.engine.ir.stencil import Masks, Stencil, correlate, load_masks
from hubel.engine.ir.tile import horizontal_sums


@dataclass(frozen=True)
class Side:
    """The planes that share a vector, of input or output gradient, of some images: the first one's row 0, how far
    behind it the others' lie, the distance of images, of rows, and of the planes that come next.
    """

    base: Value
    apart: list[Value | int]
    image: Value
    pitch: Value
    following: Value

    def rows(self, f: Function, image: Value, x: Value, count: int) -> list[list[Value]]:
        """For each row where pixel x of each plane lies. Every row is found from the one before it: one addition."""
        rows = [self.base + image * self.image + x]
        for _ in range(1, count):
            rows.append(rows[-1] + self.pitch)
        return [[row + distance for distance in self.apart] for row in rows]


def plane_correlation_function(stencil: Stencil, plane: Plane, passes: Passes) -> Function:
    """The kernel: the sums of the channels that share a vector, over one share of the images, an item."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), stencil.lanes
    dw, shared = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    a = Words(f, WORDS)
    sums = scratch + a["sums_at"]
    target = f.select(a["partial"].equals(1), shared, dw, "target")
    sets = (a["channels"] + (stencil.planes - 1)) // stencil.planes
    begin = f.arg("begin")
    with f.loop("item", begin, f.arg("end"), carry=[begin % sets * stencil.planes, begin // sets]) as item:
        first, share = item.carried
        # Where the number of channels is odd, the last one is done twice.
        channels = [f.minimum(first + i, a["channels"] - 1) for i in range(stencil.planes)]
        zero_row(f, sums, f.constant(stencil.weights * lanes), lanes)
        image = share * a["share"]
        beyond = f.minimum(image + a["share"], a["images"])
        with f.loop("n", image, beyond, a["images_at_once"]) as n:
            count = f.minimum(a["images_at_once"], beyond - n.index)
            x = _side(f, a, "x", n.index, [c // a["multiplier"] for c in channels], count, plane.height)
            dy = _side(f, a, "dy", n.index, channels, count, plane.units)
            for number, loads in enumerate(passes):
                _images(f, stencil, plane, a, loads, x, dy, count, ahead=number == 0)
        for i, c in enumerate(channels):
            _add_lanes(f, stencil, a, i, target + (share * a["channels"] + c) * stencil.weights)
        following = first + stencil.planes
        over = following >= a["channels"]
        item.carry(f.select(over, 0, following), f.select(over, share + 1, share))
    f.ret()
    return f


def _side(f: Function, a: Words, name: str, n: Value, channels: list[Value], count: Value, height: int) -> Side:
    """The planes of these channels, of `count` images from n on, where they lie or copied. name: "x" or "dy"."""
    scratch, step = f.arg("scratch"), a[f"{name}_c"]
    source = f.word(f.arg("args"), 0 if name == "x" else 1, name, PTR) + n * a[f"{name}_n"]
    room = a["images_at_once"] * a[f"{name}_image"]
    rows = f.constant(0), f.constant(height)
    places = [
        side_by_side(f, a, name, source + c * step, scratch + a[f"{name}_at"] + room * i, count, rows)
        for i, c in enumerate(channels)
    ]
    base, image, pitch = places[0]
    copied = a[f"copy_{name}"].equals(1)
    apart = [f.select(copied, room * i, (c - channels[0]) * step, "apart") for i, c in enumerate(channels) if i]
    return Side(base, [0, *apart], image, pitch, step * len(channels))


def _images(
    f: Function,
    stencil: Stencil,
    plane: Plane,
    a: Words,
    loads: tuple[int, ...],
    x: Side,
    dy: Side,
    count: Value,
    ahead: bool,
) -> None:
    """Adds the sums over `count` images, of the taps that `loads` serve, to those in scratch."""
    lanes, sums = stencil.lanes, f.arg("scratch") + a["sums_at"]
    columns = [stencil.loads[number] + i for number in loads for i in range(stencil.step[1])]
    weights = [tap.weight for tap in stencil.taps if tap.column in columns]

    def add(image: Value, column: Value, masks: Masks, totals: list[Value]) -> list[Value]:
        unit = column * stencil.width
        xs = x.rows(f, image, unit * stencil.step[1] + a["lead_x"], plane.height)
        dys = dy.rows(f, image, unit, plane.units)
        if ahead:
            _ask(f, stencil, xs, x, stencil.step[1] * stencil.width)
            _ask(f, stencil, dys, dy, stencil.width)
        added = correlate(
            f, stencil, loads,
            lambda i: xs[plane.lead + i] if 0 <= plane.lead + i < plane.height else None, lambda j: dys[j],
            dict(zip(weights, totals, strict=True)), masks,
            lambda i: not plane.clear[0] <= plane.lead + i < plane.height - plane.clear[1],
            # Beyond the end of a row lies the next one.
            lambda j: j == plane.units - 1,
        )  # fmt: skip
        return [added[weight] for weight in weights]

    # Planes for AVX-512 are no wider than its vectors.
    masks = load_masks(f, stencil, a["masks"], f.constant(0)) if lanes == 16 else None
    none = [f.constant(0.0, vector_of(lanes))] * len(weights)
    with f.loop("image", 0, count, carry=none, at_least_once=True) as image:
        if masks:
            image.carry(*add(image.index, f.constant(0), masks, image.carried))
        else:
            with f.loop("column", 0, a["columns"], carry=image.carried, at_least_once=True) as column:
                masks_here = load_masks(f, stencil, a["masks"], column.index)
                column.carry(*add(image.index, column.index, masks_here, column.carried))
            image.carry(*column.results)
    for weight, total in zip(weights, image.results, strict=True):
        f.store(f.load(sums + weight * lanes, vector_of(lanes)) + total, sums + weight * lanes)


def _ask(f: Function, stencil: Stencil, rows: list[list[Value]], side: Side, width: int) -> None:
    """Asks for the rows of the next channels, as far away as they are: two short ones lie in about one line."""
    for row in rows[:: 2 if 2 * width <= 16 else 1]:
        for at in row:
            for line in range(0, width, 16):
                f.prefetch(at + side.following + line)


def _add_lanes(f: Function, stencil: Stencil, a: Words, plane: int, target: Value) -> None:
    """The sums of one of the planes, its lanes added up, go to `target`."""
    lanes, width = stencil.lanes, stencil.width
    sums = f.arg("scratch") + a["sums_at"]
    vectors = [f.load(sums + i * lanes + plane * width, vector_of(width), f"sum_{i}") for i in range(stencil.weights)]
    packed = sums + stencil.weights * lanes
    for i, vector in enumerate(horizontal_sums(f, vectors, width)):
        f.store(vector, packed + i * width)
    copy_row(f, target, packed, f.constant(stencil.weights), lanes)
