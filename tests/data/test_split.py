"""Splits: nothing twice, every class its share, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubel import data
from hubel.data import Dataset
from hubel.data.prepare import shifted
from hubel.errors import DataError


def labelled(labels: Sequence[int]) -> Dataset:
    images = torch.arange(len(labels), dtype=torch.float32)[:, None, None, None]
    return Dataset("numbers", images, torch.tensor(labels, dtype=torch.int64))


def test_mnist_is_split_as_promised() -> None:
    parts = data.split(data.load("mnist"))
    assert [len(part) for part in parts] == [3600, 400, 1000]
    for part, each in zip(parts, (360, 40, 100), strict=True):
        assert part.class_counts == {str(digit): each for digit in range(10)}
    assert torch.cat([part.indices for part in parts]).sort().values.tolist() == list(range(5000))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(0, 3), st.data())
def test_parts_share_no_image_and_every_class_fairly(labels: list[int], seed: int, draw: st.DataObject) -> None:
    dataset = labelled(labels)
    first = draw.draw(st.integers(1, len(labels) - 2))
    second = draw.draw(st.integers(1, len(labels) - first))
    parts = data.split(dataset, (first, second), seed)
    assert [len(part) for part in parts] == [first, second]
    chosen = torch.cat([part.indices for part in parts]).tolist()
    assert len(set(chosen)) == first + second
    for part in parts:
        assert torch.equal(part.images.flatten().long(), part.indices)
        assert part.labels is not None and dataset.labels is not None
        assert torch.equal(part.labels, dataset.labels[part.indices])
        for label in set(labels):
            share = labels.count(label) * len(part) / len(labels)
            # Each end of a part's stretch of the line may cut a class by less than one image.
            assert abs(int((part.labels == label).sum()) - share) <= 2


def test_the_seed_decides_and_nothing_else() -> None:
    dataset = labelled([0, 1] * 50)
    torch.manual_seed(1)
    one = data.split(dataset, (60, 40), seed=5)
    torch.manual_seed(2)
    two = data.split(dataset, (60, 40), seed=5)
    other = data.split(dataset, (60, 40), seed=6)
    assert torch.equal(one[0].indices, two[0].indices)
    assert not torch.equal(one[0].indices, other[0].indices)


def test_parts_are_shuffled() -> None:
    part = data.split(labelled([0] * 50 + [1] * 50), (50, 50))[0]
    assert part.labels is not None
    assert 5 <= int(part.labels[:25].sum()) <= 20


def test_images_without_labels_are_split_too() -> None:
    first, second = data.split(Dataset("plain", torch.rand(10, 1, 2, 2)), (0.5, 0.5))
    assert (len(first), len(second)) == (5, 5)


@pytest.mark.parametrize("sizes", [(5, 6), (0, 5), (-1, 5), (0.5, 0.6), (-0.1, 0.5), (0.01, 0.5), ()])
def test_sizes_that_cannot_be_are_refused(sizes: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"[Ss]plit"):
        data.split(labelled([0, 1] * 5), sizes)


def test_a_part_says_what_it_is() -> None:
    held_out = data.split(labelled([0, 1] * 50), (60, 20, 20), seed=3)[2]
    assert held_out.info()["sample"] == {"n": 20, "seed": 3, "how": "held out, stratified 20 of 100"}


def test_shifts_move_images_and_nothing_else() -> None:
    images = torch.rand(5, 2, 4, 6)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    rows = torch.tensor([3, 1] * 50)
    moved = shifted(padded, rows, 2, torch.Generator().manual_seed(0))
    seen = set()
    for image, row in zip(moved, rows, strict=True):
        places = [
            (t, s) for t in range(5) for s in range(5) if torch.equal(padded[row, :, t : t + 4, s : s + 6], image)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 20
    assert torch.equal(shifted(images, rows, 0, torch.Generator()), images[rows])
