"""Functions with two more kinds of vector: masks, for rows that end within a vector, and float64, for what is rounded
once.
"""

from __future__ import annotations

import struct

from hubel.engine.ir.function import Function, Value, vector_of
from hubel.engine.ir.storage import PTR, stored_as


class WideFunction(Function):
    """A Function that also knows vectors of float64, and loads under a mask."""

    def constant(self, number: Value | int | float, type_: str = "i64") -> Value:
        if "double" in type_ and not isinstance(number, Value):
            bits = struct.unpack("<Q", struct.pack("<d", number))[0]
            return Value(self, type_, f"splat (double 0x{bits:016X})")
        return super().constant(number, type_)

    def fma(self, a: Value, b: Value, c: Value, name: str = "acc") -> Value:
        if "double" not in a.type:
            return super().fma(a, b, c, name)
        intrinsic = f"@llvm.fma.v{_count(a.type)}f64"
        self.declarations.add(f"declare {a.type} {intrinsic}({a.type}, {a.type}, {a.type})")
        return self._emit(
            a.type, f"call {a.type} {intrinsic}({', '.join(f'{v.type} {v.text}' for v in (a, b, c))})", name
        )

    def widened(self, vector: Value) -> Value:
        """float32 → float64"""
        wide = f"<{_count(vector.type)} x double>"
        return self._emit(wide, f"fpext {vector.type} {vector.text} to {wide}", "wide")

    def rounded(self, vector: Value) -> Value:
        """float64 → float32"""
        narrow = vector_of(_count(vector.type))
        return self._emit(narrow, f"fptrunc {vector.type} {vector.text} to {narrow}", "rounded")

    def gathered(self, scalars: list[Value]) -> Value:
        """The vector of these numbers."""
        type_ = vector_of(len(scalars))
        vector = Value(self, type_, "poison")
        for i, scalar in enumerate(scalars):
            text = f"insertelement {type_} {vector.text}, float {scalar.text}, i64 {i}"
            vector = self._emit(type_, text, "gathered")
        return vector

    def within(self, start: Value, size: Value, lanes: int) -> Value:
        """The mask of the lanes for which 0 ≤ start + lane < size."""
        type_ = f"<{lanes} x i32>"
        numbers = ", ".join(f"i32 {lane}" for lane in range(lanes))
        at = self._emit(type_, f"add {type_} {self._splat_i32(start, lanes).text}, <{numbers}>", "at")
        limit = self._splat_i32(size, lanes)
        return self._emit(f"<{lanes} x i1>", f"icmp ult {type_} {at.text}, {limit.text}", "within")

    def _splat_i32(self, number: Value, lanes: int) -> Value:
        type_ = f"<{lanes} x i32>"
        short = self._emit("i32", f"trunc i64 {number.text} to i32", "short")
        first = self._emit(type_, f"insertelement {type_} poison, i32 {short.text}, i64 0", "first")
        text = f"shufflevector {type_} {first.text}, {type_} poison, <{lanes} x i32> zeroinitializer"
        return self._emit(type_, text, "everywhere")

    def load_masked(self, pointer: Value, mask: Value) -> Value:
        """The numbers at `pointer` in the lanes of `mask`, zeros in the others, whose memory is not touched."""
        lanes = _count(mask.type)
        if stored_as(pointer) is not PTR:
            return super().load_masked(pointer, mask, lanes)
        type_ = vector_of(lanes)
        intrinsic = f"@llvm.masked.load.v{lanes}f32.p0"
        self.declarations.add(f"declare {type_} {intrinsic}(ptr, i32 immarg, {mask.type}, {type_})")
        zero = self.constant(0.0, type_)
        arguments = f"ptr {pointer.text}, i32 4, {mask.type} {mask.text}, {type_} {zero.text}"
        return self._emit(type_, f"call {type_} {intrinsic}({arguments})", "inside")


def _count(type_: str) -> int:
    return int(type_[1:].split()[0])
