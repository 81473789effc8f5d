"""PREPROCESS, as the command line takes it, becomes what `hubel.report` takes: a known name, or a function.

unit | imagenet         names that the report knows
FILE.json               {"mean": [...], "std": [...]}, one number a channel, on pixels from 0 to 1
package.module:fn       (N, C, H, W) in, what the network takes out
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hubel.convert.models import imported
from hubel.errors import ModelError

NAMES = ("unit", "imagenet")


def preprocessing(text: str) -> str | Callable[[Tensor], Tensor]:
    """What `text` names. ModelError if it is none of the forms above or the file is not as they say."""
    if text in NAMES:
        return text
    if text.endswith(".json"):
        return _normalisation(Path(text))
    if ":" in text:
        found = imported(text, "--preprocess package.module:fn")
        if not callable(found):
            raise ModelError(f"--preprocess must name a function. Received: {text!r}, a {type(found).__name__}.")
        return cast("Callable[[Tensor], Tensor]", found)
    raise ModelError(
        f"--preprocess is {', '.join(NAMES)}, a FILE.json with mean and std, or package.module:fn. Received: {text!r}."
    )


def _normalisation(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        mean, deviation = (torch.tensor(numbers[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
        good = mean.ndim == 3 and mean.shape == deviation.shape and bool((deviation > 0).all())
    except OSError as error:
        raise ModelError(
            f"--preprocess must be a file that can be read. Received: {path} ({error.strerror})."
        ) from None
    except (ValueError, KeyError, TypeError, IndexError):
        good = False
    if not good:
        raise ModelError(
            f'--preprocess FILE.json holds one number a channel, {{"mean": [0.5], "std": [0.25]}}, std above 0. '
            f"Received: {path}, which does not."
        )

    def normalise(images: Tensor) -> Tensor:
        if images.shape[1] != len(mean):
            raise ModelError(
                f"{path} has numbers for {len(mean)} channels. Received: images with {images.shape[1]}. Give as many."
            )
        return (images - mean) / deviation

    normalise.__name__ = path.name
    return normalise
