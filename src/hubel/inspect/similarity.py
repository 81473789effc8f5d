"""How alike the layers of a network represent the images: unbiased linear CKA on spatially pooled features.

CKA (Kornblith et al. 2019, arXiv 1905.00414) with the unbiased estimate of HSIC (Song et al. 2012; Nguyen et al. 2021,
arXiv 2010.15327), with the diagonals of K and L set to zero:

    HSIC₁(K, L) = [tr(KL) + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2/(n−2)·1ᵀKL1] / (n(n−3))
    CKA(K, L) = HSIC₁(K, L) / √(HSIC₁(K, K)·HSIC₁(L, L))

The biased estimate is near 1 for any two wide layers on few images. The unbiased one may be negative, or above 1, by
chance; it is not clipped.
"""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor, nn

from hubel.inspect.sweep import Sweep
from hubel.inspect.sweep import sweep as sweep_images
from hubel.records import Array, Column, Method, Record, Uncovered

FEWEST = 64
COLUMNS = [
    Column(name="next", unit="CKA with the layer after it", better=None),
    Column(name="first", unit="CKA with the first layer", better=None),
    Column(name="last", unit="CKA with the last layer", better=None),
]


def similarity(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    most: int = 1000,
    seed: int = 0,
) -> Record:
    """A row a layer; array `cka` (layers, layers) float32, `layers` their addresses. At least 64 images, at most
    `most`.

    NaN has no place in a Record: a layer whose features do not vary is left out, and named in `uncovered`.
    """
    del labels
    start = time.perf_counter()
    record = Record("similarity", "similarity", list(COLUMNS), level="layer")
    done = sweep if sweep is not None else None
    n = len(images) if done is None else done.done
    source = "Kornblith et al. 2019, arXiv 1905.00414"
    record.method = Method(name="unbiased linear CKA", params={"images": min(n, most), "seed": seed}, source=source)
    if n < FEWEST:
        record.status = "insufficient_data"
        record.reason = f"CKA is estimated from {FEWEST} images or more; there are {n}"
        return record
    done = done if done is not None else sweep_images(net, images, correlations=False, seed=seed)
    grams: dict[str, np.ndarray] = {}
    for address, tap in done.taps.items():
        features = tap.means[: min(n, most)].astype(np.float64)
        gram = _gram(features)
        if not tap.finite or hsic(gram, gram) <= 1e-18 * float((features**2).sum(1).mean()) ** 2:
            record.uncovered.append(Uncovered(target=address, reason="its features do not vary, or are not finite"))
        else:
            grams[address] = gram
    names = list(grams)
    own = np.array([hsic(grams[a], grams[a]) for a in names])
    table = np.array([[hsic(grams[a], grams[b]) for b in names] for a in names]) / np.sqrt(np.outer(own, own))
    record.arrays["cka"] = Array(table.astype(np.float32))
    record.arrays["layers"] = Array(np.array(names or [""]))
    for i, address in enumerate(names):
        after = float(table[i, i + 1]) if i + 1 < len(names) else None
        record.rows.append({"target": address, "next": after, "first": float(table[i, 0]), "last": float(table[i, -1])})
    record.seconds = time.perf_counter() - start
    return record


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased linear CKA of features (n, p) and (n, q) of the same n images, n >= 4."""
    k, l = _gram(x), _gram(y)
    return hsic(k, l) / float(np.sqrt(hsic(k, k) * hsic(l, l)))


def hsic(k: np.ndarray, l: np.ndarray) -> float:
    """HSIC₁ of two Gram matrices whose diagonals are zero."""
    n = len(k)
    rows_k, rows_l = k.sum(0), l.sum(0)
    total = float((k * l).sum()) + float(rows_k.sum() * rows_l.sum()) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * float(rows_k @ rows_l)) / (n * (n - 3))


def _gram(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(0)  # HSIC₁ does not depend on it, and digits do
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram
