"""Plain data to JSON and back, with an address in every error; and files that appear whole or not at all.

Knows dataclasses and TypedDicts in general, none in particular: the shapes themselves are in `hubel.records`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hubel.errors import DataError


def plain(value: Any, where: str) -> Any:
    """`value` as JSON has it; `where` is its address, for the error."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise DataError(f"Numbers in a Document are finite. Received: {value} at {where}. Write None and a reason.")
        return float(value)
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(value[key], f"{where}.{key}") for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise DataError(f"A Document holds numbers, text, lists and maps. Received: {type(value).__name__} at {where}.")


def cell(value: Any, where: str) -> Any:
    """`value` as a table has it: a number (truth values are none), null, or a Value."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if value is None or number or dataclasses.is_dataclass(value):
        return plain(value, where)
    raise DataError(f"A cell is a number, None or a Value. Received: {type(value).__name__} at {where}.")


def ordered(value: Any, shape: type, where: str) -> dict[str, Any]:
    """A TypedDict as JSON, its fields in the order of the schema, extra ones after them."""
    missing = shape.__required_keys__ - set(value)  # type: ignore[attr-defined]
    if missing:
        raise DataError(f"{where} has the fields {list(shape.__annotations__)}. Missing: {sorted(missing)}.")
    names = [name for name in shape.__annotations__ if name in value]
    names += sorted(set(value) - set(names))
    return {name: plain(value[name], f"{where}.{name}") for name in names}


def from_fields(shape: Any, body: Mapping[str, Any], value_shape: Any) -> Any:
    """A dataclass from the fields that it knows; others are ignored; what looks like a Value becomes `value_shape`."""
    known = {f.name for f in dataclasses.fields(shape)}
    return shape(**{name: _revive(item, value_shape) for name, item in body.items() if name in known})


def _revive(item: Any, value_shape: Any) -> Any:
    if isinstance(item, dict):
        if {"value", "lo", "hi", "level"} <= item.keys():
            known = {f.name for f in dataclasses.fields(value_shape)}
            return value_shape(**{name: part for name, part in item.items() if name in known})
        return {name: _revive(part, value_shape) for name, part in item.items()}
    return [_revive(part, value_shape) for part in item] if isinstance(item, list) else item


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `document.json`, as shipped."""
    return json.loads(resources.files("hubel").joinpath("schema/hubel-1.json").read_text(encoding="utf-8"))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`: a reader sees the old bytes or the new ones, never a part."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner reads; results get the permissions that open() would give.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
