"""The matrices of Winograd's minimal filtering F(m, r), computed exactly from their interpolation points.

m outputs of a filter with r taps read n = m + r − 1 inputs, and need n multiplications instead of m·r:

    y  =  Aᵀ [ (G g) ⊙ (Bᵀ d) ]

One multiplication belongs to each point p and one to infinity; the matrices evaluate and interpolate polynomials there:

    Aᵀ[i, p] = p^i                            infinity: 1 in the last row
    G[p, k]  = p^k ∕ Π_{q≠p} (p − q)           infinity: 1 in the last column
    Bᵀ[p, k] = coefficient of x^k in Π_{q≠p} (x − q);  infinity: in the product over all points

In two dimensions they are applied along both axes: Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A. Along an axis where the kernel has
one tap F(1, 1) leaves everything as it is.

With stride 2 even taps meet even inputs only, and odd taps odd ones: two filters with stride 1 and half the taps, whose
outputs are added up (`strided`). Its transpose, the input gradient, makes even and odd outputs by a filter each
(`interleaved`). Either does 2·m + r − 2 multiplications instead of m·r. (The construction is Cook's and Toom's; Lavin
and Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986, on points and errors.)
"""

from __future__ import annotations

from collections.abc import Sequence
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
    3: (Fraction(0), Fraction(1)),
    4: _in_pairs("1"),
    5: (*_in_pairs("3/4"), Fraction(2)),
    6: _in_pairs("5/8", "3/2"),
    8: _in_pairs("1/2", "1", "2"),
    10: _in_pairs("5/12", "4/5", "5/4", "12/5"),
}


@dataclass(frozen=True)
class Transforms:
    """F(outputs, taps): `inputs` is Bᵀ (n × inputs read), `filters` is G (n × taps), `results` is Aᵀ (outputs × n).

    advance: from the first input of a tile to that of the next. longest: the most multiplications of a filter with
    stride 1 in it, which its error depends on. kind: what tells it from the filter with stride 1, in a name.
    """

    outputs: int
    taps: int
    inputs: Matrix
    filters: Matrix
    results: Matrix
    advance: int
    longest: int
    kind: str = ""

    @property
    def size(self) -> int:
        """n: multiplications done along one axis."""
        return len(self.filters)

    @property
    def read(self) -> int:
        """Inputs read along one axis: n of them where the stride is 1."""
        return len(self.inputs[0])

    @property
    def direct(self) -> int:
        """Multiplications that the definition does."""
        return self.taps * self.outputs if self.advance >= self.outputs else self.taps * self.advance


@cache
def transforms(outputs: int, taps: int) -> Transforms:
    """The matrices for the points of `POINTS`. One tap takes a multiplication an output, and nothing else."""
    if taps == 1:
        alone = tuple(_placed((Fraction(1),), (i,), outputs) for i in range(outputs))
        return Transforms(outputs, 1, alone, ((Fraction(1),),) * outputs, alone, outputs, 1)
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
    return Transforms(outputs, taps, tuple(inputs), tuple(filters), tuple(results), outputs, n)


@cache
def strided(outputs: int, taps: int) -> Transforms:
    """A filter with stride 2: outputs j that read the inputs 2·j + k."""
    parts = []
    for phase in (0, 1):
        of_phase = range(phase, taps, 2)
        part = transforms(outputs, len(of_phase))
        parts.append(_Part(part, range(phase, phase + 2 * part.read, 2), of_phase, range(outputs)))
    return _together(parts, taps, 2 * outputs + taps - 2, 2 * outputs, "s2")


@cache
def interleaved(outputs: int, taps: int, padding: int) -> Transforms:
    """The transpose of a filter with stride 2 and this padding: output 2·j + r reads the inputs
    j + (r + padding − k) ∕ 2 of those taps k for which that is whole. outputs: of each r. Taps are in the order of the
    inputs that outputs 0 and 1 meet them with.
    """
    order = sorted(
        ((remainder + padding - k) // 2, k, remainder) for k in range(taps) for remainder in [(k - padding) % 2]
    )
    first, last = order[0][0], order[-1][0]
    parts = []
    for remainder in (0, 1):
        meet = [(shift, place) for place, (shift, _, r) in enumerate(order) if r == remainder]
        part = transforms(outputs, len(meet))
        start = meet[0][0] - first
        parts.append(
            _Part(part, range(start, start + part.read), [place for _, place in meet], range(remainder, 2 * outputs, 2))
        )
    return _together(parts, taps, outputs + last - first, outputs, f"t2p{padding % 2}")


@dataclass(frozen=True)
class _Part:
    """A filter within a larger one: which of its inputs, taps and outputs are this one's."""

    filter: Transforms
    inputs: Sequence[int]
    taps: Sequence[int]
    outputs: Sequence[int]


def _together(parts: list[_Part], taps: int, read: int, advance: int, kind: str) -> Transforms:
    """The multiplications of all parts one behind the other; outputs that several parts have are added up."""
    inputs = [_placed(row, part.inputs, read) for part in parts for row in part.filter.inputs]
    filters = [_placed(row, part.taps, taps) for part in parts for row in part.filter.filters]
    rows: list[list[Fraction]] = [[] for _ in range(max(max(part.outputs) for part in parts) + 1)]
    for part in parts:
        own = dict(zip(part.outputs, part.filter.results, strict=True))
        for i, row in enumerate(rows):
            row += own.get(i, (Fraction(0),) * part.filter.size)
    longest = max(part.filter.longest for part in parts)
    results = tuple(map(tuple, rows))
    return Transforms(len(results), taps, tuple(inputs), tuple(filters), results, advance, longest, kind)


def _placed(row: Row, places: Sequence[int], width: int) -> Row:
    """A row of `width` numbers that has those of `row` at these places, and zeros elsewhere."""
    numbers = dict(zip(places, row, strict=True))
    return tuple(numbers.get(i, Fraction(0)) for i in range(width))


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
