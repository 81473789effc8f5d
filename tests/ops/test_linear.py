"""Fully connected layers of training graphs: torch's products by how their operands lie."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hubel
from hubel.ops import linear
from hubel.ops.linear import MOST_ROWS, product

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were asked for."""
    found: list[str] = []
    prepared = linear._prepared

    def spy(make: Any, *sizes: int) -> Any:
        found.append(make.__name__)
        return prepared(make, *sizes)

    monkeypatch.setattr(linear, "_prepared", spy)
    return found


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_product_is_known_by_how_its_operands_lie(made: list[str]) -> None:
    x, w, bias, dy = torch.randn(6, 130), torch.randn(70, 130), torch.randn(70), torch.randn(6, 70)
    close(product(x, w.t(), bias), torch.addmm(bias, x, w.t()))
    close(product(x, w.t()), x @ w.t())
    close(product(dy, w), dy @ w)
    close(product(dy.t(), x), dy.t() @ x)
    assert made == ["dense_outputs", "dense_outputs", "dense_input_gradient", "dense_weight_gradient"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(6, 130).double(), torch.randn(130, 70).double()),
        (torch.randn(6, 130).bfloat16(), torch.randn(130, 70).bfloat16()),
        (torch.randn(MOST_ROWS + 1, 130), torch.randn(70, 130).t()),
        (torch.randn(6, 260)[:, ::2], torch.randn(70, 130).t()),
        (torch.randn(6, 130), torch.randn(130, 140)[:, ::2]),
        (torch.randn(6, 4), torch.randn(4, 5)),
        (torch.randn(0, 130), torch.randn(130, 70)),
        (torch.randn(6, 0), torch.randn(0, 70)),
    ],
    ids=["float64", "bfloat16", "many rows", "a with gaps", "b with gaps", "tiny", "no rows", "no terms"],
)
def test_the_rest_is_torchs(a: Tensor, b: Tensor, made: list[str]) -> None:
    assert torch.equal(product(a, b), torch.mm(a, b))
    bias = torch.randn(b.shape[1]).to(b.dtype)
    assert torch.equal(product(a, b, bias), torch.addmm(bias, a, b))
    assert made == []


def test_a_bias_of_another_shape_is_torchs(made: list[str]) -> None:
    x, w, bias = torch.randn(6, 130), torch.randn(70, 130), torch.randn(6, 70)
    close(product(x, w.t(), bias), torch.addmm(bias, x, w.t()))
    assert made == []


def test_under_strict_all_is_torchs(made: list[str]) -> None:
    hubel.set_accuracy("strict")
    try:
        dy, w = torch.randn(6, 4096), torch.randn(4096, 130)
        assert torch.equal(product(dy, w), torch.mm(dy, w))
    finally:
        hubel.set_accuracy("default")
    assert made == []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 1024), nn.Linear(1024, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.hidden(self.conv(x).flatten(1))))


def gradients(run: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    run(x).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def test_training_agrees_with_torch(made: list[str]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="hubel", fullgraph=True)
    for batch in (4, 4, 7):
        x = torch.randn(batch, 3, 8, 8)
        for ours, theirs in zip(gradients(compiled, net, x), gradients(twin, twin, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    # Two layers of two sizes: a step that comes again runs what was prepared for the first.
    assert all(made.count(kernel) >= 4 for kernel in ("dense_outputs", "dense_weight_gradient"))
    torch._dynamo.reset()
