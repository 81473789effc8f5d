"""torch.compile(backend="hubel"): same numbers, forward and backward, and it is Hubel's kernels that compute them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import hubel
from hubel.errors import HubelError, UnknownNameError
from hubel.ops import backend, compiled
from hubel.ops.log import Log
from tests.ops.nets import NETS, ready

# torch's own compiler warns about its internals; none of it is about our backend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextmanager
def logged() -> Iterator[Log]:
    log = Log()
    log.open()
    try:
        yield log
    finally:
        log.close()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(torch.relu(self.norm(self.conv(x))))).mean((2, 3))


def test_inference_is_the_networks_own_and_native() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(2, 3, 9, 9)
    compiled = torch.compile(net, backend="hubel", fullgraph=True)
    with torch.no_grad():
        expected = net(x)
        compiled(x)
        with logged() as log:
            torch.testing.assert_close(compiled(x), expected)
    assert (log.native, log.fallback) == (3, 0)


def test_training_gives_the_same_gradients_on_our_kernels() -> None:
    torch.manual_seed(0)
    net, x, target = Net(), torch.randn(2, 3, 9, 9), torch.tensor([0, 1])
    twin = Net()
    twin.load_state_dict(net.state_dict())
    compiled = torch.compile(twin, backend="hubel", fullgraph=True)
    nn.functional.cross_entropy(net(x), target).backward()
    with logged() as log:
        nn.functional.cross_entropy(compiled(x), target).backward()
    assert (log.native, log.fallback) == (6, 0)
    for (name, ours), theirs in zip(twin.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(twin.norm.running_mean, net.norm.running_mean)


def test_weights_may_change_between_calls() -> None:
    net, x = Net().eval(), torch.randn(1, 3, 6, 6)
    compiled = torch.compile(net, backend="hubel")
    with torch.no_grad():
        compiled(x)
        for parameter in net.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(compiled(x), net(x))


def test_other_batch_and_image_sizes() -> None:
    net = Net().eval()
    compiled = torch.compile(net, backend="hubel", dynamic=True)
    with torch.no_grad():
        for shape in ((1, 3, 6, 6), (2, 3, 7, 5), (3, 3, 11, 8)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), net(x))


def test_other_dtypes_run_too() -> None:
    net, x = Net().double().eval(), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, backend="hubel")(x), net(x))


def test_the_name_is_registered() -> None:
    assert "hubel" in torch._dynamo.list_backends()


def test_unknown_options_and_modes_are_errors() -> None:
    graph = torch.fx.symbolic_trace(Net().eval())
    with pytest.raises(UnknownNameError, match='unknown option of the backend "hubel" "fused". Did you mean "fuse"'):
        backend.hubel(graph, [torch.zeros(1, 3, 6, 6)], options={"fused": True})
    with pytest.raises(HubelError, match='the option "fuse" is True or False. Received: 1'):
        backend.hubel(graph, [torch.zeros(1, 3, 6, 6)], options={"fuse": 1})
    with pytest.raises(UnknownNameError, match='unknown mode of the backend "hubel" "max-autotune"'):
        backend.hubel(graph, [torch.zeros(1, 3, 6, 6)], mode="max-autotune")


X = torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(0))


@contextmanager
def ran() -> Iterator[list[compiled.Compiled]]:
    """The networks of ours that ran."""
    found: list[compiled.Compiled] = []

    def note(network: compiled.Compiled, tensors: list[torch.Tensor]) -> None:
        found.append(network)

    compiled.listeners.append(note)
    try:
        yield found
    finally:
        compiled.listeners.remove(note)


def check(net: nn.Module, fused: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted, found = copy.deepcopy(net).double()(x.double()), fused(x)
    for a, b in zip(*(v.values() if isinstance(v, dict) else [v] for v in (found, wanted)), strict=True):
        assert a.dim() != 4 or a.stride() == b.stride()
        assert (a - b).norm() <= 3e-6 * b.norm()


@pytest.mark.parametrize("name", NETS)
def test_inference_graphs_are_fused(name: str) -> None:
    net = ready(name)
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    with ran() as networks:
        check(net, fused, X[:1])
        check(net, fused, X)
    assert len(networks) == 2
    ops = {node.op for node in networks[0].network.graph.nodes}
    assert "batch_norm" not in ops and ("affine" in ops) == (name == "branches")
    assert ("torch" in ops) == (name in ("tokens", "folded"))


class Rows(nn.Module):
    """A block as in ConvNeXt: layer norm and linear layers over the channels of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.randn(16, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.norm(self.conv(x).permute(0, 2, 3, 1))
        rows = self.narrow(torch.nn.functional.gelu(self.wide(rows)))
        return x + self.scale * rows.permute(0, 3, 1, 2)


def test_linear_layers_over_pixels_take_their_ends_and_nothing_runs_on_torch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), Rows(), Rows()).eval()
    call = torch.compile(net, backend="hubel", fullgraph=True)
    with torch.no_grad():
        for x in (torch.randn(1, 3, 18, 14), torch.randn(3, 3, 10, 12)):
            with ran() as networks:
                check(net, call, x)
            ops = [node.op for node in networks[-1].network.graph.nodes]
            assert "torch" not in ops and "activation" not in ops and "binary" not in ops


def test_weights_that_change_are_folded_anew() -> None:
    net = ready("residual")
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    check(net, fused, X)
    step = torch.optim.SGD(net.parameters(), 0.01, fused=True)
    net(X).square().mean().backward()
    step.step()
    with ran() as networks:
        check(net, fused, X)
    net.load_state_dict(ready("residual", seed=5).state_dict())
    check(net, fused, X)
    net.stem[0].weight.data.mul_(2)  # type: ignore[index,union-attr]
    check(net, fused, X)
    net.fc.bias.data.numpy()[:] = 7  # type: ignore[union-attr]
    check(net, fused, X)
    # And only then.
    before = networks[0].network
    check(net, fused, X)
    assert networks[0].network is before


