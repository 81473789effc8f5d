"""Turning numbers: rows that lie beside each other in memory become columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from hubel.engine.ir.function import I64, PTR, Function, Value, vector_of
from hubel.engine.ir.opaque import OpaqueFunction
from hubel.engine.ir.storage import Pointer

# Columns that are turned at once: four neighbours fill a quarter of a cache line.
QUAD = 4


def reading(name: str, stored: Pointer) -> str:
    """A module may have one such function that reads a tensor, and one that reads float32."""
    return name if stored is PTR else f"{name}_{stored.dtype}"


def turn_function(lanes: int, stored: Pointer = PTR, name: str = "turn") -> Function:
    """turn(target, source, rows, cols, stride_c, stride_y, pitch, apart, ahead): target[row·pitch + col·apart + c] =
    source[c·stride_c + row·stride_y + col], at least a row and four columns.

    The last four of a row overlap those before them. Each four columns ask for four lines that lie `ahead`, of one
    channel each, and the next four for those of the next channels. name: another, in a module that has two.
    """
    numbers = ("rows", "cols", "stride_c", "stride_y", "pitch", "apart", "ahead")
    parameters = [("target", PTR), ("source", stored), *((n, I64) for n in numbers)]
    f = OpaqueFunction(reading(name, stored), parameters, private=True)
    stride, apart = f.arg("stride_c"), f.arg("apart")
    steps = [stride * r for r in range(4)]
    quarters = [stride * quarter for quarter in range(0, lanes, 4)]
    ahead, turns = f.arg("ahead"), stride * lanes

    def quad(place: Value, target: Value, asked: Value) -> Value:
        """Vector r holds channels r, 4 + r, 8 + r …, a quarter each, until the quarters are transposed."""
        first = f.opaque(place)
        for step in steps:
            f.prefetch(first + asked + step)
        starts = [first + quarter for quarter in quarters]
        rows = [joined(f, [f.load(start + step, vector_of(4)) for start in starts]) for step in steps]
        for pixels in transposed_quarters(f, rows):
            f.store(pixels, target)
            target = target + apart
        following = asked + stride * 4
        return f.select(following < ahead + turns, following, ahead, "following")

    last = f.arg("cols") - QUAD
    with f.loop("row", 0, f.arg("rows"), carry=[ahead], at_least_once=True) as row:
        line = f.arg("source") + row.index * f.arg("stride_y")
        target = f.arg("target") + row.index * f.arg("pitch")
        with f.loop("col", 0, last, QUAD, carry=row.carried) as col:
            col.carry(quad(line + col.index, target + col.index * apart, col.carried[0]))
        row.carry(quad(line + last, target + last * apart, col.results[0]))
    f.ret()
    return f


def joined(f: Function, vectors: Sequence[Value]) -> Value:
    """Vectors laid end to end as one."""
    if len(vectors) == 1:
        return vectors[0]
    half = len(vectors) // 2
    a, b = joined(f, vectors[:half]), joined(f, vectors[half:])
    return f.shuffle(a, b, range(2 * int(a.type[1:].split()[0])), "joined")


def transposed_quarters(f: Function, rows: Sequence[Value]) -> list[Value]:
    """Four vectors, whose groups of four numbers are taken as 4 × 4 matrices and transposed."""
    lanes = int(rows[0].type[1:].split()[0])
    groups = range(0, lanes, 4)

    def pick(a: Value, b: Value, of_a: tuple[int, int], of_b: tuple[int, int], turn: bool) -> Value:
        order = (of_a[0], lanes + of_b[0], of_a[1], lanes + of_b[1]) if turn else (*of_a, *(lanes + i for i in of_b))
        return f.shuffle(a, b, [g + i for g in groups for i in order], "turned")

    low = [pick(rows[i], rows[i + 1], (0, 1), (0, 1), True) for i in (0, 2)]
    high = [pick(rows[i], rows[i + 1], (2, 3), (2, 3), True) for i in (0, 2)]
    pairs = chain(*((pick(a, b, (0, 1), (0, 1), False), pick(a, b, (2, 3), (2, 3), False)) for a, b in (low, high)))
    return list(pairs)
