"""A module: a kernel and the functions it calls, as one LLVM IR text."""

from __future__ import annotations

from hubel.engine.ir.function import Function


def module_text(kernel: Function, lanes: int) -> str:
    """The IR of a kernel and all that it calls.

    The attributes keep vectors of 16 lanes whole on AVX-512 machines, where LLVM otherwise prefers two halves.
    """
    functions = _with_callees(kernel)
    declarations = sorted(set().union(*(f.declarations for f in functions)))
    bits = 32 * lanes
    attributes = f'attributes #0 = {{ "min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}" }}'
    return "\n\n".join([*declarations, *(f.text() for f in functions), attributes]) + "\n"


def _with_callees(function: Function) -> list[Function]:
    """A function and what it calls, callees first, each once."""
    found: list[Function] = []
    for callee in function.callees:
        found += [f for f in _with_callees(callee) if f not in found]
    return [*found, function]
