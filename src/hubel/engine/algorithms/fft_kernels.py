"""The kernels of convolution by Fourier transforms along columns: the loops told in `algorithms/fft.py`."""

from __future__ import annotations

from dataclasses import dataclass

from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.fourier import Pass, backwards, forwards, passes
from hubel.engine.ir.rows import gather_row, store_rows_function, zero_row

# The words of a job after the base pointers, in this order.
WORDS = (
    "bands_at", "bands", "groups", "channels", "rows", "parts", "part_rows",
    "in_n", "in_c", "in_y", "in_x", "width", "out_n", "out_c", "out_y", "out_x", "out_width",
    "copy_in", "copy_out", "taps", "from_tap",
    "pitch", "spectrum_c", "out_pitch", "w_pitch", "margin", "vectors", "put_vectors", "widest", "wide",
    "zeros_at", "between_at", "ins_at", "rows_at", "outs_at", "made_at", "in_at", "out_at", "dump_at",
    "spectrum_at", "sums_at",
)  # fmt: skip
# What is known of a band of output rows: its first row, the row of the input at which its columns begin, the row of the
# input after the last one it reads, the number of its rows.
BAND = 4

PACK_WORDS = ("taps_at", "rows", "columns", "w_pitch", "between_at", "ins_at", "outs_at", "from_at", "zeros_at", "taps")


@dataclass(frozen=True)
class Shape:
    """What is compiled in: the length of the transforms, the lanes, and the vectors side by side of the register tiles
    between them, the widest first.
    """

    length: int
    lanes: int
    tiles: tuple[int, ...]

    @property
    def frequencies(self) -> int:
        """Those with an imaginary part."""
        return self.length // 2 - 1


def tiles_of(lanes: int, registers: int) -> tuple[int, ...]:
    """Widths of tiles: four sums a vector, of two kinds of weights, must stay in registers."""
    return (4, 3, 2, 1) if registers >= 32 else (3, 2, 1)


def kernel_function(shape: Shape) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; an item is a band of rows of some output channels of a group."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    a = job_words(f, WORDS, "bands_at", "bands", "groups", "channels", "rows", "parts", "part_rows", "out_n", "out_c")
    source, weights, bias, target = (
        f.word(args, i, n, PTR) for i, n in enumerate(("input", "weights", "bias", "output"))
    )
    prepare, read, put = _prepare_function(shape), _read_function(shape), _put_function(shape)
    multiply = multiply_function(shape)
    f.call(prepare, args, scratch)
    has_bias = f.compare("ne", bias, Value(f, PTR, "null"))
    b = job_words(f, WORDS, "in_n", "in_c", "w_pitch", "zeros_at")
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        part, rest = item.index % a["parts"], item.index // a["parts"]
        band, rest = rest % a["bands"], rest // a["bands"]
        group, n = rest % a["groups"], rest // a["groups"]
        words = f.offset(a["bands_at"], band * BAND, I64)
        image = source + n * b["in_n"] + group * a["channels"] * b["in_c"]
        f.call(read, args, scratch, image, words)
        start = part * a["part_rows"]
        with f.loop("m", start, f.minimum(start + a["part_rows"], a["rows"])) as m:
            row = group * a["rows"] + m.index
            at = weights + row * a["channels"] * b["w_pitch"] * shape.length
            f.call(multiply, args, scratch, at, f.select(has_bias, bias + row, scratch + b["zeros_at"], "bias_at"))
            f.call(put, args, scratch, target + n * a["out_n"] + row * a["out_c"], words)
    f.ret()
    return f


