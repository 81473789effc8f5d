"""Effects and how sure they are: paired changes, intervals, tests, and what may be kept of many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from hubel.records import Value


def bootstrap(values: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Percentile intervals of the means of values (M, N), the N drawn with replacement `resamples` times: (2, M)."""
    N = values.shape[1]
    means = np.empty((resamples, len(values)))
    for r in range(resamples):
        means[r] = values @ (np.bincount(rng.integers(0, N, N), minlength=N) / N)
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)


def sign_flip(changes: np.ndarray, resamples: int, rng: np.random.Generator) -> list[float]:
    """For each row of changes (M, N), two-sided p of "they are symmetric about zero", by flipping signs at random.

    Never below 1/(resamples + 1).
    """
    signs = rng.integers(0, 2, size=(resamples, changes.shape[1])) * 2.0 - 1
    as_extreme = np.abs(signs @ changes.T) >= np.abs(changes.sum(1)) * (1 - 1e-12)
    return [float(p) for p in (1 + as_extreme.sum(0)) / (resamples + 1)]


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p of "an answer that changes is as likely lost as gained": the binomial test with 1/2."""
    n, k = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def benjamini_hochberg(p: Sequence[float], rate: float) -> list[bool]:
    """Which of the tests stay when at most a share `rate` of those that stay may be false."""
    order = np.argsort(p, kind="stable")
    limits = rate * np.arange(1, len(p) + 1) / max(len(p), 1)
    passing = np.nonzero(np.asarray(p, dtype=float)[order] <= limits)[0]
    kept = set(order[: passing[-1] + 1].tolist()) if len(passing) else set()
    return [i in kept for i in range(len(p))]


def without_events(n: int, level: float = 0.95) -> float:
    """The largest rate that n images without a single event leave open: 1 - (1 - level)^(1/n), one-sided, exact."""
    return 1.0 if n == 0 else 1 - (1 - level) ** (1 / n)


def paired(changes: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> list[Value]:
    """The mean change of each row of changes (M, N), in N images, with its bootstrap interval; undecided as yet."""
    N = changes.shape[1]
    if N < 2:
        return [Value(float(row.mean()) if N else None, n=N, how="bootstrap") for row in changes]
    lo, hi = bootstrap(changes, level, resamples, rng)
    return [
        Value(float(row.mean()), float(lo[i]), float(hi[i]), level, N, "images", "bootstrap")
        for i, row in enumerate(changes)
    ]


def resamples_for(tests: int, level: float, least: int) -> int:
    """As many sign flips as Benjamini-Hochberg over so many tests needs: the smallest p must get below its limit."""
    return min(20_000, max(least, math.ceil(2 * tests / (1 - level))))


def median_of(values: Sequence[float], level: float = 0.95) -> Value:
    """The median of rounds, with the interval of order statistics, which assumes no distribution (David and Nagaraja).

    The k-th smallest and the k-th largest of n enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < k).
    """
    ordered, n = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    below, k = 0.0, 0
    while k < n // 2 and below + math.comb(n, k) / 2**n <= (1 - level) / 2:
        below += math.comb(n, k) / 2**n
        k += 1
    if k == 0:
        return Value(float(np.median(ordered)), level=level, n=n, of="rounds", how="median")
    return Value(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k]), level, n, "rounds", "median")


def wilson(successes: int, n: int, level: float = 0.95) -> Value:
    """A share of n images and its interval (Wilson 1927, JASA 22:209)."""
    if n == 0:
        return Value(None, level=level, n=0, how="wilson")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    lo, hi = (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)
    return Value(p, lo, hi, level, n, "images", "wilson")


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> Value:
    """Spearman's rank correlation of n pairs; interval by Fisher's z with the variance 1.06/(n - 3) (Fieller 1957).

    Null below 4 pairs, or where one side does not vary.
    """
    n = len(a)
    if n < 4:
        return Value(None, level=level, n=n, how="spearman, fisher z")
    x, y = ranks(np.asarray(a, float)), ranks(np.asarray(b, float))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x * x).sum() * (y * y).sum()))
    if size == 0:
        return Value(None, level=level, n=n, how="spearman, fisher z")
    rho = float((x * y).sum() / size)
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(1.06 / (n - 3))
    z = math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
    lo, hi = math.tanh(z - half), math.tanh(z + half)
    return Value(rho, lo, hi, level, n, "images", "spearman, fisher z", not lo <= 0 <= hi)
