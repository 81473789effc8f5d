"""Layer norm and softmax over the rows of a matrix, each row in three passes that find it in L1.

layer norm:  (x − mean) ∕ √(variance + ε) · weight + bias
softmax:     e^(x − largest) ∕ Σ e^(x − largest)
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.between.maps import _larger
from hubel.engine.between.work import Work, kernel_function, work
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of
from hubel.engine.ir.activation import _exponential
from hubel.engine.machine import Machine
from hubel.engine.threads import RESERVED_WORDS


def layer_normed(rows: int, length: int, eps: float, weight: bool, bias: bool) -> Work:
    """Base pointers: x in p0, weight in p1, bias in p2, the output in p3, which may be x."""
    lanes = Machine.detect().lanes
    name = f"rows_layer_norm_{float(eps)!r}_{'w' * weight}{'b' * bias}"
    return work(name, lambda: layer_norm_function(eps, weight, bias, lanes), rows, (length,), 3 * length)


def softmaxed(rows: int, length: int) -> Work:
    """Base pointers: x in p0, the output in p3, which may be x."""
    lanes = Machine.detect().lanes
    return work("rows_softmax", lambda: softmax_function(lanes), rows, (length,), 8 * length)


class _Row:
    """A row being read: whole vectors in a loop, and the rest under a mask."""

    def __init__(self, f: Function, at: Value, length: Value, lanes: int) -> None:
        self.f, self.at, self.length, self.lanes = f, at, length, lanes
        self.whole = length // lanes * lanes
        self.rest = length - self.whole
        self.mask = f.lanes_below(self.rest, lanes)

    def gather(self, first: Value, value: Callable[[Value], Value], join: Callable[[Value, Value], Value]) -> Value:
        """`value` of every number, joined over the row in lanes, then over the lanes: a number."""
        f, vector = self.f, vector_of(self.lanes)
        with f.loop("v", 0, self.whole, self.lanes, carry=[first]) as v:
            v.carry(join(v.carried[0], value(f.load(self.at + v.index, vector))))
        # A masked lane has no number: it stays what `first` is.
        last = value(f.load_masked(self.at + self.whole, self.mask, self.lanes))
        flags = self.mask
        kept = f._emit(vector, f"select {flags.type} {flags.text}, {vector} {last.text}, {vector} {first.text}", "kept")
        total = join(v.results[0], kept)
        width = self.lanes
        while width > 1:
            width //= 2
            picks = [(i + width) % self.lanes for i in range(self.lanes)]
            total = join(total, f.shuffle(total, total, picks))
        return f.lane(total, 0)

    def write(self, out: Value, value: Callable[[Value, Callable[[Value], Value]], Value]) -> None:
        """out = value(numbers, read), where read(pointer) gives another row's numbers at the same place."""
        f, vector = self.f, vector_of(self.lanes)
        with f.loop("w", 0, self.whole, self.lanes) as w:
            numbers = f.load(self.at + w.index, vector)
            f.store(value(numbers, lambda p: f.load(p + w.index, vector)), out + w.index)
        numbers = f.load_masked(self.at + self.whole, self.mask, self.lanes)
        last = value(numbers, lambda p: f.load_masked(p + self.whole, self.mask, self.lanes))
        f.store_masked(last, out + self.whole, self.mask)


def _row_kernel(lanes: int, body: Callable[[Function, _Row, Value, Value], None]) -> Function:
    f = kernel_function()
    args = f.arg("args")
    length = f.word(args, RESERVED_WORDS, "length", I64)
    source, target = f.word(args, 0, "input", PTR), f.word(args, 3, "output", PTR)
    with f.loop("row", f.arg("begin"), f.arg("end")) as row:
        body(f, _Row(f, source + row.index * length, length, lanes), target + row.index * length, length)
    f.ret()
    return f


def layer_norm_function(eps: float, weight: bool, bias: bool, lanes: int) -> Function:
    def body(f: Function, row: _Row, out: Value, length: Value) -> None:
        vector = vector_of(lanes)
        count = f._emit(F32, f"sitofp i64 {length.text} to float", "count")
        zero = f.constant(0.0, vector)
        mean = f.splat(f.binary("div", row.gather(zero, lambda x: x, lambda a, b: a + b), count), lanes)
        squares = row.gather(zero, lambda x: (x - mean) * (x - mean), lambda a, b: a + b)
        f.declarations.add("declare float @llvm.sqrt.f32(float)")
        spread = f.binary("div", squares, count) + eps
        root = f._emit(F32, f"call float @llvm.sqrt.f32(float {spread.text})", "root")
        scale = f.splat(f.binary("div", f.constant(1.0, F32), root), lanes)
        weights, biases = f.word(f.arg("args"), 1, "weight", PTR), f.word(f.arg("args"), 2, "bias", PTR)

        def value(x: Value, read: Callable[[Value], Value]) -> Value:
            x = (x - mean) * scale
            x = x * read(weights) if weight else x
            return x + read(biases) if bias else x

        row.write(out, value)

    return _row_kernel(lanes, body)


def softmax_function(lanes: int) -> Function:
    def body(f: Function, row: _Row, out: Value, length: Value) -> None:
        vector = vector_of(lanes)
        least = f.constant(float("-inf"), vector)
        largest = f.splat(row.gather(least, lambda x: x, lambda a, b: _larger(f, a, b)), lanes)
        row.write(out, lambda x, read: _exponential(f, x - largest)[0])
        powers = _Row(f, out, length, lanes)
        total = powers.gather(f.constant(0.0, vector), lambda x: x, lambda a, b: a + b)
        factor = f.splat(total, lanes)
        powers.write(out, lambda x, read: f.binary("div", x, factor))

    return _row_kernel(lanes, body)
