"""The small vocabulary kernels are written in: functions, loops, vectors, register tiles, rows."""

from hubel.engine.ir.function import F32, I1, I64, PTR, Function, Loop, Value, vector_of
from hubel.engine.ir.module import module_text

__all__ = ["F32", "I1", "I64", "PTR", "Function", "Loop", "Value", "module_text", "vector_of"]
