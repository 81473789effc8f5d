"""What a report adds to the analyses: two images on their way through the network, a number made by hand, kernels
removed while one watches, and the images themselves, from which patches are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from hubel import inspect
from hubel.errors import DataError
from hubel.inspect import layers_of
from hubel.inspect.running import Output
from hubel.records import Array, Record
from hubel.report.pictures import blurred, reduced

# Kernels are all removed in turn, for the page that shows the change, where there are at most so many.
FEW_KERNELS = 64
# Maps of an image that are drawn of each layer, in networks of a few convolutions and of many.
FEW_LAYERS, MAPS, FEWER_MAPS = 6, 16, 8
# Images that importance is estimated on, for every kernel.
ESTIMATED_ON = 64
STAGES = ("feature_maps", "one_number", "taylor", "images", "ablation")


@dataclass(frozen=True)
class Subject:
    """inputs: (N, C, H, W) as the network takes them; images: the same before preprocessing, for the eye; labels: only
    where the answers follow them. shown: which images are pictured, with titles. pictures: whether any image may go
    into the Document; blur: only blurred."""

    net: nn.Module
    inputs: Tensor
    images: Tensor
    labels: Tensor | None
    output: Output
    sample: Sequence[int]
    shown: Sequence[int]
    titles: list[list[str]] | None
    pictures: bool
    seed: int
    blur: bool = False


def story(subject: Subject, chosen: Sequence[str]) -> Iterator[Record]:
    """The Records, those that `chosen` (keys of ANALYSES) asks for; the images come with the top patches."""
    net, inputs, labels, at = subject.net, subject.inputs, subject.labels, list(subject.shown)
    if "feature_maps" in chosen and at:
        yield _feature_maps(subject)
    if "one_number" in chosen and at and any(isinstance(module, nn.Conv2d) for module in net.modules()):
        yield inspect.one_number(net, inputs[at[0]])
    if "importance" in chosen:
        yield _taylor(subject)
    if "top_patches" in chosen and subject.pictures:
        yield _images(subject)
    if "ablation" in chosen:
        kernels = sum(layer.kernels for layer in layers_of(net).values())
        if kernels > FEW_KERNELS:
            reason = f"{kernels:,} kernels; all are removed in turn only where there are at most {FEW_KERNELS}"
            yield Record("ablation", "ablation", level="kernel", status="not_applicable", reason=reason)
            return
        try:
            yield inspect.ablation(net, inputs, labels, keep_scores=0)
            if at:
                yield _scores_without(subject)
        except DataError as error:
            yield Record("ablation", "ablation", level="kernel", status="not_applicable", reason=str(error))


def right_and_wrong(accuracy: Record) -> tuple[list[int], list[list[str]]]:
    """The images to show: a right one of middling loss, and the wrong one that the network was surest about.

    accuracy: the record of that name; the numbers count the images it was made from. If all are right (or wrong), two
    of that kind. Returns their numbers, and a title and a remark for each.
    """
    logits, labels, predicted = (accuracy.arrays[key].data for key in ("logits", "label", "predicted"))
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    sure = np.exp(shifted).max(1) / np.exp(shifted).sum(1)
    right, wrong = np.nonzero(predicted == labels)[0], np.nonzero(predicted != labels)[0]
    by_sureness = right[np.argsort(sure[right], kind="stable")]
    chosen: list[int] = []
    titles: list[list[str]] = []
    if len(right):
        chosen.append(int(by_sureness[len(right) // 2]))
        titles.append(["One that it gets right", "Of those, one of middling sureness."])
    if len(wrong):
        chosen.append(int(wrong[sure[wrong].argmax()]))
        titles.append(["One that it gets wrong", "Of its mistakes, the one it was surest about."])
    if not len(wrong) and len(right) > 1:
        chosen.append(int(by_sureness[0]))
        titles.append(["The one it was least sure about", "None was wrong."])
    return chosen, titles


def _feature_maps(subject: Subject) -> Record:
    at = list(subject.shown)
    most = MAPS if len(layers_of(subject.net)) <= FEW_LAYERS else FEWER_MAPS
    record = inspect.feature_maps(subject.net, subject.inputs[at], most=most)
    record.arrays["image"] = Array(subject.images[at].numpy())
    record.method["params"] |= {"titles": subject.titles, "images": at}
    if subject.labels is not None:
        record.arrays["labels"] = Array(subject.labels[at].numpy())
    return record


def _images(subject: Subject) -> Record:
    pixels = reduced(subject.images[list(subject.sample)].numpy())
    record = Record("images", "images", arrays={"images": Array(blurred(pixels) if subject.blur else pixels)})
    record.method["params"] |= {"blurred": subject.blur}
    return record


def _taylor(subject: Subject) -> Record:
    """Importance of every kernel, estimated; on images spread over the sample, for files often come sorted by class."""
    at = np.linspace(0, len(subject.inputs) - 1, min(ESTIMATED_ON, len(subject.inputs))).astype(int)
    labels = None if subject.labels is None else subject.labels[at]
    try:
        record = inspect.importance(
            subject.net, subject.inputs[at], labels, method="taylor", output=subject.output, seed=subject.seed
        )
    except DataError as error:
        return Record("taylor", "importance", level="kernel", status="not_applicable", reason=str(error))
    record.id = "taylor"
    return record


def _scores_without(subject: Subject) -> Record:
    at = list(subject.shown)
    answers = None if subject.labels is None else subject.labels[at]
    scores = inspect.ablation(subject.net, subject.inputs[at], answers)
    scores.id = "ablation_scores"
    if answers is not None:
        scores.arrays["labels"] = Array(answers.numpy())
    return scores
