"""`networks.py --train`: a step of forward, backward and SGD, Hubel compiled beside torch and Inductor in both layouts.

Before anything is timed, Hubel's gradients of the first step are held against torch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from network_peers import ALONE
from network_records import record
from networks import TRAINING_BATCH, TRAINING_SIZE, text_of
from torch import Tensor, nn

import hubel
from hubel.lab import timing
from hubel.lab.timing import Contender

ENGINES: dict[str, tuple[str | None, bool]] = {
    "hubel": ("hubel", False),
    "hubel channels-last": ("hubel", True),
    "torch": (None, False),
    "torch channels-last": (None, True),
    "inductor": ("inductor", False),
    "inductor channels-last": ("inductor", True),
}


def training(networks: Sequence[str], rounds: int) -> tuple[list[Any], str]:
    rows = []
    for name in networks:
        net = hubel.zoo.build(name, seed=0).train()
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(TRAINING_BATCH, 3, TRAINING_SIZE, TRAINING_SIZE, generator=draw)
        labels = torch.randint(1000, (TRAINING_BATCH,), generator=draw)
        torch._dynamo.reset()
        twins = {engine: twin(net, x, *how) for engine, how in ENGINES.items()}
        row: dict[str, Any] = {"target": name}
        first = {engine: _gradient(*twin[:3], labels) for engine, twin in twins.items()}
        for engine, found in first.items():
            row[f"{engine} error"] = float((found - first["torch"]).norm() / first["torch"].norm())
        steps = {engine: _step(*twin, labels) for engine, twin in twins.items()}
        taken = timing.measure([Contender(engine, call) for engine, call in steps.items()], rounds=rounds)
        for engine in ENGINES:
            row[f"{engine} ms"] = timing.scaled(taken.seconds(engine), 1e3)
        for rival in ("torch", "inductor"):
            slow = taken.best([engine for engine in ENGINES if engine.startswith(rival)])
            row[f"hubel x {rival}"] = taken.ratio(slow, taken.best(["hubel", "hubel channels-last"]))
        rows.append(row)
        print(text_of(rows[-1:], []), flush=True)
    return [record("training", rows)], text_of(rows, [])


def twin(net: nn.Module, x: Tensor, backend: str | None, last: bool) -> tuple[Any, nn.Module, Tensor]:
    """What runs a copy of the network, the copy, and the input, as an engine of `ENGINES` has them."""
    made: Any = copy.deepcopy(net)
    # The same dropout everywhere would need the same random numbers: none.
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if last:
        made, x = made.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return (torch.compile(made, backend=backend, **ALONE) if backend else made), made, x


def _gradient(run: Any, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    nn.functional.cross_entropy(run(x), labels).backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])


def _step(run: Any, net: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(x), labels).backward()
        optimizer.step()

    return step
