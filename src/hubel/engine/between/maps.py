"""Elementwise kernels: out = activation(f(a, b, c)) over tensors with strides, broadcast where a stride is 0.

    for every outer index, and piece of the innermost axis:       one work item
        for vectors along the innermost axis:
            out = activation(f(a, b, c))

Axes are merged first where all tensors step through them alike, so that a sum of two whole tensors is one long row.
Along the innermost axis an operand is read as vectors (`unit`), as one number for all lanes (`splat`), or number by
number (`strided`: the whole kernel then goes number by number, as for a transpose).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from hubel.engine.between.work import Work, kernel_function, work
from hubel.engine.ir import F32, PTR, Function, Value, vector_of
from hubel.engine.ir.activation import activated, let_through
from hubel.engine.machine import Machine
from hubel.engine.threads import RESERVED_WORDS
from hubel.errors import UnsupportedError

# Numbers of the innermost axis that an item goes through at most.
PIECE = 8192
MOST_OUTER = 5

Strides = tuple[int, ...]


def _larger(f: Function, a: Value, b: Value) -> Value:
    """The larger number; NaN if either is."""
    flags = f"<{a.type[1:].split()[0]} x i1>" if a.type.startswith("<") else "i1"
    # As x86's own maximum: the second one where they cannot be compared.
    above = f._emit(flags, f"fcmp ogt {a.type} {a.text}, {b.text}", "above")
    picked = f._emit(a.type, f"select {flags} {above.text}, {a.type} {a.text}, {b.type} {b.text}", "picked")
    nan = f._emit(flags, f"fcmp uno {a.type} {a.text}, {a.text}", "nan")
    return f._emit(a.type, f"select {flags} {nan.text}, {a.type} {a.text}, {b.type} {picked.text}", "larger")


BINARY: dict[str, Callable[[Function, Value, Value], Value]] = {
    "add": lambda f, a, b: a + b,
    "sub": lambda f, a, b: a - b,
    "mul": lambda f, a, b: a * b,
    "div": lambda f, a, b: f.binary("div", a, b),
    "maximum": _larger,
}
# Of activations: of a gradient, and of the activation's output or what it was given.
GRADIENTS: dict[str, Callable[[Function, Value, Value], Value]] = {
    "through_relu": lambda f, g, y: let_through(f, "relu", g, y),
    "through_relu6": lambda f, g, y: let_through(f, "relu6", g, y),
}
_OF_TWO = BINARY | GRADIENTS
# How many operands each function has.
OPERANDS = {"copy": 1, "affine": 3} | dict.fromkeys(_OF_TWO, 2)


@dataclass(frozen=True)
class Axes:
    """The merged axes: sizes, and for the output and then each operand its strides. The last axis is innermost."""

    sizes: tuple[int, ...]
    strides: tuple[Strides, ...]


def merged(shape: Sequence[int], strides: Sequence[Strides]) -> Axes:
    """Axes of size 1 dropped, and neighbours merged where every tensor steps from one to the other alike."""
    kept = [i for i, size in enumerate(shape) if size != 1]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for i in kept:
        if sizes and all(s[-1] == own[i] * shape[i] for s, own in zip(steps, strides, strict=True)):
            sizes[-1] *= shape[i]
            for s, own in zip(steps, strides, strict=True):
                s[-1] = own[i]
        else:
            sizes.append(shape[i])
            for s, own in zip(steps, strides, strict=True):
                s.append(own[i])
    if not sizes:
        sizes, steps = [1], [[1] for _ in strides]
    # The output decides the order: its unit stride is innermost.
    order = sorted(range(len(sizes)), key=lambda i: -steps[0][i])
    return Axes(tuple(sizes[i] for i in order), tuple(tuple(s[i] for i in order) for s in steps))


def mapped(
    function: str, shape: Sequence[int], out: Strides, *operands: Strides, activation: str = "", slope: float = 0.01
) -> Work:
    """out = activation(function(operands)) for tensors of one shape; an operand's stride is 0 where it is broadcast.

    Base pointers: the operands in p0, p1, p2, the output in p3. An operand may be the output itself.
    Raises UnsupportedError for tensors whose axes cannot be merged into six.
    """
    axes = merged(shape, [out, *operands])
    if len(axes.sizes) > MOST_OUTER + 1:
        raise UnsupportedError(
            f"an elementwise kernel walks {MOST_OUTER + 1} axes. Received: shape {tuple(shape)} with strides "
            f"{[out, *operands]}. Make the tensors contiguous."
        )
    inner = axes.sizes[-1]
    patterns = tuple({1: "unit", 0: "splat"}.get(s[-1], "strided") for s in axes.strides)
    if inner == 1:
        patterns = ("unit",) * len(patterns)
    outer = axes.sizes[:-1]
    pieces = max(1, -(-inner // PIECE))
    piece = -(-inner // pieces)
    piece = -(-piece // 16) * 16 if pieces > 1 else piece
    words = [inner, piece, pieces, *outer]
    for steps in axes.strides:
        words += [steps[-1], *steps[:-1]]
    short = "".join(p[1] for p in patterns)  # n: unit, p: splat, t: strided
    slopes = repr(float(slope)) if activation == "leaky_relu" else ""
    name = f"map_{function}_{short}_{len(outer)}{'_' + activation if activation else ''}{slopes}"

    def write() -> Function:
        return map_function(function, patterns, len(outer), activation, slope, Machine.detect().lanes)

    return work(name, write, prod(outer) * pieces, words, piece)


def map_function(
    function: str, patterns: Sequence[str], outer: int, activation: str, slope: float, lanes: int
) -> Function:
    """The kernel. patterns: of the output and of each operand along the innermost axis."""
    f = kernel_function()
    args = f.arg("args")
    word = iter(range(RESERVED_WORDS, 10**6))
    inner, piece, pieces = (f.word(args, next(word), n) for n in ("inner", "piece", "pieces"))
    sizes = [f.word(args, next(word), f"size{i}") for i in range(outer)]
    steps = [[f.word(args, next(word), f"step{t}_{i}") for i in range(outer + 1)] for t in range(len(patterns))]
    places = [f.word(args, i, f"base{i}", PTR) for i in (3, 0, 1, 2)][: len(patterns)]

    def result(values: list[Value]) -> Value:
        if function == "affine":
            value = f.fma(values[0], values[1], values[2])
        else:
            value = values[0] if function == "copy" else _OF_TWO[function](f, *values)
        return activated(f, activation, slope, value) if activation else value

    with f.loop("item", f.arg("begin"), f.arg("end")) as item:
        rest, at = item.index // pieces, item.index % pieces
        first = at * piece
        length = f.minimum(piece, inner - first)
        here = [place + first * step[0] for place, step in zip(places, steps, strict=True)]
        for i in reversed(range(outer)):
            index, rest = (rest % sizes[i], rest // sizes[i]) if i else (rest, rest)
            here = [place + index * step[i + 1] for place, step in zip(here, steps, strict=True)]
        if "strided" in patterns:
            with f.loop("x", 0, length) as x:
                numbers = [f.load(p + x.index * s[0], F32) for p, s in zip(here[1:], steps[1:], strict=True)]
                f.store(result(numbers), here[0] + x.index * steps[0][0])
        else:
            _vectors(f, here, patterns, length, lanes, result)
    f.ret()
    return f


def _vectors(
    f: Function, here: list[Value], patterns: Sequence[str], length: Value, lanes: int,
    result: Callable[[list[Value]], Value],
) -> None:  # fmt: skip
    splats = {
        i: f.splat(f.load(p, F32), lanes)
        for i, (p, kind) in enumerate(zip(here, patterns, strict=True))
        if kind == "splat"
    }
    whole = length // lanes * lanes
    with f.loop("v", 0, whole, lanes) as v:
        values = [splats.get(i) or f.load(p + v.index, vector_of(lanes)) for i, p in enumerate(here) if i]
        f.store(result(values), here[0] + v.index)
    with f.when(whole < length, "rest"):
        mask = f.lanes_below(length - whole, lanes)
        values = [splats.get(i) or f.load_masked(p + whole, mask, lanes) for i, p in enumerate(here) if i]
        f.store_masked(result(values), here[0] + whole, mask)
