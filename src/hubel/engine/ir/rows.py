"""Rows of numbers: copied, filled with zeros, and carried between a tensor and a kernel's scratch memory.

No copy reads or writes past the row it is given: the last vector of a row overlaps the one before it instead of
running over the end, and rows shorter than a vector go by halves. Only `zero_row` may write up to a vector past its
end, into scratch.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of

Change = Callable[[Value], Value]


def copy_row(f: Function, target: Value, source: Value, count: Value, lanes: int, change: Change | None = None) -> None:
    """target[i] = change(source[i]) for i < count; both contiguous, and not overlapping."""
    change = change or (lambda value: value)

    def move(at: Value | int, width: int) -> None:
        type_ = vector_of(width) if width > 1 else F32
        f.store(change(f.load(source + at, type_)), target + at)

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
        f.store(f.load(source + col.index * stride, F32), target + col.index)


def scatter_row(f: Function, target: Value, source: Value, count: Value, stride: Value, change: Change) -> None:
    """target[i·stride] = change(source[i]) for i < count."""
    with f.loop("place", 0, count) as col:
        f.store(change(f.load(source + col.index, F32)), target + col.index * stride)


def store_rows_function(lanes: int) -> Function:
    """store_rows(target, source, bias*, rows, target_pitch, source_pitch, count, stride): rows of output leave scratch.

    `count` numbers of each row go to places `stride` apart, the number at `bias`, null or not, added on their way.
    """
    numbers = [(n, I64) for n in ("rows", "target_pitch", "source_pitch", "count", "stride")]
    f = Function("store_rows", [("target", PTR), ("source", PTR), ("bias", PTR), *numbers], private=True)
    count, stride = f.arg("count"), f.arg("stride")
    # Adding −0 changes no number, not even −0.
    f.store(f.constant(-0.0, F32), nothing := f.room(PTR, "nothing"))
    given = f.compare("ne", f.arg("bias"), Value(f, PTR, "null"))
    bias = f.load(f.select(given, f.arg("bias"), nothing, "addend"), F32, "bias")
    widths = [width for width in (1, 4, 8, 16) if width <= lanes]
    biases = {width: bias if width == 1 else f.splat(bias, width, f"bias_{width}") for width in widths}

    def change(value: Value) -> Value:
        return value + biases[1 if value.type == F32 else int(value.type[1:].split()[0])]

    whole = count // lanes * lanes
    mask = f.lanes_below(count - whole, lanes) if lanes == 16 else None
    with f.when(stride.equals(1), "contiguous"), f.loop("row", 0, f.arg("rows")) as row:
        target = f.arg("target") + row.index * f.arg("target_pitch")
        source = f.arg("source") + row.index * f.arg("source_pitch")
        if mask is None:
            copy_row(f, target, source, count, lanes, change)
        else:
            # AVX-512 stores under a mask at full speed; elsewhere the last vectors overlap.
            with f.loop("col", 0, whole, lanes) as col:
                f.store(change(f.load(source + col.index, vector_of(lanes))), target + col.index)
            with f.when(whole < count, "rest"):
                f.store_masked(change(f.load(source + whole, vector_of(lanes))), target + whole, mask)
    with f.when(f.compare("ne", stride, 1), "strided"), f.loop("row", 0, f.arg("rows")) as row:
        target = f.arg("target") + row.index * f.arg("target_pitch")
        scatter_row(f, target, f.arg("source") + row.index * f.arg("source_pitch"), count, stride, change)
    f.ret()
    return f
