"""The kernels of grouped convolutions with output channels in lanes, as told in `grouped.py`."""

from __future__ import annotations

from dataclasses import dataclass

from hubel.engine.algorithms.channel_lanes import fill_function, region_function, turn_back_function
from hubel.engine.algorithms.words import Words, job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.rows import store_rows_function
from hubel.engine.ir.spread import SpreadFunction

# The words of a job after the base pointers, in this order.
WORDS = (
    "offsets", "weights_from", "groups", "channels", "rows", "bundle", "bundles", "vectors", "terms",
    "outputs_y", "outputs_x", "box_y", "bands", "step_y", "first_y", "first_x", "reach_y", "window_x",
    "size_y", "size_x", "in_n", "in_g", "in_c", "in_y", "in_x", "out_from", "out_n", "out_c", "out_y", "out_x",
    "shape", "plane", "sums_from", "bias_from",
)  # fmt: skip
PACK_WORDS = (
    "taps_at", "weights_from", "groups", "rows", "channels", "taps", "vectors", "bundle", "from_g", "from_m", "from_c"
)  # fmt: skip


@dataclass(frozen=True)
class Taps:
    """What a kernel is compiled for: output j of a row reads the places step·j + shift, one for each tap of a row, and
    sums in this order.

    shared: (output, input) channels of a group where a vector holds several groups; None where a group has vectors of
    its own.
    """

    step: int
    shifts: tuple[int, ...]
    shared: tuple[int, int] | None

    def places(self, width: int) -> dict[int, list[tuple[int, int]]]:
        """For each place that `width` outputs read, in order: the (output, tap) that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for j in range(width):
            for t, shift in enumerate(self.shifts):
                found.setdefault(self.step * j + shift, []).append((j, t))
        falling = len(self.shifts) > 1 and self.shifts[0] > self.shifts[1]
        return dict(sorted(found.items(), reverse=falling))

    def __str__(self) -> str:
        shared = "" if self.shared is None else f"{self.shared[1]}to{self.shared[0]}_"
        return f"{shared}s{self.step}x{'_'.join(map(str, self.shifts))}"


def kernel_function(taps: Taps, shapes: tuple[tuple[int, int], ...], lanes: int, ending: Ending = PLAIN) -> Function:
    """The kernel: some rows of outputs of the groups that share their vectors, one image.

    Where the output takes no sums as they are, all go through scratch, and the bias is added there, too.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, window = f.arg("args"), f.arg("scratch")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    bias = operands.arguments[0] if ending.plain else Value(f, PTR, "null")
    a = job_words(f, WORDS)
    fill = fill_function(lanes)
    region = region_function(lanes, fill if ending.stored is PTR else None, ending.stored)
    read = _read_function(region, lanes, ending.stored)
    compute = _compute_function(taps, shapes, lanes)
    put = _put_function(lanes, turn_back_function(lanes, fill), ending)
    sums, addends = window + a["sums_from"], window + a["bias_from"]
    panel = a["channels"] * a["terms"] * (len(taps.shifts) * lanes)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, band = item.index // a["bands"], item.index % a["bands"]
        image, bundle = rest // a["bundles"], rest % a["bundles"]
        y = band * a["box_y"]
        rows = f.minimum(a["box_y"], a["outputs_y"] - y)
        group = bundle * a["bundle"]
        groups = f.minimum(a["bundle"], a["groups"] - group)
        f.call(read, args, window, source + image * a["in_n"] + group * a["in_g"], groups * a["channels"], y, rows)
        with f.loop("vector", 0, a["vectors"]) as v:
            row = group * a["rows"] + v.index * lanes
            count = f.minimum(groups * a["rows"] - v.index * lanes, lanes)
            _collect(f, addends, bias, row, count, lanes)
            out = target + a["out_from"] + image * a["out_n"] + row * a["out_c"] + y * a["out_y"]
            line = a["outputs_x"] * lanes
            panels = weights + a["weights_from"] + (bundle * a["vectors"] + v.index) * panel
            if not ending.plain:
                f.call(compute, args, panels, window, sums, addends, rows, line, lanes)
                f.call(put, args, out, sums, addends + lanes, *operands.further(row).arguments, rows, count)
            else:
                straight = a["out_c"].equals(1) & count.equals(lanes)
                f.call(
                    compute, args, panels, window, f.select(straight, out, sums), addends, rows,
                    f.select(straight, a["out_y"], line), f.select(straight, a["out_x"], lanes),
                )  # fmt: skip
                with f.when(f.negate(straight), "put"):
                    f.call(put, args, out, sums, sums, *operands.arguments, rows, count)
    f.ret()
    return f


