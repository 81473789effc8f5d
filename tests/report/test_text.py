"""Numbers as people read them."""

from __future__ import annotations

import pytest

from hubel.report.text import count, fixed, number, percent, share


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (1000, "1,000"), (12.345, "12.3"), (0.012345, "0.0123"), (-0.5, "−0.500"), (1234567.8, "1,234,568"),
        (1.5e-7, "1.50e-07"), (-1.5e-7, "−1.50e-07"), (3.0, "3"),
    ],
)  # fmt: skip
def test_number(value: float, shown: str) -> None:
    assert number(value) == shown


def test_fixed_has_a_true_minus_and_no_negative_zero() -> None:
    assert fixed(-1.25) == "−1.25" and fixed(-0.001) == "0.00"
    assert fixed(0.5, 1, plus=True) == "+0.5" and fixed(-0.5, 1, plus=True) == "−0.5"
    assert fixed(0.0, plus=True) == "0.00"


def test_a_share_is_certain_only_if_it_is() -> None:
    assert share(0.99999) == ">\u00a099.9\u00a0%" and share(1.0) == "100.0\u00a0%" and share(0.9994) == "99.9\u00a0%"


def test_percent_and_count_do_not_break_before_their_unit() -> None:
    assert percent(0.975) == "97.5\u00a0%"
    assert count(1, "kernel") == "1\u00a0kernel" and count(1000, "kernel") == "1,000\u00a0kernels"
