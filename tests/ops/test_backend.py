"""torch.compile(backend="hubel"): same numbers, forward and backward, and it is Hubel's kernels that compute them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from hubel.errors import UnknownNameError
from hubel.ops import backend
from hubel.ops.log import Log

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
    with pytest.raises(UnknownNameError, match='unknown option of the backend "hubel" "fuse"'):
        backend.hubel(graph, [torch.zeros(1, 3, 6, 6)], options={"fuse": True})
    with pytest.raises(UnknownNameError, match='unknown mode of the backend "hubel" "max-autotune"'):
        backend.hubel(graph, [torch.zeros(1, 3, 6, 6)], mode="max-autotune")
