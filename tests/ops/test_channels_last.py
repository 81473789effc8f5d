"""Training graphs in channels-last memory: what is laid out anew, and what is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from hubel.ops import backend, channels_last

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Of every training graph how many tensors are laid out in channels-last memory."""
    found: list[int] = []

    def spy(graph: GraphModule) -> None:
        channels_last.lay_out_in_channels_last(graph)
        found.append(sum(node.kwargs.get("memory_format") == torch.channels_last for node in graph.graph.nodes))

    torch._dynamo.reset()
    monkeypatch.setattr(backend, "lay_out_in_channels_last", spy)
    yield found
    torch._dynamo.reset()


def layer(i: int, o: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(i, o, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Net(nn.Module):
    """A stem, and a residual of a depthwise and a plain layer; `between` and `end` are what tests put there."""

    def __init__(self, end: Callable[[Tensor], Any], between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.stem, self.body = layer(3, 16, 2), nn.Sequential(layer(16, 16, 1, 16), layer(16, 16))
        self.head = nn.Linear(16, 10)
        self.between, self.end = between, end

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.end(self.between(self.body(x) + x))


def classes(net: nn.Module) -> Callable[[Tensor], Tensor]:
    head: Any = net.head
    return lambda x: head(x.mean((2, 3)))


def made(end: Callable[[Tensor], Any] | None = None, between: Callable[[Tensor], Tensor] = lambda x: x) -> Net:
    torch.manual_seed(0)
    net = Net(lambda x: x, between)
    net.end = end or classes(net)
    return net


X = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def same_step(net: Net, x: Tensor = X) -> list[Tensor]:
    """That a step, compiled, gives what torch gives, in the same memory layout; the results."""
    twin = copy.deepcopy(net)
    if net.end.__name__ == "<lambda>" and net.end.__qualname__.startswith("classes"):
        twin.end = classes(twin)
    steps = []
    for run, own in ((torch.compile(net, backend="hubel"), net), (twin, twin)):
        results: Any = run(x)
        results = list(results) if isinstance(results, tuple) else [results]
        torch.stack(
            [(y.sin() * torch.linspace(0, 1, y.shape[-1], dtype=y.dtype)).sum() for y in results]
        ).sum().backward()
        steps.append([*results, *(p.grad for p in own.parameters() if p.grad is not None), *own.buffers()])
    assert len(steps[0]) == len(steps[1])
    for ours, theirs in zip(*steps, strict=True):
        assert (ours - theirs).double().norm() <= 1e-4 * theirs.double().norm() + 1e-5
    for ours, theirs in zip(*(step[:1] for step in steps), strict=True):
        assert ours.stride() == theirs.stride()
    for p in net.parameters():
        assert p.grad is None or p.grad.stride() == p.stride()
    return steps[0]


def test_a_chain_of_convolutions_takes_one_copy(laid_out: list[int]) -> None:
    same_step(made())
    assert laid_out == [1]


ENDS: dict[str, Callable[[Tensor], Any]] = {
    "images": lambda x: x,
    "pixels": lambda x: (x.flatten(2).transpose(1, 2) * 2).mean(1),
    "view": lambda x: F.relu(x.view(x.size(0), -1) * 2),
    "dropout of a view": lambda x: F.dropout(x.view(x.size(0), -1), 0.0, True),
    "pooled": lambda x: F.max_pool2d(x, 3, 2, 1),
    "joined": lambda x: torch.cat([x, x * torch.sigmoid(x.mean((2, 3), keepdim=True))], 1),
    "larger": lambda x: F.interpolate(x, scale_factor=2),
    "channels last for a norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2).contiguous(),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_that_mean_the_same(end: str, laid_out: list[int]) -> None:
    same_step(made(ENDS[end]))
    assert laid_out[0] >= 1


def test_results_lie_as_they_would(laid_out: list[int]) -> None:
    net = made(lambda x: (x.mean((2, 3)), x, x * 2))
    results = same_step(net)
    assert laid_out == [1]
    assert results[1].is_contiguous() and results[2].is_contiguous()


def shuffled(x: Tensor) -> Tensor:
    return x.view(x.size(0), 2, 8, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)


def written(x: Tensor) -> Tensor:
    x.flatten(1).relu_()  # writes to x itself, if it is a view
    return x


def half_written(x: Tensor) -> Tensor:
    x = x * 1.0
    x.transpose(2, 3).mul_(2.0)
    return x


def written_behind_a_copy(x: Tensor) -> Tensor:
    x = x * 1.0 - 0.5
    pixels = x.flatten(1)
    x.relu_()
    return x * pixels.mean(1)[:, None, None, None]


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "a view with more axes": shuffled,
    "a view that is written to": written,
    "a view whose tensor is written to": written_behind_a_copy,
    "an axis exchanged and written to": half_written,
    "memory that is read as it lies": lambda x: x.as_strided((4, 16, 10, 10), (1600, 100, 10, 1)) * 1.0,
    "an operator nobody knows": lambda x: torch.fft.rfft2(x).abs(),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_may_mean_something_else_is_left_as_it_is(between: str, laid_out: list[int]) -> None:
    same_step(made(between=BETWEEN[between]))
    assert laid_out == [0]


def test_arguments_may_be_named(laid_out: list[int]) -> None:
    weight = torch.randn(16, 16, 3, 3)
    same_step(made(between=lambda x: F.conv2d(input=x, weight=weight, padding=1)))
    same_step(made(lambda x: torch.flatten(input=x, start_dim=1)))
    assert len(laid_out) == 2


def test_results_that_do_not_lie_in_planes_leave_it_as_it_is(laid_out: list[int]) -> None:
    results = same_step(made(lambda x: x.permute(0, 2, 3, 1)))
    assert laid_out == [0]
    assert results[0].permute(0, 3, 1, 2).is_contiguous()


@pytest.mark.parametrize("which", ["channels last already", "float64", "few channels", "no gradient"])
def test_where_nothing_is_gained_it_is_left_as_it_is(which: str, laid_out: list[int]) -> None:
    net, x = made(), X
    if which == "channels last already":
        net, x = net.to(memory_format=torch.channels_last), X.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.end = classes(net)
    elif which == "float64":
        net, x = net.double(), X.double()
        net.end = classes(net)
    elif which == "few channels":
        net.stem, net.body, net.head = layer(3, 4, 2), nn.Sequential(layer(4, 4, 1, 4), layer(4, 4)), nn.Linear(4, 10)
        net.end = classes(net)
    if which == "no gradient":
        with torch.no_grad():
            torch.compile(net, backend="hubel")(x)
        assert laid_out == []
    else:
        same_step(net, x)
        assert laid_out == [0]


def test_sizes_stay_free(laid_out: list[int]) -> None:
    net = made()
    twin = copy.deepcopy(net)
    twin.end = classes(twin)
    compiled = torch.compile(net, backend="hubel", dynamic=True)
    graphs = []
    for batch, size in ((4, 20), (3, 28), (5, 20), (2, 14)):
        x = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(compiled(x), twin(x), rtol=1e-3, atol=1e-4)
        graphs.append(len(laid_out))
    assert set(laid_out) == {1}
    assert len(set(graphs)) == 1
