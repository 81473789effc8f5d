"""Calls single functions of the IR vocabulary, by the names of their parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from hubel.engine.compile import Library, emit_object
from hubel.engine.ir import I64, PTR, Function, module_text
from hubel.engine.machine import Machine

HERE = Machine.detect()
# Vectors that the machine at hand has.
LANES = [lanes for lanes in (4, 8, 16) if lanes <= HERE.lanes]


def native(function: Function, lanes: int = HERE.lanes) -> Callable[..., None]:
    """The function as machine code. Integers, and arrays for pointers, go in by name; the others are 0 or null."""
    function.private = False
    library = Library.load(emit_object(module_text(function, lanes), HERE))
    types = {PTR: ctypes.c_void_p, I64: ctypes.c_int64}
    names = [name for name, _ in function.parameters]
    run = ctypes.CFUNCTYPE(None, *(types[kind] for _, kind in function.parameters))(library.address(function.name))

    def call(**values: int | np.ndarray) -> None:
        _ = library  # the code lives as long as this function
        unknown = values.keys() - set(names)
        if unknown:
            raise TypeError(f"{function.name} has no parameters {unknown}, but {names}")
        given = [values.get(name, 0) for name in names]
        run(*(value.ctypes.data if isinstance(value, np.ndarray) else value for value in given))

    return call
