"""Names for Linux's `perf`: which addresses hold which kernel.

With HUBEL_PERF_MAP=1 every function of a loaded kernel gets a line in /tmp/perf-PID.map, where `perf report` looks for
the names of code that no file on disk holds:

    7f3a5c012000 1a40 hubel:conv_f32_direct_8x48_avx512:compute
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger("hubel")

# Of ELF: a symbol's type, a section's type, and bytes of an entry of the section table and of a symbol table.
_FUNCTION, _SYMBOL_TABLE, _SECTION, _SYMBOL = 2, 2, 64, 24


def wanted() -> bool:
    return os.environ.get("HUBEL_PERF_MAP", "") not in ("", "0")


def add(name: str, object_code: bytes, address: Callable[[str], int]) -> None:
    """Write the functions of an object that has just been loaded; address: where a symbol of it lies."""
    found = list(functions(object_code))
    reachable = [(symbol, offset) for symbol, offset, _, seen_outside in found if seen_outside]
    if not reachable:
        return
    symbol, offset = reachable[0]
    base = address(symbol) - offset
    lines = [f"{base + at:x} {size:x} hubel:{name}:{function}\n" for function, at, size, _ in found]
    try:
        with Path(f"/tmp/perf-{os.getpid()}.map").open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        logger.warning("HUBEL_PERF_MAP: %s", error)


def functions(object_code: bytes) -> Iterator[tuple[str, int, int, bool]]:
    """(name, offset in its section, bytes, whether other objects see it) of each function of an ELF object; none of
    another format's.
    """
    if object_code[:6] != b"\x7fELF\x02\x01":
        return
    (sections_at,) = struct.unpack_from("<Q", object_code, 40)
    (count,) = struct.unpack_from("<H", object_code, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", object_code, sections_at + i * _SECTION) for i in range(count)]
    for _, kind, _, _, start, size, link, _, _, _ in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][4]
        for at in range(start, start + size, _SYMBOL):
            name_at, info, _, _, value, length = struct.unpack_from("<IBBHQQ", object_code, at)
            if info & 15 == _FUNCTION:
                name = object_code[names + name_at : object_code.index(b"\0", names + name_at)].decode()
                yield name, value, length, info >> 4 == 1
