"""The small vocabulary kernels are written in: functions, loops, vectors, register tiles, rows."""

from hubel.engine.ir.function import F32, I1, I64, PTR, Function, Loop, Value, vector_of
from hubel.engine.ir.module import module_text
from hubel.engine.ir.storage import Pointer, pointer_to

__all__ = [
    "F32", "I1", "I64", "PTR", "Function", "Loop", "Pointer", "Value", "module_text", "pointer_to", "vector_of",
]  # fmt: skip