def test_any_batch_and_size_without_a_kernel_more() -> None:
    """Each machine has its own sizes from which another algorithm is the cheaper one; after those, nothing is new."""
    net = ready("inverted")
    fused = torch.compile(net, backend="hubel", fullgraph=True, dynamic=True)
    for batch, height, width in ((3, 32, 40), (3, 30, 30), (1, 28, 31)):
        check(net, fused, X[:batch, :, :height, :width].contiguous())
    before = hubel.cache_info().compiled
    for batch, height, width in ((2, 32, 40), (2, 31, 40), (3, 31, 31), (3, 29, 30), (2, 28, 30), (1, 27, 31)):
        check(net, fused, X[:batch, :, :height, :width].contiguous())
    assert hubel.cache_info().compiled == before


def test_channels_last_networks_keep_their_strides() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    with ran() as networks:
        check(net, fused, X.to(memory_format=torch.channels_last))
        check(net, fused, X.to(memory_format=torch.channels_last))
    # Their weights are watched as any others are.
    assert len(networks) == 2
    assert networks[0].network is networks[1].network


class Odd(nn.Module):
    """What a wrapper around a graph may be for: results that are views, inputs that are written to or returned."""

    seen: torch.Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 3, bias=False), kind
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        if self.kind == "view of the input":
            return y, x[:, :1]
        if self.kind == "the input":
            return x, y
        if self.kind == "two views":
            return y[:, :2], y[:, 2:]
        if self.kind == "an input is written to":
            x.mul_(2)
        if self.kind == "a buffer is written to":
            self.seen.add_(1)
        return torch.relu(y)


@pytest.mark.parametrize(
    "kind",
    ["plain", "view of the input", "the input", "two views", "an input is written to", "a buffer is written to"],
)
def test_only_plain_graphs_are_called_without_torchs_wrapper(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct, directly = [], backend._directly

    def spy(*given: Any) -> Any:
        direct.append(given)
        return directly(*given)

    monkeypatch.setattr(backend, "_directly", spy)
    net = Odd(kind).eval()
    twin, compiled = copy.deepcopy(net), torch.compile(net, backend="hubel", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(2, 3, 8, 8)
            other = x.clone()
            ours, theirs = compiled(x), twin(other)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(x, other, rtol=0, atol=0)
            assert net.seen == twin.seen
    assert bool(direct) == (kind in ("plain", "the input", "two views"))


def test_under_autocast_what_was_captured_is_not_cast_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.Softmax(1)).eval()
    compiled = torch.compile(net, backend="hubel")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = compiled(x), net(x)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("train", [False, True])
def test_switched_off_everything_is_torchs(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBEL_DISABLE", "1")
    net = ready("residual").train(train)
    x = X.clone().requires_grad_(train)
    with logged() as log, ran() as networks, torch.set_grad_enabled(train):
        y = torch.compile(net, backend="hubel", fullgraph=True)(x)
        if train:
            y.square().mean().backward()
    assert (log.native, networks) == (0, [])
    assert torch.isfinite(y).all()


def test_an_input_in_another_layout_is_fused_too() -> None:
    """torch then passes the strides that have differed as numbers, which nothing reads."""
    net = ready("residual")
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    with ran() as networks:
        check(net, fused, X[:1])
        check(net, fused, X[:1].to(memory_format=torch.channels_last))
    assert len(networks) == 2


def test_what_a_call_computes_as_weights_is_hubels_too() -> None:
    net = nn.Conv2d(3, 4, 3)
    fused = torch.compile(lambda x, w: torch.relu(net(x)) + torch.nn.functional.conv2d(x, w), backend="hubel")
    w = torch.randn(4, 3, 3, 3)
    with torch.no_grad():
        fused(X, w)
        with logged() as log:
            found = fused(X, w * 2)
        torch.testing.assert_close(
            found, torch.relu(net(X)) + torch.nn.functional.conv2d(X, w * 2), rtol=1e-4, atol=1e-4
        )
    assert (log.native, log.fallback) == (2, 0)


def test_unfused_it_is_torch_between_the_convolutions() -> None:
    net = ready("residual")
    unfused = torch.compile(net, backend="hubel", fullgraph=True, options={"fuse": False})
    with ran() as networks:
        check(net, unfused, X)
    assert not networks


def test_the_accuracy_that_holds_is_the_networks() -> None:
    net = ready("residual")
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    with ran() as networks:
        check(net, fused, X)
        hubel.set_accuracy("strict")
        try:
            check(net, fused, X)
            assert networks[0].network.policy.accuracy == "strict"
        finally:
            hubel.set_accuracy("default")
        check(net, fused, X)
    assert networks[0].network.policy.accuracy == "default"


def test_threads_call_a_compiled_network_at_once_while_weights_change() -> None:
    conv = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(conv, nn.ReLU()).eval()
    fused = torch.compile(net, backend="hubel", fullgraph=True)
    ones = torch.ones(1, 3, 8, 8)
    wrong: list[float] = []
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            conv.weight.fill_(value)
            assert conv.bias is not None
            conv.bias.zero_()
            fused(ones)
            conv.weight.fill_(value + 0.5)

        def work(value: float = value) -> None:
            with torch.no_grad():
                for _ in range(10):
                    found = fused(ones)
                    if (found - 27 * (value + 0.5)).abs().max() > 1e-2:
                        wrong.append(value)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong
