"""The zoo as whole networks: what torch.compile and a Session make of each is the network, saved and loaded too."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hubel.ops.session import Session
from hubel.zoo import ZOO
from tests.zoo.test_enabled import GRADIENTS, TIMES, TOLERANCE, apart, built, other, smooth, step
from tests.zoo.test_zoo import examples, small, tensors

# One of each kind of network, and what is captured in a second or two.
FAST = ("lenet5", "ds_cnn", "dcgan_generator", "crnn")
# A size of 1 torch takes for a constant, in maps too: images that are to be free are captured larger.
EXAMPLES = {"dcgan_generator": (2, 2), "alexnet": (97, 75)}
NETWORKS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]


@pytest.fixture(autouse=True)
def memory_goes_back() -> Iterator[None]:
    """What torch keeps compiled holds a network, its packed weights and what its steps keep: gigabytes of a VGG."""
    yield
    torch._dynamo.reset()
    gc.collect()


def compiled(net: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(net, backend="hubel", fullgraph=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_session_is_the_network_and_so_is_its_file(name: str, tmp_path: Path) -> None:
    net = built(name).eval()
    run = Session(net, examples(name, EXAMPLES[name], 1) if name in EXAMPLES else small(name, 1))
    path = tmp_path / "net.hubel"
    run.save(path)
    loaded = Session.load(path)
    with torch.no_grad():
        for x in (small(name, 1), small(name, 3), other(name, 2)):
            ours = run(x)
            check(ours, net, x, TOLERANCE)
            again = tensors(loaded(x))
            assert all(torch.equal(a, b) for a, b in zip(again, tensors(ours), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_is_the_network(name: str) -> None:
    net = built(name).eval()
    run = compiled(net)
    with torch.no_grad():
        for x in (small(name, 1), small(name, 3), other(name, 2)):
            check(run(x), net, x, TOLERANCE)


def check(ours: Any, net: nn.Module, x: torch.Tensor, tolerance: float) -> None:
    """Finite, of the right shape, and as near to float64 as torch's own float32, or the tolerance."""
    theirs, exact = net(x), copy.deepcopy(net).double()(x.double())
    assert [y.shape for y in tensors(ours)] == [y.shape for y in tensors(theirs)]
    assert all(y.isfinite().all() for y in tensors(ours))
    assert apart(ours, exact) < max(tolerance, TIMES * apart(theirs, exact))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_training_step_is_the_networks(name: str) -> None:
    """Outputs, gradients, and what the step leaves in the batch norms; another batch and another image size. The first
    step goes operator by operator, the second in segments.
    """
    net = averaging(smooth(built(name))).train()
    ours = copy.deepcopy(net)
    run = compiled(ours)
    for x in (small(name, 4), other(name, 3)):
        theirs, exact = copy.deepcopy(net), copy.deepcopy(net).double()
        wanted, right = step(theirs, x), step(exact, x.double())
        for _ in range(2):
            ours.load_state_dict(net.state_dict())
            ours.zero_grad(set_to_none=True)
            found = step_of(run, ours, x)
            for part, tolerance in enumerate((TOLERANCE, GRADIENTS)):
                assert apart(found[part], right[part]) < max(tolerance, TIMES * apart(wanted[part], right[part]))
            assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
            kept, torchs, rights = (statistics_of(n) for n in (ours, theirs, exact))
            if rights.numel():
                assert apart(kept, rights) < max(TOLERANCE, TIMES * apart(torchs, rights))


def averaging(net: nn.Module) -> nn.Module:
    """Without maxima: which of two near numbers is the larger, rounding decides, and moves a gradient to the other."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, pool)
    return net


def step_of(run: Any, net: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """`step` through what torch.compile made of the network."""
    outputs = tensors(run(x))
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return outputs, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def statistics_of(net: nn.Module) -> torch.Tensor:
    """The floating-point buffers as one vector."""
    return torch.cat([b.flatten() for b in net.buffers() if b.is_floating_point()] or [torch.empty(0)])