def _collect(f: Function, addends: Value, bias: Value, first: Value, count: Value, lanes: int) -> None:
    """addends[i] = bias[first + i] for i < count.

    Without a bias, minus zeros: adding them changes no number, not even −0.
    """
    f.store(f.constant(-0.0, vector_of(lanes)), addends)
    with f.when(f.compare("ne", bias, Value(f, PTR, "null")), "given"), f.loop("channel", 0, count) as c:
        f.store(f.load(bias + first + c.index, F32), addends + c.index)


def _read_function(region: Function, lanes: int, stored: Pointer) -> Function:
    """read(args, window, source, channels, y, rows): what `rows` rows of outputs from y on read of so many channels.

    window[c ∕ lanes][row][col][c mod lanes]
    """
    pointers = [("args", PTR), ("window", PTR), ("source", stored)]
    f = Function("read", [*pointers, *((n, I64) for n in ("channels", "y", "rows"))], private=True)
    names = ("step_y", "first_y", "first_x", "reach_y", "window_x", "size_y", "size_x", "in_c", "in_y", "in_x", "plane")
    a = job_words(f, WORDS, *names)
    rows = (f.arg("rows") - 1) * a["step_y"] + a["reach_y"]
    top = f.arg("y") * a["step_y"] + a["first_y"]
    with f.loop("c", 0, f.arg("channels"), lanes) as c:
        f.call(
            region, f.arg("window") + c.index // lanes * a["plane"], f.arg("source") + c.index * a["in_c"],
            f.arg("channels") - c.index, top, a["first_x"], rows, a["window_x"], a["size_y"], a["size_x"],
            a["in_c"], a["in_y"], a["in_x"], a["window_x"] * lanes, a["in_c"] * lanes,
        )  # fmt: skip
    f.ret()
    return f


def _compute_function(taps: Taps, shapes: tuple[tuple[int, int], ...], lanes: int) -> Function:
    """compute(args, weights, window, out, bias, rows, out_y, out_x): one vector of output channels of all outputs.

    The last tiles of a row overlap those before them; rows of a tile beyond the last one repeat it.
    """
    pointers = [(n, PTR) for n in ("args", "weights", "window", "out", "bias")]
    f = Function("compute", [*pointers, *((n, I64) for n in ("rows", "out_y", "out_x"))], private=True)
    a = job_words(f, WORDS, "offsets", "channels", "terms", "outputs_x", "step_y", "window_x", "shape")
    line = a["step_y"] * a["window_x"] * lanes
    # Where groups share a vector, its places hold all of their channels; else each has places of its own.
    channels = a["channels"] if taps.shared else f.constant(1)
    terms = a["terms"] if taps.shared else a["channels"] * a["terms"]
    for number, (rows, width) in enumerate(shapes):
        tile = _tile_function(taps, rows, width, lanes)
        with (
            f.when(a["shape"].equals(number), f"width{width}"),
            f.loop("x", 0, a["outputs_x"], width) as at,
            f.loop("y", 0, f.arg("rows"), rows) as y,
        ):
            x = f.minimum(at.index, a["outputs_x"] - width)
            window = f.arg("window") + y.index * line + x * (taps.step * lanes)
            out = f.arg("out") + y.index * f.arg("out_y") + x * f.arg("out_x")
            last = f.arg("rows") - 1 - y.index
            f.call(
                tile, f.arg("weights"), window, a["offsets"], out, f.arg("bias"),
                channels, terms, last, line, f.arg("out_y"), f.arg("out_x"),
            )  # fmt: skip
    f.ret()
    return f


