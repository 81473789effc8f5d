"""DATA, as the command line and every function take it, becomes a Dataset.

digits | mnist               real digits that come with packages of the extra `lab`
folder/                      of images, or one folder of images a class (ImageFolder)
file.npz                     `images`, and `labels` if there are any, and `classes`
(images, labels) | images    tensors or arrays
batches                      anything that yields them: a DataLoader, a torch Dataset, a list
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hubel.data import arrays, builtin, folder
from hubel.data.dataset import Dataset
from hubel.data.prepare import resize
from hubel.errors import DataError, unknown

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": builtin.digits,
    "mnist": builtin.mnist,
}


def load(
    source: str | os.PathLike[str] | Dataset | Any,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data set that `source` names or is; see the top of this file for what it may be.

    size: (height, width) to bring every image to; a folder whose images differ in size needs it. channels: 1 for grey,
    3 for colour; a folder is grey if all its images are. classes: names, in the order of the labels' numbers.
    limit: at most so many images, drawn with `seed`; the Dataset says so.

    Raises UnknownNameError for a name that is no data set and no file, DataError for data that cannot be used.
    """
    for what, value in (("channels", channels), ("limit", limit), *(("size", side) for side in size or ())):
        if value is not None and value < 1:
            raise DataError(f"{what} is at least 1. Received: {value}. Leave it out to take what the images have.")
    if channels not in (None, 1, 3):
        raise DataError(f"Images are read with 1 channel (grey) or 3 (colour). Received: {channels}.")

    if isinstance(source, Dataset):
        dataset = source
    elif isinstance(source, (str, os.PathLike)):
        dataset = _named(source, size, channels, limit, seed)
    else:
        dataset = arrays.from_python(source)
    if classes is not None:
        dataset = replace(dataset, classes=list(classes))
    if limit is not None and limit < len(dataset):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:limit]
        dataset = dataset.subset(order.sort().values, how=f"{limit} drawn from {len(dataset)}", seed=seed)
    if channels is not None and dataset.images.shape[1] != channels:
        dataset = replace(dataset, images=_recoloured(dataset, channels))
    return dataset if size is None else resize(dataset, size)


def _named(
    source: str | os.PathLike[str], size: tuple[int, int] | None, channels: int | None, limit: int | None, seed: int
) -> Dataset:
    name, path = os.fspath(source), Path(source)
    if name in DATASETS:
        return DATASETS[name]()
    if path.is_dir():
        return folder.read(path, size, channels, limit, seed)
    if path.suffix == ".npz":
        return arrays.read_npz(path)
    if name.startswith("hf:"):
        raise DataError(
            f"Data sets of Hugging Face are not read yet. Received: {name}. Save images and labels as .npz."
        )
    if path.exists():
        raise DataError(f"Data is a name, a folder of images or an .npz file. Received the file: {path}.")
    if os.sep in name or path.suffix:
        raise DataError(f"Data is a name, a folder of images or an .npz file. Received: {path}, which does not exist.")
    raise unknown("data set", name, DATASETS)


def _recoloured(dataset: Dataset, channels: int) -> torch.Tensor:
    """Grey to three equal channels, or colour to its luminance (ITU-R BT.601, as Pillow has it)."""
    have = dataset.images.shape[1]
    if (have, channels) == (1, 3):
        return dataset.images.expand(-1, 3, -1, -1).contiguous()
    if (have, channels) == (3, 1):
        return (dataset.images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    raise DataError(
        f"Only grey and colour become each other. Received {dataset.name} with {have} channels, not {channels}."
    )
