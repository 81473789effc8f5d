"""How good a classifier is, counted on images it has not seen, with intervals.

Everything here follows from the confusion matrix: row = true class, column = what the network said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from hubel.errors import DataError
from hubel.records import Array, Column, Method, Record, Uncovered, Value


def wilson(successes: int, n: int, level: float = 0.95, of: Literal["images", "seeds", "rounds"] = "images") -> Value:
    """A proportion and where the true one lies with confidence `level`.

    Wilson 1927 (JASA 22:209): unlike value ± 1.96·σ it stays inside [0, 1] and is right near its ends, where accuracies
    live: 1000 of 1000 gives [0.9962, 1], not [1, 1]. Null without any trial.

        centre = (p + z²/2n) / (1 + z²/n)        half = z/(1 + z²/n) · √(p(1 − p)/n + z²/4n²)
    """
    if not 0 <= successes <= n:
        raise DataError(f"A proportion counts successes among trials. Received: {successes} of {n}.")
    if n == 0:
        return Value(None, level=level, n=0, of=of, how="wilson")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends centre ± half is 0 or 1 up to rounding, and must not be beyond.
    lo = 0.0 if successes == 0 else max(0.0, centre - half)
    hi = 1.0 if successes == n else min(1.0, centre + half)
    return Value(p, lo, hi, level, n, of, "wilson")


def mean(values: np.ndarray, level: float = 0.95, of: Literal["images", "seeds", "rounds"] = "images") -> Value:
    """A mean and its interval by the central limit theorem, mean ± z·s/√n: for 30 values or more. One has none."""
    n = len(values)
    if n == 0:
        return Value(None, level=level, n=0, of=of, how="normal")
    centre = float(np.mean(values, dtype=np.float64))
    if n == 1:
        return Value(centre, level=level, n=1, of=of, how="normal")
    half = NormalDist().inv_cdf(0.5 + level / 2) * float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(n)
    return Value(centre, centre - half, centre + half, level, n, of, "normal")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, (classes, classes), int64: row = true class, column = predicted class. The diagonal is what is right."""
    for what, numbers in (("labels", labels), ("predicted", predicted)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= classes):
            raise DataError(f"{what} are from 0 to {classes - 1}. Received: {numbers.min()} to {numbers.max()}.")
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(labels: np.ndarray, logits: np.ndarray, losses: np.ndarray, indices: np.ndarray) -> Record:
    """The record `accuracy`: how many images are right, and what the network said of each of them.

    logits: (N, classes) float32; losses: (N,) cross-entropy of each image in nats; indices: (N,), which images of the
    data set these are. All four are kept as arrays, so that a page can show a right and a wrong one without running it.
    """
    predicted = logits.argmax(1)
    correct = int((predicted == labels).sum())
    finite = bool(np.isfinite(losses).all())
    return Record(
        id="accuracy",
        kind="accuracy",
        columns=[
            Column(name="accuracy", unit="", better="up"),
            Column(name="loss", unit="nat", better="down"),
            Column(name="correct", unit="images", better="up"),
            Column(name="images", unit="images", better=None),
        ],
        rows=[
            {
                "target": "held out",
                "accuracy": wilson(correct, len(labels)),
                "loss": mean(losses) if finite else None,
                "correct": correct,
                "images": len(labels),
            }
        ],
        arrays={
            "index": Array(indices),
            "label": Array(labels),
            "predicted": Array(predicted),
            "logits": Array(logits),
            "loss": Array(losses, "nat"),
        },
        method=Method(name="accuracy", params={}, source="interval: Wilson 1927, JASA 22:209"),
        uncovered=[] if finite else [{"target": "held out", "reason": "the loss of some images is no finite number"}],
    )


def per_class(confusion: np.ndarray, classes: Sequence[str]) -> Record:
    """The record `classes`: for each class precision, recall and F1, and the whole confusion matrix.

    precision: of the images called so, how many are; recall: of those that are, how many are called so; both with a
    Wilson interval. F1 = 2·TP / (2·TP + FP + FN), their harmonic mean. Null where nothing was there to count.
    """
    rows: list[dict[str, Value | float | int | str | None]] = []
    uncovered: list[Uncovered] = []
    for k, name in enumerate(classes):
        right, true, said = int(confusion[k, k]), int(confusion[k].sum()), int(confusion[:, k].sum())
        if not true:
            uncovered.append({"target": name, "reason": "no image of this class: no recall"})
        if not said:
            uncovered.append({"target": name, "reason": "never predicted: no precision"})
        rows.append(
            {
                "target": name,
                "precision": wilson(right, said) if said else None,
                "recall": wilson(right, true) if true else None,
                "f1": 2 * right / (true + said) if true + said else None,
                "images": true,
                "predicted": said,
            }
        )
    return Record(
        id="classes",
        kind="classes",
        columns=[
            Column(name="precision", unit="", better="up"),
            Column(name="recall", unit="", better="up"),
            Column(name="f1", unit="", better="up"),
            Column(name="images", unit="images", better=None),
            Column(name="predicted", unit="images", better=None),
        ],
        rows=rows,
        arrays={"confusion": Array(confusion, "images")},
        method=Method(
            name="per class", params={"rows": "true class", "columns": "predicted class"}, source="definition"
        ),
        uncovered=uncovered,
    )
