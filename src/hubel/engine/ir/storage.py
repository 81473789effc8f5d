"""How numbers are stored: pointers that carry it, and the conversions at the edges of a kernel.

Kernels compute in float32. A `Pointer` says what lies in memory: loads through it give float32, stores through it round
to what is stored, to nearest and ties to even. Adding n to it moves by n numbers of that kind.

    float32    as it is
    bfloat16   the upper half of a float32: widened by a shift; rounded with whole numbers, for few machines have an
               instruction that does it
    float16    by the instructions that all machines with vectors of eight lanes, and NEON, have
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubel.engine.ir.function import Function, Value


class Pointer(str):
    """The type of a pointer: LLVM's `ptr`, which does not know what it points to, and what is stored there.

    number: the type in which LLVM moves one number and counts; short: how its intrinsics spell that; bytes: its size.
    As a string all pointers are "ptr", hence equal.
    """

    dtype: str
    number: str
    short: str
    bytes: int

    def __new__(cls, dtype: str, number: str, short: str, size: int) -> Pointer:
        self = super().__new__(cls, "ptr")
        self.dtype, self.number, self.short, self.bytes = dtype, number, short, size
        return self


PTR = Pointer("float32", "float", "f32", 4)
POINTERS = {
    "float32": PTR,
    "bfloat16": Pointer("bfloat16", "i16", "i16", 2),
    "float16": Pointer("float16", "half", "f16", 2),
}


def pointer_to(dtype: str) -> Pointer:
    """The type of pointers to numbers of this dtype."""
    return POINTERS[dtype]


def stored_as(pointer: Value) -> Pointer:
    """What `pointer` points to."""
    return pointer.type if isinstance(pointer.type, Pointer) else PTR


def converts(pointer: Value, type_: str) -> bool:
    """Whether float32 numbers of this type are something else where `pointer` points."""
    return stored_as(pointer) is not PTR and (type_ == "float" or type_.endswith("float>"))


def check_same_storage(value: Value, type_: str, where: str) -> None:
    """Raises ValueError where a pointer goes to a place for pointers to other numbers."""
    if value.type != PTR or type_ != PTR or value.text == "null":
        return
    here, there = stored_as(value).dtype, type_.dtype if isinstance(type_, Pointer) else PTR.dtype
    if here != there:
        raise ValueError(f"{where} points to {there}, but was given a pointer to {here}: {value.text}")


def of_shape(number: str, type_: str) -> str:
    """The type with `number` where float32's has float: number itself, or a vector of as many."""
    return f"<{type_[1:].split()[0]} x {number}>" if type_.startswith("<") else number


def widened(f: Function, stored: Value, pointer: Pointer, type_: str) -> Value:
    """Numbers as they were stored → float32."""
    if pointer.dtype == "float16":
        return f._emit(type_, f"fpext {stored.type} {stored.text} to {type_}", "wide")
    whole = of_shape("i32", type_)
    bits = f._emit(whole, f"zext {stored.type} {stored.text} to {whole}", "bits")
    upper = f._emit(whole, f"shl {whole} {bits.text}, {_whole(16, whole)}", "upper")
    return f._emit(type_, f"bitcast {whole} {upper.text} to {type_}", "wide")


def narrowed(f: Function, value: Value, pointer: Pointer) -> Value:
    """float32 → numbers as they are stored."""
    short = of_shape(pointer.number, value.type)
    if pointer.dtype == "float16":
        return f._emit(short, f"fptrunc {value.type} {value.text} to {short}", "short")
    whole = of_shape("i32", value.type)

    def emit(operation: str, a: Value, b: Value | int, name: str) -> Value:
        return f._emit(
            whole, f"{operation} {whole} {a.text}, {_whole(b, whole) if isinstance(b, int) else b.text}", name
        )

    bits = f._emit(whole, f"bitcast {value.type} {value.text} to {whole}", "bits")
    upper = emit("lshr", bits, 16, "upper")
    # Half of the last place kept, less one where that place is even, carries into it exactly when it must.
    rounded = emit("add", emit("add", bits, 0x7FFF, "half"), emit("and", upper, 1, "odd"), "rounded")
    # A NaN could carry into infinity, or lose all of its digits: it keeps its upper half, and becomes quiet.
    quiet = emit("or", bits, 0x400000, "quiet")
    flags = of_shape("i1", value.type)
    nan = f._emit(flags, f"fcmp uno {value.type} {value.text}, {value.text}", "nan")
    picked = f._emit(whole, f"select {flags} {nan.text}, {whole} {quiet.text}, {whole} {rounded.text}", "picked")
    kept = emit("lshr", picked, 16, "kept")
    return f._emit(short, f"trunc {whole} {kept.text} to {short}", "short")


def _whole(number: int, type_: str) -> str:
    return f"splat (i32 {number})" if type_.startswith("<") else str(number)
