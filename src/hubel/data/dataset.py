"""The one shape that images and labels have everywhere in Hubel, checked when it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from hubel.errors import DataError
from hubel.records import DataInfo, Skipped


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with or without labels.

    images: float32, (N, C, H, W); 0 is black and 1 white, unless they came as floats, which are taken as they are.
    labels: int64, (N,), each an index into `classes`; or None. skipped: files that could not be read, with the reason.
    indices: int64, (N,), which images of the data set that was loaded these are, so that a part can be found again.
    Raises DataError if shapes disagree, a label has no class, or a number is NaN or infinite.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor | None = None
    classes: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    how: str = "all"
    seed: int | None = None
    indices: torch.Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        _check_images(self.name, self.images)
        if self.indices is None:
            set_(self, "indices", torch.arange(len(self.images)))
        if self.labels is not None:
            if self.classes is None:
                set_(
                    self,
                    "classes",
                    [str(label) for label in range(int(self.labels.max()) + 1 if len(self.labels) else 0)],
                )
            _check_labels(self.name, len(self.images), self.labels, self.classes or [])

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        C, H, W = self.images.shape[1:]
        labelled = "unlabelled" if self.labels is None else f"{len(self.classes or [])} classes"
        skipped = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return f"{self.name}: {len(self):,} images of {C}×{H}×{W}, {labelled}{skipped}"

    @property
    def sha256(self) -> str:
        """The hash of what the pixels and labels are, whatever the files are called."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
            digest.update("\0".join(self.classes or []).encode())
        return digest.hexdigest()

    @property
    def class_counts(self) -> dict[str, int] | None:
        """How many images each class has, classes without any included; None without labels."""
        if self.labels is None or self.classes is None:
            return None
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def subset(self, indices: torch.Tensor | np.ndarray | Sequence[int], how: str, seed: int | None = None) -> Dataset:
        """These images, in this order. how: in a few words, which ones they are ("held out", "first 16")."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[chosen]
        images, kept = self.images[chosen], self.indices[chosen]
        return replace(self, images=images, labels=labels, how=how, seed=seed, indices=kept)

    def info(self) -> DataInfo:
        """What a Document says of the data."""
        return DataInfo(
            name=self.name,
            sha256=self.sha256,
            n=len(self),
            labelled=self.labels is not None,
            skipped=self.skipped,
            class_counts=self.class_counts,
            sample={"n": len(self), "seed": self.seed, "how": self.how},
        )


def _check_images(name: str, images: torch.Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.float32:
        raise DataError(
            f"Images are float32 of shape (N, C, H, W). Received for {name}: {images.dtype} {list(images.shape)}. "
            "Convert them, or use hubel.data.load((images, labels)), which does."
        )
    if 0 in images.shape:
        raise DataError(f"A data set has images, and they have pixels. Received for {name}: {list(images.shape)}.")
    # One pass over the data; a single NaN would spoil every weight that training reaches.
    if not torch.isfinite(images.sum()) and not torch.isfinite(images).all():
        where = int((~torch.isfinite(images).flatten(1).all(1)).nonzero()[0])
        raise DataError(f"Pixels are finite numbers. Received for {name}: NaN or infinity in image {where}. Remove it.")


def _check_labels(name: str, n: int, labels: torch.Tensor, classes: list[str]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise DataError(
            f"Labels are int64, one an image, here ({n},). Received for {name}: {labels.dtype} {list(labels.shape)}. "
            "One-hot labels become numbers with labels.argmax(1)."
        )
    outside = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"Labels are from 0 to {len(classes) - 1}, one for each class. Received for {name}: {int(labels[first])} "
            f"at image {first}, {len(outside)} such in all. Number the classes from 0."
        )
