"""Training graphs in segments: the same bits as operator by operator, whatever the sizes, threads and terms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hubel
from hubel.ops import segments
from hubel.ops.kept_memory import KeptMemory
from hubel.ops.log import Log

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each segment that ran in one launch."""
    found: list[int] = []
    launch = segments.launch_placed

    def counted(*arguments: int) -> None:
        found.append(arguments[0])
        launch(*arguments)

    monkeypatch.setattr(segments, "launch_placed", counted)
    return found


class Net(nn.Module):
    """An inverted residual, one with a stride, a sum that is torch's, a bias, and a layer that is torch's."""

    def __init__(self) -> None:
        super().__init__()

        def layer(i: int, o: int, k: int, stride: int = 1, groups: int = 1, act: bool = True) -> list[nn.Module]:
            conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(o), *([nn.ReLU6()] if act else [])]

        self.stem = nn.Sequential(*layer(3, 16, 3, 2))
        self.block = nn.Sequential(*layer(16, 48, 1), *layer(48, 48, 3, groups=48), *layer(48, 16, 1, act=False))
        self.last = nn.Sequential(*layer(16, 64, 3, 2), nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(x + self.block(x)).mean((2, 3)))


def net_and_images(batch: int = 4, size: int = 20, kind: type[Net] = Net) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    net = in_channels_last(kind())
    return net, images(batch, size), torch.arange(batch) % 10


def in_channels_last(net: Net) -> Net:
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def images(batch: int, size: int = 20) -> Tensor:
    return torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)


def step(run: Any, net: nn.Module, x: Tensor, labels: Tensor) -> None:
    net.zero_grad()
    nn.functional.cross_entropy(run(x), labels).backward()


