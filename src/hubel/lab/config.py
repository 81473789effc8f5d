"""What a training run is told: every number that decides its result, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from hubel.data.split import HOLD_OUT
from hubel.errors import HubelError, unknown

OPTIMIZERS = ("adam", "sgd")
ENGINES = ("hubel", "torch")
# The learning rates with which LeNet-5 was best on validation digits (never on held-out ones), at batch size 64.
LEARNING_RATE = {"adam": 4e-3, "sgd": 0.1}


class ConfigError(HubelError, ValueError):
    """A number of training steps, images or size that cannot be."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The same config, data and machine give the same weights, bit for bit.

    epochs: how often every training image is seen. batch_size: images a step; a larger one needs a larger lr.
    optimizer: "adam", or "sgd" with `momentum`. lr: the learning rate at its peak; None: the optimizer's usual one. It
    rises over the first tenth of all steps and falls to zero along a cosine.
    weight_decay: pulls weights towards zero. shift: each time an image is seen, it is moved by up to so many pixels, so
    that the network learns strokes and not places. seed: of initial weights, order and shifts.
    split: training, validation, held out (fractions, or numbers of images); split_seed: who goes where. It is not the
    seed, so that runs with different seeds are tested on the same images.
    engine: whose convolutions compute, "hubel" or "torch".
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    shift: int = 2
    seed: int = 0
    split: tuple[float, float, float] = HOLD_OUT
    split_seed: int = 0
    engine: Literal["hubel", "torch"] = "hubel"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        _whole("epochs", self.epochs, 1)
        _whole("batch_size", self.batch_size, 1)
        _whole("shift", self.shift, 0)
        _whole("seed", self.seed, 0)
        _whole("split_seed", self.split_seed, 0)
        if not (isinstance(self.peak, (int, float)) and math.isfinite(self.peak) and self.peak > 0):
            raise ConfigError(f"lr, the learning rate, is a positive number. Received: {self.lr!r}. Try 0.001.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is at least 0 and below 1. Received: {self.momentum!r}. 0.9 is usual.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay is at least 0. Received: {self.weight_decay!r}. 0.0005 is usual.")
        if len(self.split) != 3:
            raise ConfigError(f"split is training, validation, held out. Received: {self.split!r}. Pass three sizes.")

    @property
    def peak(self) -> float:
        """The largest learning rate: `lr`, or the optimizer's usual one."""
        return LEARNING_RATE[self.optimizer] if self.lr is None else self.lr

    def make_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in net.parameters() if p.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.peak, momentum=self.momentum, weight_decay=self.weight_decay, fused=True
            )
        return adam(parameters, self.peak, self.weight_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of `steps` in all: a short rise, then half a cosine to zero."""
        rise = min(1.0, (step + 1) / max(1.0, 0.1 * steps))
        return self.peak * rise * 0.5 * (1 + math.cos(math.pi * step / steps))

    def as_params(self) -> dict[str, Any]:
        """For a Record's `method.params`."""
        return asdict(self) | {"lr": self.peak, "split": list(self.split)}


def adam(
    parameters: Iterable[nn.Parameter], lr: float = LEARNING_RATE["adam"], weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam as training uses it: fused. One pass over the parameters; torch's default makes a dozen, a call each, which
    is a tenth of a small network's step.
    """
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def _whole(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} is a whole number of at least {least}. Received: {value!r}.")
