"""The steps of Winograd's algorithm on tiles of an image, one tile at a time: lanes are neighbouring channels.

    region      rows of an image → region[y][x][channel], padding and what hangs over the border as zeros
    transform   region → transformed[ξ][tile][channel]: Bᵀ d B
    product     the register tile: sums[ξ][tile][row] += Σ_c transformed[ξ][tile][c] · weights[ξ][c][row]
    finish      sums → stage[i][x][row]: Aᵀ s A, the outputs of neighbouring tiles side by side
    put         stage → output, finished on its way
    filters     weights → U = G g Gᵀ, in float64

Tiles have my × mx outputs and read ny × nx inputs, with stride 1 n = m + r − 1; ξ counts the products (`Form`). All
pitches count float32 numbers.
"""

from __future__ import annotations

from hubel.engine.algorithms.winograd_forms import Form
from hubel.engine.algorithms.winograd_transforms import Matrix
from hubel.engine.ir.epilogue import PLAIN, Channels, Ending, Finish
from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.linear import multiply, multiply_columns
from hubel.engine.ir.masked import WideFunction
from hubel.engine.ir.storage import Pointer
from hubel.engine.ir.turn import joined, transposed_quarters


def transform_function(form: Form, lanes: int) -> Function:
    """transform(source, pitch, apart, target, step): Bᵀ d B of the tile whose first inputs lie at source.

    Rows lie `pitch` from each other, their pixels `apart`; value ξ goes to target[ξ·step]. Rows of Bᵀ that share their
    halves are done together, all others alone, so that few values are alive at a time.
    """
    numbers = [(n, I64) for n in ("pitch", "apart")]
    f = Function("transform", [("source", PTR), *numbers, ("target", PTR), ("step", I64)], private=True)
    rows, cols, vector = form.rows.inputs, form.cols.inputs, vector_of(lanes)
    for group in _groups(rows):
        needed = [any(rows[i][k] for i in group) for k in range(form.rows.read)]
        columns = []
        for j in range(form.cols.read):
            places = [f.arg("source") + f.arg("apart") * j + f.arg("pitch") * k for k in range(form.rows.read)]
            column = [f.load(place, vector) if wanted else None for place, wanted in zip(places, needed, strict=True)]
            columns.append(multiply(f, [rows[i] for i in group], column))
        for place, i in enumerate(group):
            target = f.arg("target") + f.arg("step") * (i * len(cols))
            for result in multiply(f, cols, [column[place] for column in columns]):
                f.store(result, target)
                target = target + f.arg("step")
    f.ret()
    return f