def state(net: nn.Module) -> list[Tensor]:
    """Gradients and buffers."""
    return [p.grad.clone() for p in net.parameters() if p.grad is not None] + [b.clone() for b in net.buffers()]


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_later_steps_have_the_bits_of_the_first_and_take_few_launches(launches: list[int]) -> None:
    net, x, labels = net_and_images()
    twin = in_channels_last(Net())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled = torch.compile(net, backend="hubel")
    step(compiled, net, x, labels)
    first = state(net)
    assert not launches
    for _ in range(2):
        net.load_state_dict(before)
        launches.clear()
        step(compiled, net, x, labels)
        assert alike(state(net), first)
        # Forward: all up to the mean. Backward: the last layer's gradients, and all behind the mean.
        assert len(launches) == 3
    twin.load_state_dict(before)
    step(twin, twin, x, labels)
    for ours, theirs in zip(state(net), state(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_segment_counts_what_its_operators_would(launches: list[int]) -> None:
    net, x, labels = net_and_images()
    compiled = torch.compile(net, backend="hubel")
    counts = []
    for _ in range(3):
        log = Log()
        log.open()
        step(compiled, net, x, labels)
        log.close()
        counts.append((log.native, log.fallback))
    assert launches
    assert counts == [(12, 0)] * 3


@pytest.mark.parametrize("terms", ["accuracy", "threads", "excluded", "profiler", "switched off"])
def test_on_other_terms_operators_run_one_by_one(
    terms: str, launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, labels = net_and_images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled = torch.compile(net, backend="hubel")
    for _ in range(2):
        net.load_state_dict(before)
        step(compiled, net, x, labels)
    usual = state(net)
    net.load_state_dict(before)
    launches.clear()
    threads = torch.get_num_threads()
    try:
        if terms == "accuracy":
            hubel.set_accuracy("strict")
        elif terms == "threads":
            torch.set_num_threads(threads % 2 + 1)
        elif terms == "excluded":
            hubel.exclude(net.stem)
        elif terms == "switched off":
            monkeypatch.setenv("HUBEL_DISABLE", "1")
        if terms == "profiler":
            with torch.profiler.profile() as profile:
                step(compiled, net, x, labels)
            assert any(event.key.startswith("hubel::convolution") for event in profile.key_averages())
        else:
            step(compiled, net, x, labels)
    finally:
        hubel.set_accuracy("default")
        torch.set_num_threads(threads)
        hubel.include(net.stem)
    assert not launches
    for ours, theirs in zip(state(net), usual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    monkeypatch.delenv("HUBEL_DISABLE", raising=False)
    net.load_state_dict(before)
    step(compiled, net, x, labels)
    assert launches
    assert alike(state(net), usual)


def test_every_size_of_the_batch_has_segments_of_its_own(launches: list[int]) -> None:
    net, _, _ = net_and_images()
    twin, _, _ = net_and_images()
    compiled = torch.compile(net, backend="hubel")
    for batch in (4, 3, 4, 3, 5, 3, 4):
        x, labels = images(batch), torch.arange(batch)
        launches.clear()
        step(compiled, net, x, labels)
        step(twin, twin, x, labels)
        for ours, theirs in zip(state(net), state(twin), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    assert launches


def test_threads_use_one_graph_at_once(launches: list[int]) -> None:
    net, _, _ = net_and_images()
    net.eval()  # the statistics of the batch norms would race, as in torch
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0
    compiled = torch.compile(net, backend="hubel")
    inputs = [images(4) for _ in range(4)]
    expected = []
    for x in inputs:
        expected.append(torch.autograd.grad(compiled(x).square().sum(), list(net.parameters())))
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            found = torch.autograd.grad(compiled(inputs[i]).square().sum(), list(net.parameters()))
            if not all(map(torch.equal, found, expected[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert launches
    assert not wrong


def test_a_gradient_that_is_kept_is_not_written_over(launches: list[int]) -> None:
    net, x, labels = net_and_images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled = torch.compile(net, backend="hubel")
    for _ in range(2):
        step(compiled, net, x, labels)
    net.load_state_dict(before)
    step(compiled, net, x, labels)
    held = [p.grad for p in net.parameters()]
    copies = [g.clone() for g in held if g is not None]
    net.zero_grad(set_to_none=True)
    output = compiled(images(4))
    kept = output.detach().clone()
    step(compiled, net, images(4), labels)
    assert launches
    assert all(torch.equal(g, c) for g, c in zip(held, copies, strict=True) if g is not None)
    assert torch.equal(output, kept)


def test_segments_of_a_graph_share_the_memory_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[segments.Segment, int]] = []
    share = segments.Segment.share

    def seen(segment: segments.Segment, size: int) -> None:
        asked.append((segment, size))
        share(segment, size)

    monkeypatch.setattr(segments.Segment, "share", seen)
    net, x, labels = net_and_images()
    compiled = torch.compile(net, backend="hubel")
    step(compiled, net, x, labels)
    own = [segment.inside_bytes for segment, _ in asked]
    sizes = {size for _, size in asked}
    assert len(set(own)) > 2
    # One size for the forward graph, one for the backward graph: the most that any of its segments needs.
    assert len(sizes) == 2
    assert max(sizes) == max(own)


class Shows(Net):
    """Returns what lies between, too."""

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(self.last(x).mean((2, 3))), x


def test_what_the_caller_gets_has_memory_of_its_own(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[Tensor] = []
    part = segments.part

    def seen(*arguments: Any) -> Tensor:
        shared.append(part(*arguments))
        return shared[-1]

    monkeypatch.setattr(segments, "part", seen)
    net, x, _ = net_and_images(8, size=80, kind=Shows)
    compiled = torch.compile(net, backend="hubel")
    for _ in range(3):
        shared.clear()
        net.zero_grad()
        outputs = compiled(x)
        torch.stack([y.square().sum() for y in outputs]).sum().backward()
    assert launches
    assert len({y.untyped_storage().data_ptr() for y in shared}) < len(shared)
    for result in [*outputs, *(p.grad for p in net.parameters() if p.grad is not None)]:
        assert result.untyped_storage().nbytes() == result.numel() * 4


def test_memory_of_the_first_step_is_given_back(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    memories: list[Any] = []
    clear = KeptMemory.clear

    def seen(memory: KeptMemory) -> None:
        memories.append((memory, sum(map(len, memory._free.values()))))
        clear(memory)

    monkeypatch.setattr(KeptMemory, "clear", seen)
    net, x, labels = net_and_images(8, size=80)
    compiled = torch.compile(net, backend="hubel")
    for _ in range(4):
        step(compiled, net, x, labels)
    # Once a graph, when it first runs in segments; then the first step's results lie there, free.
    assert len(memories) == 2
    assert memories[0][0] is memories[1][0]
    assert memories[0][1] > 3
