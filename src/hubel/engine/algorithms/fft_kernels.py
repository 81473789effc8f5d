"""The kernels of convolution by Fourier transforms along columns: the loops told in `algorithms/fft.py`."""

from __future__ import annotations

from hubel.engine.algorithms.fft_products import WORDS, Shape, multiply_function
from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.fourier import Pass, backwards, forwards, passes
from hubel.engine.ir.rows import gather_row, store_rows_function, zero_row
from hubel.engine.threads import RESERVED_WORDS

# What is known of a band of output rows: its first row, the row of the input at which its columns begin, the row of the
# input after the last one it reads, the number of its rows.
BAND = 4

PACK_WORDS = ("taps_at", "rows", "columns", "w_pitch", "between_at", "ins_at", "outs_at", "from_at", "zeros_at", "taps")


def kernel_function(shape: Shape, ending: Ending = PLAIN) -> Function:
    """The kernel: `kernel(args, begin, end, scratch)`; an item is a band of rows of some output channels of a group."""
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    a = job_words(f, WORDS, "bands_at", "bands", "groups", "channels", "rows", "parts", "part_rows", "out_n", "out_c")
    source, weights = f.word(args, 0, "input", ending.stored), f.word(args, 1, "weights", PTR)
    operands, target = ending.of_call(f, args), f.word(args, 3, "output", ending.stored)
    prepare, read, put = prepare_function(shape), read_function(shape, ending.stored), put_function(shape, ending)
    multiply = multiply_function(shape)
    f.call(prepare, args, scratch)
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
            of_row, zeros = operands.further(row), scratch + b["zeros_at"]
            bias = f.select(of_row.given, of_row.arguments[0], zeros, "bias") if ending.plain else zeros
            f.call(multiply, args, scratch, at, bias)
            after = () if ending.plain else of_row.arguments
            f.call(put, args, scratch, target + n * a["out_n"] + row * a["out_c"], *after, words)
    f.ret()
    return f


def prepare_function(shape: Shape) -> Function:
    """prepare(args, scratch): zeros beside rows of transforms and beside rows that are copied, tables of where the rows
    of transforms lie.
    """
    f = Function("prepare", [("args", PTR), ("scratch", PTR)], private=True)
    scratch = f.arg("scratch")
    a = job_words(
        f, WORDS, "channels", "spectrum_c", "pitch", "out_pitch", "rows_at", "made_at", "spectrum_at", "sums_at",
        "zeros_at", "copy_in", "in_at", "read_width",
    )  # fmt: skip
    zero_row(f, scratch + a["zeros_at"], a["pitch"], shape.lanes)
    zero_row(f, scratch + a["spectrum_at"], a["channels"] * a["spectrum_c"], shape.lanes)
    zero_row(f, scratch + a["in_at"], a["copy_in"] * a["read_width"] * shape.length, shape.lanes)
    with f.loop("row", 0, shape.length) as row:
        f.store(scratch + (a["spectrum_at"] + row.index * a["pitch"]), f.offset(scratch + a["rows_at"], row.index, I64))
        f.store(scratch + (a["sums_at"] + row.index * a["out_pitch"]), f.offset(scratch + a["made_at"], row.index, I64))
    f.ret()
    return f


def _as(f: Function, pointer: Value, stored: Pointer) -> Value:
    """The same place, for numbers that are stored so."""
    return Value(f, stored, pointer.text)


def read_function(shape: Shape, stored: Pointer = PTR) -> Function:
    """read(args, scratch, image, band): the transforms of all columns of a group's channels."""
    pointers = [("args", PTR), ("scratch", PTR), ("image", stored), ("band", PTR)]
    f = Function("read", pointers, private=True)
    scratch, band = f.arg("scratch"), f.arg("band")
    a = job_words(
        f, WORDS, "channels", "in_c", "in_y", "in_x", "width", "read_width", "copy_in", "spectrum_c", "margin",
        "vectors", "zeros_at", "between_at", "ins_at", "rows_at", "in_at",
    )  # fmt: skip
    first, last = f.word(band, 1, "first"), f.word(band, 2, "last")
    change = transform_function(shape.length, shape.lanes, stored)
    ins, low = scratch + a["ins_at"], f.maximum(first, 0)
    copied = a["copy_in"].equals(1)
    ahead = f.select(copied, 0, a["in_c"], "ahead")
    copy = _as(f, scratch + a["in_at"], stored) + (0 - low * a["read_width"])
    zeros = _as(f, scratch + a["zeros_at"], stored)
    with f.loop("c", 0, a["channels"]) as c:
        plane = f.arg("image") + c.index * a["in_c"]
        with f.when(copied, "in"), f.loop("line", low, last) as line:
            to = copy + line.index * a["read_width"]
            gather_row(f, to, plane + line.index * a["in_y"], a["width"], a["in_x"])
        base = f.select(copied, copy, plane, "from")
        pitch = f.select(copied, a["read_width"], a["in_y"], "from_y")
        with f.loop("row", 0, shape.length) as row:
            y = first + row.index
            inside = (y >= 0) & (y < last)
            at = f.select(inside, base + y * pitch, zeros, "row_at")
            f.store(at, f.offset(ins, row.index, I64))
        with f.loop("v", 0, a["vectors"]) as v:
            x = _column(f, v.index, a["read_width"], shape.lanes)
            to = c.index * a["spectrum_c"] + a["margin"] + x
            f.call(change, ins, x, scratch + a["rows_at"], to, scratch + a["between_at"], a["width"] - x, ahead)
    f.ret()
    return f


