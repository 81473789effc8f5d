"""One recorded run for all tests of the page: LeNet-5, one epoch on a few noisy bars, classes with hostile names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hubel import lab
from hubel.data import Dataset
from hubel.lab.timing import median
from hubel.records import Array, Column, Document, Record
from hubel.report import document_of

HOSTILE = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "it's & <b>"]


def bars(n: int = 90) -> Dataset:
    """Images with one bright bar, in one of three places: easy, but not for one epoch."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = 0.3 * torch.rand((n, 1, 28, 28), generator=draw)
    for image, label in zip(images, labels, strict=True):
        image[0, 6 + 7 * int(label) : 9 + 7 * int(label), 4:24] += 0.4
    return Dataset("bars <b>", images, labels, classes=list(HOSTILE))


def step(ratios: list[float]) -> Record:
    """A step-time record as `hubel.lab.step_time` writes it, with these rounds."""
    columns = [Column(name=n, unit="", better=None) for n in ("ms", "p5 ms", "p95 ms", "x torch")]
    columns += [Column(name=n, unit="", better=None) for n in ("p5 x torch", "p95 x torch", "slower")]
    low, high = (float(q) for q in np.quantile(ratios, [0.05, 0.95]))
    ours = {"target": "hubel", "ms": median([2.0] * 9), "p5 ms": 1.9, "p95 ms": 2.2}
    ours |= {"x torch": median(ratios, against=1.0), "p5 x torch": low, "p95 x torch": high}
    ours["slower"] = sum(r < 1 for r in ratios) / len(ratios)
    theirs = {"target": "torch", "ms": median([4.0] * 9), "p5 ms": 3.9, "p95 ms": 4.2}
    record = Record(id="step", kind="bench", columns=columns, rows=[theirs, ours])
    record.method["params"] = {"rounds": len(ratios), "torch": "torch"}
    record.arrays["ratios"] = Array(np.array(ratios))
    return record


@pytest.fixture(scope="session")
def recorded() -> Document:
    run = lab.train("lenet5", bars(), epochs=1, batch_size=8, split=(60, 12, 18), engine="torch")
    document = document_of(run)
    document.records.append(step([1.5, 1.7, 1.6, 1.8, 0.9, 1.6, 1.7, 1.65, 1.62]))
    return document


@pytest.fixture
def document(recorded: Document) -> Document:
    return copy.deepcopy(recorded)
