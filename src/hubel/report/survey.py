"""Which analyses a report runs, on what, in which order: a table, from the cheap to the dear.

Each stage is given the same `Look`, whose one pass over the images (`Look.sweep`) serves several of them. A stage that
does not apply, or fails, leaves a Record that says so; Ctrl-C, and the end of a time budget, keep what is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from hubel import inspect
from hubel.errors import HubelError
from hubel.inspect import ANALYSES, Snapshots, Sweep, layers_of
from hubel.inspect.running import Output
from hubel.records import Array, Record
from hubel.report.pictures import reduced
from hubel.report.profiles import Profile

Progress = Callable[[float, float, str], None]
# Kernels are all removed in turn, for the page that shows the change, where there are at most so many.
FEW_KERNELS = 64
# Maps of an image that are drawn of each layer, in networks of a few convolutions and of many.
FEW_LAYERS, MAPS, FEWER_MAPS = 6, 16, 8


@dataclass
class Look:
    """What is looked at. inputs: (N, C, H, W) as the network takes them; images: the same before preprocessing, for the
    eye; labels: only where the answers follow them. shown: the images that are pictured, with titles.
    """

    net: nn.Module
    inputs: Tensor
    images: Tensor
    labels: Tensor | None
    profile: Profile
    seed: int = 0
    output: Output = None
    shown: Sequence[int] = ()
    titles: list[list[str]] | None = None
    pictures: bool = True
    snapshots: Snapshots | None = None
    tell: Progress = field(default=lambda done, total, stage: None)

    @cached_property
    def sweep(self) -> Sweep:
        return inspect.sweep(self.net, self.inputs[: self.profile.images], output=self.output, seed=self.seed)

    @cached_property
    def kernels(self) -> int:
        return sum(layer.kernels for layer in layers_of(self.net).values())

    def some(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Images spread over the sample (files and digits often come sorted by class), and their labels."""
        n = min(count, len(self.inputs))
        at = np.linspace(0, len(self.inputs) - 1, n).astype(int)
        return self.inputs[at], None if self.labels is None else self.labels[at]


def survey(look: Look, only: Sequence[str], budget: float | None = None) -> Iterator[Record]:
    """The Records of the stages named in `only`, in the table's order.

    budget: seconds; a stage that would begin after them is left out, and its Record says how to get it.
    """
    start = time.perf_counter()
    chosen = [name for name in ANALYSES if name in only]
    for i, name in enumerate(sorted(chosen, key=list(STAGES).index)):
        look.tell(i, len(chosen), STAGES[name].words)
        if budget is not None and time.perf_counter() - start > budget:
            reason = f"the time budget of {budget:g} s was spent before it; hubel report --only {name} makes it alone"
            yield Record(name, name, status="insufficient_data", reason=reason)
            continue
        try:
            yield from STAGES[name].run(look)
        except HubelError as error:
            yield Record(name, name, status="not_applicable", reason=str(error))
    look.tell(len(chosen), len(chosen), "writing the page")


@dataclass(frozen=True)
class Stage:
    """words: for the progress bar. run: the stage's Records."""

    words: str
    run: Callable[[Look], Iterator[Record]]


def _kernels(look: Look) -> Iterator[Record]:
    yield inspect.kernels(look.net, most=max(look.kernels, 1), most_slices=look.profile.slices)


def _feature_maps(look: Look) -> Iterator[Record]:
    if not look.shown:
        return
    most = MAPS if len(layers_of(look.net)) <= FEW_LAYERS else FEWER_MAPS
    at = list(look.shown)
    record = inspect.feature_maps(look.net, look.inputs[at], most=most)
    record.arrays["image"] = Array(look.images[at].numpy())
    record.method["params"] |= {"titles": look.titles, "images": at}
    if look.labels is not None:
        record.arrays["labels"] = Array(look.labels[at].numpy())
    yield record


def _one_number(look: Look) -> Iterator[Record]:
    if look.shown and any(isinstance(module, nn.Conv2d) for module in look.net.modules()):
        yield inspect.one_number(look.net, look.inputs[look.shown[0]])


def _top_patches(look: Look) -> Iterator[Record]:
    labels = None if look.labels is None else look.labels[: look.sweep.done]
    yield inspect.top_patches(look.net, look.inputs, labels, sweep=look.sweep, seed=look.seed)
    if look.pictures:
        pixels = reduced(look.images[: look.sweep.done].numpy())
        yield Record("images", "images", arrays={"images": Array(pixels)})


def _dead_kernels(look: Look) -> Iterator[Record]:
    if not len(look.inputs):
        yield inspect.dead_kernels(look.net)
        return
    images, _ = look.some(look.profile.removal_images)
    yield inspect.dead_kernels(look.net, images, sweep=look.sweep, output=look.output, seed=look.seed)


def _receptive_field(look: Look) -> Iterator[Record]:
    images, _ = look.some(look.profile.field_images)
    yield inspect.receptive_field(look.net, images, most=look.profile.field_images, seed=look.seed)


