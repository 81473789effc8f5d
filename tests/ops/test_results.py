"""Where results are allocated."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hubel
from hubel.ops import calls, native
from hubel.ops.results import empty_like, has_pages_of_its_own, room

MANY = 2**23 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [6, 2**16, MANY])
def test_results_lie_as_asked(count: int, dtype: torch.dtype) -> None:
    y = room((2, count), (1, 2), dtype)()
    assert y.shape == (2, count) and y.stride() == (1, 2) and y.dtype == dtype and y.device.type == "cpu"
    assert empty_like(y).stride() == (1, 2)


def test_which_results_the_system_maps_anew() -> None:
    assert not has_pages_of_its_own((MANY - 1,), torch.float32)
    assert has_pages_of_its_own((MANY,), torch.float32)
    assert not has_pages_of_its_own((MANY,), torch.bfloat16)


def huge_pages_asked_for(y: Tensor) -> bool:
    """Whether the mapping that a tensor's middle lies in is marked for huge pages."""
    middle, here = y.data_ptr() + y.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            first, last = (int(bound, 16) for bound in bounds.groups())
            here = first <= middle < last
        elif here and line.startswith("VmFlags:"):
            return "hg" in line.split()
    return False


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no transparent huge pages here")
def test_large_results_are_given_huge_pages() -> None:
    assert huge_pages_asked_for(room((MANY,), (1,), torch.float32)())
    # Memory of glibc's may have been such a result before.
    assert not huge_pages_asked_for(torch.frombuffer(mmap.mmap(-1, 4 * MANY), dtype=torch.float32))


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no transparent huge pages here")
def test_a_layers_large_output_and_gradient_have_them_too() -> None:
    calls.forget()
    net = torch.nn.Conv2d(8, 8, 1, bias=False)
    x = torch.randn(1, 8, 1024, 1200, requires_grad=True)
    answered = native.answered()
    with hubel.enabled():
        for _ in range(3):
            y = net(x)
            assert huge_pages_asked_for(y.detach())
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert huge_pages_asked_for(dx)
    assert native.answered() == answered  # which allocates as torch does
