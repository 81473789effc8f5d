"""Training graphs write in place where nobody can tell: the same bits, and what leaves the graph is left alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubel.engine.between.batch_norm import fits
from hubel.ops import backend, in_place
from hubel.ops.max_pool import max_pool2d_with_indices

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
CHANNELS = 8
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Every operator that may write in place, a sum whose second term is the last read, and both kinds of outputs."""

    def __init__(self, activation: nn.Module, shows: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS))
        self.activation, self.shows = activation, shows
        self.body = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Any:
        normed = self.stem(x)
        y = self.activation(normed)
        y = self.pool(self.activation(self.body(y) + y))
        return (y, normed) if self.shows else y


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The in-place operators of every graph that was compiled."""
    found: list[list[str]] = []

    def spy(graph: Any) -> None:
        in_place.write_in_place(graph)
        found.append([str(n.target) for n in graph.nodes if "_." in str(n.target) or "grad_input" in str(n.target)])

    torch._dynamo.reset()
    monkeypatch.setattr(backend, "write_in_place", spy)
    yield found
    torch._dynamo.reset()


def step(net: nn.Module, layout: torch.memory_format) -> list[Tensor]:
    """Outputs, gradients and statistics of one step."""
    net = copy.deepcopy(net).to(memory_format=layout)  # type: ignore[call-overload]
    x = X.clone().contiguous(memory_format=layout).requires_grad_()
    results: Any = torch.compile(net, backend="hubel", fullgraph=True)(x)
    results = results if isinstance(results, tuple) else (results,)
    torch.stack([(y * y).sum() for y in results]).sum().backward()
    return [*results, x.grad, *(p.grad for p in net.parameters()), *net.buffers()]  # type: ignore[list-item]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("shows", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()], ids=["relu", "relu6"])
def test_the_same_bits(
    activation: nn.Module, shows: bool, layout: torch.memory_format, written: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = Net(activation, shows)
    # What comes in planes stays there.
    monkeypatch.setattr(backend, "lay_out_in_channels_last", lambda _: None)
    ours = step(net, layout)
    (forward, backward) = written
    name = "relu_" if isinstance(activation, nn.ReLU) else "hardtanh_"
    # What is returned is not written over: then the first activation has memory of its own. Batch norms of
    # channels-last tensors do it on the way, where the channels fill a vector.
    apart = not shows and not (layout is torch.channels_last and fits(CHANNELS))
    assert [op.split(".")[1] for op in forward] == [name] * apart + ["add_", name]
    assert "aten.add_.Tensor" in backward and any("grad_input" in op for op in backward)
    torch._dynamo.reset()
    monkeypatch.setattr(backend, "write_in_place", lambda *_: None)
    for a, b in zip(ours, step(net, layout), strict=True):
        assert torch.equal(a, b)


def test_what_others_read_too_is_left_alone(written: list) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(y) + y.view(-1).mean() + (y + y)

    net = Both()
    twin = copy.deepcopy(net)
    torch.compile(net, backend="hubel", fullgraph=True)(X).mean().backward()
    twin(X).mean().backward()
    torch.testing.assert_close(net.conv.weight.grad, twin.conv.weight.grad)
    assert "aten.relu_.default" not in written[0]


def test_a_users_own_tensors_are_never_written(written: list) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + self.conv(x)

    x = X.clone()
    with torch.no_grad():
        torch.compile(Sum(), backend="hubel", options={"fuse": False})(x)
    assert torch.equal(x, X)
    assert written == [["aten.add_.Tensor"]], "relu(x) has memory of its own; the sum may take it"


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 17, 9, 8), (17, 9, 8)], ids=str)
@pytest.mark.parametrize("how", [((2, 2),), ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1), True)], ids=str)
def test_max_pooling_is_torchs(shape: tuple[int, ...], how: tuple) -> None:
    torch.manual_seed(0)
    # Equal numbers: the first of them counts.
    x = torch.randint(-3, 3, shape).float()
    for given in (
        x,
        x.flip(-1).transpose(-1, -2),
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    ):
        for ours, theirs in zip(
            max_pool2d_with_indices(given, *how), torch.ops.aten.max_pool2d_with_indices(given, *how), strict=True
        ):
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
