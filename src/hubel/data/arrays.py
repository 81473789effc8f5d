"""Images and labels that are numbers already: .npz files, tensors, arrays, batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from hubel.data.dataset import Dataset
from hubel.errors import DataError

# What the largest number of each type stands for: white.
WHITE = {"uint8": 255, "uint16": 65535, "bool": 1}


def read_npz(path: Path) -> Dataset:
    """An .npz with `images`, and `labels` (numbers) and `classes` (text) if there are any. Pickles are not opened."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or "images" not in archive.files:
                found = getattr(archive, "files", ["one array"])
                raise DataError(f"An .npz of data has `images` and may have `labels`. Received: {path} with {found}.")
            parts = {name: archive[name] for name in ("images", "labels", "classes") if name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"Data is read from a file that numpy.savez wrote. Received: {path} ({reason}).") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"An .npz of data holds numbers only. Received: {path} ({error}). Save arrays.") from None
    labels = None if "labels" not in parts else _labels(parts["labels"])
    classes = None if "classes" not in parts else [str(name) for name in parts["classes"]]
    return Dataset(path.stem, _images(parts["images"]), labels, classes)


def from_python(source: Any) -> Dataset:
    """(images, labels), images alone, or anything that yields batches or single examples of either."""
    if _is_array(source):
        return Dataset("images", _images(source))
    pair = isinstance(source, (tuple, list)) and len(source) == 2 and all(map(_is_array, source))
    if pair and np.ndim(source[0]) != np.ndim(source[1]):
        return Dataset("images", _images(source[0]), _labels(source[1]))
    if isinstance(source, torch.utils.data.Dataset) and not isinstance(source, Iterable):
        # A map-style data set is iterable by its length only, which iter() does not know.
        return _joined(source[i] for i in range(len(source)))  # type: ignore[arg-type]
    if not isinstance(source, Iterable) or isinstance(source, dict):
        raise DataError(
            "Data is a name, a folder, an .npz, (images, labels), images, or batches of these. "
            f"Received: {type(source).__name__}."
        )
    return _joined(source)


def _joined(batches: Iterable[Any]) -> Dataset:
    images, labels = [], []
    for batch in batches:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        x = batch[0] if pair else batch
        if not _is_array(x):
            raise DataError(f"A batch is images or (images, labels). Received: {type(x).__name__}. Return tensors.")
        # torch Datasets yield single examples, loaders yield batches of them.
        single = np.ndim(x) == 3 and not (pair and np.ndim(batch[1]) == 1)
        images.append(_images(x[None] if single else x))
        if pair:
            labels.append(_labels(np.asarray(batch[1]).reshape(-1)))
    if not images:
        raise DataError("Data has images. Received: no batch at all. An iterator can be read once; pass the loader.")
    if labels and len(labels) != len(images):
        raise DataError(f"Every batch has labels or none has. Received: {len(labels)} of {len(images)} with labels.")
    shapes = sorted({tuple(x.shape[1:]) for x in images})
    if len(shapes) > 1:
        raise DataError(f"All images have one shape. Received: {shapes[0]} and {shapes[-1]}. Resize them first.")
    return Dataset("images", torch.cat(images), torch.cat(labels) if labels else None)


def _is_array(value: Any) -> TypeGuard[np.ndarray | torch.Tensor]:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _images(value: Any) -> torch.Tensor:
    """float32, (N, C, H, W), from (N, H, W), (N, C, H, W) or (N, H, W, C); whole numbers are scaled to [0, 1]."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4:
        raise DataError(
            f"Images are (N, H, W), (N, C, H, W) or (N, H, W, C). Received: {list(array.shape)}. Reshape them; one "
            "image alone needs a first dimension of 1."
        )
    if array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    kind = str(array.dtype)
    if kind not in WHITE and array.dtype.kind not in "fiu":
        raise DataError(f"Pixels are numbers. Received: {kind}. Convert them to uint8 or float32.")
    white = WHITE.get(kind, 1)
    if array.dtype.kind in "iu" and kind not in WHITE:
        # Wider integers hold bytes in practice; anything else has no known white.
        white = 255
        if array.size and (array.min() < 0 or array.max() > 255):
            raise DataError(f"Whole-number pixels are 0 to 255. Received: {array.min()} to {array.max()}. Pass floats.")
    pixels = np.ascontiguousarray(array, dtype=np.float32)
    if white != 1:
        pixels = pixels / np.float32(white)
    # A copy either way: training must not see the caller change the array afterwards.
    return torch.from_numpy(pixels.copy() if pixels is array or np.shares_memory(pixels, array) else pixels)


def _labels(value: Any) -> torch.Tensor:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and np.array_equal(array, np.trunc(array)))
    if not whole or array.ndim != 1:
        raise DataError(
            f"Labels are one whole number an image. Received: {array.dtype} {list(array.shape)}. Number the classes "
            "from 0, and turn one-hot rows into numbers with argmax."
        )
    return torch.from_numpy(array.astype(np.int64))