def _prepare_function(shape: Shape) -> Function:
    """prepare(args, scratch): zeros beside the rows of transforms, and tables of where the rows lie."""
    f = Function("prepare", [("args", PTR), ("scratch", PTR)], private=True)
    scratch = f.arg("scratch")
    names = ("channels", "spectrum_c", "pitch", "out_pitch", "rows_at", "made_at", "spectrum_at", "sums_at", "zeros_at")
    a = job_words(f, WORDS, *names)
    zero_row(f, scratch + a["zeros_at"], a["pitch"], shape.lanes)
    zero_row(f, scratch + a["spectrum_at"], a["channels"] * a["spectrum_c"], shape.lanes)
    with f.loop("row", 0, shape.length) as row:
        f.store(scratch + (a["spectrum_at"] + row.index * a["pitch"]), f.offset(scratch + a["rows_at"], row.index, I64))
        f.store(scratch + (a["sums_at"] + row.index * a["out_pitch"]), f.offset(scratch + a["made_at"], row.index, I64))
    f.ret()
    return f


def _read_function(shape: Shape) -> Function:
    """read(args, scratch, image, band): the transforms of all columns of a group's channels."""
    f = Function("read", [(n, PTR) for n in ("args", "scratch", "image", "band")], private=True)
    scratch, band = f.arg("scratch"), f.arg("band")
    a = job_words(
        f, WORDS, "channels", "in_c", "in_y", "in_x", "width", "copy_in", "spectrum_c", "margin", "vectors",
        "zeros_at", "between_at", "ins_at", "rows_at", "in_at",
    )  # fmt: skip
    first, last = f.word(band, 1, "first"), f.word(band, 2, "last")
    change = transform_function(shape.length, shape.lanes)
    ins, low = scratch + a["ins_at"], f.maximum(first, 0)
    copied = a["copy_in"].equals(1)
    ahead = f.select(copied, 0, a["in_c"], "ahead")
    copy = scratch + a["in_at"] + (0 - low * a["width"])
    with f.loop("c", 0, a["channels"]) as c:
        plane = f.arg("image") + c.index * a["in_c"]
        with f.when(copied, "in"), f.loop("line", low, last) as line:
            to = copy + line.index * a["width"]
            gather_row(f, to, plane + line.index * a["in_y"], a["width"], a["in_x"])
        base = f.select(copied, copy, plane, "from")
        pitch = f.select(copied, a["width"], a["in_y"], "from_y")
        with f.loop("row", 0, shape.length) as row:
            y = first + row.index
            inside = (y >= 0) & (y < last)
            at = f.select(inside, base + y * pitch, scratch + a["zeros_at"], "row_at")
            f.store(at, f.offset(ins, row.index, I64))
        with f.loop("v", 0, a["vectors"]) as v:
            x = _column(f, v.index, a["width"], shape.lanes)
            to = c.index * a["spectrum_c"] + a["margin"] + x
            f.call(change, ins, x, scratch + a["rows_at"], to, scratch + a["between_at"], a["width"] - x, ahead)
    f.ret()
    return f


def _put_function(shape: Shape) -> Function:
    """put(args, scratch, out, band): the rows of one output channel from their transforms."""
    f = Function("put", [(n, PTR) for n in ("args", "scratch", "out", "band")], private=True)
    scratch, band = f.arg("scratch"), f.arg("band")
    a = job_words(
        f, WORDS, "out_c", "out_y", "out_x", "out_width", "copy_out", "out_pitch", "put_vectors",
        "between_at", "outs_at", "made_at", "out_at", "dump_at",
    )  # fmt: skip
    first, count = f.word(band, 0, "first"), f.word(band, 3, "count")
    change, store = restore_function(shape.length, shape.lanes), store_rows_function(shape.lanes)
    copied = a["copy_out"].equals(1)
    target = f.arg("out") + first * a["out_y"]
    base = f.select(copied, scratch + a["out_at"], target, "to")
    pitch = f.select(copied, a["out_pitch"], a["out_y"], "to_y")
    outs, ahead = scratch + a["outs_at"], f.select(copied, 0, a["out_c"], "ahead")
    with f.loop("row", 0, shape.length) as row:
        at = f.select(row.index < count, base + row.index * pitch, scratch + a["dump_at"], "row_at")
        f.store(at, f.offset(outs, row.index, I64))
    with f.loop("v", 0, a["put_vectors"]) as v:
        x = _column(f, v.index, a["out_width"], shape.lanes)
        between = scratch + a["between_at"]
        f.call(change, scratch + a["made_at"], x, outs, x, between, a["out_width"] - x, ahead)
    with f.when(copied, "out"):
        no_bias = Value(f, PTR, "null")
        f.call(store, target, base, no_bias, count, a["out_y"], a["out_pitch"], a["out_width"], a["out_x"])
    f.ret()
    return f


