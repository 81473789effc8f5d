"""Functions with pointers whose origin LLVM does not know."""

from __future__ import annotations

from hubel.engine.ir.function import Function, Value


class OpaqueFunction(Function):
    """A Function whose loops may hide a pointer."""

    def opaque(self, pointer: Value) -> Value:
        """The same pointer, of which LLVM cannot tell that the loop moves it.

        From one that it can tell so, LLVM carries each of the many pointers derived from it from turn to turn, and runs
        out of registers.
        """
        return self._emit(pointer.type, f'call ptr asm "", "=r,0"(ptr {pointer.text})', "opaque")
