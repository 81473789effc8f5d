"""Whole networks in several threads and processes at once: loader workers, forked children, and DDP over gloo."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import hubel
from hubel.ops.log import Log
from tests.ops.nets import ready

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning"),
    # torch's own compiler warns about its internals
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch"),
]

IMAGES, SIZE, PROCESSES, STEPS = 16, (3, 32, 40), 2, 3


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images() -> Tensor:
    return torch.randn(IMAGES, *SIZE, generator=torch.Generator().manual_seed(0))


def compiled() -> Callable[[Tensor], Tensor]:
    # without fullgraph=True, whose own check takes two threads for one
    network = torch.compile(ready("residual"), backend="hubel")

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x)

    return run


def session() -> Callable[[Tensor], Tensor]:
    return hubel.Session(ready("residual"), images()[:1])


KINDS = {"compiled": compiled, "session": session}


class Scored(Dataset[Tensor]):
    """An image's scores, worked out by whichever process loads it."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self.run, self.images = run, images()

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, i: int) -> Tensor:
        return self.run(self.images[i : i + 1])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_four_loader_workers_run_a_network_while_two_threads_do(kind: str) -> None:
    run = KINDS[kind]()
    x = images()
    wanted = torch.cat([run(x[i : i + 1]) for i in range(IMAGES)])
    failed: list[object] = []
    loaded = threading.Event()

    def work() -> None:
        while not loaded.is_set():
            try:
                failed.extend(i for i in range(4) if not torch.equal(run(x[i : i + 1])[0], wanted[i]))
            except Exception as error:
                failed.append(error)

    loader = DataLoader(Scored(run), batch_size=4, num_workers=4, multiprocessing_context="fork", timeout=60)
    # Workers are forked before the threads start: torch's compiler has locks that a child would find taken.
    loading = iter(loader)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        scores = torch.cat(list(loading))
    finally:
        loaded.set()
        for worker in workers:
            worker.join()
    assert torch.equal(scores, wanted) and not failed


def train(net: nn.Module, batches: list[tuple[Tensor, Tensor]], run: Callable[[Tensor], Tensor]) -> None:
    """A few steps; run: calls the network."""
    step = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for x, labels in batches:
        step.zero_grad()
        F.cross_entropy(run(x), labels).backward()
        step.step()


def batches(rank: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Of each step the whole batch, or one process's equal share of it."""
    random = torch.Generator().manual_seed(1)
    whole = [
        (torch.randn(8, *SIZE, generator=random), torch.randint(0, 10, (8,), generator=random)) for _ in range(STEPS)
    ]
    return whole if rank is None else [(x[rank::PROCESSES], labels[rank::PROCESSES]) for x, labels in whole]


def without_statistics() -> nn.Module:
    """In training mode, its batch norms on running statistics: a process sees a part of the batch only."""
    net = ready("residual").train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


def one_of_several(rank: int, kind: str, folder: str) -> None:
    """What each process does: train on its share, and leave the weights in `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    net = without_statistics()
    distributed: Any = DistributedDataParallel(net)
    log = Log()
    log.open()
    if kind == "compiled":
        train(net, batches(rank), torch.compile(distributed, backend="hubel"))
    else:
        with hubel.enabled():
            train(net, batches(rank), distributed)
    log.close()
    assert log.native > 0 and log.fallback == 0
    torch.save(net.state_dict(), f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["enabled", "compiled"])
def test_two_processes_train_as_one_does(kind: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_of_several, args=(rank, kind, str(tmp_path))) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    net = without_statistics()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, batches(), net)  # torch's own convolutions, the whole batch
    for process in processes:
        process.join(240)
        process.kill()  # one whose partner failed would wait for it
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(PROCESSES))
    for name, wanted in net.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], wanted, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(first[name], value) for name, value in before.items())
