"""Running a network on images: one watched pass, scores of many images, batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from hubel.errors import DataError, HubelError, ModelError, unknown
from hubel.inspect.hooks import Call, evaluating, watch
from hubel.inspect.layers import layers_of

# So many images at a time: their maps mostly stay in cache, and take a tenth of a gigabyte.
BATCH = 8
Output = str | int | None
T = TypeVar("T")

_ANSWERED = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def run(net: nn.Module, x: Tensor, keep: bool = True) -> tuple[list[Call], object]:
    """One watched forward pass. DataError if the network does not take x, ModelError if it has no convolution.

    keep: False leaves shapes and taps without numbers.
    """
    with watch(net, keep=keep) as calls:
        output = _asked(net, x)
    if not calls:
        raise ModelError(f"A network to look at has convolutions. Received: {type(net).__name__}, which ran none.")
    return calls, output


def scores(net: nn.Module, images: Tensor, output: Output = None, batch: int = BATCH) -> Tensor:
    """What the network answers to images (N, C, H, W): one row an image, (N, classes), float32.

    output: which of its answers, where it returns several: a key or an index. DataError if that is no row an image.
    """
    with evaluating(net):
        parts = [part for _, part in in_batches(images, batch, lambda x: scores_of(_asked(net, x), len(x), output))]
    return torch.cat(parts)


def scores_of(answer: object, images: int, output: Output = None) -> Tensor:
    """The scores in what a network returned for so many images: (images, classes), float32; keeps gradients."""
    found = _picked(answer, output)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != images or not found.is_floating_point():
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            f"Effects are changes of scores, one row an image. Received: scores of shape {shape} for {images} "
            f"image{'s' if images != 1 else ''}. Say with output= which part of the answer they are, a key or an index."
        )
    return found.float()


def in_batches(images: Tensor, batch: int, work: Callable[[Tensor], T]) -> Iterator[tuple[int, T]]:
    """(first image, work(images)) of each batch in turn. Where memory runs out, the batch is halved and tried again."""
    start = 0
    while start < len(images):
        part = images[start : start + batch]
        try:
            result = work(part)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or len(part) == 1:
                raise
            batch = len(part) // 2
            continue
        yield start, result
        start += len(part)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on any device."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or "out of memory" in text
        or "not enough memory" in text
        or "allocate memory" in text
    )


def first_line(error: Exception) -> str:
    """What torch said, without the stack that it sometimes appends."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _asked(net: nn.Module, x: Tensor) -> object:
    try:
        return net(x)
    except HubelError:
        raise
    except _ANSWERED as error:
        if out_of_memory(error):
            raise
        name, said = type(net).__name__, first_line(error)
        if isinstance(error, TypeError) and "missing" in said and "positional argument" in said:
            raise DataError(
                f"A network that is looked at takes one input, the images. Received: {name}, which answered: {said}. "
                "Pass a module of your own whose forward(images) calls it with everything it needs."
            ) from error
        remedy = "Resize or normalise them first."
        first = next(iter(layers_of(net).values()), None)
        if first is not None and x.ndim == 4 and (x.shape[1], first.channels) == (1, 3):
            remedy = "Grey images become colour with channels=3 where they are loaded, or x.expand(-1, 3, -1, -1)."
        raise DataError(
            f"Images have the shape that the network takes. Received: {tuple(x.shape)}, and {name} "
            f"answered: {said}. {remedy}"
        ) from error


def _picked(answer: object, output: Output) -> object:
    if isinstance(answer, dict) or (isinstance(answer, (tuple, list)) and not isinstance(answer, Tensor)):
        table = dict(answer) if isinstance(answer, dict) else dict(enumerate(answer))
        if output is None:
            rows = [key for key, value in table.items() if isinstance(value, Tensor) and value.ndim == 2]
            if len(rows) != 1:
                raise DataError(
                    "A network that returns several things needs output=, to say where its scores are. "
                    f"Received: none, and it returns {', '.join(map(str, table))}."
                )
            return table[rows[0]]
        key = next((key for key in table if str(key) == str(output)), None)
        if key is None:
            raise unknown("output", output, map(str, table))
        return table[key]
    return answer
