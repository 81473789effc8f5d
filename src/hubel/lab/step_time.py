"""How long a training step takes under Hubel and under torch: forward, loss, backward, optimizer, in one process.

Three copies of one network take turns, a step each, in an order drawn anew every round: torch as the network comes,
torch in channels-last memory format, and Hubel. The ratio is torch's faster format over Hubel. Every round counts,
those in which Hubel's step was the slower one and those that the machine disturbed included: `spread` shows them.

Before anything is timed the copies take a first step, and Hubel's gradients must be torch's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import DataError, HubelError
from hubel.lab import conditions, engines, timing
from hubel.lab.config import adam
from hubel.lab.timing import Contender, Meter, Rounds
from hubel.records import Column, Document, Record, Value
from hubel.zoo import cross_entropy

ROUNDS = 60
# A minute's demo cannot wait longer, however crowded the machine.
BUDGET_SECONDS = 12.0
# Two float32 steps differ by rounding, and by the rare ReLU or pooling choice that rounding turns over.
GRADIENT_ERROR = 1e-3

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StepTime:
    """The outcome: `ratio` is how many times faster Hubel's step is than torch's (below 1: slower).

    engines: milliseconds a step, by contender. torch: the faster of torch's formats. slower: the share of rounds in
    which Hubel's step took longer than torch's. spread: the 5th and 95th percentile of the rounds' ratios.
    """

    ratio: Value
    torch: str
    engines: dict[str, Value]
    spread: tuple[float, float]
    slower: float
    threads: int
    rounds: Rounds

    def __str__(self) -> str:
        ours, theirs = self.engines["hubel"], self.engines[self.torch]
        return (
            f"a training step takes {ours.value:.2f} ms under hubel and {theirs.value:.2f} ms under {self.torch}: "
            f"x{self.ratio.value:.2f} (95 % interval of the median {_interval(self.ratio)}, 90 % of the steps "
            f"x{self.spread[0]:.2f} to x{self.spread[1]:.2f}, slower in {self.slower:.0%} of {self.ratio.n} rounds; "
            f"{self.threads} thread{'s' if self.threads > 1 else ''})"
        )


def step_time(
    model_factory: Callable[[], nn.Module],
    batch: Batch,
    *,
    loss: Loss = cross_entropy,
    optimizer: OptimizerFactory | None = None,
    rounds: int = ROUNDS,
    threads: int | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    hubel: Callable[[], AbstractContextManager[Any]] = engines.enabled,
) -> StepTime:
    """Time the same training step on `batch` (inputs, labels) under Hubel and under torch.

    model_factory: makes the network, which is copied for each engine. optimizer: makes the optimizer from the
    parameters (fused Adam, as training does). threads: torch's number by default. hubel: the context of Hubel's steps.

    Raises HubelError if Hubel's gradients are not torch's.
    """
    optimizer = optimizer or adam
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        net = model_factory().train()
        _check(net, batch, loss, hubel, seed)
        contenders = [
            Contender("torch", _step(copy.deepcopy(net), batch, loss, optimizer)),
            Contender("hubel", _step(copy.deepcopy(net), batch, loss, optimizer), hubel),
        ]
        if batch[0].ndim == 4:
            laid_out = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = batch[0].contiguous(memory_format=torch.channels_last)
            contenders.insert(1, Contender("torch channels-last", _step(laid_out, (images, batch[1]), loss, optimizer)))
        # One step a sample and no more than `rounds` rounds: nothing is averaged away, nothing thrown out.
        taken = timing.measure(
            contenders,
            rounds=rounds,
            most=rounds,
            budget=BUDGET_SECONDS,
            sample_seconds=0.0,
            seed=seed,
            meter=meter,
        )
        return _outcome(taken, torch.get_num_threads())
    finally:
        torch.set_num_threads(threads_before)


def run(name: str, *, batch: int = 64, rounds: int = ROUNDS, threads: int | None = None, seed: int = 0) -> Document:
    """The training step of a network of the zoo on random images, as a Document (`hubel bench NAME --step`)."""
    from hubel import zoo

    network = zoo.describe(name)
    if network.output != "scores" or network.num_classes is None:
        raise DataError(
            f"--step times networks that give one score a class. Received: {name}, which gives an {network.output}. "
            "Time its layers: leave --step out."
        )
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand((batch, *network.input), generator=draw)
    labels = torch.randint(network.num_classes, (batch,), generator=draw)
    watch = conditions.Watch()
    outcome = step_time(lambda: zoo.build(name, seed=seed), (images, labels), rounds=rounds, threads=threads, seed=seed)
    return watch.document(
        "step", f"{name} training step", [record(outcome)], threads=outcome.threads, seed=seed,
        engine="hubel, torch", params=network.parameters, shape=images.shape,
    )  # fmt: skip


def record(outcome: StepTime) -> Record:
    """The outcome as a table, a row an engine."""
    columns = [
        Column(name="ms", unit="ms", better="down"),
        Column(name="p5 ms", unit="ms", better="down"),
        Column(name="p95 ms", unit="ms", better="down"),
        Column(name="x torch", unit="ratio", better="up"),
        Column(name="p5 x torch", unit="ratio", better="up"),
        Column(name="p95 x torch", unit="ratio", better="up"),
        Column(name="slower", unit="share of rounds", better="down"),
    ]
    rows: list[dict[str, Any]] = []
    for name, middle in outcome.engines.items():
        low, high = _percentiles([sample.seconds * 1e3 for sample in outcome.rounds.samples[name]])
        rows.append({"target": name, "ms": middle, "p5 ms": low, "p95 ms": high})
        if name == "hubel":
            low, high = outcome.spread
            rows[-1] |= {"x torch": outcome.ratio, "p5 x torch": low, "p95 x torch": high, "slower": outcome.slower}
    return Record(
        id="step",
        kind="bench",
        columns=columns,
        rows=rows,
        method={
            "name": "one step a sample, interleaved and shuffled; every round counted",
            "params": {
                "rounds": len(outcome.rounds.order),
                "clean rounds": len(outcome.rounds.clean_rounds()),
                "torch": outcome.torch,
            },
            "source": "",
        },
    )


def _step(net: nn.Module, batch: Batch, loss: Loss, optimizer: OptimizerFactory) -> Callable[[], object]:
    images, labels = batch
    optimise = optimizer(net.parameters())

    def step() -> Tensor:
        optimise.zero_grad()
        cost = loss(net(images), labels)
        cost.backward()
        optimise.step()
        return cost

    return step


def _check(
    net: nn.Module, batch: Batch, loss: Loss, hubel: Callable[[], AbstractContextManager[Any]], seed: int
) -> None:
    """Hubel's gradients against torch's, on copies of the network, with the same random numbers for dropout."""
    found = []
    for context in (nullcontext, hubel):
        twin = copy.deepcopy(net)
        with torch.random.fork_rng(devices=[]), context():
            torch.manual_seed(seed)
            loss(twin(batch[0]), batch[1]).backward()
        gradients = [p.grad.flatten().double() for p in twin.parameters() if p.grad is not None]
        found.append(torch.cat(gradients))
    error = float(torch.linalg.vector_norm(found[1] - found[0]) / torch.linalg.vector_norm(found[0]))
    # Written so that NaN fails too.
    if not error <= GRADIENT_ERROR:
        raise HubelError(
            "Hubel's gradients must be torch's before a step is timed. Received: a relative difference of "
            f"{error:.1e}, allowed {GRADIENT_ERROR:.0e}. Please report the network; hubel.disable() turns Hubel off."
        )


def _outcome(taken: Rounds, threads: int) -> StepTime:
    formats = [name for name in taken.samples if name != "hubel"]
    middles = {name: timing.scaled(taken.seconds(name, clean_only=False), 1e3) for name in taken.samples}
    best = min(formats, key=lambda name: middles[name].value or math.inf)
    ratios = taken.ratios(best, "hubel", clean_only=False)
    return StepTime(
        ratio=taken.ratio(best, "hubel", clean_only=False),
        torch=best,
        engines=middles,
        spread=_percentiles(ratios),
        slower=sum(ratio < 1 for ratio in ratios) / len(ratios),
        threads=threads,
        rounds=taken,
    )


def _percentiles(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def _interval(value: Value) -> str:
    return "n/a" if value.lo is None or value.hi is None else f"{value.lo:.2f} to {value.hi:.2f}"
