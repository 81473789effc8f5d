"""Training: a network, images with labels, an optimizer; and at the end one look at images that nothing has seen.

    load and split the data  →  build the network  →  epochs of steps  →  read the held-out images once  →  keep the run

A step is the same four lines everywhere: predict, measure the loss, go back through the network, move the weights. What
makes it Hubel's is the context around it, under which every convolution, forward and backward, is Hubel's own.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel import data as datasets
from hubel import zoo
from hubel.data import Dataset
from hubel.data.prepare import shifted
from hubel.data.split import HOLD_OUT
from hubel.errors import DataError, ModelError, TrainingDiverged
from hubel.lab import metrics
from hubel.lab.conditions import accuracy as accuracy_level
from hubel.lab.conditions import describe_machine
from hubel.lab.config import ConfigError, TrainingConfig
from hubel.lab.run import Epoch, TrainingRun, prepare, serialised, to_curves
from hubel.records import Column, Document, Method, Record

# Images in one forward pass when nothing is learned: enough to fill the machine, small enough for any network's memory.
EVALUATION_BATCH = 256

Progress = Callable[[float, float, str], None]


class Diverged(TrainingDiverged):
    """The loss became NaN or infinite at `step` (counted from 1). `run` holds the last good weights."""

    def __init__(self, message: str, step: int, run: TrainingRun) -> None:
        super().__init__(message)
        self.step, self.run = step, run


def train(
    arch: str | nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    shift: int = 2,
    seed: int = 0,
    split: tuple[float, float, float] = HOLD_OUT,
    split_seed: int = 0,
    engine: Literal["hubel", "torch"] = "hubel",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainingRun:
    """Train a network and test it once; `print(run)` tells how it went.

    arch: a name of the zoo, a network (trained in place) or what makes one. data: as `hubel.data.load` takes it, with
    labels. The numbers in between: see TrainingConfig. out: the folder to keep the run in (see `hubel.lab.run`).
    progress: called as progress(done, total, stage), in steps.

    Ctrl-C stops after the current step: what is done is tested, kept and returned, with status "interrupted".
    Raises Diverged if the loss is no longer a number, after keeping the last good weights; DataError, ModelError,
    UnknownNameError and ConfigError, all before the first step, for what cannot be trained.
    """
    config = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        shift=shift,
        seed=seed,
        split=split,
        split_seed=split_seed,
        engine=engine,
    )
    dataset = _labelled(arch, data)
    net, name = _network(arch, dataset, config)
    if out is not None:
        prepare(out, overwrite)
    with _ctrl_c() as stop, torch.random.fork_rng(devices=[]), _kernels(config.engine) as log:
        torch.manual_seed(config.seed)
        training = Training(net, name, dataset, config)
        training.run(stop, progress or (lambda done, total, stage: None))
        run = training.finish(log)
        if out is not None:
            run.save(out, overwrite)
    if training.failure is not None:
        where = f"kept in {Path(out)}" if out is not None else "in this error's `run.model`"
        raise Diverged(
            f"The loss must stay a number. Received: {training.failure}. The last good weights, after epoch "
            f"{training.history[-1].epoch}, are {where}. Try a smaller learning rate than {config.peak:g}.",
            training.step + 1,
            run,
        )
    return run


class Training:
    """One run while it happens: the network, what it learns from, and how far it is."""

    def __init__(self, net: nn.Module, name: str, dataset: Dataset, config: TrainingConfig) -> None:
        self.net, self.name, self.dataset, self.config = net, name, dataset, config
        self.training, self.validation, self.held_out = datasets.split(dataset, config.split, config.split_seed)
        self.padded = F.pad(self.training.images, (config.shift,) * 4)
        self.random = torch.Generator().manual_seed(config.seed)
        self.optimizer = config.make_optimizer(net)
        self.steps = config.epochs * len(self._batches(torch.arange(len(self.training))))
        self.step = 0
        self.history: list[Epoch] = []
        self.before = _copy(net)
        self.good = self.before
        self.interrupted = False
        self.failure: str | None = None

    def run(self, stop: Callable[[], bool], progress: Progress) -> None:
        """All epochs, or as many as Ctrl-C and a finite loss allow. stop: whether to end after this step."""
        began = time.perf_counter()
        progress(0, self.steps, f"training {self.name}, epoch 1 of {self.config.epochs}")
        self._remember(0, None, None, began)
        for epoch in range(1, self.config.epochs + 1):
            began = time.perf_counter()
            losses, right, seen = self._epoch(stop, progress)
            if self.failure is None and seen:
                self._remember(epoch, losses / seen, right / seen, began)
            if self.failure is not None:
                self.net.load_state_dict(self.good)
                return
            if stop() and self.step < self.steps:
                self.interrupted = True
                return

    def _epoch(self, stop: Callable[[], bool], progress: Progress) -> tuple[float, int, int]:
        """One pass over the training images in a new order: sum of losses, number right, images seen."""
        self.net.train()
        losses, right, seen = 0.0, 0, 0
        order = torch.randperm(len(self.training), generator=self.random)
        assert self.training.labels is not None
        for rows in self._batches(order):
            if stop():
                break
            rate = self.config.learning_rate(self.step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            images = shifted(self.padded, rows, self.config.shift, self.random)
            labels = self.training.labels[rows]

            outputs = self.net(images)
            loss = zoo.cross_entropy(outputs, labels)
            if not torch.isfinite(loss):
                self.failure = f"{loss.item()} at step {self.step + 1}, in epoch {len(self.history)}"
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

            self.step += 1
            losses += loss.item() * len(rows)
            logits = outputs if isinstance(outputs, Tensor) else outputs[0]
            right += int((logits.argmax(1) == labels).sum())
            seen += len(rows)
            progress(self.step, self.steps, self._stage())
        return losses, right, seen

    def _batches(self, order: Tensor) -> list[Tensor]:
        """Stretches of `order`. A single image left over joins the batch before: batch norm has no variance of one."""
        batches = list(order.split(self.config.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            last = batches.pop()
            batches[-1] = torch.cat([batches[-1], last])
        return batches

    def _remember(self, epoch: int, loss: float | None, accuracy: float | None, began: float) -> None:
        """Validate, and note the epoch; its weights are good if they give a finite loss."""
        val_loss, val_accuracy = self._validate()
        if not np.isfinite(val_loss):
            self.failure = f"{val_loss} on the validation images, after step {self.step}"
            if not self.history:
                raise ModelError(
                    f"A network to be trained gives numbers. Received: {val_loss} from {self.name}'s loss."
                )
            return
        seconds = time.perf_counter() - began
        rate = self.config.learning_rate(max(0, self.step - 1), self.steps)
        self.history.append(Epoch(epoch, self.step, loss, accuracy, val_loss, val_accuracy, rate, seconds))
        self.good = _copy(self.net)

    def _validate(self) -> tuple[float, float]:
        logits = predict(self.net, self.validation.images)
        assert self.validation.labels is not None
        loss = F.cross_entropy(logits, self.validation.labels).item()
        return loss, float((logits.argmax(1) == self.validation.labels).float().mean())

    def _stage(self) -> str:
        last = self.history[-1]
        epoch = min(last.epoch + 1, self.config.epochs)
        reached = f", validation accuracy {last.val_accuracy:.1%}" if last.epoch else ""
        return f"training {self.name}, epoch {epoch} of {self.config.epochs}{reached}"

    def finish(self, log: Any) -> TrainingRun:
        """Read the held-out images, for the first and only time, and put everything into a Document."""
        self.net.eval()
        labels, classes = self.held_out.labels, self.held_out.classes
        assert labels is not None and classes is not None
        logits = predict(self.net, self.held_out.images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        accuracy = metrics.accuracy(labels.numpy(), logits.numpy(), losses.numpy(), self.held_out.indices.numpy())
        confusion = metrics.confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), len(classes))
        params = {
            "arch": self.name,
            "num_classes": len(classes),
            "in_channels": self.dataset.images.shape[1],
            **self.config.as_params(),
            "images": [len(self.training), len(self.validation), len(self.held_out)],
        }
        records = [to_curves(self.history, params, self.failure), accuracy, metrics.per_class(confusion, classes)]
        # What ran is what counts: with HUBEL_DISABLE=1, or without any convolution, torch computed everything.
        engine = "hubel" if log is not None and log.native else "torch"
        document = self._document(records + ([] if log is None else [_calls(log)]), engine)
        return TrainingRun(document, self.net, self.before, self.history, data=self.dataset)

    def _document(self, records: list[Record], engine: str) -> Document:
        sha256 = hashlib.sha256(serialised(self.net.state_dict())).hexdigest()
        C, H, W = self.dataset.images.shape[1:]
        return Document(
            model={
                "name": self.name,
                "sha256": sha256,
                "weights": "file",
                "params": sum(p.numel() for p in self.net.parameters()),
                "input": {"shape": [1, C, H, W], "dtype": "float32"},
                "preprocess": {"scale": "unit", "size": [H, W]},
                "classes": self.dataset.classes,
                "output": None,
            },
            data={**self.dataset.info(), "sample": self.held_out.info()["sample"]},
            settings={
                "profile": None,
                "seed": self.config.seed,
                "accuracy": accuracy_level(),
                "threads": torch.get_num_threads(),
                "engine": engine,
            },
            machine=describe_machine(),
            records=records,
            status="interrupted" if self.interrupted or self.failure else "complete",
        )


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> Tensor:
    """The network's scores for images, (N, classes), in eval mode and in batches. Its mode is put back."""
    training = net.training
    net.eval()
    try:
        return torch.cat([net(batch) for batch in images.split(EVALUATION_BATCH)])
    finally:
        net.train(training)