def _column(f: Function, v: Value, width: Value, lanes: int) -> Value:
    """Where vector v of a row begins. AVX-512 masks the last one; elsewhere it overlaps the one before."""
    return v * lanes if lanes == 16 else f.minimum(v * lanes, width - lanes)


def transform_function(length: int, lanes: int) -> Function:
    """transform(ins, x, outs, to, between, count, ahead): the transforms of `lanes` columns, the first of them x.

    ins, outs: tables of `length` rows. Results lie in rows as `ir.fourier.passes` says, from column `to` on. count:
    columns that there are. between: scratch for one vector each row. ahead: how far behind each row a line is asked
    for; no processor foresees rows in this order.
    """
    names = [("ins", PTR), ("x", I64), ("outs", PTR), ("to", I64), ("between", PTR), ("count", I64), ("ahead", I64)]
    f = Function("transform", names, private=True)
    mask = f.lanes_below(f.arg("count"), lanes) if lanes == 16 else None
    one, two = passes(length)

    def read(at: int) -> Value:
        place = f.word(f.arg("ins"), at, f"row_{at}", PTR) + f.arg("x")
        f.prefetch(place + f.arg("ahead"))
        if mask is None:
            return f.load(place, vector_of(lanes), f"x_{at}")
        return f.load_masked(place, mask, lanes, f"x_{at}")

    for part in one:
        values = forwards(f, part, [read(at) for at, _ in part.inputs])
        _store_between(f, [at for at, _ in part.outputs], values, lanes)
    for part in two:
        values = forwards(f, part, _load_between(f, part, lanes))
        for (at, _), value in zip(part.outputs, values, strict=True):
            f.store(value, f.word(f.arg("outs"), at, f"out_{at}", PTR) + f.arg("to"))
    f.ret()
    return f


def restore_function(length: int, lanes: int) -> Function:
    """restore(ins, x, outs, to, between, count, ahead): the opposite of `transform`, frequencies not weighted.

    ins: a table of rows of transforms, read from column x on. outs: of the rows made, of which `count` columns from
    `to` on are written, where there are so few (AVX-512 alone; elsewhere all lanes are).
    """
    names = [("ins", PTR), ("x", I64), ("outs", PTR), ("to", I64), ("between", PTR), ("count", I64), ("ahead", I64)]
    f = Function("restore", names, private=True)
    mask = f.lanes_below(f.arg("count"), lanes) if lanes == 16 else None
    one, two = passes(length)
    for part in two:
        values = [
            f.load(f.word(f.arg("ins"), at, f"row_{at}", PTR) + f.arg("x"), vector_of(lanes), f"f_{at}")
            for at, _ in part.outputs
        ]
        _store_between(f, [at for at, _ in part.inputs], backwards(f, part, values), lanes)
    for part in one:
        values = backwards(f, part, [f.load(_between(f, at, lanes), vector_of(lanes)) for at, _ in part.outputs])
        for (at, _), value in zip(part.inputs, values, strict=True):
            place = f.word(f.arg("outs"), at, f"out_{at}", PTR) + f.arg("to")
            f.prefetch(place + f.arg("ahead"), write=True)
            if mask is None:
                f.store(value, place)
            else:
                f.store_masked(value, place, mask)
    f.ret()
    return f


def _between(f: Function, at: int, lanes: int) -> Value:
    return f.arg("between") + at * lanes


