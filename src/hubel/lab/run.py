"""A training run as it is kept: the network before and after, its curves, how good it is on images it never saw.

run/
├── document.json             config, curves, accuracy, classes; machine and versions (see hubel.records)
├── arrays.npz                confusion matrix; what the network said of every held-out image
├── weights.safetensors       after training
└── initial.safetensors       before it: what the kernels were
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from hubel import data as datasets
from hubel import zoo
from hubel.convert.weights import load_into, read_state_dict
from hubel.data import Dataset
from hubel.errors import DataError, ModelError
from hubel.lab.run_text import render_text
from hubel.records import DOCUMENT_FILE, Column, Document, Method, Record, Value, write_atomically

WEIGHTS_FILE = "weights.safetensors"
INITIAL_FILE = "initial.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One line of the curves. Epoch 0 is the network before training: it has no training loss.

    steps: optimizer steps taken so far; an interrupted epoch has fewer than the others. The training numbers are means
    over the epoch while the weights changed; the validation numbers belong to its last weights. Losses in nats.
    """

    epoch: int
    steps: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


@dataclass
class TrainingRun:
    """What `train` returns and `load_run` reads back.

    model: the trained network, in eval mode. before_state: its state dict before the first step. path: the folder it
    was saved in, if it was. data: what it learned from, all of it, as the network takes it, if it is in memory.
    """

    document: Document
    model: nn.Module
    before_state: dict[str, torch.Tensor]
    history: list[Epoch]
    path: Path | None = None
    data: Dataset | None = None

    def __str__(self) -> str:
        return render_text(self.document, self.path)

    @property
    def accuracy(self) -> Value:
        """The share of held-out images that are right, with its Wilson interval."""
        return self.document.record("accuracy").row("held out")["accuracy"]

    @property
    def config(self) -> dict[str, Any]:
        """The numbers of the TrainingConfig, and `arch`, `num_classes` and `in_channels`."""
        return self.document.record("curves").method["params"]

    def before(self) -> nn.Module:
        """A copy of the network as it was before training, in eval mode."""
        net = copy.deepcopy(self.model)
        net.load_state_dict(self.before_state)
        return net.eval()

    def held_out(self, data: Any = None) -> Dataset:
        """The images that the run was tested on, in the order of its `accuracy` arrays, as the network takes them.

        data: what was trained on, if it is no named data set and the run was read from a folder. DataError if it is
        another one than the run's.
        """
        if data is not None or self.data is None:
            self.data = self._find(data)
        record = self.document.record("accuracy")
        return self.data.subset(torch.from_numpy(record.arrays["index"].data), how="held out")

    def _find(self, data: Any) -> Dataset:
        assert self.document.data is not None
        name, C, H, W = self.document.data["name"], *self.document.model["input"]["shape"][1:]
        if data is None and name not in datasets.DATASETS:
            raise DataError(f"A run keeps results, not images. It was trained on {name!r}; pass that: held_out(data).")
        found = datasets.load(name if data is None else data, **_reading(data, C, H, W))
        if found.sha256 != self.document.data["sha256"]:
            raise DataError(f"The images must be those the run was trained on, {name!r}. Received others: {found}.")
        return found

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the run into `folder`, file by file whole, the document last; returns the folder. See `prepare`."""
        path = prepare(folder, overwrite)
        write_atomically(path / WEIGHTS_FILE, serialised(self.model.state_dict()))
        write_atomically(path / INITIAL_FILE, serialised(self.before_state))
        self.document.save(path)
        self.path = path
        return path


def prepare(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Make the folder of a run, or refuse it before any work is done.

    An empty folder is taken. One with files in it is not, unless `overwrite`: then files that are called like a run's
    are replaced, and nothing else is touched.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        there = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise DataError(f"A run is written into a folder. Received: {path} ({error.strerror}). Name another.") from None
    if there and not overwrite:
        what = "a run" if DOCUMENT_FILE in there else f"{len(there)} other files ({there[0]}, ...)"
        raise DataError(f"A run is written into a new or empty folder. Received: {path}, with {what}. Name another.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"A run is written into a folder. Received: {path} (Permission denied). Name another.")
    return path


def load_run(folder: str | os.PathLike[str], model: Callable[[], nn.Module] | nn.Module | None = None) -> TrainingRun:
    """Read what `train(..., out=folder)` or `run.save(folder)` wrote.

    model: the network, or what makes it, if it is none of the zoo. DataError if the folder holds no run, or a damaged
    one; ModelError if the weights are another network's.
    """
    path = Path(folder)
    document = Document.load(path)
    try:
        params, curves = document.record("curves").method["params"], document.record("curves")
        document.record("accuracy")
    except KeyError:
        raise DataError(
            f"A run has curves and an accuracy. Received: {path}, with a document of another kind."
        ) from None
    name = document.model["name"]
    if model is None and name not in zoo.ZOO:
        raise ModelError(f"{name!r} is no network of the zoo, so it must be given: load_run(folder, model=...).")
    if isinstance(model, nn.Module):
        net = model
    elif model is not None:
        net = model()
    else:
        net = zoo.build(name, num_classes=params["num_classes"], in_channels=params["in_channels"], seed=0)
    for file in (WEIGHTS_FILE, INITIAL_FILE):
        if not (path / file).is_file():
            raise DataError(f"A run has the files {WEIGHTS_FILE} and {INITIAL_FILE}. Received: {path} without {file}.")
    got = hashlib.sha256((path / WEIGHTS_FILE).read_bytes()).hexdigest()
    if got != document.model["sha256"]:
        raise DataError(f"{path / WEIGHTS_FILE} is not the file that the run wrote: it was changed or damaged since.")
    load_into(net, read_state_dict(path / WEIGHTS_FILE), name=name, source=path)
    before = read_state_dict(path / INITIAL_FILE)
    return TrainingRun(document, net.eval(), before, from_curves(curves), path)


def serialised(state: dict[str, torch.Tensor]) -> bytes:
    """A state dict as the bytes of a .safetensors file; tensors that share memory become copies."""
    return safetensors.torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()})


COLUMNS = [
    Column(name="steps", unit="steps", better=None),
    Column(name="train_loss", unit="nat", better="down"),
    Column(name="train_accuracy", unit="", better="up"),
    Column(name="val_loss", unit="nat", better="down"),
    Column(name="val_accuracy", unit="", better="up"),
    Column(name="lr", unit="", better=None),
    Column(name="seconds", unit="s", better=None),
]


def to_curves(history: list[Epoch], params: dict[str, Any], reason: str | None) -> Record:
    """The record `curves`. params: the config. reason: why training stopped early, if it diverged."""
    names = [column["name"] for column in COLUMNS]
    return Record(
        id="curves",
        kind="curves",
        status="failed" if reason else "ok",
        reason=reason,
        columns=COLUMNS,
        rows=[{"target": f"epoch {e.epoch}"} | {name: getattr(e, name) for name in names} for e in history],
        method=Method(name="train", params=params, source="cross-entropy; He et al. 2015 initialisation for the zoo"),
        seconds=sum(epoch.seconds for epoch in history),
        uncovered=[
            {"target": f"epoch {e.epoch}", "reason": "before the first step: nothing was trained on"}
            for e in history
            if e.train_loss is None
        ],
    )


def from_curves(record: Record) -> list[Epoch]:
    return [
        Epoch(epoch=int(row["target"].removeprefix("epoch ")), **{c["name"]: row[c["name"]] for c in COLUMNS})
        for row in record.rows
    ]


def _reading(data: Any, C: int, H: int, W: int) -> dict[str, Any]:
    return {"size": (H, W), "channels": C if isinstance(data, (str, os.PathLike)) and C in (1, 3) else None}