def _tile_function(taps: Taps, rows: int, width: int, lanes: int) -> Function:
    """tile(w, x, offsets, out, bias, channels, terms, last, x_row, out_row, out_pixel): rows × width outputs of a
    vector of channels.

    out[r·out_row + j·out_pixel + lane] =
        bias[lane] + Σ_c Σ_k Σ_t w[c, k][t][lane] · x[offsets[k] + r·x_row + place(j, t)]

    A place is read once for all taps that meet it. Where groups share the vector, each lane picks channel c of its own
    group from what it reads there; else the place holds a number for all lanes, `channels` is 1, and k counts the
    channels' rows. Rows beyond `last` repeat that one.
    """
    pointers = [(n, PTR) for n in ("w", "x", "offsets", "out", "bias")]
    numbers = [(n, I64) for n in ("channels", "terms", "last", "x_row", "out_row", "out_pixel")]
    f = SpreadFunction(f"tile_{rows}x{width}", [*pointers, *numbers], private=True)
    vector, count = vector_of(lanes), len(taps.shifts)
    at = [f.minimum(f.arg("last"), r) for r in range(rows)]
    x_rows, out_rows = [r * f.arg("x_row") for r in at], [r * f.arg("out_row") for r in at]
    start = [f.arg("w"), *[f.constant(0.0, vector)] * (rows * width)]
    with f.loop("c", 0, f.arg("channels"), carry=start, at_least_once=True) as c:
        picks = f.picks(c.index, *taps.shared, lanes) if taps.shared else None
        with f.loop("k", 0, f.arg("terms"), carry=c.carried) as k:
            w, *acc = k.carried
            x = f.arg("x") + f.load(f.offset(f.arg("offsets"), k.index, I64), I64, "offset")
            weights = [f.load(w + t * lanes, vector, f"w_{t}") for t in range(count)]
            for r in range(rows):
                line = x + x_rows[r]
                for place, readers in taps.places(width).items():
                    if picks:
                        pixel = f.spread(f.load(line + place * lanes, vector, f"pixel_{place}"), picks)
                    else:
                        pixel = f.splat(f.load(line + place * lanes, F32, f"x_{place}"), lanes, f"pixel_{place}")
                    for j, t in readers:
                        acc[r * width + j] = f.fma(weights[t], pixel, acc[r * width + j], f"acc_{r}_{j}")
            k.carry(w + count * lanes, *acc)
        c.carry(*k.results)
    bias = f.load(f.arg("bias"), vector, "bias")
    for r in range(rows):
        out = f.arg("out") + out_rows[r]
        for j in range(width):
            f.store(c.results[1 + r * width + j] + bias, out)
            out = out + f.arg("out_pixel")
    f.ret()
    return f


def _put_function(lanes: int, turn_back: Function, ending: Ending) -> Function:
    """put(args, out, sums, beside, operands, rows, count): sums[row][x][c] of `count` channels go where they belong,
    those that are to be finished channel by channel: beside[c][row][x].
    """
    pointers = [("args", PTR), ("out", ending.stored), ("sums", PTR), ("beside", PTR), *ending.parameters]
    f = Function("put", [*pointers, *((n, I64) for n in ("rows", "count"))], private=True)
    finish, operands, beside = store_rows_function(lanes, ending), ending.given(f), f.arg("beside")
    a = job_words(f, WORDS, "outputs_x", "out_c", "out_y", "out_x")
    # Rows that follow each other go as one.
    single = a["out_y"].equals(a["outputs_x"] * a["out_x"])
    lines, pixels = f.select(single, 1, f.arg("rows")), f.select(single, f.arg("rows"), 1) * a["outputs_x"]
    with f.loop("line", 0, lines) as y:
        out, sums = f.arg("out") + y.index * a["out_y"], f.arg("sums") + y.index * pixels * lanes
        if ending.plain:
            f.call(turn_back, out, sums, pixels, f.arg("count"), a["out_c"], a["out_x"])
        else:
            f.call(turn_back, beside, sums, pixels, f.arg("count"), pixels, 1)
            with f.loop("channel", 0, f.arg("count")) as c:
                to, of_channel = out + c.index * a["out_c"], operands.further(c.index).arguments
                f.call(finish, to, beside + c.index * pixels, *of_channel, 1, 0, 0, pixels, a["out_x"])
    f.ret()
    return f


def pack_function(lanes: int, stored: Pointer = PTR) -> Function:
    """The weights of a vector of output channels a work item, in the order of the sums: [c][tap][lane].

    Lanes without a channel get zeros.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args = f.arg("args")
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
    a: Words = job_words(f, PACK_WORDS)
    each = f.constant(lanes) // a["bundle"]
    terms = a["channels"] * a["taps"]
    with f.loop("item", f.arg("begin"), f.arg("end")) as item, f.loop("lane", 0, lanes) as lane:
        bundle, vector = item.index // a["vectors"], item.index % a["vectors"]
        group, row = bundle * a["bundle"] + lane.index // each, vector * lanes + lane.index % each
        to = packed + a["weights_from"] + item.index * terms * lanes + lane.index
        there = (group < a["groups"]) & (row < a["rows"])
        with f.when(there, "there"):
            start = source + group * a["from_g"] + row * a["from_m"]
            with f.loop("c", 0, a["channels"]) as c, f.loop("tap", 0, a["taps"]) as tap:
                offset = f.load(f.offset(a["taps_at"], tap.index, I64), I64, "tap_offset")
                weight = f.load(start + c.index * a["from_c"] + offset, F32, "weight")
                f.store(weight, to + (c.index * a["taps"] + tap.index) * lanes)
        with f.when(f.negate(there), "nothing"), f.loop("k", 0, terms) as k:
            f.store(f.constant(0.0, F32), to + k.index * lanes)
    f.ret()
    return f
