"""Batch norms of training graphs with their activations, against float64 and against torch's operators."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel.engine.machine import Machine
from hubel.ops import backend, batch_norm

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
LAST = torch.channels_last
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, "relu": F.relu, "relu6": F.relu6}
LANES = Machine.detect().lanes
SIZES = [(2, LANES, 5, 4), (3, 37 + LANES, 9, 9), (2, 130, 1, 3), (16, 96, 32, 32), (4, 2048, 7, 7)]


def given(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    """x and dy in channels-last memory, weight, bias, running mean and variance. x's mean is far from 0."""
    torch.manual_seed(seed)
    x, dy = (torch.randn(shape).contiguous(memory_format=LAST) for _ in range(2))
    channels = shape[1]
    return (
        2 * x + 30,
        dy,
        torch.rand(channels) + 0.5,
        torch.randn(channels),
        torch.randn(channels),
        torch.rand(channels),
    )


def close(ours: Tensor, exact: Tensor, most: float = 2e-6) -> None:
    exact = exact.detach()
    assert (ours.double() - exact).norm() <= most * exact.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_against_float64(shape: tuple[int, ...], activation: str) -> None:
    x, dy, w, b, mean, variance = given(shape)
    y, batch_mean, spread, next_mean, next_variance = batch_norm.batch_norm(
        x, w, b, mean, variance, 0.1, 1e-5, activation
    )
    assert y.stride() == x.stride()
    xd, wd, bd = (t.double().requires_grad_() for t in (x, w, b))
    running = mean.double(), variance.double()
    exact = ACTIVATIONS[activation](F.batch_norm(xd, *running, wd, bd, True, 0.1, 1e-5))
    # x is 15 standard deviations away from 0, which its float32 digits are counted from.
    close(y, exact, 1e-5)
    close(batch_mean, x.double().mean((0, 2, 3)))
    close(next_mean, running[0])
    close(next_variance, running[1])
    # A clipped number that lies at a bound in float32 may lie beside it in float64: the gradient there is another.
    stops = {"": False, "relu": y <= 0, "relu6": (y <= 0) | (y >= 6)}[activation]
    passed = dy.masked_fill(torch.as_tensor(stops), 0).double()
    torch.autograd.backward(F.batch_norm(xd, None, None, wd, bd, True, 0.1, 1e-5), passed)
    dx, dw, db = batch_norm.batch_norm_backward(
        dy, x, w, batch_mean, spread, y if activation else None, activation, 1e-5
    )
    assert dx.stride() == x.stride()
    for ours, leaf in ((dx, xd), (dw, wd), (db, bd)):
        assert leaf.grad is not None
        close(ours, leaf.grad, 1e-4)