def _store_between(f: Function, places: list[int], values: list[Value], lanes: int) -> None:
    for at, value in zip(places, values, strict=True):
        f.store(value, _between(f, at, lanes))


def _load_between(f: Function, part: Pass, lanes: int) -> list[Value]:
    return [f.load(_between(f, at, lanes), vector_of(lanes), f"b_{at}") for at, _ in part.inputs]


def multiply_function(shape: Shape) -> Function:
    """multiply(args, scratch, weights, bias): the transforms of one output channel's columns.

    At each frequency, columns are convolved along x with the transforms of the kernel's columns:

        sums[x] = Σ_c Σ_t  conjugate(weights[c, t]) · spectrum[c, x + t]
    """
    f = Function("multiply", [(n, PTR) for n in ("args", "scratch", "weights", "bias")], private=True)
    a = job_words(
        f, WORDS, "channels", "taps", "from_tap", "pitch", "spectrum_c", "out_pitch", "w_pitch", "widest", "wide",
        "put_vectors", "spectrum_at", "sums_at",
    )  # fmt: skip
    source = f.arg("scratch") + a["spectrum_at"] + a["from_tap"]
    target = f.arg("scratch") + a["sums_at"]
    # As many of the widest tiles as there are, then of the next, then what is left.
    stops = [a["widest"], a["wide"], *[a["put_vectors"]] * (len(shape.tiles) - 2)]
    start: Value | int = 0
    for width, stop in zip(shape.tiles, stops, strict=True):
        row = _row_function(shape, width)
        begin = f.constant(start)
        whole = (stop - begin) // width * width + begin
        with f.loop(f"v{width}", begin, whole, width) as v:
            x = v.index * shape.lanes
            f.call(
                row, source + x, target + x, f.arg("weights"), f.arg("bias"), a["channels"], a["taps"], a["pitch"],
                a["spectrum_c"], a["out_pitch"], a["w_pitch"],
            )  # fmt: skip
        start = whole
    f.ret()
    return f


def _row_function(shape: Shape, width: int) -> Function:
    """row_<width>(source, target, weights, bias, channels, taps, pitch, source_c, out_pitch, w_pitch): all frequencies
    of some neighbouring vectors.
    """
    pointers = [(n, PTR) for n in ("source", "target", "weights", "bias")]
    numbers = [(n, I64) for n in ("channels", "taps", "pitch", "source_c", "out_pitch", "w_pitch")]
    f = Function(f"row_{width}", [*pointers, *numbers], private=True)
    lanes = shape.lanes
    pitch, out_pitch, w_pitch = f.arg("pitch"), f.arg("out_pitch"), f.arg("w_pitch")
    # Frequencies 0 and length ∕ 2 are real. All weights are twice as large as theirs must be.
    ends = _taps(f, width, lanes, shape.length, 1, pitch, w_pitch, f.arg("source"), f.arg("weights"), real=True)
    bias = f.splat(f.load(f.arg("bias"), F32, "bias"), lanes, "bias")
    half = f.constant(0.5, vector_of(lanes))
    for v in range(width):
        f.store(f.fma(ends[v], half, bias, "mean"), f.arg("target") + v * lanes)
        f.store(ends[width + v] * 0.5, f.arg("target") + (out_pitch + v * lanes))
    # One vector alone has too few sums to keep the multiply-adds going: two frequencies then.
    together = 2 if width == 1 else 1
    with f.loop("frequency", 0, shape.frequencies, together) as k:
        number = f.minimum(k.index, shape.frequencies - together) + 1 if together > 1 else k.index + 1
        source = f.arg("source") + pitch * (number * 2)
        weights = f.arg("weights") + w_pitch * (number * 2)
        target = f.arg("target") + out_pitch * (number * 2)
        sums = _taps(f, width, lanes, shape.length, together, pitch, w_pitch, source, weights)
        for i in range(together):
            for v in range(width):
                a, b, c, d = sums[(i * width + v) * 4 : (i * width + v) * 4 + 4]
                f.store(a + b, target + (out_pitch * (2 * i) + v * lanes))
                f.store(c - d, target + (out_pitch * (2 * i + 1) + v * lanes))
    f.ret()
    return f


