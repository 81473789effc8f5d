"""Which changes of weights one call over all of them sees: those at the places that `weights` samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hubel.ops import weights
from hubel.ops.sampled import Samples

KINDS: dict[str, Callable[[], Tensor]] = {
    "few": lambda: torch.zeros(5, 3, 3, 3),
    "one": lambda: torch.zeros(1),
    "scalar": lambda: torch.zeros(()),
    "three bytes more than a stretch": lambda: torch.zeros(35, dtype=torch.uint8),
    "many": lambda: torch.zeros(16, 64, 3, 3),
    "many rows": lambda: torch.zeros(1500, 8, 1, 1),
    "channels-last": lambda: torch.zeros(16, 64, 3, 3).to(memory_format=torch.channels_last),
    "bfloat16": lambda: torch.zeros(7, 3, dtype=torch.bfloat16),
    "int64": lambda: torch.zeros(9, dtype=torch.int64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_is_seen_and_nothing_else(kind: str) -> None:
    before, w, after = torch.zeros(7), KINDS[kind](), torch.zeros(3, 3)
    samples = Samples([before, w, after])
    assert samples.unchanged()
    # In the order of memory, whatever the layout.
    memory = w.permute(sorted(range(w.dim()), key=lambda axis: -w.stride(axis))).view(-1)
    picked = set(range(0, w.numel(), weights.picked(w.numel(), len(w) if w.dim() else 1)))
    for place in (*range(min(60, w.numel())), *range(max(60, w.numel() - 60), w.numel())):
        memory[place] = 1
        assert samples.unchanged() == (place not in picked), place
        memory[place] = 0
    assert samples.unchanged()


def test_the_last_bit_and_nan_count() -> None:
    w = torch.full((3,), float("nan"))
    samples = Samples([w])
    assert samples.unchanged(), "the same NaN is no change"
    w.numpy().view(np.int32)[2] ^= 1
    assert not samples.unchanged()


def test_no_weights_have_not_changed() -> None:
    assert Samples([]).unchanged()
    assert Samples([torch.zeros(0, 3)]).unchanged()