def _groups(rows: Matrix) -> list[list[int]]:
    """Rows that differ only in signs, together."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(abs(c) for c in row), []).append(i)
    return list(groups.values())


# Rows of transformed values that one pointer serves: x86 scales a distance by 1 and 2, and numbers by 4.
OF_POINTER = 3


def unrolled(rows: int, vectors: int, lanes: int) -> int:
    """Terms of a product that are written out: as many as LLVM, which loads early, still keeps in registers."""
    if lanes == 8:
        return 4 if vectors > 1 or rows <= 6 else 1
    return 4 if rows * vectors <= 20 else 1 if lanes == 16 else 2


def product_function(rows: int, vectors: int, width: int, lanes: int) -> Function:
    """product(w, x, c, ahead, terms, x_pitch, c_pitch, add, asked): the sums of `rows` tiles, and of `vectors` vectors
    of output channels.

    c[r·c_pitch + lane] (+)= Σ_k x[r·x_pitch + k] · w[k·width + lane]

    With each term the line `asked` bytes behind the one before is asked for, from `ahead` on. add: 0 to overwrite c.
    """
    pointers = [(n, PTR) for n in ("w", "x", "c", "ahead")]
    numbers = [(n, I64) for n in ("terms", "x_pitch", "c_pitch", "add", "asked")]
    f = Function(f"product_{rows}x{vectors}", [*pointers, *numbers], private=True)
    vector = vector_of(lanes)
    zero, pitch = f.constant(0.0, vector), f.arg("x_pitch")
    firsts = [f.arg("x") + pitch * r for r in range(0, rows, OF_POINTER)]
    most = unrolled(rows, vectors, lanes)

    def turns(name: str, start: list[Value], count: Value, at_once: int) -> list[Value]:
        """So many turns of `at_once` terms each."""
        with f.loop(name, 0, count, carry=start) as k:
            w, ahead, *rest = k.carried
            x, acc = rest[: len(firsts)], rest[len(firsts) :]
            for _ in range(at_once):
                f.prefetch(ahead)
                ahead = f.offset(ahead, f.arg("asked"), "i8")
            for term in range(at_once):
                weights = [f.load(w + (term * width + v * lanes), vector, f"weights_{v}") for v in range(vectors)]
                for r in range(rows):
                    place = x[r // OF_POINTER] + pitch * (r % OF_POINTER) + term
                    every = f.splat(f.load(place, F32, f"x_{r}"), lanes, f"all_{r}")
                    for v in range(vectors):
                        acc[r * vectors + v] = f.fma(every, weights[v], acc[r * vectors + v], f"acc_{r}_{v}")
            k.carry(w + width * at_once, ahead, *(first + at_once for first in x), *acc)
        return k.results

    whole = f.arg("terms") // most
    sums = turns("turn", [f.arg("w"), f.arg("ahead"), *firsts, *[zero] * (rows * vectors)], whole, most)
    if most > 1:
        sums = turns("k", sums, f.arg("terms") - whole * most, 1)
    sums = sums[2 + len(firsts) :]
    for add in (0, 1):
        with f.when(f.arg("add").equals(add), "add" if add else "overwrite"):
            for r in range(rows):
                row = f.arg("c") + f.arg("c_pitch") * r
                for v in range(vectors):
                    total = sums[r * vectors + v]
                    f.store(f.load(row + v * lanes, vector) + total if add else total, row + v * lanes)
    f.ret()
    return f


def finish_function(form: Form, lanes: int, pitch: int) -> Function:
    """finish(sums, step, stage): Aᵀ s A of one tile; sum ξ lies at sums[ξ·step].

    Output (i, j) goes to stage[i·pitch + j·lanes].
    """
    f = Function("finish", [("sums", PTR), ("step", I64), ("stage", PTR)], private=True)
    rows, cols, vector = form.rows.results, form.cols.results, vector_of(lanes)
    wide = form.cols.size
    for parity in range(min(2, len(rows))):
        group = [*range(parity, len(rows), 2)]
        needed = [k for k in range(form.rows.size) if any(rows[i][k] for i in group)]
        columns = []
        for j in range(wide):
            column = [f.load(f.arg("sums") + f.arg("step") * (k * wide + j), vector) for k in needed]
            columns.append(multiply_columns(f, [[rows[i][k] for k in needed] for i in group], column))
        for place, i in enumerate(group):
            for j, output in enumerate(multiply_columns(f, cols, [column[place] for column in columns])):
                f.store(output, f.arg("stage") + (i * pitch + j * lanes))
    f.ret()
    return f


def put_function(lanes: int, pitch: int, ending: Ending = PLAIN) -> Function:
    """put(target, stage, operands, line, rows, high, wide, out_c, out_y, out_x): high × wide outputs of `rows` channels
    leave the stage.

    target[r·out_c + i·out_y + j·out_x] = stage[i·pitch + j·lanes + r], finished on its way: operands are those of
    `ending`. line: scratch of a vector. Rows of neighbouring pixels and pixels of neighbouring channels go by vectors,
    the last of a row over the one before it; all else one by one.
    """
    numbers = [(n, I64) for n in ("rows", "high", "wide", "out_c", "out_y", "out_x")]
    parameters = [("target", ending.stored), ("stage", PTR), *ending.parameters, ("line", PTR), *numbers]
    f = Function("put", parameters, private=True)
    rows, wide, out_c, out_x = (f.arg(n) for n in ("rows", "wide", "out_c", "out_x"))
    target, stage, operands = f.arg("target"), f.arg("stage"), ending.given(f)
    turned, across = out_x.equals(1) & (wide >= 4), out_c.equals(1) & rows.equals(lanes)
    across = across & f.negate(turned)
    widths = [width for width in (16, 8, 4) if width <= lanes]
    with f.when(turned, "turned"), f.loop("rows4", 0, rows, 4) as four:
        finishes = [operands.further(f.minimum(four.index + i, rows - 1)).load(widths) for i in range(4)]
        for width in widths:
            fits = wide >= width if width == lanes else (wide >= width) & (wide < 2 * width)
            with f.when(fits, f"by{width}"), f.loop(f"row{width}", 0, f.arg("high"), at_least_once=True) as i:
                to = target + four.index * out_c + i.index * f.arg("out_y")
                from_, last = stage + i.index * pitch + four.index, wide - width
                with f.loop(f"col{width}", 0, last, width) as col:
                    _turn(f, from_ + col.index * lanes, to + col.index, width, lanes, finishes, rows - four.index)
                _turn(f, from_ + last * lanes, to + last, width, lanes, finishes, rows - four.index)
    with f.when(across, "across"):
        finish = _across(operands, f.arg("line"), lanes)
        with f.loop("line", 0, f.arg("high")) as i, f.loop("pixel", 0, wide) as j:
            place = target + i.index * f.arg("out_y") + j.index * out_x
            f.store(finish(f.load(stage + i.index * pitch + j.index * lanes, vector_of(lanes)), place), place)
    with f.when(f.negate(turned | across), "single"), f.loop("r", 0, rows) as r:
        finish = operands.further(r.index).load([1])
        with f.loop("y", 0, f.arg("high")) as i, f.loop("x", 0, wide) as j:
            place = target + r.index * out_c + i.index * f.arg("out_y") + j.index * out_x
            f.store(finish(f.load(stage + i.index * pitch + j.index * lanes + r.index, F32), place), place)
    f.ret()
    return f


def _turn(
    f: Function, source: Value, target: Value, width: int, lanes: int, finishes: list[Finish], rows: Value
) -> None:
    """Four channels of `width` neighbouring pixels, those that exist."""
    starts = [[source + (quarter + p) * lanes for quarter in range(0, width, 4)] for p in range(4)]
    vectors = [joined(f, [f.load(place, vector_of(4)) for place in places]) for places in starts]
    for i, (vector, finish) in enumerate(zip(transposed_quarters(f, vectors), finishes, strict=True)):
        with f.when(rows > i, "exists"):
            place = target + f.arg("out_c") * i
            f.store(finish(vector, place), place)


def _across(operands: Channels, line: Value, lanes: int) -> Finish:
    """What is done to vectors of neighbouring channels. line: scratch of a vector."""
    f, ending, (first, *channel) = operands.f, operands.ending, operands.arguments
    vector = vector_of(lanes)
    bias = f.word(first, 0, "bias", ending.stored) if channel else first
    f.store(f.constant(-0.0, vector), line)
    with f.when(f.compare("ne", bias, Value(f, PTR, "null")), "biased"):
        f.store(f.load(bias + channel[0] if channel else bias, vector), line)
    values, residual, epilogue = {"bias": f.load(line, vector)}, None, ending.epilogue
    if epilogue and epilogue.scale:
        for i, name in ((1, "scale"), (2, "shift")):
            values[name] = f.load(f.word(first, i, name, PTR) + channel[0], vector, name)
    if epilogue and epilogue.residual:
        residual = f.word(first, 3, "residual")
    return Finish(f, epilogue, {lanes: values}, residual)


# Numbers by which the packed weights are asked for before they are written: they lie in more streams than the
# processor foresees.
AHEAD = 128


def filters_function(form: Form, width: int, stored: Pointer = PTR) -> Function:
    """filters(weights, taps, by_row, first, rows, target, step): G g Gᵀ of `width` filters, in float64, rounded once.

    Filter r is that of row first + r, at weights[row·by_row], or zero if there is no such row; `taps` points to the
    offsets of its elements. Element ξ of filter r goes to target[ξ·step + r].
    """
    numbers = [(n, I64) for n in ("by_row", "first", "rows")]
    parameters = [("weights", stored), ("taps", PTR), *numbers, ("target", PTR), ("step", I64)]
    f = WideFunction(f"filters_{width}", parameters, private=True)
    zero = f.constant(0.0, F32)
    places = [f.arg("first") + r for r in range(width)]
    starts = [f.arg("weights") + f.minimum(place, f.arg("rows") - 1) * f.arg("by_row") for place in places]
    real = [place < f.arg("rows") for place in places]
    taps: list[list[Value]] = []
    high, wide = form.taps
    for i in range(high):
        taps.append([])
        for j in range(wide):
            offset = f.load(f.offset(f.arg("taps"), i * wide + j, I64), I64, "tap")
            scalars = [f.select(ok, f.load(start + offset, F32), zero) for ok, start in zip(real, starts, strict=True)]
            taps[i].append(f.widened(f.gathered(scalars)))
    columns = [multiply(f, form.rows.filters, [taps[i][j] for i in range(high)]) for j in range(wide)]
    target = f.arg("target")
    for i in range(form.rows.size):
        for result in multiply(f, form.cols.filters, [column[i] for column in columns]):
            f.prefetch(target + AHEAD, write=True)
            f.store(f.rounded(result), target)
            target = target + f.arg("step")
    f.ret()
    return f
