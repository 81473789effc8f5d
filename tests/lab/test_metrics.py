"""Counting and intervals, against numbers that others computed and against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubel.errors import DataError
from hubel.lab import metrics


@pytest.mark.parametrize(
    ("successes", "n", "lo", "hi"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, lo: float, hi: float) -> None:
    value = metrics.wilson(successes, n)
    assert value.value == successes / n
    assert (value.lo, value.hi) == (pytest.approx(lo, abs=5e-5), pytest.approx(hi, abs=5e-5))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_solves_its_equation(case: tuple[int, int]) -> None:
    successes, n = case
    value = metrics.wilson(successes, n)
    assert value.value is not None and value.lo is not None and value.hi is not None
    assert 0 <= value.lo <= value.value <= value.hi <= 1
    for bound in (value.lo, value.hi):
        # The bounds are the π for which the observed p lies z standard errors of π away.
        z = 1.959963984540054
        assert abs(value.value - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-7)


def test_wilson_without_trials_and_with_impossible_ones() -> None:
    assert metrics.wilson(0, 0).value is None
    with pytest.raises(DataError, match="5 of 4"):
        metrics.wilson(5, 4)


def test_the_mean_has_the_textbook_interval() -> None:
    value = metrics.mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert value.value == 2.5
    assert value.hi == pytest.approx(2.5 + 1.959964 * math.sqrt(5 / 3) / 2)
    assert metrics.mean(np.array([1.0])).lo is None
    assert metrics.mean(np.array([])).value is None


def test_the_confusion_matrix_has_true_classes_down() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    with pytest.raises(DataError, match="labels are from 0 to 1"):
        metrics.confusion_matrix(np.array([2]), np.array([0]), 2)


def test_per_class_numbers_are_scikit_learns() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 300)
    predicted = np.where(generator.random(300) < 0.7, labels, generator.integers(0, 4, 300))
    record = metrics.per_class(metrics.confusion_matrix(labels, predicted, 4), list("abcd"))
    expected = np.array(precision_recall_fscore_support(labels, predicted)).T
    for row, (precision, recall, f1, images) in zip(record.rows, expected, strict=True):
        assert (row["precision"].value, row["recall"].value) == (pytest.approx(precision), pytest.approx(recall))
        assert (row["f1"], row["images"]) == (pytest.approx(f1), images)


def test_a_loss_that_is_no_number_is_null_with_a_reason() -> None:
    losses = np.array([0.5, np.inf])
    record = metrics.accuracy(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]), losses, np.arange(2))
    assert record.row("held out")["loss"] is None and len(record.uncovered) == 1
    assert (record.row("held out")["correct"], record.row("held out")["images"]) == (1, 2)


def test_what_cannot_be_counted_is_null_with_a_reason() -> None:
    record = metrics.per_class(np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert record.row("b")["precision"] is None and record.row("b")["f1"] == 0
    assert record.row("c")["recall"] is None and record.row("c")["f1"] is None
    assert [item["target"] for item in record.uncovered] == ["b", "c", "c"]
