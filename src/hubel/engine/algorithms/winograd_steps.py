"""The steps of Winograd's algorithm on tiles of an image, many tiles at a time: lanes are neighbouring tiles.

    gather      rows of an image → values[i][j][tile], the inputs of each tile, one vector load for each of them
    transform   values → transformed[ξ][c][tile]: Bᵀ d B
    product     the register tile: sums[ξ][row][tile] += weights[ξ][c][row] · transformed[ξ][c][tile]
    finish      sums → stage[i][tile·m + j]: Aᵀ s A, the rows of outputs as they lie in memory
    filters     weights → U = G g Gᵀ, in float64

Tiles have my × mx outputs and read ny × nx inputs, n = m + r − 1; ξ counts the ny·nx products (`Form`). All pitches
count float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from hubel.engine.algorithms.winograd_forms import Form
from hubel.engine.algorithms.winograd_transforms import Matrix
from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.linear import multiply, multiply_columns
from hubel.engine.ir.masked import WideFunction
from hubel.engine.ir.rows import copy_row
from hubel.engine.ir.storage import Pointer


def gather_function(form: Form, lanes: int, pitch: int, stored: Pointer = PTR) -> Function:
    """gather(values, source, x, y, sizes, strides, ahead, line): the inputs of tiles of a row of tiles.

    There are up to lanes − `halo` of them, for the last ones also read what is behind.

    `source` is where the first tile's first input lies or would lie, (x, y) its place in the image of the given size;
    what lies outside is zero. values[(i·nx + j)·pitch + tile]; a vector is written for each (i, j), so later tiles
    must be gathered later. `line`: scratch of mx + 1 vectors, for rows that are not contiguous, or whose numbers can
    be loaded under no mask. What lies `ahead` of each row is asked for.
    """
    numbers = [(n, I64) for n in ("x", "y", "size_x", "size_y", "stride_x", "stride_y", "ahead")]
    f = WideFunction("gather", [("values", PTR), ("source", stored), *numbers, ("line", PTR)], private=True)
    m, n = form.cols.outputs, form.cols.size
    masks = [f.within(f.arg("x") + k * lanes, f.arg("size_x"), lanes) for k in range(m)]
    strided = f.compare("ne", f.arg("stride_x"), 1)
    # Only AVX-512 loads numbers of 16 bits under a mask: elsewhere they become float32 first.
    widening = stored is not PTR and lanes < 16
    line = f.arg("line") if widening else f.arg("line").seen_as(stored)
    with f.loop("i", 0, form.rows.size) as i:
        y = f.arg("y") + i.index
        inside = (y >= 0) & (y < f.arg("size_y"))
        values = f.arg("values") + i.index * (n * pitch)
        row = f.arg("source") + i.index * f.arg("stride_y")
        with f.when(inside & strided, "strided"):
            first, last = f.maximum(0 - f.arg("x"), 0), f.minimum(f.arg("size_x") - f.arg("x"), m * lanes)
            with f.loop("col", first, last) as col:
                f.copy(row + col.index * f.arg("stride_x"), line + col.index)
        if widening:
            with f.when(inside & f.negate(strided), "widened"):
                first, last = f.maximum(0 - f.arg("x"), 0), f.minimum(f.arg("size_x") - f.arg("x"), m * lanes)
                copy_row(f, line + first, row + first, last - first, lanes)
        ahead = row + f.arg("ahead")
        row = line if widening else f.select(strided, line, row, "row")
        with f.when(inside, "inside"):
            for k in range(m):
                f.prefetch((ahead if widening else row + f.arg("ahead")) + k * lanes)
            phases = deinterleave(f, [f.load_masked(row + k * lanes, mask) for k, mask in enumerate(masks)])
            for j, phase in enumerate(phases):
                f.store(phase, values + j * pitch)
            for j in range(m, n):
                tiles_on = [*range(j // m, lanes), *[-1] * (j // m)]
                f.store(f.shuffle(phases[j % m], phases[j % m], tiles_on), values + j * pitch)
        with f.when((y < 0) | (y >= f.arg("size_y")), "outside"):
            for j in range(n):
                f.store(f.constant(0.0, vector_of(lanes)), values + j * pitch)
    f.ret()
    return f


def deinterleave(f: Function, vectors: list[Value]) -> list[Value]:
    """Of vectors laid end to end, every len(vectors)-th number, beginning with each of the first: as many vectors."""
    if len(vectors) == 1:
        return vectors
    lanes = int(vectors[0].type[1:].split()[0])
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    even = deinterleave(f, [f.shuffle(a, b, range(0, 2 * lanes, 2), "even") for a, b in pairs])
    odd = deinterleave(f, [f.shuffle(a, b, range(1, 2 * lanes, 2), "odd") for a, b in pairs])
    return list(chain(*zip(even, odd, strict=True)))


def interleave(f: Function, vectors: list[Value]) -> list[Value]:
    """The reverse of `deinterleave`."""
    if len(vectors) == 1:
        return vectors
    lanes = int(vectors[0].type[1:].split()[0])
    low = [k // 2 + lanes * (k % 2) for k in range(lanes)]
    results = []
    for a, b in zip(interleave(f, vectors[::2]), interleave(f, vectors[1::2]), strict=True):
        results += [f.shuffle(a, b, low, "low"), f.shuffle(a, b, [k + lanes // 2 for k in low], "high")]
    return results


def transform_function(form: Form, lanes: int, pitch: int) -> Function:
    """transform(values, target, step): Bᵀ d B of one vector of tiles; value ξ goes to target[ξ·step].

    Rows of Bᵀ that share their halves are done together, all others alone, so that few values are alive at a time.
    """
    f = Function("transform", [("values", PTR), ("target", PTR), ("step", I64)], private=True)
    rows, cols, vector = form.rows.inputs, form.cols.inputs, vector_of(lanes)
    for group in _groups(rows):
        needed = [any(rows[i][k] for i in group) for k in range(len(rows))]
        columns = []
        for j in range(len(cols)):
            places = [f.arg("values") + (k * len(cols) + j) * pitch for k in range(len(rows))]
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


# Terms of a product that are written out: the loop around them takes instructions, too, and fewer lines are asked for
# twice (Cascade Lake, 2026-11: 7 % with AVX-512, 10 % with AVX2, along with not asking for the sums beforehand).
UNROLLED = 4


def product_function(rows: int, vectors: int, lanes: int) -> Function:
    """product(w, x, c, ahead, terms, x_pitch, c_pitch, add): the sums of one tile of rows and lanes.

    c[r·c_pitch + lane] (+)= Σ_k w[k·rows + r] · x[k·x_pitch + lane]

    The weights at `ahead`, as many as there are at w, are asked for meanwhile: the panel of the next tile. add: 0 to
    overwrite c.
    """
    pointers = [(n, PTR) for n in ("w", "x", "c", "ahead")]
    numbers = [(n, I64) for n in ("terms", "x_pitch", "c_pitch", "add")]
    f = Function(f"product_{vectors}", [*pointers, *numbers], private=True)
    vector = vector_of(lanes)
    zero = f.constant(0.0, vector)

    def turns(name: str, start: list[Value], count: Value, at_once: int) -> list[Value]:
        """So many turns of `at_once` terms each."""
        with f.loop(name, 0, count, carry=start) as k:
            w, x, ahead, *acc = k.carried
            for line in range(-(-rows * at_once // 16)):
                f.prefetch(ahead + line * 16)
            for term in range(at_once):
                pixels = [f.load(x + v * lanes, vector, f"pixels_{v}") for v in range(vectors)]
                for r in range(rows):
                    weight = f.splat(f.load(w + (term * rows + r), F32, f"w_{r}"), lanes, f"weight_{r}")
                    for v in range(vectors):
                        acc[r * vectors + v] = f.fma(weight, pixels[v], acc[r * vectors + v], f"acc_{r}_{v}")
                x = x + f.arg("x_pitch")
            k.carry(w + rows * at_once, x, ahead + rows * at_once, *acc)
        return k.results

    whole = f.arg("terms") // UNROLLED
    start = [f.arg("w"), f.arg("x"), f.arg("ahead"), *[zero] * (rows * vectors)]
    start = turns("turn", start, whole, UNROLLED)
    sums = turns("k", start, f.arg("terms") - whole * UNROLLED, 1)[3:]
    for add in (0, 1):
        with f.when(f.arg("add").equals(add), "add" if add else "overwrite"):
            for r in range(rows):
                row = f.arg("c") + f.arg("c_pitch") * r
                for v in range(vectors):
                    total = sums[r * vectors + v]
                    f.store(f.load(row + v * lanes, vector) + total if add else total, row + v * lanes)
    f.ret()
    return f


def finish_function(form: Form, lanes: int) -> Function:
    """finish(sums, step, stage, stage_pitch): Aᵀ s A of one vector of tiles; sum ξ lies at sums[ξ·step].

    Row i of the outputs goes to stage[i·stage_pitch], the outputs of neighbouring tiles side by side.
    """
    f = Function("finish", [("sums", PTR), ("step", I64), ("stage", PTR), ("stage_pitch", I64)], private=True)
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
            outputs = multiply_columns(f, cols, [column[place] for column in columns])
            for k, piece in enumerate(interleave(f, outputs)):
                f.store(piece, f.arg("stage") + f.arg("stage_pitch") * i + k * lanes)
    f.ret()
    return f


def put_function(lanes: int, ending: Ending = PLAIN) -> Function:
    """put(target, source, operands, rows, cols, strides, pitch, ahead): outputs of one channel leave the stage.

    They are finished on their way: operands are those of `ending`.

    What lies `ahead` of each row is asked for, to be written later.
    """
    numbers = [(n, I64) for n in ("rows", "cols", "stride_y", "stride_x", "pitch", "ahead")]
    parameters = [("target", ending.stored), ("source", PTR), *ending.parameters, *numbers]
    f = Function("put", parameters, private=True)
    cols, plain = f.arg("cols"), f.arg("stride_x").equals(1)
    finish = ending.given(f).load([width for width in (1, 4, 8, 16) if width <= lanes])

    def rows(condition: Value, name: str, width: int, write: Callable[[Callable[[Value | int], None]], None]) -> None:
        type_ = F32 if width == 1 else vector_of(width)
        with f.when(condition, name), f.loop(f"{name}_row", 0, f.arg("rows"), at_least_once=True) as i:
            target = f.arg("target") + i.index * f.arg("stride_y")
            source = f.arg("source") + i.index * f.arg("pitch")

            def move(at: Value | int) -> None:
                place = target + (at if width > 1 else at * f.arg("stride_x"))
                f.prefetch(place + f.arg("ahead"), write=True)
                f.store(finish(f.load(source + at, type_), place), place)

            write(move)

    def across(width: int) -> Callable[[Callable[[Value | int], None]], None]:
        """Whole vectors, the last of them ending with the row, over the one before it."""

        def write(move: Callable[[Value | int], None]) -> None:
            last = cols - width
            with f.loop("col", 0, last, width) as col:
                move(col.index)
            move(last)

        return write

    def one_by_one(move: Callable[[Value | int], None]) -> None:
        with f.loop("col", 0, cols) as col:
            move(col.index)

    rows(plain & (cols >= lanes), "wide", lanes, across(lanes))
    width = lanes // 2
    while width >= 4:
        rows(plain & (cols >= width) & (cols < 2 * width), f"half{width}", width, across(width))
        width //= 2
    rows(f.compare("ne", f.arg("stride_x"), 1) | (cols < min(4, lanes)), "single", 1, one_by_one)
    f.ret()
    return f


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
