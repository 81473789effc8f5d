"""The kernels of weight gradients as outer products, as told in `outer_products.py`."""

from __future__ import annotations

from dataclasses import dataclass

from hubel.engine.algorithms.channel_lanes import fill_function, region_function, turn_back_function
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, vector_of
from hubel.engine.ir.window import fill_window_function
from hubel.engine.threads import RESERVED_WORDS

# The words of a job after the base pointers, in this order; those of a window behind them.
WORDS = (
    "offsets", "places", "groups", "images", "at_once", "parts", "blocks",
    "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares", "pairs", "tiles",
    "boxes_z", "boxes_y", "boxes_x", "box_z", "box_y", "box_x", "outputs_z", "outputs_y", "outputs_x",
    "step_z", "step_y", "step_x", "first_y", "first_x", "reach_y", "window_y", "window_x", "size_y", "size_x",
    "x_n", "x_c", "x_y", "x_x", "dy_n", "dy_c", "dy_z", "dy_y", "dy_x",
    "x_image", "x_plane", "x_row", "x_pixel", "x_panel", "from_dy", "panel_dy", "item_sums", "taps",
)  # fmt: skip
X_WINDOW = RESERVED_WORDS + len(WORDS)


@dataclass(frozen=True)
class Rows:
    """The rows of a register tile, and how the input lies: `bases` places in scratch, `run` numbers from each;
    `vectors` of output channels beside them. turned: whether a run's numbers are channels of a pixel, or pixels of a
    channel.
    """

    bases: int
    run: int
    vectors: int
    turned: bool

    @property
    def count(self) -> int:
        return self.bases * self.run

    def __str__(self) -> str:
        return f"{'c' if self.turned else 'x'}{self.bases}x{self.run}x{self.vectors}"


def kernel_function(tile: Rows, lanes: int, stored: Pointer = PTR) -> Function:
    """The kernel: the sums of one share of the channels over one part of the blocks, into the memory shared by all.

    stored: how x and dy are.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    x, dy, common = (f.word(args, i, n, p) for i, n, p in ((0, "x", stored), (1, "dy", stored), (4, "shared", PTR)))
    a = job_words(f, WORDS)
    fill = fill_function(lanes, stored)
    read_x = _turned_function(fill, lanes, stored) if tile.turned else _planes_function(lanes, stored)
    read_dy, multiply = _gradients_function(tile, fill, lanes, stored), _multiply_function(tile, lanes)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, c_share = item.index // a["channel_shares"], item.index % a["channel_shares"]
        rest, m_share = rest // a["row_shares"], rest % a["row_shares"]
        part, group = rest // a["groups"], rest % a["groups"]
        m, c = m_share * a["share_rows"], c_share * a["share_channels"]
        rows, channels = f.minimum(a["share_rows"], a["rows"] - m), f.minimum(a["share_channels"], a["channels"] - c)
        x_from = x + (group * a["channels"] + c) * a["x_c"]
        dy_from = dy + (group * a["rows"] + m) * a["dy_c"]
        begin, end = part * a["blocks"] // a["parts"], (part + 1) * a["blocks"] // a["parts"]
        with f.loop("block", begin, end) as block:
            rest, bx = block.index // a["boxes_x"], block.index % a["boxes_x"]
            rest, by = rest // a["boxes_y"], rest % a["boxes_y"]
            image, bz = rest // a["boxes_z"] * a["at_once"], rest % a["boxes_z"]
            count = f.minimum(a["at_once"], a["images"] - image)
            at = [b * a[f"box_{axis}"] for axis, b in (("z", bz), ("y", by), ("x", bx))]
            size = [f.minimum(a[f"box_{n}"], a[f"outputs_{n}"] - first) for n, first in zip("zyx", at, strict=True)]
            f.call(read_x, args, scratch, x_from + image * a["x_n"], channels, count, *at)
            to = scratch + a["from_dy"]
            f.call(read_dy, args, to, dy_from + image * a["dy_n"], rows, count, *at, *size)
            add = f.select(block.index > begin, 1, 0)
            f.call(multiply, args, scratch, to, common + item.index * a["item_sums"], rows, count, *size, add)
    f.ret()
    return f


def _planes_function(lanes: int, stored: Pointer) -> Function:
    """read_x(args, target, source, channels, images, z, y, x): what a box reads, pixels of a channel side by side."""
    f = _reading("read_x", stored, "channels")
    a = job_words(f, WORDS, "step_z", "step_y", "step_x", "x_n", "x_image")
    window = f.offset(f.arg("args"), X_WINDOW, I64, "window")
    fill = fill_window_function(lanes, stored)
    origin = [f.arg(axis) * a[f"step_{axis}"] for axis in "zyx"]
    with f.loop("image", 0, f.arg("images")) as n:
        target, source = f.arg("target") + n.index * a["x_image"], f.arg("source") + n.index * a["x_n"]
        f.call(fill, target, source, window, f.arg("channels"), *origin)
    f.ret()
    return f


def _turned_function(fill: Function, lanes: int, stored: Pointer) -> Function:
    """read_x(args, target, source, channels, images, z, y, x): as above, channels of a pixel side by side."""
    f = _reading("read_x", stored, "channels")
    names = ("step_y", "step_x", "first_y", "first_x", "window_y", "window_x", "size_y", "size_x")
    a = job_words(f, WORDS, *names, "x_n", "x_c", "x_y", "x_x", "x_image", "x_panel")
    region = region_function(lanes, fill, stored)
    top, left = f.arg("y") * a["step_y"] + a["first_y"], f.arg("x") * a["step_x"] + a["first_x"]
    with f.loop("image", 0, f.arg("images")) as n, f.loop("c", 0, f.arg("channels"), lanes) as c:
        f.call(
            region, f.arg("target") + n.index * a["x_image"] + c.index // lanes * a["x_panel"],
            f.arg("source") + n.index * a["x_n"] + c.index * a["x_c"], f.arg("channels") - c.index,
            top, left, a["window_y"], a["window_x"], a["size_y"], a["size_x"], a["x_c"], a["x_y"], a["x_x"],
            a["window_x"] * lanes, a["x_c"] * lanes,
        )  # fmt: skip
    f.ret()
    return f


def _reading(name: str, stored: Pointer, count: str, *further: str) -> Function:
    """A function that reads a tensor of some images from a box's first output on."""
    numbers = [(n, I64) for n in (count, "images", "z", "y", "x", *further)]
    return Function(name, [("args", PTR), ("target", PTR), ("source", stored), *numbers], private=True)


