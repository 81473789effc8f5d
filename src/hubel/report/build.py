"""A network, or a training run, becomes a Document: which analyses run, on which images, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hubel import data as datasets
from hubel.check.run import channels_of, conclude, prepared
from hubel.data import Dataset
from hubel.errors import DataError, ModelError, unknown
from hubel.inspect import ANALYSES, Snapshots, layers_of
from hubel.inspect.look import ORDER, PICTURED, WITHOUT_IMAGES, Look, Progress, estimate, look
from hubel.inspect.profiles import profile_named
from hubel.inspect.running import Output, run
from hubel.inspect.running import scores as scores_of
from hubel.lab import TrainingRun, metrics
from hubel.lab.conditions import accuracy as accuracy_level
from hubel.lab.conditions import describe_machine
from hubel.ops.override import is_enabled
from hubel.records import Document, Method, Record
from hubel.report.story import Subject, right_and_wrong, story
from hubel.report.text import duration

_SHOWN_IMAGES = 2
# Made by `story`, of the pictured images, instead of by `look`.
_TOLD = frozenset({"feature_maps", "one_number", "ablation"})


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
    images, labels = held_out.images, held_out.labels
    sample = _sample(len(images), profile_named("quick").images, pictured)
    subject = Subject(run.model, images, images, labels, None, sample, pictured, titles, True, 0)
    found = look(
        run.model,
        images[sample],
        labels[sample],
        only=_looked_at(ANALYSES),
        pictured=[sample.index(i) for i in pictured],
        before=run.before_state,
        progress=progress,
    )
    _add(document, run.model, found, subject, list(ANALYSES))
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
    snapshots: Snapshots | None = None,
    before: Mapping[str, Tensor] | None = None,
    images: int | None = None,
    pictures: bool = True,
    blur: bool = False,
    keep: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """Run the analyses that a network and its images allow.

    net: any module; a TrainingRun gives the whole story of its training, and takes `data`, if it cannot be loaded again
        by its name, and `progress` only.
    data: see `hubel.data.load`; None: what the weights alone tell.
    name: for the title; weights: "random" if they are, and the title says so; only: keys of `hubel.inspect.ANALYSES`.
    profile: how much is looked at: "quick" or "full". time_budget: seconds after which nothing more is
        begun. preprocess: "unit" (pixels from 0 to 1), "imagenet" (its mean and deviation), or what makes the network's
        input from images (N, C, H, W). output: which of several answers holds the scores, a key or an index.
    snapshots: what `hubel.inspect.Snapshots` kept of a training. before: an earlier checkpoint of the same run, a state
        dict: kernel by kernel beside the weights of now; two runs have no kernels in common.
    images: at most so many are drawn, with seed, and no more than the profile says; two of them are shown whole.
    keep: whether finished analyses are kept in the cache folder, so that a second call goes on where one was stopped.
    pictures: False keeps every image, and every map made of one, out of the Document; effects over all of them stay.
    blur: images go in blurred, as patches; none is shown whole, and no map is, for maps give an image away.

    With labels, accuracy is counted on those images; labels that the answers follow no better than chance are not used.
    Ctrl-C ends the looking: the Document then says `interrupted` and has what was done.
    """
    if isinstance(net, TrainingRun):
        _refuse_for_run(
            only=only, profile=profile, time_budget=time_budget, input_size=input_size, classes=classes,
            preprocess=preprocess, output=output, snapshots=snapshots, before=before, images=images, pictures=pictures,
            blur=blur, seed=seed,
        )  # fmt: skip
        return document_of(net, progress=progress, data=data)
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"A report is about a torch.nn.Module. Received: {type(net).__name__}. Pass the network itself."
        )
    if not layers_of(net) and not any(p.ndim >= 3 for p in net.parameters()):
        raise ModelError(f"A network to look at has convolutions. Received: {type(net).__name__}, which has none.")
    chosen = list(ANALYSES if only is None else only)
    for word in chosen:
        if word not in ANALYSES:
            raise unknown("analysis", word, ANALYSES)
    most = profile_named(profile).images
    limit = most if images is None else min(images, most)

    dataset = None
    if data is not None:
        dataset = datasets.load(
            data, size=input_size, channels=channels_of(net, data), classes=classes, limit=limit, seed=seed
        )
    whole = pictures and not blur
    document = _describe(net, dataset, name or type(net).__name__, weights, preprocess, output, seed, profile)
    inputs = labels = None
    pictured: list[int] = []
    titles: list[list[str]] | None = None
    if dataset is not None:
        inputs = prepared(dataset.images, preprocess)
        labels = _aligned(document, net, inputs, dataset, output)
        if whole:
            # Spread over the sample: files and digits often come sorted by class.
            pictured = list(range(0, len(dataset), max(1, -(-len(dataset) // _SHOWN_IMAGES))))
            if labels is not None:
                pictured, titles = right_and_wrong(next(r for r in document.records if r.id == "accuracy"))
    names = [word for word in _looked_at(chosen) if whole or word not in PICTURED]
    if inputs is not None and progress is not None:
        progress(0, len(names), f"{duration(estimate(net, inputs, profile=profile, only=names))} to go, about")
    found = look(
        net,
        inputs,
        labels,
        only=names if inputs is not None else [word for word in names if word in WITHOUT_IMAGES],
        profile=profile,
        output=output,
        pictured=pictured or (0,),
        snapshots=snapshots,
        before=before,
        time_budget=time_budget,
        keep=keep,
        seed=seed,
        progress=progress,
    )
    subject = None
    if dataset is not None and inputs is not None:
        every = range(len(dataset))
        subject = Subject(net, inputs, dataset.images, labels, output, every, pictured, titles, pictures, seed, blur)
    _add(document, net, found, subject, chosen)
    return document


def _refuse_for_run(**given: Any) -> None:
    """ModelError if one of these arguments of `build` asks for another report than the run's own."""
    defaults = signature(build).parameters
    asked = [name for name, value in given.items() if value != defaults[name].default]
    if asked:
        options = ["--no-images" if name == "pictures" else f"--{name.replace('_', '-')}" for name in asked]
        raise ModelError(
            "The report of a training run tells the run: its data and preprocessing, its kernels before and after, and "
            f"its held-out images. Received: a run with {', '.join(options)}. Leave that out, or report the run's "
            "weights as a network, with --arch and --data; in Python, run.model."
        )


def _sample(total: int, most: int, pictured: Sequence[int]) -> list[int]:
    """The numbers of at most `most` images spread over all, the pictured ones among them."""
    spread = range(0, total, max(1, -(-total // max(most - len(pictured), 1))))
    return sorted({*spread, *pictured})


def _looked_at(chosen: Iterable[str]) -> list[str]:
    """Of the chosen words those that `look` does, in its order."""
    return [word for word in ORDER if word in set(chosen) - _TOLD]


def _add(document: Document, net: nn.Module, found: Look, subject: Subject | None, chosen: Sequence[str]) -> None:
    """The Records of the analyses, those of the story, and what `check` concludes from both."""
    document.records += found.records
    document.status = "interrupted" if found.status == "interrupted" else document.status
    if found.sampled:
        method = Method(name="what was not looked at in full", params={"sentences": found.sampled}, source="")
        document.records.append(Record("sampled", "sampled", method=method))
    if subject is not None and found.status != "interrupted":
        try:
            for record in story(subject, chosen):
                document.records.append(record)
        except KeyboardInterrupt:
            document.status = "interrupted"
    document.findings = conclude({record.id: record for record in document.records}, net)


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
        return scores_of(net, inputs, output)
    except (DataError, LookupError):
        if output is not None:
            raise
        return None


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