def _taps(
    f: Function,
    width: int,
    lanes: int,
    length: int,
    together: int,
    pitch: Value,
    w_pitch: Value,
    source: Value,
    weights: Value,
    real: bool = False,
) -> list[Value]:
    """The sums over channels and taps: four for each frequency and vector (re·re, im·im, re·im, im·re); of two real
    frequencies one for each vector.
    """
    count = 2 * width if real else 4 * width * together
    zero = f.constant(0.0, vector_of(lanes))
    channels, taps = f.arg("channels"), f.arg("taps")
    with f.loop("c", 0, channels, carry=[source, weights, *[zero] * count], at_least_once=True) as c:
        from_c, w_c, *sums = c.carried
        with f.loop("tap", 0, taps, carry=sums, at_least_once=True) as tap:
            after = list(tap.carried)
            for i in range(together):
                x = [from_c + (pitch * (2 * i + part) + tap.index) for part in (0, 1)]
                w = [
                    f.splat(f.load(w_c + (w_pitch * (2 * i + part) + tap.index), F32, "w"), lanes, "weight")
                    for part in (0, 1)
                ]
                for v in range(width):
                    re, im = (f.load(at + v * lanes, vector_of(lanes), "x") for at in x)
                    if real:
                        pairs = [(v, w[0], re), (width + v, w[1], im)]
                    else:
                        first = (i * width + v) * 4
                        pairs = [(first, w[0], re), (first + 3, w[1], re)]
                        pairs += [(first + 1, w[1], im), (first + 2, w[0], im)]
                    for index, weight, value in pairs:
                        after[index] = f.fma(weight, value, after[index])
            tap.carry(*after)
        c.carry(from_c + f.arg("source_c"), w_c + w_pitch * length, *tap.results)
    return c.results[2:]


def pack_function(shape: Shape) -> Function:
    """The transforms of the kernel's columns: [output channel][channel of the group][row of the transform][tap].

    An item is one slice of the weights. `taps_at`: where its elements lie, in the order in which they meet the input;
    they are packed times 2 ∕ length.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), shape.lanes
    source, packed = f.word(args, 0, "weights", PTR), f.word(args, 1, "packed", PTR)
    a = job_words(f, PACK_WORDS)
    change = transform_function(shape.length, lanes)
    copy, zeros = scratch + a["from_at"], scratch + a["zeros_at"]
    ins, outs = scratch + a["ins_at"], scratch + a["outs_at"]
    zero_row(f, zeros, a["w_pitch"], lanes)
    zero_row(f, copy, a["rows"] * a["w_pitch"], lanes)
    with f.loop("row", 0, shape.length) as row:
        at = f.select(row.index < a["rows"], copy + row.index * a["w_pitch"], zeros, "row_at")
        f.store(at, f.offset(ins, row.index, I64))
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        from_slice = source + f.load(f.offset(a["taps_at"], item.index, I64), I64, "slice")
        places = f.offset(a["taps_at"], a["taps"], I64)
        with f.loop("y", 0, a["rows"]) as y, f.loop("x", 0, a["columns"]) as x:
            number = y.index * a["columns"] + x.index
            at = f.load(f.offset(places, number, I64), I64, "tap_offset")
            weight = f.load(from_slice + at, F32, "weight") * (2 / shape.length)
            f.store(weight, copy + y.index * a["w_pitch"] + x.index)
        to = packed + item.index * a["w_pitch"] * shape.length
        with f.loop("row", 0, shape.length) as row:
            f.store(to + row.index * a["w_pitch"], f.offset(outs, row.index, I64))
        with f.loop("v", 0, a["w_pitch"], lanes) as v:
            f.call(change, ins, v.index, outs, v.index, scratch + a["between_at"], lanes, 0)
    f.ret()
    return f
