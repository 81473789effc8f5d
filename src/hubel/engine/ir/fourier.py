"""The discrete Fourier transform of a real sequence, as a network of additions that is written forwards or backwards.

    X[k] = Σ x[n]·exp(−2πi·k·n ∕ N),   k = 0 … N∕2

A `Node` is a sum of other nodes, each times a number; inputs are nodes without terms. Numbers that only scale are never
multiplied where they arise: they travel with the value and end in a fused multiply-add. Real inputs have no imaginary
parts, outputs that mirror others are not made, and what nothing needs is never written.

Written backwards, from outputs to inputs, a network multiplies by the transposed matrix in as many operations: that is
the inverse transform, up to the weight of each frequency.

A transform goes in two passes, so that its values stay in registers: `first` transforms of each residue, then
transforms of their results. Where the two lengths have no common factor, no factors stand between them (Good 1958).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, gcd, pi, sin
from typing import TypeAlias

from hubel.engine.ir.function import Function, Value

# Lengths that there are transforms of, and the length of their first pass.
FIRST = {
    12: 4, 16: 4, 20: 4, 24: 8, 28: 4, 36: 4, 40: 8, 48: 16, 56: 8, 60: 12, 72: 8, 80: 16, 84: 12, 96: 12, 112: 16,
    120: 24, 144: 16,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Node:
    """Σ number · node; an input, if there are no terms."""

    terms: tuple[tuple[float, Node], ...] = ()


# A number times a node; None is zero.
Scaled: TypeAlias = tuple[float, Node] | None
Complex: TypeAlias = tuple[Scaled, Scaled]


def _sum(*terms: tuple[float, Scaled]) -> Scaled:
    """Σ number · value. The largest number is taken out of the node."""
    left = [(c * value[0], value[1]) for c, value in terms if value is not None and abs(c) > 1e-12]
    if len(left) < 2:
        return left[0] if left else None
    scale = max((c for c, _ in left), key=lambda c: round(abs(c), 9))

    def ratio(c: float) -> float:
        exact = c / scale
        return float(round(exact)) if abs(abs(exact) - 1) < 1e-9 else exact

    return scale, Node(tuple((ratio(c), node) for c, node in left))


def _turned(value: Complex, k: int, n: int) -> Complex:
    """value · exp(−2πi·k ∕ n)"""
    re, im = value
    c, s = cos(2 * pi * k / n), sin(2 * pi * k / n)
    return _sum((c, re), (s, im)), _sum((c, im), (-s, re))


def _conjugate(value: Complex) -> Complex:
    re, im = value
    return re, None if im is None else (-im[0], im[1])


def transform(x: Sequence[Complex]) -> list[Complex]:
    """The transform of a sequence; of a real one, outputs beyond the middle are the others' conjugates."""
    n = len(x)
    if n == 1:
        return list(x)
    real = all(im is None for _, im in x)
    out: list[Complex | None] = [None] * n
    split = next((p for p in (4, 2, 3, 5, 7) if n % p == 0 and n > p), None)
    if split is None or (n == 4):
        _prime(x, out)
    else:
        first = next((p for p in (4, 8, 16, 3, 9, 5, 7) if n % p == 0 and p < n and gcd(p, n // p) == 1), split)
        _composite(x, out, first)
    if real:
        out = [value if k <= n // 2 else _conjugate(out[n - k]) for k, value in enumerate(out)]  # type: ignore[arg-type]
    return out  # type: ignore[return-value]


def _composite(x: Sequence[Complex], out: list[Complex | None], first: int) -> None:
    n = len(x)
    inner, turned = residues(x, first)
    for k1 in range(first):
        column = [row[k1] for row in inner]
        if turned:
            column = [_turned(value, k1 * n2, n) for n2, value in enumerate(column)]
        for k2, value in enumerate(transform(column)):
            out[place(n, first, k1, k2)] = value


def residues(x: Sequence[Complex], first: int) -> tuple[list[list[Complex]], bool]:
    """(the transforms of length `first` of each residue, whether their results must be turned)"""
    n, rest = len(x), len(x) // first
    coprime = gcd(first, rest) == 1
    rows = [[x[(rest * n1 + (first * n2 if coprime else n2)) % n] for n1 in range(first)] for n2 in range(rest)]
    return [transform(row) for row in rows], not coprime


def place(n: int, first: int, k1: int, k2: int) -> int:
    """The output that has index k1 in the first pass and k2 in the second."""
    rest = n // first
    if gcd(first, rest) > 1:
        return k1 + first * k2
    return next(k for k in range(k1, n, first) if k % rest == k2)


def _prime(x: Sequence[Complex], out: list[Complex | None]) -> None:
    """Odd lengths by sums and differences of inputs that mirror each other; 2 and 4 by hand."""
    n = len(x)
    if n == 2:
        (a, b), (c, d) = x
        out[:] = [(_sum((1, a), (1, c)), _sum((1, b), (1, d))), (_sum((1, a), (-1, c)), _sum((1, b), (-1, d)))]
        return
    if n == 4:
        even, odd = transform([x[0], x[2]]), transform([x[1], x[3]])
        for k in range(2):
            (re, im), (c, d) = even[k], _turned(odd[k], k, 4)
            out[k] = _sum((1, re), (1, c)), _sum((1, im), (1, d))
            out[k + 2] = _sum((1, re), (-1, c)), _sum((1, im), (-1, d))
        return
    half = range(1, (n + 1) // 2)
    sums = {j: tuple(_sum((1, x[j][i]), (1, x[n - j][i])) for i in (0, 1)) for j in half}
    differences = {j: tuple(_sum((1, x[j][i]), (-1, x[n - j][i])) for i in (0, 1)) for j in half}
    out[0] = tuple(_sum((1, x[0][i]), *((1, sums[j][i]) for j in half)) for i in (0, 1))  # type: ignore[assignment]
    for k in half:
        even = [_sum((1, x[0][i]), *((cos(2 * pi * j * k / n), sums[j][i]) for j in half)) for i in (0, 1)]
        odd = [_sum(*((sin(2 * pi * j * k / n), differences[j][i]) for j in half)) for i in (0, 1)]
        out[k] = _sum((1, even[0]), (1, odd[1])), _sum((1, even[1]), (-1, odd[0]))
        out[n - k] = _sum((1, even[0]), (-1, odd[1])), _sum((1, even[1]), (1, odd[0]))


@dataclass(frozen=True)
class Pass:
    """One of the small transforms of a pass: what it reads, by place, and what it makes, by place."""

    inputs: tuple[tuple[int, Node], ...]
    outputs: tuple[tuple[int, Scaled], ...]


@lru_cache(maxsize=32)
def passes(length: int) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The two passes of a real transform of even length. Its results are `length` real numbers, at these places:

    0: frequency 0    1: frequency length ∕ 2    2·k, 2·k + 1: real and imaginary part of frequency k
    """
    x = [Node() for _ in range(length)]
    first, rest = FIRST[length], length // FIRST[length]
    where = {node: n for n, node in enumerate(x)}
    inner, turned = residues([((1.0, node), None) for node in x], first)
    between: dict[Node, int] = {}
    one = []
    for row in inner:
        made = []
        for value in row:
            for part in value:
                if part and part[1] not in between:
                    between[part[1]] = len(between)
                    made.append((between[part[1]], (1.0, part[1])))
        one.append(_pass(made, where))
    results: dict[int, Scaled] = {}
    two = []
    for k1 in range(first // 2 + 1):
        column = [row[k1] for row in inner]
        if turned:
            column = [_turned(value, k1 * n2, length) for n2, value in enumerate(column)]
        made = []
        for k2, value in enumerate(transform(column)):
            k = place(length, first, k1, k2)
            value = value if k <= length // 2 else _conjugate(value)
            k = min(k, length - k)
            ends = {0: 0, length // 2: 1}
            for at, part in [(ends[k], value[0])] if k in ends else [(2 * k, value[0]), (2 * k + 1, value[1])]:
                if at not in results:
                    results[at] = part
                    made.append((at, part))
        two.append(_pass(made, between))
    assert len(results) == length and rest * first == length
    return tuple(one), tuple(two)


def _pass(outputs: list[tuple[int, Scaled]], known: dict[Node, int]) -> Pass:
    """What is between known nodes and these outputs."""
    reads: dict[Node, int] = {}

    def visit(node: Node) -> None:
        if node in known:
            reads[node] = known[node]
            return
        for _, term in node.terms:
            visit(term)

    for _, value in outputs:
        if value:
            visit(value[1])
    return Pass(tuple((at, node) for node, at in sorted(reads.items(), key=lambda item: item[1])), tuple(outputs))


def forwards(f: Function, part: Pass, values: Sequence[Value]) -> list[Value]:
    """The outputs, from values of the inputs."""
    known = {node: value for (_, node), value in zip(part.inputs, values, strict=True)}

    def value_of(node: Node) -> Value:
        if node not in known:
            known[node] = _combined(f, [(c, value_of(term)) for c, term in node.terms])
        return known[node]

    return [_times(f, scaled[0], value_of(scaled[1])) for _, scaled in part.outputs if scaled]


def backwards(f: Function, part: Pass, values: Sequence[Value]) -> list[Value]:
    """What the inputs get from values at the outputs, by the transposed matrix."""
    ends = {node for _, node in part.inputs}
    shares: dict[Node, list[tuple[float, Value]]] = {}
    for (_, scaled), value in zip(part.outputs, values, strict=True):
        if scaled:
            shares.setdefault(scaled[1], []).append((scaled[0], value))
    results = {}
    for node in reversed(_in_order([scaled[1] for _, scaled in part.outputs if scaled], ends)):
        scale, value = _summed(f, shares[node])
        if node in ends:
            results[node] = _times(f, scale, value)
            continue
        for c, term in node.terms:
            shares.setdefault(term, []).append((c * scale, value))
    return [results[node] for _, node in part.inputs]


def _in_order(outputs: Iterable[Node], ends: set[Node]) -> list[Node]:
    """All nodes from `ends` to the outputs, terms before what they are terms of."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in order:
            return
        if node not in ends:
            for _, term in node.terms:
                visit(term)
        order[node] = None

    for node in outputs:
        visit(node)
    return list(order)


def _summed(f: Function, terms: Sequence[tuple[float, Value]]) -> tuple[float, Value]:
    """Σ number · value as (number, value)"""
    if len(terms) == 1:
        return terms[0]
    scale = max((c for c, _ in terms), key=lambda c: round(abs(c), 9))
    ratios = [c / scale for c, _ in terms]
    exact = [float(round(r)) if abs(abs(r) - 1) < 1e-9 else r for r in ratios]
    return scale, _combined(f, [(r, value) for r, (_, value) in zip(exact, terms, strict=True)])


def _combined(f: Function, terms: Sequence[tuple[float, Value]]) -> Value:
    """Σ number · value; one of the numbers is 1."""
    first = next(i for i, (c, _) in enumerate(terms) if c == 1)
    total = terms[first][1]
    for c, value in (*terms[:first], *terms[first + 1 :]):
        if abs(c) == 1:
            total = f.binary("add" if c > 0 else "sub", total, value)
        else:
            total = f.fma(f.constant(c, value.type), value, total)
    return total


def _times(f: Function, c: float, value: Value) -> Value:
    return value if c == 1 else f.binary("mul", f.constant(c, value.type), value)


@lru_cache(maxsize=32)
def operations(length: int) -> tuple[int, int]:
    """Additions and multiplications of the transform written forwards, and backwards."""
    there = back = 0
    for part in (each for parts in passes(length) for each in parts):
        ends = {node for _, node in part.inputs}
        nodes = _in_order([scaled[1] for _, scaled in part.outputs if scaled], ends)
        inside = [node for node in nodes if node not in ends]
        terms = sum(len(node.terms) for node in inside)
        scaled = sum(value is not None and value[0] != 1 for _, value in part.outputs)
        there += terms - len(inside) + scaled
        back += terms + len(part.outputs) - len(nodes) + scaled
    return there, back