def test_the_same_bits_on_any_number_of_threads() -> None:
    x, dy, w, b, mean, variance = given((8, 72, 31, 33))

    def both() -> list[Tensor]:
        y, *found = batch_norm.batch_norm(x, w, b, mean, variance, 0.1, 1e-5, "relu")
        return [y, *found, *batch_norm.batch_norm_backward(dy, x, w, found[0], found[1], y, "relu", 1e-5)]

    threads, first = torch.get_num_threads(), both()
    try:
        torch.set_num_threads(1)
        for one, other in zip(first, both(), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensors_that_lie_otherwise_are_torchs(activation: str) -> None:
    x, dy, w, b, mean, variance = given((2, 40, 6, 5))
    planes = x.contiguous()
    ours = batch_norm.batch_norm(x, w, b, mean, variance, 0.1, 1e-5, activation)
    theirs = batch_norm.batch_norm(planes, w, b, mean, variance, 0.1, 1e-5, activation)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    y = ours[0] if activation else None
    for one, other in zip(
        batch_norm.batch_norm_backward(dy, x, w, ours[1], ours[2], y, activation, 1e-5),
        batch_norm.batch_norm_backward(dy.contiguous(), planes, w, ours[1], ours[2], y, activation, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_nan_stays_nan() -> None:
    x, _, w, b, mean, variance = given((2, LANES, 4, 4))
    x[1, 3, 2, 2] = float("nan")
    y, *_ = batch_norm.batch_norm(x, w, b, mean, variance, 0.1, 1e-5, "relu6")
    assert y[:, 3].isnan().all() and not y[:, :3].isnan().any()


class Net(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module], shows: bool, affine: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40, affine=affine)
        self.activation, self.shows = activation(), shows
        self.last = nn.Sequential(nn.Conv2d(40, 24, 1, bias=False), nn.BatchNorm2d(24))

    def forward(self, x: Tensor) -> Any:
        normed = self.norm(self.conv(x))
        y = self.last(self.activation(normed))
        return (y, normed) if self.shows else y


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple]]]:
    """The arguments of ours in every graph that is compiled."""
    found: list[list[tuple]] = []

    def spy(graph: Any) -> None:
        batch_norm.fuse_batch_norms(graph)
        ours = (batch_norm.batch_norm, batch_norm.batch_norm_backward)
        found.append([node.args for node in graph.nodes if node.target in ours])

    torch._dynamo.reset()
    monkeypatch.setattr(backend, "fuse_batch_norms", spy)
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize("shows", [False, True])
@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU, "relu"),
        (nn.ReLU6, "relu6"),
        (lambda: nn.ReLU6(inplace=True), "relu6"),
        (lambda: nn.ReLU(inplace=True), "relu"),
        (lambda: nn.Hardtanh(-1, 1), ""),
        (nn.SiLU, ""),
    ],
    ids=["relu", "relu6", "relu6 in place", "relu in place", "hardtanh", "silu"],
)
def test_training_graphs(activation: Callable[[], nn.Module], name: str, shows: bool, graphs: list) -> None:
    torch.manual_seed(0)
    net: Any = Net(activation, shows)
    net = net.to(memory_format=LAST)
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 12, 12).contiguous(memory_format=LAST)
    _same_step(net, twin, x)
    forward, backward = graphs
    # Where the network also returns what comes before the activation, that cannot be left out.
    alone = "" if shows and not getattr(net.activation, "inplace", False) else name
    assert [args[-1] for args in forward] == [alone, ""]
    assert len(backward) == 2


class BeforeAMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 2 * LANES, 3), nn.BatchNorm2d(2 * LANES), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x))).mean((2, 3))


def test_a_gradient_in_planes_is_copied(graphs: list) -> None:
    """The gradient of a mean over the image."""
    torch.manual_seed(0)
    ours = BeforeAMean().to(memory_format=LAST)  # type: ignore[call-overload]
    theirs, x = copy.deepcopy(ours), torch.randn(4, 3, 9, 9).contiguous(memory_format=LAST)
    for run in (torch.compile(ours, backend="hubel"), theirs):
        run(x).square().sum().backward()
    _, ((given, *_, activation, _),) = graphs
    assert given.target is torch.ops.aten.clone.default
    assert activation == "relu6"
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_without_weights_it_is_torchs(graphs: list) -> None:
    torch.manual_seed(0)
    net: Any = Net(nn.ReLU, False, affine=False)
    net = net.to(memory_format=LAST)
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 12, 12).contiguous(memory_format=LAST)
    _same_step(net, twin, x)
    assert [len(found) for found in graphs] == [1, 1]


def test_a_norm_whose_output_nobody_reads_still_counts(graphs: list) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.norm(y)
            return y

    net: Any = Counts().to(memory_format=LAST)  # type: ignore[call-overload]
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 12, 12).contiguous(memory_format=LAST)
    torch.compile(net, backend="hubel", fullgraph=True)(x).sum().backward()
    twin(x).sum().backward()
    torch.testing.assert_close(net.norm.running_mean, twin.norm.running_mean)
    torch.testing.assert_close(net.norm.running_var, twin.norm.running_var)


def _same_step(net: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """That a step of the one, compiled, gives what a step of the other gives."""
    fused: Any = torch.compile(net, backend="hubel", fullgraph=True)
    for one, exact in zip(_step(fused, net, x), _step(twin, twin, x), strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-3, atol=1e-4)


def _step(run: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and running statistics."""
    results = run(x)
    results = results if isinstance(results, tuple) else (results,)
    torch.stack([(y.sin() * torch.linspace(0, 1, y.shape[-1])).sum() for y in results]).sum().backward()
    grads = [p.grad for n, p in net.named_parameters() if p.grad is not None and n != "conv.bias"]
    return [*results, *grads, *net.buffers()]
