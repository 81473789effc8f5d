"""A network, or a training run, becomes a Document: which analyses run, on which images, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hubel import data as datasets
from hubel import inspect
from hubel.data import Dataset
from hubel.errors import DataError, HubelError, ModelError, unknown
from hubel.inspect import ANALYSES, layers_of
from hubel.inspect.hooks import evaluating
from hubel.lab import TrainingRun, metrics
from hubel.lab.conditions import accuracy as accuracy_level
from hubel.lab.conditions import describe_machine
from hubel.records import Array, Document, Record

Progress = Callable[[float, float, str], None]
PREPROCESS: dict[str, tuple[list[float], list[float]] | None] = {
    "unit": None,  # pixels from 0 to 1, as they are
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# Kernels are removed one at a time, so this is a number of passes over the images.
_MOST_ABLATED = 64
_ABLATION_IMAGES = 256
_SHOWN_IMAGES = 2
# What is drawn of each layer: (kernels, slices of each, maps), for networks of a few convolutions and of many.
_FEW_LAYERS = 6
_DRAWN = {"few": (32, 16, 16), "many": (16, 9, 8)}


def document_of(run: TrainingRun, *, progress: Progress | None = None, data: Any = None) -> Document:
    """The run's own Document and the microscope's records: kernels before and after, one right and one wrong image.

    Which images those are follows from the answers that the run keeps of its one look at the held-out ones; effects of
    removing kernels are measured on them too, after the accuracy is on record.
    """
    tell = progress or (lambda done, total, stage: None)
    records = {record.id: record for record in run.document.records}
    document = Document(**{**vars(run.document), "records": list(records.values())})
    tell(0, 4, "looking at the kernels")
    document.records.append(inspect.kernels(run.model, before=run.before_state))
    held_out = run.held_out(data)
    pictured, titles = right_and_wrong(records["accuracy"])
    assert held_out.labels is not None
    _look_at(
        document, run.model, held_out.images, held_out.images, held_out.labels, pictured, titles, list(ANALYSES), tell
    )
    return document


def build(
    net: nn.Module | TrainingRun,
    data: Any = None,
    *,
    name: str | None = None,
    weights: Literal["file", "random"] = "file",
    only: Sequence[str] | None = None,
    input_size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    preprocess: str | Callable[[Tensor], Tensor] = "unit",
    images: int = _ABLATION_IMAGES,
    pictures: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """Run the analyses that a network and its images allow.

    net: any module; a TrainingRun gives the whole story of its training. data: see `hubel.data.load`; None: kernels
        only.
    name: for the title; weights: "random" if they are, and the title says so; only: keys of `hubel.inspect.ANALYSES`.
    preprocess: "unit" (pixels from 0 to 1), "imagenet" (its mean and deviation), or what makes the network's input from
        images (N, C, H, W). images: at most so many are drawn, with seed; two of them are shown.
    pictures: False keeps every image, and every map made of one, out of the Document; effects over all of them stay.

    With labels, accuracy is counted on those images; labels that the answers follow no better than chance are not used.
    """
    if isinstance(net, TrainingRun):
        return document_of(net, progress=progress, data=data)
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"A report is about a torch.nn.Module. Received: {type(net).__name__}. Pass the network itself."
        )
    chosen = list(ANALYSES if only is None else only)
    for word in chosen:
        if word not in ANALYSES:
            raise unknown("analysis", word, ANALYSES)
    tell = progress or (lambda done, total, stage: None)

    dataset = None
    if data is not None:
        dataset = datasets.load(
            data, size=input_size, channels=_channels(net, data), classes=classes, limit=images, seed=seed
        )
    document = _describe(net, dataset, name or type(net).__name__, weights, preprocess, seed)
    tell(0, 4, "looking at the kernels")
    if "kernels" in chosen:
        most, slices, _ = _drawn(net)
        document.records.append(inspect.kernels(net, most=most, most_slices=slices))
    if dataset is None:
        return document
    inputs = _prepared(dataset.images, preprocess)
    labels = _aligned(document, net, inputs, dataset)
    # Spread over the sample: files and digits often come sorted by class.
    spread = range(0, len(dataset), max(1, -(-len(dataset) // _SHOWN_IMAGES)))
    pictured, titles = list(spread) if pictures else [], None
    if labels is not None and pictures:
        pictured, titles = right_and_wrong(next(r for r in document.records if r.id == "accuracy"))
    _look_at(document, net, inputs, dataset.images, labels, pictured, titles, chosen, tell)
    return document


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


def _look_at(
    document: Document,
    net: nn.Module,
    inputs: Tensor,
    images: Tensor,
    labels: Tensor | None,
    pictured: list[int],
    titles: list[list[str]] | None,
    chosen: list[str],
    tell: Progress,
) -> None:
    """The analyses that need images, appended to the document. inputs: images as the network takes them."""
    shown, answers = inputs[pictured], None if labels is None else labels[pictured]
    if "feature_maps" in chosen and pictured:
        tell(1, 4, "looking at feature maps")
        maps = inspect.feature_maps(net, shown, most=_drawn(net)[2])
        maps.arrays["image"] = Array(images[pictured].numpy())
        maps.method["params"] |= {"titles": titles, "images": pictured}
        if answers is not None:
            maps.arrays["labels"] = Array(answers.numpy())
        document.records.append(maps)
    if "one_number" in chosen and pictured and any(isinstance(m, nn.Conv2d) for m in net.modules()):
        document.records.append(inspect.one_number(net, shown[0]))
    if "ablation" in chosen and len(images):
        tell(2, 4, "removing kernels, one at a time")
        document.records += _ablate(net, inputs, labels, shown, answers)
    tell(4, 4, "writing the page")


def _drawn(net: nn.Module) -> tuple[int, int, int]:
    return _DRAWN["few" if len(layers_of(net)) <= _FEW_LAYERS else "many"]


def _ablate(
    net: nn.Module, inputs: Tensor, labels: Tensor | None, shown: Tensor, answers: Tensor | None
) -> list[Record]:
    """Two records: effects over many images, and the scores of the shown ones. Larger networks are told why not."""
    kernels = sum(layer.kernels for layer in layers_of(net).values())
    if kernels > _MOST_ABLATED:
        reason = f"{kernels:,} kernels; all are removed in turn only where there are at most {_MOST_ABLATED}"
        return [Record(id="ablation", kind="ablation", level="kernel", status="not_applicable", reason=reason)]
    try:
        effects = inspect.ablation(net, inputs, labels, keep_scores=0)
        scores = inspect.ablation(net, shown, answers) if len(shown) else None
    except DataError as error:
        return [Record(id="ablation", kind="ablation", level="kernel", status="not_applicable", reason=str(error))]
    if scores is None:
        return [effects]
    scores.id = "ablation_scores"
    if answers is not None:
        scores.arrays["labels"] = Array(answers.numpy())
    return [effects, scores]


def _aligned(document: Document, net: nn.Module, inputs: Tensor, dataset: Dataset) -> Tensor | None:
    """The labels, if the answers follow them better than chance; adds the records `accuracy` and `classes`."""
    if dataset.labels is None or dataset.classes is None or document.model["weights"] == "random":
        return None
    scores = _scores(net, inputs)
    reason = None
    if scores is None or scores.shape[1] < len(dataset.classes):
        got = "no row of scores an image" if scores is None else f"{scores.shape[1]} scores"
        reason = f"The labels name {len(dataset.classes)} classes and the network gives {got}; labels are not used."
    else:
        losses = nn.functional.cross_entropy(scores, dataset.labels, reduction="none")
        counted = metrics.accuracy(dataset.labels.numpy(), scores.numpy(), losses.numpy(), dataset.indices.numpy())
        share = counted.rows[0]["accuracy"]
        most = max((dataset.class_counts or {}).values(), default=0) / len(dataset)
        if share.lo is not None and share.lo > most:
            confusion = metrics.confusion_matrix(dataset.labels.numpy(), scores.argmax(1).numpy(), scores.shape[1])
            names = [*dataset.classes, *map(str, range(len(dataset.classes), scores.shape[1]))]
            document.records += [counted, metrics.per_class(confusion, names)]
            return dataset.labels
        reason = (
            f"Labels and outputs may not be aligned: {share.value:.1%} of {len(dataset)} images are right, and always "
            f"naming the commonest class would give {most:.1%}. Results that need labels are withheld."
        )
    document.records.append(Record(id="accuracy", kind="accuracy", status="insufficient_data", reason=reason))
    return None


def _scores(net: nn.Module, inputs: Tensor) -> Tensor | None:
    try:
        with evaluating(net):
            parts = [net(part) for part in inputs.split(64)]
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise DataError(
            f"Images have the shape that the network takes. Received: {tuple(inputs.shape)}, and the network answered: "
            f"{str(error).splitlines()[0]}. Pass input_size=(height, width), or channels that fit."
        ) from error
    rows = all(isinstance(p, Tensor) and p.ndim == 2 for p in parts)
    return torch.cat(parts).float() if rows and parts else None


def _channels(net: nn.Module, data: Any) -> int | None:
    """Grey or colour, where the data is read from files and the first convolution tells."""
    first = next(iter(layers_of(net).values()), None)
    return first.channels if first is not None and first.channels in (1, 3) and isinstance(data, str) else None


def _prepared(images: Tensor, preprocess: str | Callable[[Tensor], Tensor]) -> Tensor:
    if callable(preprocess):
        return preprocess(images)
    if preprocess not in PREPROCESS:
        raise unknown("preprocessing", preprocess, PREPROCESS)
    known = PREPROCESS[preprocess]
    if known is None:
        return images
    if images.shape[1] != len(known[0]):
        raise HubelError(
            f"{preprocess!r} preprocessing is for 3 channels. Received: images with {images.shape[1]}. "
            "Use 'unit' or your own function."
        )
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in known)
    return (images - mean) / deviation


def _describe(
    net: nn.Module, dataset: Dataset | None, name: str, weights: Literal["file", "random"], preprocess: Any, seed: int
) -> Document:
    first = next(iter(layers_of(net).values()), None)
    shape = [1, *dataset.images.shape[1:]] if dataset else [1, first.channels if first else 0]
    return Document(
        model={
            "name": name,
            "sha256": None,
            "weights": weights,
            "params": sum(p.numel() for p in net.parameters()),
            "input": {"shape": shape, "dtype": "float32"},
            "preprocess": preprocess
            if isinstance(preprocess, str)
            else getattr(preprocess, "__name__", "own function"),
            "classes": dataset.classes if dataset else None,
            "output": None,
        },
        data=dataset.info() if dataset else None,
        machine=describe_machine(),
        settings={
            "profile": "quick",
            "seed": seed,
            "accuracy": accuracy_level(),
            "threads": torch.get_num_threads(),
            "engine": "torch",
        },
    )