def _importance(look: Look) -> Iterator[Record]:
    """Two Records: `taylor`, every kernel by gradients; `importance`, some really removed, where `ablation` is not to
    remove them all."""
    images, labels = look.some(look.profile.gradient_images)
    estimated = inspect.importance(look.net, images, labels, method="taylor", output=look.output, seed=look.seed)
    estimated.id = "taylor"
    yield estimated
    if look.kernels <= FEW_KERNELS:
        return
    images, labels = look.some(look.profile.removal_images)
    most = look.profile.removed
    yield inspect.importance(look.net, images, labels, most=most, output=look.output, seed=look.seed)


def _ablation(look: Look) -> Iterator[Record]:
    """Two Records: effects over many images, and the scores of the pictured ones. Larger networks are told why not."""
    if look.kernels > FEW_KERNELS:
        reason = f"{look.kernels:,} kernels; all are removed in turn only where there are at most {FEW_KERNELS}"
        yield Record("ablation", "ablation", level="kernel", status="not_applicable", reason=reason)
        return
    yield inspect.ablation(look.net, look.inputs, look.labels, keep_scores=0)
    if look.shown:
        at = list(look.shown)
        answers = None if look.labels is None else look.labels[at]
        scores = inspect.ablation(look.net, look.inputs[at], answers)
        scores.id = "ablation_scores"
        if answers is not None:
            scores.arrays["labels"] = Array(answers.numpy())
        yield scores


def _cost(look: Look) -> Iterator[Record]:
    images, labels = look.some(max(look.profile.against, 1))
    yield inspect.cost(
        look.net,
        images,
        labels,
        sweep=look.sweep,
        output=look.output,
        rounds=look.profile.rounds,
        against=min(look.profile.against, len(images)),
        most_layers=look.profile.layers,
        seed=look.seed,
    )


def _redundancy(look: Look) -> Iterator[Record]:
    if not len(look.inputs):
        yield inspect.redundancy(look.net)
        return
    images, labels = look.some(look.profile.gradient_images)
    yield inspect.redundancy(
        look.net,
        images,
        labels,
        sweep=look.sweep,
        output=look.output,
        most=look.profile.removed,
        most_layers=look.profile.layers,
        measure=len(images),
        seed=look.seed,
    )


def _contributions(look: Look) -> Iterator[Record]:
    at = tuple(look.shown)[:2] or (0,)
    yield inspect.contributions(
        look.net, look.inputs, sweep=look.sweep, pictured=at, output=look.output, seed=look.seed
    )


def _tuning_curves(look: Look) -> Iterator[Record]:
    images, _ = look.some(look.profile.gradient_images)
    yield inspect.tuning_curves(look.net, images, seed=look.seed)


def _shift(look: Look) -> Iterator[Record]:
    images, labels = look.some(look.profile.gradient_images)
    yield inspect.shift(look.net, images, labels, output=look.output, most=len(images), seed=look.seed)


def _edges(look: Look) -> Iterator[Record]:
    yield inspect.edges(look.net, look.some(look.profile.gradient_images)[0])


def _checkerboard(look: Look) -> Iterator[Record]:
    yield inspect.checkerboard(look.net)


def _similarity(look: Look) -> Iterator[Record]:
    yield inspect.similarity(look.net, look.inputs, sweep=look.sweep, seed=look.seed)


def _attribution(look: Look) -> Iterator[Record]:
    """Of the pictured images; maps of images are pictures, too."""
    if look.shown:
        yield inspect.attribution(look.net, look.inputs, pictured=tuple(look.shown)[:2], output=look.output)


def _training_history(look: Look) -> Iterator[Record]:
    yield inspect.training_history(look.net, snapshots=look.snapshots)


STAGES: dict[str, Stage] = {
    "kernels": Stage("looking at the kernels", _kernels),
    "feature_maps": Stage("looking at feature maps", _feature_maps),
    "one_number": Stage("making one number by hand", _one_number),
    "top_patches": Stage("finding the patches that excite each kernel", _top_patches),
    "dead_kernels": Stage("looking for kernels that do nothing", _dead_kernels),
    "receptive_field": Stage("measuring receptive fields", _receptive_field),
    "cost": Stage("timing every layer", _cost),
    "importance": Stage("asking what the answers owe to each kernel", _importance),
    "redundancy": Stage("comparing kernels with one another", _redundancy),
    "contributions": Stage("asking which kernels pushed an answer", _contributions),
    "tuning_curves": Stage("showing stripes to every kernel", _tuning_curves),
    "shift": Stage("moving the images by some pixels", _shift),
    "edges": Stage("looking at the borders", _edges),
    "checkerboard": Stage("looking for checkerboards", _checkerboard),
    "similarity": Stage("comparing layers", _similarity),
    "attribution": Stage("asking which pixels an answer rests on", _attribution),
    "training_history": Stage("looking back at the training", _training_history),
    "ablation": Stage("removing kernels, one at a time", _ablation),
}
# What weights alone tell.
WITHOUT_IMAGES = frozenset({"kernels", "dead_kernels", "redundancy", "checkerboard", "training_history"})
