"""A network, or a training run, becomes a Document: which analyses run, on which images, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hubel import data as datasets
from hubel import inspect
from hubel.data import Dataset
from hubel.errors import DataError, HubelError, ModelError, unknown
from hubel.inspect import layers_of
from hubel.inspect.running import Output, run
from hubel.inspect.running import scores as inspect_scores
from hubel.lab import TrainingRun, metrics
from hubel.lab.conditions import accuracy as accuracy_level
from hubel.lab.conditions import describe_machine
from hubel.ops.override import is_enabled
from hubel.records import Document, Record
from hubel.report.profiles import PROFILES
from hubel.report.survey import STAGES, WITHOUT_IMAGES, Look, Progress, survey

PREPROCESS: dict[str, tuple[list[float], list[float]] | None] = {
    "unit": None,  # pixels from 0 to 1, as they are
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
_SHOWN_IMAGES = 2


def document_of(run: TrainingRun, *, progress: Progress | None = None, data: Any = None) -> Document:
    """The run's own Document and the microscope's records: kernels before and after, one right and one wrong image.

    Which images those are follows from the answers that the run keeps of its one look at the held-out ones; effects of
    removing kernels are measured on them too, after the accuracy is on record.
    """
    records = {record.id: record for record in run.document.records}
    document = Document(**{**vars(run.document), "records": list(records.values())})
    held_out = run.held_out(data)
    assert held_out.labels is not None
    pictured, titles = right_and_wrong(records["accuracy"])
    document.records.append(inspect.kernels(run.model, before=run.before_state))
    images = held_out.images
    look = Look(run.model, images, images, held_out.labels, PROFILES["quick"], shown=pictured, titles=titles)
    look.tell = progress or look.tell
    _survey(document, look, [name for name in STAGES if name != "kernels"])
    return document


def build(
    net: nn.Module | TrainingRun,
    data: Any = None,
    *,
    name: str | None = None,
    weights: Literal["file", "random"] = "file",
    only: Sequence[str] | None = None,
    profile: str = "quick",
    time_budget: float | None = None,
    input_size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    preprocess: str | Callable[[Tensor], Tensor] = "unit",
    output: Output = None,
    snapshots: inspect.Snapshots | None = None,
    images: int | None = None,
    pictures: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """Run the analyses that a network and its images allow.

    net: any module; a TrainingRun gives the whole story of its training. data: see `hubel.data.load`; None: what the
        weights alone tell.
    name: for the title; weights: "random" if they are, and the title says so; only: keys of `hubel.inspect.ANALYSES`.
    profile: how much is looked at, a key of `hubel.report.PROFILES`. time_budget: seconds after which nothing more is
        begun. preprocess: "unit" (pixels from 0 to 1), "imagenet" (its mean and deviation), or what makes the network's
        input from images (N, C, H, W). output: which of several answers holds the scores, a key or an index.
    snapshots: what `hubel.inspect.Snapshots` kept of a training.
    images: at most so many are drawn, with seed, instead of the profile's number; two of them are shown whole.
    pictures: False keeps every image, and every map made of one, out of the Document; effects over all of them stay.

    With labels, accuracy is counted on those images; labels that the answers follow no better than chance are not used.
    Ctrl-C ends the looking: the Document then says `interrupted` and has what was done.
    """
    if isinstance(net, TrainingRun):
        return document_of(net, progress=progress, data=data)
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"A report is about a torch.nn.Module. Received: {type(net).__name__}. Pass the network itself."
        )
    chosen = list(STAGES if only is None else only)
    for word in chosen:
        if word not in STAGES:
            raise unknown("analysis", word, STAGES)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    settings = PROFILES[profile] if images is None else replace(PROFILES[profile], images=images)

    dataset = None
    if data is not None:
        dataset = datasets.load(
            data, size=input_size, channels=_channels(net, data), classes=classes, limit=settings.images, seed=seed
        )
    document = _describe(net, dataset, name or type(net).__name__, weights, preprocess, output, seed, profile)
    if dataset is None:
        nothing = torch.empty(0)
        look = Look(net, nothing, nothing, None, settings, seed, output, snapshots=snapshots)
        look.tell = progress or look.tell
        _survey(document, look, [word for word in chosen if word in WITHOUT_IMAGES], time_budget)
        return document
    inputs = _prepared(dataset.images, preprocess)
    labels = _aligned(document, net, inputs, dataset, output)
    # Spread over the sample: files and digits often come sorted by class.
    spread = range(0, len(dataset), max(1, -(-len(dataset) // _SHOWN_IMAGES)))
    pictured, titles = list(spread) if pictures else [], None
    if labels is not None and pictures:
        pictured, titles = right_and_wrong(next(r for r in document.records if r.id == "accuracy"))
    look = Look(net, inputs, dataset.images, labels, settings, seed, output, pictured, titles, pictures, snapshots)
    look.tell = progress or look.tell
    _survey(document, look, chosen, time_budget)
    return document


def _survey(document: Document, look: Look, chosen: Sequence[str], budget: float | None = None) -> None:
    """Append what the stages find; an interrupt leaves what is done."""
    try:
        for record in survey(look, chosen, budget):
            document.records.append(record)
    except KeyboardInterrupt:
        document.status = "interrupted"


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


def _aligned(document: Document, net: nn.Module, inputs: Tensor, dataset: Dataset, output: Output) -> Tensor | None:
    """The labels, if the answers follow them better than chance; adds the records `accuracy` and `classes`."""
    if dataset.labels is None or dataset.classes is None or document.model["weights"] == "random":
        return None
    scores = _scores(net, inputs, output)
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


def _scores(net: nn.Module, inputs: Tensor, output: Output) -> Tensor | None:
    """A row of scores an image; None where the network gives none. DataError if it does not take the images."""
    run(net, inputs[:1], keep=False)
    try:
        return inspect_scores(net, inputs, output)
    except (DataError, LookupError):
        if output is not None:
            raise
        return None


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
    net: nn.Module,
    dataset: Dataset | None,
    name: str,
    weights: Literal["file", "random"],
    preprocess: Any,
    output: Output,
    seed: int,
    profile: str,
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
            "output": output,
        },
        data=dataset.info() if dataset else None,
        machine=describe_machine(),
        settings={
            "profile": profile,
            "seed": seed,
            "accuracy": accuracy_level(),
            "threads": torch.get_num_threads(),
            "engine": "hubel" if is_enabled() else "torch",
        },
    )
