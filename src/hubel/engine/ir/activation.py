"""Activations on float32 numbers or vectors, with polynomials of our own: no kernel calls a library's function.

Everything is made of e^y − 1 for y ≤ 0, which keeps its digits where y is small:

    sigmoid(x) = 1 ∕ (1 + e^−|x|), or e^−|x| times that where x < 0     silu(x) = x · sigmoid(x)
    tanh(x)    = (1 − e^−2|x|) ∕ (1 + e^−2|x|), with the sign of x
    gelu_tanh(x) = x · sigmoid(2√(2∕π)(x + 0.044715x³))
    gelu(x)    = x · Φ(x), where Φ(−|x|) = ½ e^−z² erfcx(z), z = |x|∕√2

Coefficients are least-maximum fits of 2026-11 (by weighted least squares in float64). Errors against float64 are a few
units in the last place, which the tests hold. NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi, sqrt

from hubel.engine.ir.function import Function, Value
from hubel.engine.ir.storage import of_shape

# (e^r − 1 − r) ∕ r² for |r| ≤ ½ ln 2, lowest power first: 2e-8.
EXPM1 = (0.5, 0.16666573, 0.04166686, 0.00836374, 0.0013901499)
# erfcx(z) ∕ t for t = 1 ∕ (1 + 0.4 z), 0 ≤ z ≤ 9.5: 6e-8.
ERFCX = (
    0.2256263133, 0.2265754435, 0.2009605382, 0.1969551921, 0.0715271018,
    0.0997018687, 0.0738667498, -0.1354831554, 0.0402700056,
)  # fmt: skip
# Adding it leaves the nearest whole number in the lowest bits.
ROUNDER = 1.5 * 2**23
LN2_HIGH = 0.693359375
LN2_LOW = log(2) - LN2_HIGH
# e^y of smaller y is too small for a number with all its digits: 0.
LEAST = -87.0
# Where an activation stops the gradient, by its output.
STOPS: dict[str, tuple[tuple[str, float], ...]] = {
    "": (),
    "relu": (("ole", 0.0),),
    "relu6": (("ole", 0.0), ("oge", 6.0)),
}


def activated(f: Function, name: str, slope: float, x: Value) -> Value:
    """The activation called `name` (`engine.epilogue.ACTIVATIONS`) of x."""
    if name == "relu":
        return _where(f, _less(f, x, 0.0), 0.0, x)
    if name == "relu6":
        return _between(f, x, 0.0, 6.0)
    if name == "leaky_relu":
        return _where(f, _less(f, x, 0.0), x * slope, x)
    if name == "hardswish":
        return x * (_between(f, x + 3.0, 0.0, 6.0) * (1 / 6))
    if name == "sigmoid":
        return _sigmoid(f, x)
    if name == "silu":
        return x * _sigmoid(f, x)
    if name == "gelu_tanh":
        cubic = f.fma(x * x, x * (0.044715 * 2 * sqrt(2 / pi)), x * (2 * sqrt(2 / pi)))
        return x * _sigmoid(f, cubic)
    if name == "gelu":
        return _gelu(f, x)
    assert name == "tanh", name
    return _tanh(f, x)


def let_through(f: Function, name: str, g: Value, y: Value) -> Value:
    """The gradient g where the activation called `name` let x through, by its output y; 0 elsewhere. NaN lets it
    through, as in torch's ReLU.
    """
    flags = of_shape("i1", y.type)
    for stops, bound in STOPS[name]:
        beyond = f._emit(flags, f"fcmp {stops} {y.type} {y.text}, {f.constant(bound, y.type).text}", "beyond")
        g = _where(f, beyond, 0.0, g)
    return g


def _sigmoid(f: Function, x: Value) -> Value:
    power, _ = _exponential(f, _magnitude(f, x, negative=True))
    negative = _less(f, x, 0.0)
    return f.binary("div", _where(f, negative, power, f.constant(1.0, x.type)), power + 1.0)


def _tanh(f: Function, x: Value) -> Value:
    _, less_one = _exponential(f, _magnitude(f, x, negative=True) * 2.0)
    magnitude = f.binary("div", 0.0 - less_one, less_one + 2.0)
    return _bits(f, "or", magnitude, _bits(f, "and", x, -0x80000000))


def _gelu(f: Function, x: Value) -> Value:
    # Half a square whose last digits are kept: the power's relative error is the absolute one of its exponent.
    square = x * x
    lost = f.fma(x, x, 0.0 - square)
    power, _ = _exponential(f, square * -0.5, lost * -0.5)
    z = _magnitude(f, x) * sqrt(0.5)
    t = f.binary("div", f.constant(1.0, x.type), f.fma(z, f.constant(0.4, x.type), f.constant(1.0, x.type)))
    tail = power * t * _polynomial(f, ERFCX, t) * 0.5
    return x * _where(f, _less(f, x, 0.0), tail, 1.0 - tail)


def _exponential(f: Function, y: Value, more: Value | None = None) -> tuple[Value, Value]:
    """(e^y, e^y − 1) of y ≤ 0. more: a small number to be added to y, whose digits y has no room for."""
    type_, nothing = y.type, _less(f, y, LEAST)
    y = _where(f, nothing, LEAST, y)
    more = _where(f, nothing, 0.0, more) if more else None
    shifted = f.fma(y, f.constant(1 / log(2), type_), f.constant(ROUNDER, type_))
    whole = shifted - ROUNDER
    r = f.fma(whole, f.constant(-LN2_HIGH, type_), y)
    r = f.fma(whole, f.constant(-LN2_LOW, type_), r)
    r = r + more if more else r
    rest = f.fma(r * r, _polynomial(f, EXPM1, r), r)
    # 2^whole, from the whole number in the lowest bits: it goes where the exponent is.
    bits = of_shape("i32", type_)
    lowest = f._emit(bits, f"bitcast {type_} {shifted.text} to {bits}", "lowest")
    moved = f._emit(bits, f"shl {bits} {lowest.text}, {_whole(23, bits)}", "moved")
    biased = f._emit(bits, f"add {bits} {moved.text}, {_whole(127 << 23, bits)}", "biased")
    scale = f._emit(type_, f"bitcast {bits} {biased.text} to {type_}", "scale")
    power = _where(f, nothing, 0.0, f.fma(scale, rest, scale))
    return power, f.fma(scale, rest, scale - 1.0)


def _polynomial(f: Function, coefficients: Sequence[float], x: Value) -> Value:
    total = f.constant(coefficients[-1], x.type)
    for coefficient in reversed(coefficients[:-1]):
        total = f.fma(total, x, f.constant(coefficient, x.type))
    return total


def _between(f: Function, x: Value, low: float, high: float) -> Value:
    x = _where(f, _less(f, x, low), low, x)
    return _where(f, _less(f, f.constant(high, x.type), x), high, x)


def _less(f: Function, a: Value, b: Value | float) -> Value:
    b = f.constant(b, a.type)
    flags = of_shape("i1", a.type)
    return f._emit(flags, f"fcmp olt {a.type} {a.text}, {b.text}", "less")


def _where(f: Function, flags: Value, yes: Value | float, no: Value) -> Value:
    yes = f.constant(yes, no.type)
    return f._emit(no.type, f"select {flags.type} {flags.text}, {no.type} {yes.text}, {no.type} {no.text}", "picked")


def _magnitude(f: Function, x: Value, negative: bool = False) -> Value:
    """|x|, or −|x|"""
    return _bits(f, "or", x, -0x80000000) if negative else _bits(f, "and", x, 0x7FFFFFFF)


def _bits(f: Function, operation: str, a: Value, b: Value | int) -> Value:
    """A bitwise operation on the bits of numbers."""
    bits = of_shape("i32", a.type)
    left = f._emit(bits, f"bitcast {a.type} {a.text} to {bits}", "bits")
    if isinstance(b, Value):
        b_text = f._emit(bits, f"bitcast {b.type} {b.text} to {bits}", "bits").text
    else:
        b_text = _whole(b, bits)
    result = f._emit(bits, f"{operation} {bits} {left.text}, {b_text}", "bits")
    return f._emit(a.type, f"bitcast {bits} {result.text} to {a.type}", "x")


def _whole(number: int, type_: str) -> str:
    return f"splat (i32 {number})" if type_.startswith("<") else str(number)
