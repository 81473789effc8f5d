"""Small constant matrices times vectors of values, written out in few operations.

Rows that differ only in the signs of some entries, as those of the points p and −p do, share their two halves:

    a = even + odd,  b = even − odd

and likewise columns. Values may be scalars or vectors; entries are exact fractions, rounded to the values' type when
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hubel.engine.ir.function import Function, Value

Row = Sequence[Fraction]


def multiply(f: Function, rows: Sequence[Row], values: Sequence[Value | None]) -> list[Value]:
    """rows · values. A value that no row reads may be None."""
    results: list[Value | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        if results[i] is not None:
            continue
        mate = next((j for j in range(i + 1, len(rows)) if results[j] is None and _mirrored(row, rows[j])), None)
        if mate is None:
            results[i] = combine(f, _terms(row, values))
            continue
        even = combine(f, [(c, v) for (c, v), d in zip(_all(row, values), rows[mate], strict=True) if c and c == d])
        odds = [(c, v) for (c, v), d in zip(_all(row, values), rows[mate], strict=True) if c and c == -d]
        scale = odds[-1][0]
        odd = combine(f, [(c / scale, v) for c, v in odds])
        results[i] = plus(f, even, scale, odd)
        results[mate] = plus(f, even, -scale, odd)
    return [value for value in results if value is not None]


def multiply_columns(f: Function, rows: Sequence[Row], values: Sequence[Value]) -> list[Value]:
    """rows · values, where columns come in pairs that differ in the signs of some entries: the pairs' sums and
    differences are made first, and those that no row needs are not.
    """
    columns = list(zip(*rows, strict=True))
    terms: list[list[tuple[Fraction, Value]]] = [[] for _ in rows]
    taken: set[int] = set()
    for j, column in enumerate(columns):
        if j in taken:
            continue
        mate = next((k for k in range(j + 1, len(columns)) if k not in taken and _mirrored(column, columns[k])), None)
        if mate is None:
            for row, c in zip(terms, column, strict=True):
                row += [(c, values[j])] if c else []
            continue
        taken.add(mate)
        pairs = list(zip(terms, column, columns[mate], strict=True))
        for same, operation in ((True, "add"), (False, "sub")):
            if any(c and (c == d) is same for _, c, d in pairs):
                shared = f.binary(operation, values[j], values[mate])
                for row, c, d in pairs:
                    row += [(c, shared)] if c and (c == d) is same else []
    return [combine(f, row) for row in terms]


def combine(f: Function, terms: Sequence[tuple[Fraction, Value]]) -> Value:
    """Σ coefficient · value, added up in order, beginning with a coefficient of 1 if there is one."""
    first = next((i for i, (c, _) in enumerate(terms) if c == 1), 0)
    (scale, total), *rest = terms[first], *terms[:first], *terms[first + 1 :]
    if scale != 1:
        total = f.binary("mul", f.constant(float(scale), total.type), total)
    for c, value in rest:
        total = plus(f, total, c, value)
    return total


def plus(f: Function, total: Value, scale: Fraction, value: Value) -> Value:
    """total + scale · value"""
    if abs(scale) == 1:
        return f.binary("add" if scale > 0 else "sub", total, value)
    return f.fma(f.constant(float(scale), value.type), value, total)


def _all(row: Row, values: Sequence[Value | None]) -> list[tuple[Fraction, Value]]:
    return list(zip(row, values, strict=True))  # type: ignore[arg-type]


def _terms(row: Row, values: Sequence[Value | None]) -> list[tuple[Fraction, Value]]:
    return [(c, v) for c, v in _all(row, values) if c]


def _mirrored(a: Row, b: Row) -> bool:
    """Whether b is a with some, but not all, signs changed."""
    pairs = [(c, d) for c, d in zip(a, b, strict=True) if c or d]
    return all(abs(c) == abs(d) for c, d in pairs) and len({c == d for c, d in pairs}) == 2