def _labelled(arch: object, data: Any) -> Dataset:
    """The data at the size the network is made for; DataError if there is nothing to learn from it."""
    size = None
    if isinstance(arch, str):
        network = zoo.describe(arch)
        if not network.classifies_images:
            raise ModelError(
                f"`hubel train` teaches networks that give an image one score a class. Received: {arch}, which takes "
                f"{'×'.join(map(str, network.input))} and gives a {network.output.rstrip('s')}. Train it in a loop of "
                "your own, under hubel.enable()."
            )
        size = network.size[0], network.size[1]
    dataset = datasets.load(data, size=size)
    if dataset.labels is None or dataset.classes is None:
        raise DataError(
            f"Training needs a label for each image. Received: {dataset}. Sort the files into one folder a class, or "
            "give an .npz with `labels`."
        )
    if len(dataset.classes) < 2:
        raise DataError(f"Training needs at least two classes to tell apart. Received: {dataset.classes}.")
    return dataset


class Built(NamedTuple):
    net: nn.Module
    name: str


def _network(arch: str | nn.Module | Callable[[], nn.Module], dataset: Dataset, config: TrainingConfig) -> Built:
    """The network, tried on one image: wrong channels and labels out of range are told before any training."""
    classes, channels = len(dataset.classes or []), dataset.images.shape[1]
    if isinstance(arch, str):
        built = Built(zoo.build(arch, num_classes=classes, in_channels=channels, seed=config.seed), arch)
    elif isinstance(arch, nn.Module):
        built = Built(arch, type(arch).__name__)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = arch()
        if not isinstance(net, nn.Module):
            raise ModelError(f"A factory makes a torch.nn.Module. Received: {type(net).__name__} from {arch!r}.")
        built = Built(net, getattr(arch, "__name__", type(net).__name__))
    if not any(p.requires_grad for p in built.net.parameters()):
        raise ModelError(f"A network to be trained has weights that may change. Received: {built.name} without any.")
    C, H, W = dataset.images.shape[1:]
    try:
        shape = tuple(predict(built.net, dataset.images[:1]).shape)
    except Exception as error:  # whatever a user's own network raises
        raise ModelError(
            f"{built.name} must take the images of {dataset.name}, {C}×{H}×{W}. It stopped with: {error}. Change the "
            "network's input channels or the images' size."
        ) from error
    if len(shape) != 2 or shape[1] < classes:
        raise DataError(
            f"Labels are out of range: {dataset.name} has {classes} classes, and {built.name} gives scores of shape "
            f"{list(shape)} for one image. Its last layer must have {classes} outputs."
        )
    return built


def _kernels(engine: str) -> AbstractContextManager[Any]:
    """Whose convolutions compute: a context; for Hubel's it yields the log of calls."""
    from hubel.ops.override import enabled, is_enabled

    if engine == "hubel":
        return enabled()
    if is_enabled():
        raise ConfigError("engine='torch' needs torch's kernels. Received: it inside hubel.enable(). Disable it first.")
    return nullcontext()


def _calls(log: Any) -> Record:
    """The record `calls`: how many convolutions ran on Hubel's kernels, and how many were handed to torch."""
    return Record(
        id="calls",
        kind="calls",
        columns=[Column(name="calls", unit="calls", better=None)],
        rows=[{"target": "native", "calls": log.native}, {"target": "fallback", "calls": log.fallback}],
        method=Method(name="enabled", params={}, source="hubel.enabled()"),
    )


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed: no step, test or file is cut in its middle. Twice interrupts as usual."""
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    # Only the main thread may set handlers; elsewhere Ctrl-C is the caller's to deal with.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
