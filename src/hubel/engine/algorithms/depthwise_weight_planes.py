"""Depthwise weight gradients of small planes: whole planes written out, as in `depthwise_planes`.

    for every share of the images, every channel, or two of them:           one work item
        for a few images:                                                   what the L1 cache holds
            for passes over the taps:                                       as many as the registers hold
                for images:  all rows of the plane, one after another       sums stay in registers
        add up the lanes

An item goes through a few images side by side, channel by channel: so memory is read in order. Large kernels compute
long enough on a plane for the next channels' to be asked for meanwhile; small ones lose more by the asking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hubel.engine.algorithms.depthwise_planes import Plane, Side
from hubel.engine.algorithms.depthwise_weight_kernels import Passes, items_function, side_by_side
from hubel.engine.algorithms.words import Words
from hubel.engine.ir import PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.stencil import Masks, Stencil, correlate, load_masks

# Taps up to which nothing is asked for.
ASK = 9


@dataclass(frozen=True)
class Images:
    """The planes that share a vector, of input or output gradient, of some images: those of the first image, the
    distance of images, and of the planes that come next.
    """

    first: Side
    image: Value
    following: Value

    def rows(self, image: Value, x: Value, count: int) -> list[list[Value]]:
        """As `Side.rows`, of one image."""
        return replace(self.first, base=self.first.base + image * self.image).rows(x, count)


def plane_correlation_function(stencil: Stencil, plane: Plane, passes: Passes, stored: Pointer = PTR) -> Function:
    """The kernel for planes like `plane`."""

    def visit(f: Function, a: Words, each: Value, n: Value, count: Value, sums: Value) -> None:
        channels = [f.minimum(each * stencil.planes + i, a["channels"] - 1) for i in range(stencil.planes)]
        lanes = stencil.lanes
        x = _images_of(f, a, "x", n, [c // a["multiplier"] for c in channels], count, plane.height, stored, lanes)
        dy = _images_of(f, a, "dy", n, channels, count, plane.units, stored, lanes)
        for number, loads in enumerate(passes):
            _images(f, stencil, plane, a, loads, x, dy, count, sums, ahead=number == 0 and stencil.weights > ASK)

    return items_function(stencil, visit)


def _images_of(
    f: Function,
    a: Words,
    name: str,
    n: Value,
    channels: list[Value],
    count: Value,
    height: int,
    stored: Pointer,
    lanes: int,
) -> Images:
    """The planes of these channels, of `count` images from n on, where they lie or copied. name: "x" or "dy"."""
    scratch, step = f.arg("scratch"), a[f"{name}_c"]
    source = f.word(f.arg("args"), 0 if name == "x" else 1, name, stored) + n * a[f"{name}_n"]
    room = a["images_at_once"] * a[f"{name}_image"]
    rows = f.constant(0), f.constant(height)
    places = [
        side_by_side(f, a, name, source + c * step, scratch + a[f"{name}_at"] + room * i, count, rows, lanes)
        for i, c in enumerate(channels)
    ]
    base, image, pitch = places[0]
    if stored is not PTR:
        return Images(Side(base, [room * i if i else 0 for i in range(len(channels))], pitch), image, f.constant(0))
    copied = a[f"copy_{name}"].equals(1)
    apart = [f.select(copied, room * i, (c - channels[0]) * step, "apart") for i, c in enumerate(channels) if i]
    return Images(Side(base, [0, *apart], pitch), image, step * len(channels))


def _images(
    f: Function,
    stencil: Stencil,
    plane: Plane,
    a: Words,
    loads: tuple[int, ...],
    x: Images,
    dy: Images,
    count: Value,
    sums: Value,
    ahead: bool,
) -> None:
    """Adds the sums over `count` images, of the taps that `loads` serve, to `sums`."""
    lanes = stencil.lanes
    columns = [stencil.loads[number] + i for number in loads for i in range(stencil.step[1])]
    weights = [tap.weight for tap in stencil.taps if tap.column in columns]

    def add(image: Value, column: Value, masks: Masks, totals: list[Value]) -> list[Value]:
        unit = column * stencil.width
        xs = x.rows(image, unit * stencil.step[1] + a["lead_x"], plane.height)
        dys = dy.rows(image, unit, plane.units)
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


def _ask(f: Function, stencil: Stencil, rows: list[list[Value]], side: Images, width: int) -> None:
    """Asks for the rows of the next channels, as far away as they are: two short ones lie in about one line."""
    for row in rows[:: 2 if 2 * width <= 16 else 1]:
        for at in row:
            for line in range(0, width, 16):
                f.prefetch(at + side.following + line)
