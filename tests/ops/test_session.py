"""`hubel.Session`: the numbers of the network, for every size, thread and kind of input; what it keeps, and refuses."""

from __future__ import annotations

import copy
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hubel
from hubel.errors import ModelError, UnknownNameError
from hubel.ops.session import Session
from tests.ops.nets import NETS, ready

X = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 32, 40)).astype(np.float32))
_sessions: dict[str, tuple[nn.Module, Session]] = {}


def session(name: str) -> tuple[nn.Module, Session]:
    """One capture of each network serves all tests that do not change it."""
    if name not in _sessions:
        net = ready(name)
        _sessions[name] = net, Session(net, X[:1])
    return _sessions[name]


def close(found: Any, wanted: Any, tolerance: float = 3e-6) -> None:
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            close(found[key], wanted[key], tolerance)
        return
    assert found.shape == wanted.shape
    assert (found.double() - wanted).norm() <= tolerance * wanted.norm()


def exact(net: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double())


@pytest.mark.parametrize("name", NETS)
def test_a_session_gives_what_the_network_gives(name: str) -> None:
    net, run = session(name)
    for x in (X[:1], X, X[:2, :, :28, :36].clone(), X[:1]):
        if name == "tokens":
            x = X[: len(x)]  # a fixed number of patches would not have to be: torch decides
        close(run(x), exact(net, x))


def test_what_is_fused() -> None:
    _, run = session("residual")
    assert [node.op for node in run.graph.nodes] == [
        "conv", "pool", "conv", "conv", "conv", "conv", "conv", "conv", "adaptive_pool", "flatten", "linear",
    ]  # fmt: skip
    assert sum(bool(node.operand(3)) for node in run.graph.nodes) == 2
    assert "torch" not in {node.op for name in ("inverted", "branches") for node in session(name)[1].graph.nodes}
    foreign = [node["target"] for node in session("tokens")[1].graph.nodes if node.op == "torch"]
    assert "aten.scaled_dot_product_attention.default" in foreign


def test_layers_of_our_own_are_convolutions_too(tmp_path: Path) -> None:
    net = hubel.nn.swap(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)).eval())
    run = Session(net, X[:1])
    assert [node.op for node in run.graph.nodes] == ["conv", "conv"]
    with torch.no_grad():
        close(run(X), net(X).double())
    run.save(tmp_path / "net.hubel")
    assert torch.equal(Session.load(tmp_path / "net.hubel")(X), run(X))


def test_numpy_in_numpy_out() -> None:
    net, run = session("branches")
    found = run(X.numpy()[:, :, ::-1])
    assert all(isinstance(value, np.ndarray) for value in found.values())
    close({key: torch.from_numpy(value) for key, value in found.items()}, exact(net, X.flip(2)))


def test_any_strides_of_the_input() -> None:
    net, run = session("residual")
    for x in (X.to(memory_format=torch.channels_last), X[:, :, ::2], X[:1].expand(2, -1, -1, -1)):
        close(run(x), exact(net, x))


def test_an_answer_is_the_callers() -> None:
    _, run = session("residual")
    first = run(X[:1])
    kept = first.clone()
    run(X[1:2])
    assert torch.equal(first, kept)


def test_sizes_and_batches_compile_nothing_new() -> None:
    _, run = session("residual")
    run(X[:1])
    before = hubel.cache_info().compiled
    for n in (1, 2, 3):
        for size in (30, 31, 32):
            run(torch.zeros(n, 3, size, 40))
    assert hubel.cache_info().compiled == before


def test_threads_run_at_once() -> None:
    _, run = session("inverted")
    wanted = [run(X[i : i + 1]) for i in range(3)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not torch.equal(run(X[i : i + 1]), wanted[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_it_is_frozen_until_refreshed() -> None:
    net = ready("inverted", seed=3)
    run = Session(net, X[:1])
    before = run(X)
    net.requires_grad_(True).train()
    step = torch.optim.SGD(net.parameters(), 0.1)
    net(X).square().sum().backward()
    step.step()
    net.eval()
    assert torch.equal(run(X), before)
    # A size that was never planned has the frozen weights too.
    close(run(X[:, :, :24]), exact(ready("inverted", seed=3), X[:, :, :24]))
    assert run.refresh() is run
    close(run(X), exact(net, X))
    assert not torch.allclose(run(X), before)


def test_the_network_is_left_as_it_was() -> None:
    net = ready("residual").train()
    net.blocks.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    Session(net, X[:1])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_small_session_keeps_one_size_and_gives_the_same() -> None:
    net, run = session("residual")
    small = Session(net, X[:1], memory="small")
    for x in (X, X[:1], X[:, :, :20]):
        assert torch.equal(small(x), run(x))
    assert len(small._calls.known) == 1
    network = small._calls.network
    gc.collect()
    assert list(network._kept.values()) == [network.weights]


def test_a_small_session_is_frozen_and_saves_what_it_runs(tmp_path: Path) -> None:
    net = ready("residual", seed=5)
    small = Session(net, X[:1], memory="small")
    wanted = small(X)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(small(X[:, :, :20]), Session(ready("residual", seed=5), X[:1])(X[:, :, :20]))
    small.save(tmp_path / "net.hubel")
    loaded = Session.load(tmp_path / "net.hubel", memory="small")
    loaded(X[:1])
    loaded.save(tmp_path / "again.hubel")
    assert torch.equal(loaded(X), wanted)
    assert (tmp_path / "again.hubel").read_bytes() == (tmp_path / "net.hubel").read_bytes()


class Choosy(nn.Module):
    """What it does with an image is decided by its width, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.conv(x) if x.shape[3] > 40 else self.conv(x)


def test_sizes_that_the_networks_code_decides_by_are_fixed() -> None:
    net = Choosy().eval()
    run = Session(net, X[:1, :, :, :32])
    close(run(X[..., :32]), exact(net, X[..., :32]))
    wide = torch.zeros(1, 3, 32, 64)
    with pytest.raises(ModelError, match=r"Received: \[1, 3, 32, 64\] for x: float32\[\?, 3, 32, 32\]"):
        run(wide)


class Weird(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda run: run(X, X), "takes 1 inputs. Received: 2"),
        (lambda run: run(X.double()), "input x is float32.*Received: torch.float64"),
        (lambda run: run(X[:, :2]), r"Received: \[3, 2, 32, 40\] for x"),
        (lambda run: run([1.0]), "takes tensors or numpy arrays. Received: list"),
        (lambda run: Session(Weird(), X), "torch.export can capture.*Received: Weird"),
        (lambda run: Session(lambda x: x, X), "made of a torch.nn.Module. Received: function"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(use: Any, message: str) -> None:
    _, run = session("residual")
    with pytest.raises(ModelError, match=message):
        use(run)


def test_memory_is_one_of_two() -> None:
    with pytest.raises(UnknownNameError, match='unknown memory of a Session "tiny"'):
        Session(ready("residual"), X, memory="tiny")  # type: ignore[arg-type]


def test_a_refreshed_network_has_the_same_shapes() -> None:
    net = ready("residual")
    run = Session(net, X[:1])
    net.fc = nn.Linear(16, 11)  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"Received: fc.weight of shape \(11, 16\), captured as \(10, 16\)"):
        run.refresh()
