"""A folder of image files: one folder a class (ImageFolder), or plain images without labels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from hubel.data.dataset import Dataset
from hubel.errors import DataError
from hubel.records import Skipped

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
LARGEST = 2 * 2**30
"""Bytes of float32 pixels that are read without being asked twice."""

GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read(
    folder: Path, size: tuple[int, int] | None, channels: int | None, limit: int | None = None, seed: int = 0
) -> Dataset:
    """All images below `folder`; its sub-folders with images are the classes, in alphabetical order.

    Files that cannot be read are skipped and listed with the reason; metadata is dropped once it has turned the image
    upright. DataError if no image can be read, or if sizes differ and `size` is None.
    """
    files, labels, classes, skipped = _files(folder)
    if limit is not None and limit < len(files):
        keep = np.sort(np.random.default_rng(seed).permutation(len(files))[:limit])
        files, labels = [files[i] for i in keep], [labels[i] for i in keep]
    images: list[np.ndarray] = []
    kept: list[int] = []
    total = 0
    for i, file in enumerate(files):
        try:
            image = _open(file, size)
        except Exception as error:  # Pillow raises a dozen kinds, some of them plain Exceptions
            skipped.append({"file": file.relative_to(folder).as_posix(), "reason": _reason(error)})
            continue
        total += image.size * 4
        if total > LARGEST:
            raise DataError(
                f"The images of {folder.name} need more than {LARGEST >> 30} GB as float32, after {len(images):,} of "
                f"{len(files):,}. Pass a smaller size, or limit=N to draw some of them."
            )
        images.append(image)
        kept.append(i)
    if not images:
        found = f"{len(skipped)} files that are no images" if skipped else "no files that end in an image's suffix"
        raise DataError(
            f"A folder of data holds images ({', '.join(s[1:] for s in SUFFIXES[:4])}, ...), or one folder of images a "
            f"class. Received: {folder}, with {found}. Check the path."
        )
    pixels = _stacked(images, channels, folder.name)
    kept_labels = torch.tensor([labels[i] for i in kept]) if classes else None
    return Dataset(folder.name, pixels, kept_labels, classes or None, skipped)


def _files(folder: Path) -> tuple[list[Path], list[int], list[str], list[Skipped]]:
    """The image files in a fixed order, their labels, the classes (none: plain images), and what was left out."""
    classes = [sub.name for sub in sorted(folder.iterdir()) if sub.is_dir() and not sub.name.startswith(".")]
    found = {name: _images_below(folder / name) for name in classes}
    classes = [name for name in classes if found[name]]
    top = sorted(path for path in folder.iterdir() if _is_image(path))
    if not classes:
        return top, [0] * len(top), [], []
    files = [path for name in classes for path in found[name]]
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return files, labels, classes, [{"file": path.name, "reason": "lies beside the class folders"} for path in top]


def _images_below(folder: Path) -> list[Path]:
    return sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names if _is_image(Path(at) / name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _open(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """One image as float32 in [0, 1]: (H, W) if it is grey, (H, W, 3) if it has colour."""
    with warnings.catch_warnings():
        # A small file that unpacks to gigabytes is refused, not warned about; other warnings concern metadata.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    grey = image.mode in GREY_MODES
    if image.mode.startswith("I"):
        # 16 bits a pixel; Pillow's own conversion to 8 would clip instead of scale.
        pixels = np.asarray(image, dtype=np.float32) / 65535
        image = Image.fromarray(np.clip(pixels, 0, 1).astype(np.float32))
    elif image.mode != "F":
        image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32)
    return pixels if image.mode == "F" else pixels / 255


def _stacked(images: list[np.ndarray], channels: int | None, name: str) -> torch.Tensor:
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise DataError(
            f"All images of a data set have one size. Received in {name}: {sizes[0][0]}×{sizes[0][1]} and "
            f"{sizes[-1][0]}×{sizes[-1][1]}, {len(sizes)} sizes in all. Pass size=(height, width) (--input-size)."
        )
    colour = channels == 3 or (channels is None and any(image.ndim == 3 for image in images))
    if colour:
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
    # ITU-R BT.601 luminance, as Pillow has it.
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    images = [image if image.ndim == 2 else image @ weights for image in images]
    return torch.from_numpy(np.stack(images)[:, None].copy())


def _reason(error: Exception) -> str:
    """Why a file was skipped, without its path: reports are shared."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else type(error).__name__
