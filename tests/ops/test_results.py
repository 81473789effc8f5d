"""Where results are allocated."""

from __future__ import annotations

import pytest
import torch

import hubel
from hubel.ops import calls, native
from hubel.ops.kept_memory import SHARED
from hubel.ops.results import empty_like, lies_in_shared_memory, room

MANY = 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [6, 2**16, MANY])
def test_results_lie_as_asked(count: int, dtype: torch.dtype) -> None:
    y = room((2, count), (1, 2), dtype)()
    assert y.shape == (2, count) and y.stride() == (1, 2) and y.dtype == dtype and y.device.type == "cpu"
    assert empty_like(y).stride() == (1, 2)


def test_which_results_lie_in_shared_memory() -> None:
    assert not lies_in_shared_memory((MANY - 1,), torch.float32)
    assert lies_in_shared_memory((MANY,), torch.float32)
    assert not lies_in_shared_memory((MANY,), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_large_output_and_gradient_lie_there(dtype: torch.dtype) -> None:
    calls.forget()
    net = torch.nn.Conv2d(8, 8, 1, bias=False).to(dtype)
    x = torch.randn(1, 8, 512, 640, dtype=dtype, requires_grad=True)
    answered = native.answered()
    with hubel.enabled():
        y, other = net(x), net(x)
        (dx,) = torch.autograd.grad(y.float().sum(), x)
        places = {t.data_ptr() for t in (y, other, dx)}
        assert len(places) == 3 and dx.dtype == dtype
        del y, other, dx
        again = [net(x).detach() for _ in range(2)]
        assert {t.data_ptr() for t in again} <= places
        held, before = again[0], again[0].clone()
        others = [net(2 * x.detach()) for _ in range(3)]
        assert torch.equal(held, before) and held.data_ptr() not in {t.data_ptr() for t in others}
    assert native.answered() == answered  # which allocates as torch does


def test_what_is_kept_is_given_back_with_disable() -> None:
    hubel.enable()
    try:
        torch.nn.functional.conv2d(torch.randn(1, 8, 512, 300), torch.randn(8, 8, 1, 1))
        assert SHARED.kept() >= 4 * MANY
    finally:
        hubel.disable()
    assert SHARED.kept() == 0
