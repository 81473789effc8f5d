"""How kernels came to be: the first layer's as they changed, and how far every layer has moved.

snapshots = hubel.inspect.Snapshots(net, every=100)
for step, batch in enumerate(loader):
    ...                     # any training loop
    optimizer.step()
    snapshots()             # once a step
hubel.inspect.training_history(net, snapshots=snapshots)
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import Tensor, nn

from hubel.errors import DataError, ModelError
from hubel.inspect.layers import layers_of
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="step", unit="", better=None),
    Column(name="drift", unit="‖w − w₀‖ / ‖w₀‖", better=None),
    Column(name="cosine", unit="with the weights at the start", better=None),
    Column(name="norm", unit="", better=None),
    Column(name="speed", unit="‖w − w_before‖ / ‖w₀‖ a step", better=None),
]
NEEDS = "kernels as they change need snapshots of a training: call a hubel.inspect.Snapshots(net, every=100) every step"


class Snapshots:
    """A callback for any training loop: call it once a step. Keeps little: the first layer's kernels (at most `most` of
    them) and three numbers a layer, every `every` steps; the starting weights of all layers, for the drift."""

    def __init__(self, net: nn.Module, every: int = 100, most: int = 32) -> None:
        if every < 1:
            raise DataError(f"Snapshots are taken every so many steps, 1 at least. Received: every={every}.")
        layers = layers_of(net)
        if not layers:
            raise ModelError(f"Snapshots are of convolutions. Received: {type(net).__name__}, which has none.")
        self.net, self.every, self.most = net, every, most
        self.first = next(iter(layers))
        self.start = {address: layer.by_kernel().copy() for address, layer in layers.items()}
        self.before = dict(self.start)
        self.count = 0
        self.steps: list[int] = []
        self.kernels: list[np.ndarray] = []
        self.moved: dict[str, list[tuple[float, float, float, float]]] = {address: [] for address in layers}
        self.take()

    def __call__(self, *_: Any, **__: Any) -> None:
        """One step was made; arguments of whoever calls are ignored."""
        self.count += 1
        if self.count % self.every == 0:
            self.take()

    def take(self) -> None:
        """A snapshot now, unless there is one of this step."""
        if self.steps and self.steps[-1] == self.count:
            return
        passed = self.count - (self.steps[-1] if self.steps else 0)
        self.steps.append(self.count)
        for address, layer in layers_of(self.net).items():
            if address not in self.start:
                continue
            w, old, last = layer.by_kernel().copy(), self.start[address], self.before[address]
            size = float(np.linalg.norm(old)) or 1.0
            norm = float(np.linalg.norm(w))
            cosine = float((w * old).sum()) / max(size * norm, 1e-30)
            speed = float(np.linalg.norm(w - last)) / size / max(passed, 1)
            self.moved[address].append((float(np.linalg.norm(w - old)) / size, cosine, norm, speed))
            self.before[address] = w
            if address == self.first:
                self.kernels.append(w[: self.most].astype(np.float32))


def training_history(
    net: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    snapshots: Snapshots | None = None,
) -> Record:
    """A row a layer and snapshot, "conv1@100". Arrays: `steps` (S,); `kernels` (S, K, C, *size) of the first layer,
    whose address is `method.params["first"]`; for each layer `conv1:drift` (S,)."""
    del net, images, labels
    start = time.perf_counter()
    record = Record("training_history", "training_history", list(COLUMNS), level="layer")
    if snapshots is None:
        record.status, record.reason = "not_applicable", NEEDS
        return record
    params = {"every": snapshots.every, "first": snapshots.first, "steps": snapshots.count}
    record.method = Method(name="snapshots of weights", params=params, source="")
    record.arrays["steps"] = Array(np.array(snapshots.steps))
    record.arrays["kernels"] = Array(np.stack(snapshots.kernels))
    for address, moved in snapshots.moved.items():
        if not np.isfinite(moved).all():
            record.uncovered.append(Uncovered(target=address, reason="weights became NaN or infinite"))
            continue
        record.arrays[f"{address}:drift"] = Array(np.array([m[0] for m in moved], np.float32))
        for step, (drift, cosine, norm, speed) in zip(snapshots.steps, moved, strict=True):
            cells = {"step": step, "drift": drift, "cosine": cosine, "norm": norm, "speed": speed}
            record.rows.append({"target": f"{address}@{step}", **cells})
    record.seconds = time.perf_counter() - start
    return record
