"""Functions in which every lane picks one of the numbers of a vector."""

from __future__ import annotations

from hubel.engine.ir.function import Function, Value

# LLVM's names of the instructions that pick within quarters of a vector, and from all of it, by number of lanes.
WITHIN = {8: "@llvm.x86.avx.vpermilvar.ps.256", 16: "@llvm.x86.avx512.vpermilvar.ps.512"}
ACROSS = {8: "@llvm.x86.avx2.permps", 16: "@llvm.x86.avx512.permvar.sf.512"}
QUARTER = 4


class SpreadFunction(Function):
    """A Function whose lanes pick numbers by an index known only at run time. On x86."""

    def picks(self, channel: Value, outputs: int, inputs: int, lanes: int) -> tuple[str, Value]:
        """For `spread`: with groups of `outputs` lanes, and of `inputs` numbers in what they pick from, each lane picks
        number `channel` of its group.
        """
        within = outputs == inputs and QUARTER % outputs == 0
        firsts = [lane // outputs * inputs % (QUARTER if within else lanes) for lane in range(lanes)]
        type_ = f"<{lanes} x i32>"
        short = self._emit("i32", f"trunc i64 {channel.text} to i32", "channel")
        one = self._emit(type_, f"insertelement {type_} poison, i32 {short.text}, i64 0", "channel")
        every = self._emit(
            type_, f"shufflevector {type_} {one.text}, {type_} poison, <{lanes} x i32> zeroinitializer", "channel"
        )
        numbers = ", ".join(f"i32 {first}" for first in firsts)
        return (WITHIN if within else ACROSS)[lanes], self._emit(
            type_, f"add {type_} <{numbers}>, {every.text}", "picks"
        )

    def spread(self, vector: Value, picks: tuple[str, Value]) -> Value:
        """The numbers that the lanes pick from a vector."""
        callee, numbers = picks
        self.declarations.add(f"declare {vector.type} {callee}({vector.type}, {numbers.type})")
        args = f"{vector.type} {vector.text}, {numbers.type} {numbers.text}"
        return self._emit(vector.type, f"call {vector.type} {callee}({args})", "spread")
