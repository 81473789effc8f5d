"""Compiling in the background: torch serves meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import hubel
from hubel.ops import background, calls


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hubel's calls are prepared when the event is set."""
    opened = threading.Event()
    prepare = calls.prepare_forward

    def later(*arguments: object) -> object:
        assert opened.wait(60)
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(calls, "prepare_forward", later)
    calls.forget()
    yield opened
    opened.set()
    hubel.disable()
    background.wait()


def test_torch_serves_until_hubel_is_ready(gate: threading.Event) -> None:
    x, w = torch.randn(1, 3, 12, 12), torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    with torch.no_grad():
        expected = F.conv2d(x, w)
        hubel.enable(background=True)
        with hubel.enabled() as log:
            assert torch.equal(F.conv2d(x, w), expected)
            assert torch.equal(F.conv2d(x, w), expected)
        assert (log.native, log.fallback) == (0, 2)
        assert {reason for _, reason in log.reasons} == {background.REASON}
        gate.set()
        background.wait()
        with hubel.enabled() as log:
            torch.testing.assert_close(F.conv2d(x, w), expected, rtol=1e-5, atol=1e-5)
            F.conv2d(x, w)
        assert (log.native, log.fallback) == (2, 0)


def test_gradients_too(gate: threading.Event) -> None:
    x, w = torch.randn(1, 3, 12, 12), torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    gate.set()
    hubel.enable(background=True)
    F.conv2d(x, w).sum().backward()
    theirs = w.grad
    background.wait()
    w.grad = None
    with hubel.enabled() as log:
        F.conv2d(x, w).sum().backward()
    assert (log.native, log.fallback) == (2, 0)
    torch.testing.assert_close(w.grad, theirs, rtol=1e-4, atol=1e-4)


def test_warming_up_waits(gate: threading.Event) -> None:
    """What it promises is that the next call finds its kernels."""
    gate.set()
    hubel.enable(background=True)
    net, x = torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 15, 12)
    log = hubel.warmup(net, x)
    assert (log.native, log.fallback) == (1, 0)
    gate.clear()
    with hubel.enabled() as log, torch.no_grad():
        net(torch.randn(1, 3, 16, 12))
    assert (log.native, log.fallback) == (0, 1), "others are prepared in the background, as before"


def test_what_torch_must_do_it_does(gate: threading.Event) -> None:
    gate.set()
    hubel.enable(background=True)
    x, w = torch.randn(1, 3, 12, 12).double(), torch.randn(4, 3, 3, 3).double()
    F.conv2d(x, w)
    background.wait()
    with hubel.enabled() as log:
        F.conv2d(x, w)
    ((_, reason),) = log.reasons
    assert "float64" in reason


def test_who_does_not_ask_waits(gate: threading.Event) -> None:
    gate.set()
    hubel.enable(background=True)
    hubel.disable()
    with hubel.enabled() as log, torch.no_grad():
        F.conv2d(torch.randn(1, 3, 13, 12), torch.randn(4, 3, 3, 3))
    assert (log.native, log.fallback) == (1, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_thread_of_its_own(gate: threading.Event) -> None:
    gate.set()
    # torch's own kernels hang in a forked child where they open a parallel region.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hubel.enable(background=True)
    x, w = torch.randn(1, 3, 12, 12), torch.randn(4, 3, 3, 3)
    F.conv2d(x, w)
    background.wait()
    child = os.fork()
    if child == 0:
        try:
            F.conv2d(x[:, :, 1:], w)
            background.wait()
            with hubel.enabled() as log:
                F.conv2d(x[:, :, 1:], w)
            os._exit(0 if log.native == 1 else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(status) == 0
