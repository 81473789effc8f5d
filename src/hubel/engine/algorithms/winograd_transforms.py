"""The matrices of Winograd's minimal filtering F(m, r), computed exactly from their interpolation points.

m outputs of a filter with r taps read n = m + r − 1 inputs, and need n multiplications instead of m·r:

    y  =  Aᵀ [ (G g) ⊙ (Bᵀ d) ]

One multiplication belongs to each point p and one to infinity; the matrices evaluate and interpolate polynomials there:

    Aᵀ[i, p] = p^i                            infinity: 1 in the last row
    G[p, k]  = p^k ∕ Π_{q≠p} (p − q)           infinity: 1 in the last column
    Bᵀ[p, k] = coefficient of x^k in Π_{q≠p} (x − q);  infinity: in the product over all points

In two dimensions they are applied along both axes: Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A. Along an axis where the kernel has
one tap F(1, 1) leaves everything as it is. (The construction is Cook's and Toom's; Lavin and Gray, arXiv:1509.09308;
Barabasz et al., arXiv:1803.10986, on points and errors.)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]


def _in_pairs(*points: str) -> tuple[Fraction, ...]:
    """0, and each of these with both signs."""
    return (Fraction(0), *(sign * Fraction(p) for p in points for sign in (1, -1)))


# The points beside infinity, by n: the same for all (m, r) with m + r − 1 = n. With n = 4 all entries are 0, ±1 and ±½,
# so that sums of small integers stay exact. The others make Σ_ξ |A_ξ|²·|B_ξ|²·|G_ξ|² smallest, which the squared error
# is proportional to, up to rounding to short fractions (2026-11). Relative errors at 64 channels: F(4×4, 3×3) 7.0e-7
# (with 0, ±¾, ±3⁄2 8.1e-7, with 0, ±1, ±2 1.6e-6); along one axis F(4, 3) 3.0e-7, F(4, 5) 6.9e-7, F(4, 7) 1.6e-6.
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: _in_pairs("1"),
    6: _in_pairs("5/8", "3/2"),
    8: _in_pairs("1/2", "1", "2"),
    10: _in_pairs("5/12", "4/5", "5/4", "12/5"),
}


@dataclass(frozen=True)
class Transforms:
    """F(outputs, taps): `inputs` is Bᵀ (n × n), `filters` is G (n × taps), `results` is Aᵀ (outputs × n)."""

    outputs: int
    taps: int
    inputs: Matrix
    filters: Matrix
    results: Matrix

    @property
    def size(self) -> int:
        """n: inputs read, and multiplications done, along one axis."""
        return self.outputs + self.taps - 1


@cache
def transforms(outputs: int, taps: int) -> Transforms:
    """The matrices for the points of `POINTS`."""
    return cook_toom(POINTS[outputs + taps - 1], outputs, taps)


def cook_toom(points: tuple[Fraction, ...], outputs: int, taps: int) -> Transforms:
    """The matrices for outputs + taps − 2 distinct points, and infinity."""
    n = outputs + taps - 1
    if len(set(points)) != n - 1:
        raise ValueError(f"F({outputs}, {taps}) needs {n - 1} distinct points. Received: {points}.")
    inputs, filters = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        inputs.append((*_product(others), Fraction(0)))
        filters.append(tuple(p**k / scale for k in range(taps)))
    inputs.append(_product(list(points)))
    filters.append(_unit(taps))
    last = _unit(outputs)
    results = [tuple([p**i for p in points] + [last[i]]) for i in range(outputs)]
    return Transforms(outputs, taps, tuple(inputs), tuple(filters), tuple(results))


def _product(roots: list[Fraction]) -> Row:
    """Coefficients of Π (x − root), lowest power first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [s - root * c for s, c in zip(shifted, [*polynomial, Fraction(0)], strict=True)]
    return tuple(polynomial)


def _unit(length: int) -> Row:
    """(0, …, 0, 1)"""
    return (Fraction(0),) * (length - 1) + (Fraction(1),)
