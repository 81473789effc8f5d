"""The exception tree: one root, standard exceptions where the meaning is the same, near names for unknown ones."""

from __future__ import annotations

import pickle

import pytest

from hubel import errors
from hubel.errors import HubelError, unknown

OURS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HubelError)]


@pytest.mark.parametrize("error", OURS)
def test_every_error_is_drawn_in_the_tree(error: type[HubelError]) -> None:
    assert error.__name__ in (errors.__doc__ or "")
    assert error.__doc__


@pytest.mark.parametrize("error", OURS)
def test_messages_survive_printing_and_pickling(error: type[HubelError]) -> None:
    copy = pickle.loads(pickle.dumps(error('the "rule". Received: 3.')))
    assert type(copy) is error
    assert str(copy) == 'the "rule". Received: 3.'


@pytest.mark.parametrize(
    ("error", "standard"),
    [(errors.SpecError, ValueError), (errors.DataError, ValueError), (errors.UnknownNameError, LookupError)],
)
def test_standard_meanings(error: type[HubelError], standard: type[Exception]) -> None:
    assert issubclass(error, standard)


def test_unknown_offers_the_near_name() -> None:
    error = unknown("network", "LeNet5s", ["vgg16", "lenet5"])
    assert isinstance(error, errors.UnknownNameError)
    assert str(error) == 'unknown network "LeNet5s". Did you mean "lenet5"? Known: vgg16, lenet5.'


def test_unknown_offers_several_near_names_nearest_first() -> None:
    message = str(unknown("network", "resnet5", {"resnet18": 1, "vgg16": 2, "resnet50": 3}))
    assert 'Did you mean "resnet50" or "resnet18"? ' in message


def test_unknown_without_near_names_lists_a_short_table() -> None:
    assert str(unknown("data set", "zzz", ["digits", "mnist"])) == 'unknown data set "zzz". Known: digits, mnist.'


def test_unknown_lists_only_the_start_of_a_long_table() -> None:
    names = [f"network{index}" for index in range(100)]
    far = str(unknown("network", "zzz", names))
    assert "100 are known, among them network0, network1, " in far
    assert "network99" not in far
    near = str(unknown("network", "network 7", names))
    assert '"network7"' in near
    assert "are known" not in near


def test_unknown_with_an_empty_table_and_no_string() -> None:
    assert str(unknown("rule", 7, [])) == 'unknown rule "7". None is known.'
