"""Maxima and averages over windows, in planes or with channels side by side.

Which input rows and columns an output sees stands in tables, so that padding, ceil mode and adaptive pooling are the
table's affair, not the kernel's:

    planes:    for every image and channel, for output rows:      a share of the rows is one work item
                   row = max or sum over the window's rows         into scratch, as vectors
                   for outputs: max or sum over the window's columns of that row
    pairs:     as planes, but where windows are two columns wide, two apart and without padding, the columns of a vector
               of outputs are two vectors of every row, and nothing goes through scratch
    channels:  for every image and output row:                     one work item
                   for outputs, vectors of channels: max or sum over the window

An average divides by the number of pixels the window counts, of rows times of columns, as torch does. Maxima keep NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hubel.engine.between.maps import _larger
from hubel.engine.between.work import Work, kernel_function, work
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.machine import Machine
from hubel.engine.threads import RESERVED_WORDS

WORDS = (
    "channels", "shares", "rows_each", "out_y", "out_x", "in_x", "left", "step_x", "taps_x", "hole_y", "hole_x",
    "row_pitch", "y_from", "y_to", "y_counted", "x_from", "x_to", "x_counted",
    "in_n", "in_c", "in_row", "in_col", "out_n", "out_c", "out_row", "out_col",
)  # fmt: skip
_TABLES = ("y_from", "y_to", "y_counted", "x_from", "x_to", "x_counted")


@dataclass(frozen=True)
class Windows:
    """Along one axis: for each output the first input it sees, the place after the last, and how many it counts.

    hole: from an input to the next. step: from a window to the next, 0 if they follow no rule. before: how far the
    first window reaches over the edge. taps: inputs of a whole window, 0 if windows differ.
    """

    size: int
    first: tuple[int, ...]
    stop: tuple[int, ...]
    counted: tuple[int, ...]
    hole: int = 1
    step: int = 0
    before: int = 0
    taps: int = 0

    @property
    def outputs(self) -> int:
        return len(self.first)

    @classmethod
    def sliding(
        cls, size: int, kernel: int, step: int, pad: int, hole: int = 1, ceil: bool = False, count_pad: bool = True
    ) -> Windows:
        """Windows of torch's max_pool and avg_pool."""
        reach = hole * (kernel - 1) + 1
        outputs = (size + 2 * pad - reach + (step - 1 if ceil else 0)) // step + 1
        if ceil and (outputs - 1) * step >= size + pad:
            outputs -= 1
        first, stop, counted = [], [], []
        for i in range(max(0, outputs)):
            start = i * step - pad
            # The first and the last tap inside; there may be none.
            low, high = max(0, -(start // hole)), min(kernel - 1, (size - 1 - start) // hole)
            seen = max(0, high - low + 1)
            first.append(start + low * hole if seen else 0)
            stop.append(start + high * hole + 1 if seen else 0)
            counted.append(min(start + kernel, size + pad) - start if count_pad else seen)
        return cls(size, tuple(first), tuple(stop), tuple(counted), hole, step, pad, kernel)

    @classmethod
    def adaptive(cls, size: int, outputs: int) -> Windows:
        """Windows of torch's adaptive pooling: as equal as they can be, overlapping where they cannot."""
        first = tuple(i * size // outputs for i in range(outputs))
        stop = tuple(-(-(i + 1) * size // outputs) for i in range(outputs))
        counted = tuple(b - a for a, b in zip(first, stop, strict=True))
        even = size % outputs == 0
        return cls(size, first, stop, counted, 1, size // outputs if even else 0, 0, size // outputs if even else 0)


def pooled(
    kind: str, images: int, channels: int, y: Windows, x: Windows, source: Sequence[int], target: Sequence[int],
    divisor: int = 0,
) -> Work:  # fmt: skip
    """The maximum (kind "max") or the average ("mean") over the windows of every channel.

    source, target: strides of (image, channel, row, column). divisor: of averages, in the place of the count.
    Base pointers: the input in p0, the output in p3.
    """
    lanes = Machine.detect().lanes
    across = source[1] == 1 and target[1] == 1 and channels > 1
    counts = np.full(y.outputs, divisor, np.float32) if divisor else np.array(y.counted, np.float32)
    columns = np.ones(x.outputs, np.float32) if divisor else np.array(x.counted, np.float32)
    # Vectors of counts are read whole.
    columns = np.concatenate([columns, np.ones(lanes, np.float32)])
    tables = [np.array(t, np.int64) for t in (y.first, y.stop, x.first, x.stop)]
    arrays = [tables[0], tables[1], counts, tables[2], tables[3], columns]
    step = x.step if x.step in (1, 2) and source[3] == target[3] == 1 else 0
    pitch = x.before + x.size + max(0, (x.outputs + lanes) * max(1, x.step) + x.taps * x.hole) + 2 * lanes
    if across:
        shares, rows_each = y.outputs, 1
    else:
        rows_each = max(1, min(y.outputs, -(-8192 // max(1, x.size * max(1, y.taps)))))
        shares = -(-y.outputs // rows_each)
    values = dict(zip(_TABLES, (a.ctypes.data for a in arrays), strict=True)) | {
        "channels": channels, "shares": shares, "rows_each": rows_each, "out_y": y.outputs, "out_x": x.outputs,
        "in_x": x.size, "left": x.before, "step_x": x.step, "taps_x": x.taps, "hole_y": y.hole, "hole_x": x.hole,
        "row_pitch": pitch,
        "in_n": source[0], "in_c": source[1], "in_row": source[2], "in_col": source[3],
        "out_n": target[0], "out_c": target[1], "out_row": target[2], "out_col": target[3],
    }  # fmt: skip
    words = [values[name] for name in WORDS]
    if across:
        each = x.outputs * channels * max(1, x.taps)
        return work(
            f"pool_{kind}_channels", lambda: channels_function(kind, lanes), images * shares, words, each, arrays
        )
    numbers = rows_each * x.size * max(1, y.taps)
    side_by_side = source[3] == 1
    if step == 2 and (x.taps, x.hole, x.before) == (2, 1, 0) and x.stop[-1] == 2 * x.outputs:
        return work(
            f"pool_{kind}_pairs",
            lambda: pairs_function(kind, lanes),
            images * channels * shares,
            words,
            numbers,
            arrays,
        )
    name = f"pool_{kind}_planes_{step}{'' if side_by_side else '_strided'}"
    return work(
        name, lambda: planes_function(kind, step, side_by_side, lanes), images * channels * shares, words, numbers,
        arrays, pitch,
    )  # fmt: skip


def _words(f: Function) -> dict[str, Value]:
    args = f.arg("args")
    return {n: f.word(args, RESERVED_WORDS + i, n, PTR if n in _TABLES else I64) for i, n in enumerate(WORDS)}


def _nothing(f: Function, kind: str, type_: str) -> Value:
    """What a window without pixels gives."""
    return f.constant(float("-inf") if kind == "max" else 0.0, type_)


def _joined(f: Function, kind: str, total: Value, value: Value) -> Value:
    return _larger(f, total, value) if kind == "max" else total + value


def _entry(f: Function, table: Value, index: Value, name: str) -> Value:
    return f.load(f.offset(table, index, I64), I64, name)


def pairs_function(kind: str, lanes: int) -> Function:
    """The kernel for planes whose windows are pairs of columns."""
    f = kernel_function()
    a, vector = _words(f), vector_of(lanes)
    counted_x, evens, odds = a["x_counted"], list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))
    whole = a["out_x"] // lanes * lanes
    left = (a["out_x"] - whole) * 2
    masks = f.lanes_below(f.minimum(left, lanes), lanes), f.lanes_below(f.maximum(left - lanes, 0), lanes)
    with _each_row(f, a) as (at, to, y):
        begin, end = _entry(f, a["y_from"], y, "begin"), _entry(f, a["y_to"], y, "end")
        counted = f.splat(f.load(a["y_counted"] + y, F32, "rows_counted"), lanes)

        def outputs(x: Value, ragged: bool) -> Value:
            start = [_nothing(f, kind, vector)] * 2
            with f.loop("in_y", begin, end, a["hole_y"], carry=start) as r:
                place = at + r.index * a["in_row"] + x * 2
                pair = [
                    f.load_masked(place + lanes * i, masks[i], lanes) if ragged else f.load(place + lanes * i, vector)
                    for i in (0, 1)
                ]
                r.carry(*(_joined(f, kind, total, value) for total, value in zip(r.carried, pair, strict=True)))
            even, odd = (f.shuffle(r.results[0], r.results[1], columns) for columns in (evens, odds))
            value = _joined(f, kind, even, odd)
            return f.binary("div", value, counted * f.load(counted_x + x, vector)) if kind == "mean" else value

        with f.loop("v", 0, whole, lanes) as v:
            f.store(outputs(v.index, False), to + v.index)
        with f.when(whole < a["out_x"], "rest"):
            f.store_masked(outputs(whole, True), to + whole, f.lanes_below(a["out_x"] - whole, lanes))
    f.ret()
    return f


@contextmanager
def _each_row(f: Function, a: dict[str, Value]) -> Iterator[tuple[Value, Value, Value]]:
    """Every row of outputs of the items: (the plane it reads, where it goes, its number)."""
    args = f.arg("args")
    source, target = f.word(args, 0, "input", PTR), f.word(args, 3, "output", PTR)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        plane, share = item.index // a["shares"], item.index % a["shares"]
        image, channel = plane // a["channels"], plane % a["channels"]
        at = source + image * a["in_n"] + channel * a["in_c"]
        to = target + image * a["out_n"] + channel * a["out_c"]
        first = share * a["rows_each"]
        with f.loop("y", first, f.minimum(first + a["rows_each"], a["out_y"])) as y:
            yield at, to + y.index * a["out_row"], y.index


def planes_function(kind: str, step: int, side_by_side: bool, lanes: int) -> Function:
    """The kernel for planes. step: of the windows along x, if it is 1 or 2 and outputs lie side by side; else 0."""
    f = kernel_function()
    a, row = _words(f), f.arg("scratch")
    with f.loop("edge", 0, a["row_pitch"]) as edge:
        f.store(_nothing(f, kind, F32), row + edge.index)
    inside = row + a["left"]
    with _each_row(f, a) as (at, to, y):
        _reduce_rows(f, kind, side_by_side, lanes, a, inside, at, y)
        _reduce_columns(f, kind, step, lanes, a, row if step else inside, to, y)
    f.ret()
    return f


def _reduce_rows(
    f: Function, kind: str, side_by_side: bool, lanes: int, a: dict[str, Value], inside: Value, at: Value, y: Value
) -> None:
    """One row of scratch: of every column the maximum or the sum over the window's rows."""
    begin, end = _entry(f, a["y_from"], y, "begin"), _entry(f, a["y_to"], y, "end")
    vector = vector_of(lanes)

    def reduced(at: Value, type_: str, load: Callable[[Value], Value]) -> Value:
        with f.loop("in_y", begin, end, a["hole_y"], carry=[_nothing(f, kind, type_)]) as r:
            r.carry(_joined(f, kind, r.carried[0], load(at + r.index * a["in_row"])))
        return r.results[0]

    if side_by_side:
        whole = a["in_x"] // lanes * lanes
        with f.loop("col", 0, whole, lanes) as col:
            f.store(reduced(at + col.index, vector, lambda place: f.load(place, vector)), inside + col.index)
        with f.when(whole < a["in_x"], "rest_of_row"):
            mask = f.lanes_below(a["in_x"] - whole, lanes)
            f.store_masked(
                reduced(at + whole, vector, lambda place: f.load_masked(place, mask, lanes)), inside + whole, mask
            )
        return
    with f.loop("col", 0, a["in_x"]) as col:
        f.store(reduced(at + col.index * a["in_col"], F32, lambda place: f.load(place, F32)), inside + col.index)


def _reduce_columns(
    f: Function, kind: str, step: int, lanes: int, a: dict[str, Value], row: Value, to: Value, y: Value
) -> None:
    """One row of outputs. row: scratch, from the padding on where windows follow a rule, else from the first pixel."""
    rows_counted = f.load(a["y_counted"] + y, F32, "rows_counted")
    vector = vector_of(lanes)
    if not step:
        with f.loop("x", 0, a["out_x"]) as x:
            begin, end = _entry(f, a["x_from"], x.index, "from"), _entry(f, a["x_to"], x.index, "to")
            with f.loop("in_x", begin, end, a["hole_x"], carry=[_nothing(f, kind, F32)]) as c:
                c.carry(_joined(f, kind, c.carried[0], f.load(row + c.index, F32)))
            value = c.results[0]
            if kind == "mean":
                value = f.binary("div", value, rows_counted * f.load(a["x_counted"] + x.index, F32))
            f.store(value, to + x.index * a["out_col"])
        return
    evens = list(range(0, 2 * lanes, 2))
    counted = f.splat(rows_counted, lanes)

    def outputs(x: Value) -> Value:
        with f.loop("tap", 0, a["taps_x"], carry=[_nothing(f, kind, vector)], at_least_once=True) as tap:
            place = row + x * step + tap.index * a["hole_x"]
            value = f.load(place, vector)
            if step == 2:
                value = f.shuffle(value, f.load(place + lanes, vector), evens)
            tap.carry(_joined(f, kind, tap.carried[0], value))
        value = tap.results[0]
        return f.binary("div", value, counted * f.load(a["x_counted"] + x, vector)) if kind == "mean" else value

    whole = a["out_x"] // lanes * lanes
    with f.loop("v", 0, whole, lanes) as v:
        f.store(outputs(v.index), to + v.index)
    with f.when(whole < a["out_x"], "rest"):
        f.store_masked(outputs(whole), to + whole, f.lanes_below(a["out_x"] - whole, lanes))


def channels_function(kind: str, lanes: int) -> Function:
    """The kernel for channels that lie side by side."""
    f = kernel_function()
    args = f.arg("args")
    a = _words(f)
    source, target = f.word(args, 0, "input", PTR), f.word(args, 3, "output", PTR)
    whole = a["channels"] // lanes * lanes
    mask = f.lanes_below(a["channels"] - whole, lanes)
    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        image, y = item.index // a["out_y"], item.index % a["out_y"]
        at, to = source + image * a["in_n"], target + image * a["out_n"] + y * a["out_row"]
        top, bottom = _entry(f, a["y_from"], y, "top"), _entry(f, a["y_to"], y, "bottom")
        rows_counted = f.load(a["y_counted"] + y, F32, "rows_counted")
        with f.loop("x", 0, a["out_x"]) as x:
            left, right = _entry(f, a["x_from"], x.index, "from"), _entry(f, a["x_to"], x.index, "to")
            counted = f.splat(rows_counted * f.load(a["x_counted"] + x.index, F32), lanes)
            out = to + x.index * a["out_col"]

            def window(c: Value, ragged: bool, top: Value = top, bottom: Value = bottom, left: Value = left,
                       right: Value = right, counted: Value = counted, at: Value = at) -> Value:  # fmt: skip
                start = [_nothing(f, kind, vector_of(lanes))]
                with f.loop("in_y", top, bottom, a["hole_y"], carry=start) as r:
                    line = at + r.index * a["in_row"] + c
                    with f.loop("in_x", left, right, a["hole_x"], carry=r.carried) as col:
                        place = line + col.index * a["in_col"]
                        value = f.load_masked(place, mask, lanes) if ragged else f.load(place, vector_of(lanes))
                        col.carry(_joined(f, kind, col.carried[0], value))
                    r.carry(*col.results)
                return f.binary("div", r.results[0], counted) if kind == "mean" else r.results[0]

            with f.loop("c", 0, whole, lanes) as c:
                f.store(window(c.index, False), out + c.index)
            with f.when(whole < a["channels"], "rest"):
                f.store_masked(window(whole, True), out + whole, mask)
    f.ret()
    return f
