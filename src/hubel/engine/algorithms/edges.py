"""The edges of a problem's kernels: how its tensors are stored, and what is done to its sums."""

from __future__ import annotations

from hubel.engine.ir import Pointer, pointer_to
from hubel.engine.ir.epilogue import Ending
from hubel.engine.problem import Problem

_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def stored(problem: Problem) -> Pointer:
    """The type of pointers to the problem's tensors."""
    return pointer_to(problem.dtype)


def ending_of(problem: Problem) -> Ending:
    """How sums become outputs."""
    return Ending(stored(problem), problem.epilogue)


def number(problem: Problem) -> str:
    """How names of kernels spell what is stored."""
    return _SHORT[problem.dtype]