def _gradients_function(tile: Rows, fill: Function, lanes: int, stored: Pointer) -> Function:
    """read_dy(args, target, source, rows, images, z, y, x, sizes): target[m ∕ width][image, pixel][m mod width]."""
    f = _reading("read_dy", stored, "rows", "planes", "lines", "pixels")
    a = job_words(f, WORDS, "dy_n", "dy_c", "dy_z", "dy_y", "dy_x", "panel_dy")
    apart = tile.vectors * lanes
    planes, lines, pixels = (f.arg(n) for n in ("planes", "lines", "pixels"))
    source = f.arg("source") + f.arg("z") * a["dy_z"] + f.arg("y") * a["dy_y"] + f.arg("x") * a["dy_x"]
    # Lines that follow each other in memory are one.
    one = a["dy_y"].equals(pixels * a["dy_x"])
    rows, cols = f.select(one, 1, lines), f.select(one, lines, 1) * pixels
    with (
        f.loop("m", 0, f.arg("rows"), lanes) as m,
        f.loop("image", 0, f.arg("images")) as n,
        f.loop("z", 0, planes) as z,
    ):
        panel, place = m.index // apart, (n.index * planes + z.index) * lines * pixels
        target = f.arg("target") + panel * a["panel_dy"] + place * apart + (m.index - panel * apart)
        start = source + m.index * a["dy_c"] + n.index * a["dy_n"] + z.index * a["dy_z"]
        strides = a["dy_c"], a["dy_y"], a["dy_x"]
        f.call(
            fill, target, start, f.arg("rows") - m.index, rows, cols, *strides, cols * apart, apart, a["dy_c"] * lanes
        )
    f.ret()
    return f


def _multiply_function(tile: Rows, lanes: int) -> Function:
    """multiply(args, x, dy, sums, rows, images, planes, lines, pixels, add): all products of a block.

    sums[m ∕ lanes][pair][m mod lanes]
    """
    pointers = [(n, PTR) for n in ("args", "x", "dy", "sums")]
    numbers = [(n, I64) for n in ("rows", "images", "planes", "lines", "pixels", "add")]
    f = Function("multiply", [*pointers, *numbers], private=True)
    a = job_words(f, WORDS, "offsets", "tiles", "step_z", "x_image", "x_plane", "x_row", "x_pixel", "panel_dy")
    vectors = (f.arg("rows") + (lanes - 1)) // lanes
    room = a["tiles"] * (tile.count * lanes)
    # Either several images or several planes: the other count is one.
    outer, x_outer = f.arg("images") * f.arg("planes"), f.select(f.arg("planes") > 1, a["x_plane"], a["x_image"])
    whole = vectors // tile.vectors * tile.vectors
    for v, first, last in ((tile.vectors, 0, whole), (1, whole, vectors)):
        if v == tile.vectors and first is whole:
            continue
        product = _product_function(tile, v, lanes)
        with f.loop(f"m{v}", first, last, v) as m, f.loop(f"tile{v}", 0, a["tiles"]) as t:
            dy = f.arg("dy") + m.index // tile.vectors * a["panel_dy"]
            sums = f.arg("sums") + m.index * room + t.index * (tile.count * lanes)
            f.call(
                product, f.arg("x"), f.offset(a["offsets"], t.index * tile.bases, I64), dy, sums, outer,
                f.arg("lines"), f.arg("pixels"), x_outer, a["x_row"], a["x_pixel"], room, f.arg("add"),
            )  # fmt: skip
    f.ret()
    return f


