"""Rows of numbers: copied, filled with zeros, and carried between a tensor and a kernel's scratch memory.

No copy reads or writes past the row it is given: the last vector of a row overlaps the one before it instead of
running over the end, and rows shorter than a vector go by halves. Only `zero_row` may write up to a vector past its
end, into scratch.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.storage import Pointer

# (value, where it goes) → the value that is stored there
Change = Callable[[Value, Value], Value]


def copy_row(f: Function, target: Value, source: Value, count: Value, lanes: int, change: Change | None = None) -> None:
    """target[i] = change(source[i]) for i < count; both contiguous, and not overlapping."""
    change = change or (lambda value, place: value)

    def move(at: Value | int, width: int) -> None:
        type_ = vector_of(width) if width > 1 else F32
        value = f.load(source + at, type_)
        f.store(change(value, place := target + at), place)

    with f.when(count >= lanes, "whole"):
        last = count - lanes
        with f.loop("col", 0, last, lanes) as col:
            move(col.index, lanes)
        move(last, lanes)
    width = lanes // 2
    while width >= 4:
        fits = (count >= width) & (count < 2 * width)
        with f.when(fits, f"half{width}"):
            move(0, width)
            move(count - width, width)
        width //= 2
    with f.when(count < 4, "few"), f.loop("one", 0, count) as one:
        move(one.index, 1)


def zero_row(f: Function, target: Value, count: Value, lanes: int) -> None:
    """target[i] = 0 for i < count, and for up to a vector more."""
    zero = f.constant(0.0, vector_of(lanes))
    with f.loop("zero", 0, count, lanes) as col:
        f.store(zero, target + col.index)


def gather_row(f: Function, target: Value, source: Value, count: Value, stride: Value) -> None:
    """target[i] = source[i·stride] for i < count."""
    with f.loop("pick", 0, count) as col:
        f.copy(source + col.index * stride, target + col.index)


def copy_rows(
    f: Function, target: Value, source: Value, rows: Value, width: Value, pitch: Value, stride: Value, lanes: int
) -> None:
    """target[row·width + i] = source[row·pitch + i·stride] for i < width: rows laid end to end."""
    dense = stride.equals(1) & pitch.equals(width)
    length = f.select(dense, rows * width, width, "length")
    with f.loop("run", 0, f.select(dense, 1, rows, "runs")) as run:
        to, at = target + run.index * width, source + run.index * pitch
        with f.when(stride.equals(1), "side_by_side"):
            copy_row(f, to, at, length, lanes)
        with f.when(f.compare("ne", stride, 1), "apart"):
            gather_row(f, to, at, width, stride)


def scatter_row(f: Function, target: Value, source: Value, count: Value, stride: Value, change: Change) -> None:
    """target[i·stride] = change(source[i]) for i < count."""
    with f.loop("place", 0, count) as col:
        value = f.load(source + col.index, F32)
        f.store(change(value, place := target + col.index * stride), place)


def store_tile_function(vectors: int, lanes: int, ending: Ending, odd: bool = False) -> Function:
    """store_tile_<vectors>(target, source, operands, rows, target_pitch, source_pitch): so many whole vectors of `rows`
    channels leave scratch, finished on their way.

    `odd`: one number more behind the vectors.
    """
    parameters = [("target", ending.stored), ("source", PTR), *ending.parameters]
    parameters += [(n, I64) for n in ("rows", "target_pitch", "source_pitch")]
    f = Function(f"store_tile_{'odd' if odd else vectors}", parameters, private=True)
    channels = ending.given(f)
    with f.loop("row", 0, f.arg("rows")) as row:
        finish = channels.further(row.index).load([lanes, 1] if odd else [lanes])
        target = f.arg("target") + row.index * f.arg("target_pitch")
        source = f.arg("source") + row.index * f.arg("source_pitch")
        for v in range(vectors + odd):
            value = f.load(source + v * lanes, vector_of(lanes) if v < vectors else F32)
            f.store(finish(value, place := target + v * lanes), place)
    f.ret()
    return f


def store_rows_function(lanes: int, ending: Ending = PLAIN, source: Pointer = PTR) -> Function:
    """store_rows(target, source, operands, rows, target_pitch, source_pitch, count, stride): rows of one channel of the
    output leave scratch.

    `count` numbers of each row go to places `stride` apart, finished on their way (operands: those of `ending`).
    source: how they lie in scratch.
    """
    numbers = [(n, I64) for n in ("rows", "target_pitch", "source_pitch", "count", "stride")]
    parameters = [("target", ending.stored), ("source", source), *ending.parameters, *numbers]
    f = Function("store_rows", parameters, private=True)
    count, stride = f.arg("count"), f.arg("stride")
    finish = ending.given(f).load([width for width in (1, 4, 8, 16) if width <= lanes])
    whole = count // lanes * lanes
    mask = f.lanes_below(count - whole, lanes) if lanes == 16 else None
    with f.when(stride.equals(1), "contiguous"), f.loop("row", 0, f.arg("rows")) as row:
        target = f.arg("target") + row.index * f.arg("target_pitch")
        row_at = f.arg("source") + row.index * f.arg("source_pitch")
        if mask is None:
            copy_row(f, target, row_at, count, lanes, finish)
        else:
            # AVX-512 stores under a mask at full speed; elsewhere the last vectors overlap.
            with f.loop("col", 0, whole, lanes) as col:
                value = f.load(row_at + col.index, vector_of(lanes))
                f.store(finish(value, place := target + col.index), place)
            with f.when(whole < count, "rest"):
                value = f.load(row_at + whole, vector_of(lanes))
                f.store_masked(finish(value, place := target + whole, mask), place, mask)
    with f.when(f.compare("ne", stride, 1), "strided"), f.loop("row", 0, f.arg("rows")) as row:
        target = f.arg("target") + row.index * f.arg("target_pitch")
        scatter_row(f, target, f.arg("source") + row.index * f.arg("source_pitch"), count, stride, finish)
    f.ret()
    return f
