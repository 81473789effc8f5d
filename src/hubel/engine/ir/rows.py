"""Rows of numbers: copied, filled with zeros, and carried between a tensor and a kernel's scratch memory.

No copy reads or writes past the row it is given: the last vector of a row overlaps the one before it instead of
running over the end, and rows shorter than a vector go by halves. Only `zero_row` may write up to a vector past its
end, into scratch.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.ir.function import F32, PTR, Function, Value, vector_of

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


def store_row_function(lanes: int) -> Function:
    """store_row(target, source, count, stride, bias*): one output row leaves scratch, the bias added on its way.

    `bias` points to one number, or is null.
    """
    f = Function(
        "store_row",
        [("target", PTR), ("source", PTR), ("count", "i64"), ("stride", "i64"), ("bias", PTR)],
        private=True,
    )
    target, source, count, stride = (f.arg(n) for n in ("target", "source", "count", "stride"))

    def with_stride(change_for: Callable[[int], Change]) -> None:
        with f.when(stride.equals(1), "contiguous"):
            by_width = {w: change_for(w) for w in (1, 4, 8, 16) if w <= lanes}
            copy_row(f, target, source, count, lanes, lambda v: by_width[_width(v)](v))
        with f.when(f.compare("ne", stride, 1), "strided"):
            scatter_row(f, target, source, count, stride, change_for(1))

    has_bias = f.compare("ne", f.arg("bias"), Value(f, PTR, "null"))
    with f.when(has_bias, "biased"):
        bias = f.load(f.arg("bias"), F32, "bias")
        with_stride(lambda w: lambda v: v + (bias if w == 1 else f.splat(bias, w)))
    with f.when(f.compare("eq", f.arg("bias"), Value(f, PTR, "null")), "plain"):
        with_stride(lambda w: lambda v: v)
    f.ret()
    return f


def _width(value: Value) -> int:
    return 1 if value.type == F32 else int(value.type[1:].split()[0])
