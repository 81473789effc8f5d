"""Parts of a data set with the same mix of classes in each: stratified, shuffled, the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hubel.data.dataset import Dataset
from hubel.errors import DataError

HOLD_OUT = (0.72, 0.08, 0.20)
"""Training, validation, test: 3,600, 400 and 1,000 of MNIST's 5,000."""


def split(
    dataset: Dataset,
    sizes: Sequence[int | float] = HOLD_OUT,
    seed: int = 0,
    names: Sequence[str] = ("training", "validation", "held out"),
) -> tuple[Dataset, ...]:
    """Parts without a common image. sizes: numbers of images, or fractions of all of them that sum to at most 1.

    Each class is shuffled and spread evenly over one long line, which is then cut: a part has its share of every class
    to within one image. Without labels the line is a plain shuffle. Every part is shuffled again, so that its first n
    images are a fair sample. DataError if a part would be empty or there are not enough images.
    """
    counts = _counts(dataset, sizes)
    generator = np.random.default_rng(seed)
    labels = np.zeros(len(dataset), int) if dataset.labels is None else dataset.labels.numpy()
    place = np.empty(len(dataset))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Equal places (the k-th of each class) come in random order, so that a cut between them favours no class.
    line = np.lexsort((generator.random(len(dataset)), place))
    parts = []
    for i, start in enumerate(np.cumsum([0, *counts[:-1]])):
        how = names[i] if i < len(names) else f"part {i}"
        members = generator.permutation(line[start : start + counts[i]])
        parts.append(dataset.subset(members, how=f"{how}, stratified {counts[i]} of {len(dataset)}", seed=seed))
    return tuple(parts)


def _counts(dataset: Dataset, sizes: Sequence[int | float]) -> list[int]:
    n = len(dataset)
    fractions = any(isinstance(size, float) for size in sizes)
    if fractions and not (all(size > 0 for size in sizes) and math.fsum(sizes) <= 1 + 1e-9):
        raise DataError(f"Fractions of a split are positive and sum to at most 1. Received: {tuple(sizes)}.")
    # The remainder of rounding goes to the first part, which is the one to train on.
    counts = [math.floor(n * size + 1e-9) if fractions else int(size) for size in sizes]
    if fractions and math.fsum(sizes) > 1 - 1e-9:
        counts[0] += n - sum(counts)
    if min(counts, default=0) < 1 or sum(counts) > n:
        raise DataError(
            f"A split of {dataset.name} has at least one image in each part and at most its {n} in all. "
            f"Received: {tuple(sizes)}, which are {counts} images. Use other sizes or more images."
        )
    return counts
