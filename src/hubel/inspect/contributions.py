"""From the image to the answer: which kernels pushed it, for one image or two side by side.

A kernel's contribution is Σ (a − mean a)·∂margin/∂a at its tap, where the margin is the score of the answer less the
next best one, and the mean is over all images: what its being more (or less) active than usual did to the answer, to
first order. A ranking, and no share of anything: contributions of different layers overlap, and do not add up.

How far the ranking can be trusted is measured on the same image: Spearman's correlation with what the margin really
loses when a kernel is put at its mean, over kernels drawn at random.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import DataError
from hubel.inspect import effects
from hubel.inspect.gradients import products
from hubel.inspect.importance import removed
from hubel.inspect.replay import recorded
from hubel.inspect.running import Output, scores, scores_of
from hubel.inspect.sweep import Sweep
from hubel.inspect.sweep import sweep as sweep_images
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="contribution", unit="margin", better=None),
    Column(name="second", unit="margin, of the second image", better=None),
    Column(name="rank", unit="in its layer, 1 is most", better=None),
    Column(name="agreement", unit="Spearman", better="up"),
]


def contributions(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    sweep: Sweep | None = None,
    pictured: tuple[int, ...] = (0,),
    output: Output = None,
    most: int = 64,
    sample: int = 48,
    seed: int = 0,
) -> Record:
    """Rows: `(image 0)` with the agreement and its interval, then the `most` kernels with the largest |contribution|.

    images (N, C, H, W): the means are theirs; pictured: which one or two of them are explained. sample: kernels drawn
    at random for the agreement. Arrays: for each layer `conv1` (images, kernels); `answer`, `runner_up` (images,):
    classes; `sampled_contribution`, `sampled_change` (images, sample): what agrees or does not.
    """
    del labels
    start = time.perf_counter()
    done = sweep if sweep is not None else sweep_images(net, images, output=output, correlations=False, seed=seed)
    for i in pictured:
        if not 0 <= i < len(images):
            raise DataError(f"Pictured images are numbers of images, from 0. Received: {i} of {len(images)}.")
    x = images[list(pictured)]
    whole = scores(net, x, output)
    record = Record("contributions", "contributions", list(COLUMNS), level="kernel")
    if whole.shape[1] < 2:
        record.status, record.reason = "not_applicable", "a margin needs two scores; the network gives one"
        return record
    best = whole.topk(2, 1).indices
    params: dict[str, Any] = {"pictured": list(pictured), "images": done.done, "sample": sample, "seed": seed}
    record.method = Method(name="(a − mean a)·∂margin/∂a", params=params, source="first order, after the activation")
    means = {a: tap.means[: done.done].mean(0, dtype=np.float64) for a, tap in done.taps.items()}

    def margin(answer: object, at: int, n: int) -> Tensor:
        rows = scores_of(answer, n, output)
        first, second = best[at : at + n].to(rows.device).unbind(1)
        return (rows.gather(1, first[:, None]) - rows.gather(1, second[:, None])).sum()

    found = products(net, x, margin, about=means)
    record.arrays |= {address: Array(terms, "margin") for address, terms in found.items()}
    record.arrays |= {"answer": Array(best[:, 0].numpy()), "runner_up": Array(best[:, 1].numpy())}
    record.uncovered += [
        Uncovered(target=a, reason="the scores do not depend on it") for a in done.taps if a not in found
    ]
    _agreement(record, net, x, best, found, means, pictured, sample, output, seed)
    _rows(record, found, most)
    record.seconds = time.perf_counter() - start
    return record


def _agreement(
    record: Record,
    net: nn.Module,
    x: Tensor,
    best: Tensor,
    found: dict[str, np.ndarray],
    means: dict[str, np.ndarray],
    pictured: tuple[int, ...],
    sample: int,
    output: Output,
    seed: int,
) -> None:
    known = [
        (a, k) for a, terms in found.items() if "@" not in a and f"{a}@2" not in found for k in range(terms.shape[1])
    ]
    chosen = np.random.default_rng(seed).choice(len(known), min(sample, len(known)), replace=False)
    names = [known[i] for i in sorted(chosen)]
    whole, after = removed(net, recorded(net, x), [f"{a}:{k}" for a, k in names], output, means)
    rows = torch.arange(len(x))
    before = whole[rows, best[:, 0]] - whole[rows, best[:, 1]]
    change = (before - (after[:, rows, best[:, 0]] - after[:, rows, best[:, 1]])).numpy()  # (sample, images)
    estimate = np.stack([found[a][:, k] for a, k in names]) if names else np.zeros((0, len(x)))
    for i, number in enumerate(pictured):
        value = effects.spearman(estimate[:, i], change[:, i])
        row = {"target": f"(image {number})", "contribution": None, "second": None, "rank": None, "agreement": value}
        record.rows.append(row)
    record.arrays["sampled_contribution"] = Array(estimate.T.astype(np.float32), "margin")
    record.arrays["sampled_change"] = Array(change.T.astype(np.float32), "margin")


def _rows(record: Record, found: dict[str, np.ndarray], most: int) -> None:
    rows = []
    for address, terms in found.items():
        ranks = np.argsort(np.argsort(-np.abs(terms[0]), kind="stable"))
        for k in range(terms.shape[1]):
            second = float(terms[1, k]) if len(terms) > 1 else None
            cells = {"contribution": float(terms[0, k]), "second": second, "rank": int(ranks[k]) + 1}
            rows.append({"target": f"{address}:{k}", **cells, "agreement": None})
    rows.sort(key=lambda row: -abs(row["contribution"]))
    record.rows += rows[:most]
