"""Numbers as people read them: three digits, a true minus, units apart."""

from __future__ import annotations

import math

from hubel.records import Cell, Value

NBSP = "\u00a0"
MINUS = "−"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits: 0.00123, 12.3, −4.56e-8; integers up to a million as they are, with commas."""
    if isinstance(value, int) or (float(value).is_integer() and 1 <= abs(value) < 1e6):
        return f"{int(value):,}".replace("-", MINUS)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS, 1) if value < 0 else f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}".replace("-", MINUS)


def fixed(value: float, places: int = 2, plus: bool = False) -> str:
    """`places` decimals; a rounded zero has no sign."""
    text = f"{value:.{places}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return ("+" if plus and float(text) > 0 else "") + text.replace("-", MINUS)


def percent(share: float, places: int = 1) -> str:
    return f"{fixed(100 * share, places)}{NBSP}%"


def share(value: float) -> str:
    """A percentage that does not claim certainty: 0.99999 is not 100 %."""
    return f">{NBSP}{percent(0.999)}" if 0.9995 <= value < 1 else percent(value)


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 kernel`, `1,000 kernels`; one to ten are not spelled out, so that numbers stand out."""
    return f"{n:,}{NBSP}{noun if n == 1 else plural or noun + 's'}"


def interval(lo: float, hi: float, show=number) -> str:
    return f"{show(lo)} to {show(hi)}"


def milliseconds(seconds: float) -> str:
    return f"{number(seconds * 1e3)}{NBSP}ms"


def duration(seconds: float) -> str:
    """`40 seconds`, `3 minutes`, `2 hours`: to one figure or two."""
    if seconds < 90:
        return count(max(1, round(seconds)), "second")
    return count(round(seconds / 60), "minute") if seconds < 5400 else count(round(seconds / 3600), "hour")


def point(cell: Cell) -> float | None:
    """The middle of a cell, whether it was counted or estimated."""
    return cell.value if isinstance(cell, Value) else cell


def shape(sizes) -> str:
    return "×".join(str(size) for size in sizes)
