"""Tables as plain text, and how numbers stand in them."""

from __future__ import annotations

from collections.abc import Sequence

from hubel.records import Cell, Value

RULE = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` aligned left, numbers right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), line([RULE * width for width in widths]), *map(line, rows)])


def middle(cell: Cell) -> float | None:
    return cell.value if isinstance(cell, Value) else cell


def number(cell: Cell, style: str) -> str:
    found = middle(cell)
    return "-" if found is None else format(found, style)


def ratio(cell: Cell) -> str:
    return number(cell, ".2f")


def time(cell: Cell) -> str:
    """Milliseconds to three digits."""
    found = middle(cell)
    if found is None:
        return "-"
    return f"{found:.3g}" if found < 100 else f"{found:.0f}"


def interval(cell: Cell, style: str = ".2f") -> str:
    if not isinstance(cell, Value) or cell.lo is None or cell.hi is None:
        return "-"
    return f"{format(cell.lo, style)}..{format(cell.hi, style)}"
