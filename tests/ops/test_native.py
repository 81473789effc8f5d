"""Calls answered without Python: the same results, never from stale weights, and everything else is Python's."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import hubel
from hubel.ops import calls, native, native_ir
from tests.ops.test_weights import WRITES

# Whether this torch and machine have a place for the door is found out when it is first opened.
with hubel.enabled():
    THERE = native._registration is not None
pytestmark = pytest.mark.skipif(not THERE, reason="this torch has another interface than the door was written for")
X = torch.randn(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    with hubel.enabled(), torch.no_grad():
        yield


def answered(call, times: int = 1) -> int:
    """How many of these calls the door answers."""
    before = native.answered()
    for _ in range(times):
        call()
    return native.answered() - before


def warm(call) -> None:
    """The first call packs, the second finds the weights packed."""
    call()
    call()
    assert answered(call) == 1


LAYERS = {
    "plain": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 8, 8)),
    "no bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 8)),
    "strided": (lambda: nn.Conv2d(3, 20, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 3, 19, 11)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=2), (1, 8, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9)),
    "winograd": (lambda: nn.Conv2d(64, 64, 3, padding=1), (1, 64, 16, 16)),
    "sampled weights": (lambda: nn.Conv2d(80, 70, 1), (1, 80, 9, 9)),
    "one dimension": (lambda: nn.Conv1d(5, 6, 7), (3, 5, 30)),
    "three": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False), (1, 4, 5, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_and_strides_are_pythons(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    net, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    for input in (x, x.transpose(-1, -2) if len(shape) > 3 else x):
        expected = net(input)
        warm(lambda input=input: net(input))
        found = net(input)
        assert torch.equal(found, expected)
        assert (found.stride(), found.dtype) == (expected.stride(), dtype)


def test_channels_last() -> None:
    net, x = nn.Conv2d(8, 16, 3), torch.randn(2, 8, 9, 9)
    planes = net(x)
    net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore
    warm(lambda: net(x))
    assert net(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), planes)


def test_every_part_of_a_call_tells_it_from_others() -> None:
    net = nn.Conv2d(4, 4, 3, bias=True)
    x = torch.randn(2, 4, 9, 9)
    warm(lambda: net(x))
    w, b = net.weight, net.bias
    assert b is not None
    others: list[tuple] = [
        (x[:1], w, b), (x[..., 1:], w, b), (x.transpose(2, 3), w, b), (x, w, None), (x, w, b, 2), (x, w, b, 1, 1),
        (x, w, b, 1, 0, 2), (x, w, b, (1, 2)), (x[0], w, b), (torch.cat([x, x]), w, b),
        (x, w, b.detach().repeat_interleave(2)[::2]),
    ]  # fmt: skip
    for arguments in others:
        exact: Any = [a.double() if isinstance(a, Tensor) else a for a in arguments]
        expected = F.conv2d(*exact)
        for _ in range(3):
            torch.testing.assert_close(F.conv2d(*arguments).double(), expected, rtol=1e-4, atol=1e-4)


def _right(net: nn.Conv2d) -> None:
    expected = F.conv2d(X.double(), net.weight.double(), net.bias.double())  # type: ignore[union-attr]
    torch.testing.assert_close(net(X).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", WRITES)
def test_writes_are_seen(write) -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    with torch.enable_grad():
        write(net)
    for _ in range(3):
        _right(net)


@pytest.mark.parametrize("channels", [64, 300])
def test_zeroing_any_one_kernel_through_data_is_seen(channels: int) -> None:
    net = nn.Conv2d(16, channels, 3)
    x = torch.randn(1, 16, 5, 5)
    for kernel in (0, channels // 2, channels - 1):
        warm(lambda: net(x))
        net.weight.data[kernel].zero_()
        assert torch.equal(net(x)[0, kernel], net.bias[kernel].expand(3, 3))  # type: ignore[index]


def test_a_fused_optimizer_is_seen() -> None:
    net = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, fused=True)
    warm(lambda: net(X))
    with torch.enable_grad():
        net(X).sum().backward()
    optimizer.step()
    _right(net)
    warm(lambda: net(X))


def test_repack_and_exclude_end_entries() -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    hubel.repack(net)
    assert answered(lambda: net(X)) == 0
    warm(lambda: net(X))
    hubel.exclude(net)
    try:
        assert answered(lambda: net(X), 3) == 0
    finally:
        hubel.include(net)
    warm(lambda: net(X))


def test_choices_and_threads_are_part_of_a_call() -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    hubel.set_accuracy("strict")
    try:
        assert answered(lambda: net(X)) == 0
        warm(lambda: net(X))
    finally:
        hubel.set_accuracy("default")
    threads = torch.get_num_threads()
    warm(lambda: net(X))
    torch.set_num_threads(threads + 1)
    try:
        assert answered(lambda: net(X)) == 0
    finally:
        torch.set_num_threads(threads)
    assert answered(lambda: net(X)) == 1
    torch._C._set_mkldnn_enabled(False)
    try:
        assert answered(lambda: net(X)) == 0
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_weights_that_may_not_be_kept_are_pythons() -> None:
    w = torch.randn(4, 3, 3, 3)
    assert answered(lambda: F.conv2d(X, w), 4) == 0
    with torch.inference_mode():
        inside = nn.Conv2d(3, 4, 3)
        assert answered(lambda: inside(X), 4) == 0


def test_inference_mode_and_graphs() -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    with torch.inference_mode():
        assert net(X).is_inference()
    with torch.enable_grad():
        assert answered(lambda: net(X)) == 1
        assert type(net(X).grad_fn).__name__ == "ConvolutionBackward0"


def test_profilers_see_every_call() -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        net(X)
    assert [event.key for event in profiled.key_averages() if event.key.startswith("hubel::convolution")]


def test_the_log_counts_them() -> None:
    net = nn.Conv2d(3, 4, 3)
    warm(lambda: net(X))
    with hubel.enabled() as log:
        for _ in range(5):
            net(X)
    assert (log.native, log.fallback) == (5, 0)


def test_entries_end_with_their_weights() -> None:
    before = len(native._entries)
    for size in range(20):
        net = nn.Conv2d(3, 4 + size, 3)
        warm(lambda net=net: net(X))
    assert len(native._entries) > before
    del net
    gc.collect()
    assert len(native._entries) == before
    assert not native._retired


def test_memory_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(native, "_MOST_ENTRIES", 8)
    net = nn.Conv2d(3, 4, 3)
    for size in range(4, 40):
        x = torch.randn(1, 3, size, size)
        warm(lambda x=x: net(x))
    assert len(native._entries) <= 8


def test_threads_at_once_get_what_one_gets() -> None:
    """More of them than there are places of scratch memory, with layers of different needs."""
    nets = [nn.Conv2d(c, 24, 3, padding=1) for c in (3, 16, 48)]
    inputs = [torch.randn(1, net.in_channels, 20, 20) for net in nets]
    expected = [net(x) for net, x in zip(nets, inputs, strict=True)]
    wrong: list[int] = []

    def run() -> None:
        with torch.no_grad():
            for turn in range(40):
                i = turn % len(nets)
                if not torch.equal(nets[i](inputs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=run) for _ in range(native_ir.SLOTS + 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_packed_anew_while_calls_are_inside() -> None:
    """Every result is that of one state of the weights, whole: no packed memory is used again too soon."""
    net, x = nn.Conv2d(32, 64, 3, stride=2, bias=False), torch.ones(1, 32, 30, 30)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            with torch.no_grad():
                y = net(x)
            values = y.unique().tolist()
            if len(values) != 1:
                wrong.append(values)

    net.weight.fill_(1.0)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(30):
        other = nn.Conv2d(32, 64, 3, stride=2, bias=False)
        other.weight.fill_(2.0)
        warm_up = [other(x) for _ in range(3)]
        hubel.repack(net)
        del other, warm_up
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_after_a_fork_the_child_computes_the_same() -> None:
    net = nn.Conv2d(16, 64, 3)
    x = torch.randn(1, 16, 24, 24)  # of an output this small torch itself starts no threads in the child
    warm(lambda: net(x))
    expected = net(x)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if all(torch.equal(net(x), expected) for _ in range(3)) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(net(x), expected)


def test_a_torch_with_another_interface_is_answered_by_python(monkeypatch) -> None:
    net = nn.Conv2d(3, 4, 3)
    expected = net(X)
    native.unregister()
    monkeypatch.setattr(native, "_stable_interface", lambda: None)
    assert not native.register(calls.convolution)
    monkeypatch.undo()
    assert native.register(calls.convolution)
    warm(lambda: net(X))
    assert torch.equal(net(X), expected)
