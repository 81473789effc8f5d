"""Data sets: images and labels as tensors, whatever they came from, and splits of them.

    digits = hubel.data.load("mnist")                       # or "digits", a folder, an .npz, (images, labels), batches
    train, val, test = hubel.data.split(digits, (3600, 400, 1000), seed=0)

DATASETS is the table of the named ones, written out; nothing here ever downloads.
"""

from __future__ import annotations

from hubel.data.dataset import Dataset
from hubel.data.load import DATASETS, load
from hubel.data.prepare import resize
from hubel.data.split import split

__all__ = ["DATASETS", "Dataset", "load", "resize", "split"]