def put_function(shape: Shape, ending: Ending = PLAIN) -> Function:
    """put(args, scratch, out, operands, band): the rows of one output channel from their transforms.

    A bias alone is in them already, and is no operand. Other endings finish rows that lie in scratch (`copy_out`).
    """
    after = [] if ending.plain else ending.parameters
    pointers = [("args", PTR), ("scratch", PTR), ("out", ending.stored), *after, ("band", PTR)]
    f = Function("put", pointers, private=True)
    scratch, band = f.arg("scratch"), f.arg("band")
    a = job_words(
        f, WORDS, "out_c", "out_y", "out_x", "out_width", "put_width", "copy_out", "out_pitch", "put_vectors",
        "between_at", "outs_at", "made_at", "out_at", "dump_at",
    )  # fmt: skip
    first, count = f.word(band, 0, "first"), f.word(band, 3, "count")
    change, store = restore_function(shape.length, shape.lanes), store_rows_function(shape.lanes, ending)
    copied = a["copy_out"].equals(1)
    target, parked = f.arg("out") + first * a["out_y"], scratch + a["out_at"]
    base = f.select(copied, parked, target, "to") if ending.plain else parked
    pitch = f.select(copied, a["out_pitch"], a["out_y"], "to_y")
    outs, ahead = scratch + a["outs_at"], f.select(copied, 0, a["out_c"], "ahead")
    with f.loop("row", 0, shape.length) as row:
        at = f.select(row.index < count, base + row.index * pitch, scratch + a["dump_at"], "row_at")
        f.store(at, f.offset(outs, row.index, I64))
    with f.loop("v", 0, a["put_vectors"]) as v:
        x = _column(f, v.index, a["put_width"], shape.lanes)
        between = scratch + a["between_at"]
        f.call(change, scratch + a["made_at"], x, outs, x, between, a["out_width"] - x, ahead)
    with f.when(copied, "out"):
        operands = (Value(f, PTR, "null"),) if ending.plain else ending.given(f).arguments
        f.call(store, target, parked, *operands, count, a["out_y"], a["out_pitch"], a["out_width"], a["out_x"])
    f.ret()
    return f


def _column(f: Function, v: Value, width: Value, lanes: int) -> Value:
    """Where vector v of a row begins. AVX-512 masks the last one; elsewhere it overlaps the one before."""
    return v * lanes if lanes == 16 else f.minimum(v * lanes, width - lanes)


def transform_function(length: int, lanes: int, stored: Pointer = PTR) -> Function:
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
        place = f.word(f.arg("ins"), at, f"row_{at}", stored) + f.arg("x")
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


def pack_function(shape: Shape, stored: Pointer = PTR) -> Function:
    """The transforms of the kernel's columns: [output channel][channel of the group][row of the transform][tap].

    An item is one slice of the weights. `taps_at`: where its elements lie, in the order in which they meet the input;
    they are packed times 2 ∕ length.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch, lanes = f.arg("args"), f.arg("scratch"), shape.lanes
    source, packed = f.word(args, 0, "weights", stored), f.word(args, 1, "packed", PTR)
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


def weight_gradient_function(shape: Shape, stored: Pointer = PTR) -> Function:
    """The kernel of `fft_weight_gradient`: an item is an output channel.

    Its words are those of a job twice: of the input, and of the output gradient, whose transforms are the weights.
    """
    f = Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])
    args, scratch = f.arg("args"), f.arg("scratch")
    source, gradient = (f.word(args, i, n, stored) for i, n in enumerate(("input", "dy")))
    target = f.word(args, 3, "dw", PTR)
    of_dy = f.offset(args, len(WORDS), I64)
    prepare, read, put = prepare_function(shape), read_function(shape, stored), put_function(shape)
    multiply = multiply_function(shape, add=True)
    a = job_words(
        f, WORDS, "images", "multiplier", "bands_at", "bands", "in_n", "in_c", "out_c", "sums_at", "out_pitch"
    )
    of, word = RESERVED_WORDS + len(WORDS), WORDS.index
    dy_n, dy_c = f.word(args, of + word("in_n"), "dy_n"), f.word(args, of + word("in_c"), "dy_c")
    dy_bands = f.word(args, of + word("bands_at"), "dy_bands", PTR)
    dy_at, first = f.word(args, of + word("spectrum_at"), "dy_at"), f.word(args, of + word("from_tap"), "first")
    f.call(prepare, args, scratch)
    f.call(prepare, of_dy, scratch)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        zero_row(f, scratch + a["sums_at"], a["out_pitch"] * shape.length, shape.lanes)
        plane, dy = source + item.index // a["multiplier"] * a["in_c"], gradient + item.index * dy_c
        with f.loop("n", 0, a["images"]) as n, f.loop("band", 0, a["bands"]) as band:
            words = band.index * BAND
            f.call(read, args, scratch, plane + n.index * a["in_n"], f.offset(a["bands_at"], words, I64))
            f.call(read, of_dy, scratch, dy + n.index * dy_n, f.offset(dy_bands, words, I64))
            f.call(multiply, args, scratch, scratch + (dy_at + first), scratch)
        # Behind the bands stands that of the weights.
        f.call(put, args, scratch, target + item.index * a["out_c"], f.offset(a["bands_at"], a["bands"] * BAND, I64))
    f.ret()
    return f