def _product_function(tile: Rows, vectors: int, lanes: int) -> Function:
    """product(x, offsets, dy, sums, outer, lines, pixels, x_outer, x_row, x_pixel, room, add): the sums of one tile.

    sums[v·room + r·lanes + lane] (+)= Σ_pixels dy[pixel][v·lanes + lane] · x[offsets[r ∕ run] + r mod run + pixel]
    """
    pointers = [(n, PTR) for n in ("x", "offsets", "dy", "sums")]
    numbers = [(n, I64) for n in ("outer", "lines", "pixels", "x_outer", "x_row", "x_pixel", "room", "add")]
    f = Function(f"product_{vectors}", [*pointers, *numbers], private=True)
    vector, apart = vector_of(lanes), tile.vectors * lanes
    bases = [f.arg("x") + f.load(f.offset(f.arg("offsets"), b, I64), I64, f"offset_{b}") for b in range(tile.bases)]
    start = [f.arg("dy"), *[f.constant(0.0, vector)] * (tile.count * vectors)]
    with f.loop("z", 0, f.arg("outer"), carry=start, at_least_once=True) as z:
        with f.loop("y", 0, f.arg("lines"), carry=z.carried, at_least_once=True) as y:
            line = z.index * f.arg("x_outer") + y.index * f.arg("x_row")
            rows = [base + line for base in bases]
            with f.loop("k", 0, f.arg("pixels"), carry=[f.constant(0), *y.carried], at_least_once=True) as k:
                at, dy, *acc = k.carried
                gradients = [f.load(dy + v * lanes, vector, f"dy_{v}") for v in range(vectors)]
                for r in range(tile.count):
                    place = rows[r // tile.run] + at + r % tile.run
                    pixel = f.splat(f.load(place, F32, f"x_{r}"), lanes, f"pixel_{r}")
                    for v in range(vectors):
                        acc[r * vectors + v] = f.fma(pixel, gradients[v], acc[r * vectors + v], f"acc_{r}_{v}")
                k.carry(at + f.arg("x_pixel"), dy + apart, *acc)
            y.carry(*k.results[1:])
        z.carry(*y.results)
    for add in (0, 1):
        with f.when(f.arg("add").equals(add), "add" if add else "overwrite"):
            for v in range(vectors):
                for r in range(tile.count):
                    place, total = f.arg("sums") + f.arg("room") * v + r * lanes, z.results[1 + r * vectors + v]
                    f.store(f.load(place, vector) + total if add else total, place)
    f.ret()
    return f


def finish_function(tile: Rows, lanes: int) -> Function:
    """The second kernel: a vector of output channels of one share a work item. The parts' sums, added in their order,
    are put into the order of the weights, and turned into their layout.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, vector = f.arg("args"), f.arg("scratch"), vector_of(lanes)
    dw, common = f.word(args, 3, "dw", PTR), f.word(args, 4, "shared", PTR)
    names = ("groups", "rows", "share_rows", "row_shares", "channels", "share_channels", "channel_shares")
    a = job_words(f, WORDS, *names, "places", "parts", "tiles", "taps", "item_sums")
    turn_back = turn_back_function(lanes, fill_function(lanes))
    vectors = (a["share_rows"] + (lanes - 1)) // lanes
    pitch = a["groups"] * a["row_shares"] * a["channel_shares"] * a["item_sums"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        share, v = item.index // vectors, item.index % vectors
        rest, c = share // a["channel_shares"], share % a["channel_shares"] * a["share_channels"]
        group, m = rest // a["row_shares"], rest % a["row_shares"] * a["share_rows"] + v * lanes
        rows, channels = f.minimum(a["rows"] - m, lanes), f.minimum(a["share_channels"], a["channels"] - c)
        with f.when(rows > 0, "there"):
            sums = common + share * a["item_sums"] + v * a["tiles"] * (tile.count * lanes)
            pairs = channels * a["taps"]
            with f.loop("pair", 0, pairs) as pair:
                at = sums + f.load(f.offset(a["places"], pair.index, I64), I64, "place")
                with f.loop("part", 1, a["parts"], carry=[f.load(at, vector)]) as part:
                    part.carry(part.carried[0] + f.load(at + part.index * pitch, vector))
                f.store(part.results[0], scratch + pair.index * lanes)
            row = a["channels"] * a["taps"]
            to = dw + (group * a["rows"] + m) * row + c * a["taps"]
            f.call(turn_back, to, scratch, pairs, rows, row, 1)
    f.ret()
    return f
