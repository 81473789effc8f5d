"""Gradients by way of other convolutions: those whose windows do not overlap, as 1×1 ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

import hubel
from hubel.ops import backward, calls

_gradients = torch.ops.aten.convolution_backward.default
MASKS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (True, True, False)]


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Calls that make windows pixels, however small."""
    found: list[int] = []
    real = backward._on_windows

    def spy(*arguments: object) -> object:
        found.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backward, "_on_windows", spy)
    monkeypatch.setattr(backward, "_MANY_NUMBERS", 1)
    monkeypatch.setattr(backward, "_MUCH_WORK", 1)
    calls.forget()
    yield found
    calls.forget()


def agree(x: Tensor, w: Tensor, stride: Sequence[int], mask: Sequence[bool], groups: int = 1) -> None:
    zeros, ones = [0] * len(stride), [1] * len(stride)
    y = torch.ops.aten.convolution.default(x, w, None, stride, zeros, ones, False, zeros, groups)
    dy = torch.randn_like(y)
    arguments = (dy, x, w, [w.shape[0]], stride, zeros, ones, False, zeros, groups, mask)
    theirs = _gradients(*arguments)
    with hubel.enabled():
        for _ in range(2):
            for ours, expected, wanted in zip(_gradients(*arguments), theirs, mask, strict=True):
                if wanted:
                    assert ours.shape == expected.shape and ours.stride() == expected.stride()
                    tolerance = 1e-4 if x.dtype == torch.float32 else 3e-2
                    torch.testing.assert_close(
                        ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
                    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_gradient_and_layout(layout: torch.memory_format, mask: Sequence[bool], taken: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 24, 9, 12).contiguous(memory_format=layout)
    agree(x, torch.randn(16, 24, 1, 1), (2, 2), mask)
    agree(x, torch.randn(16, 24, 1, 1).contiguous(memory_format=layout), (3, 1), mask)
    assert len(taken) == 2


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((4, 3), (4, 3)), ((2, 1), (3, 2))])
def test_patches(
    kernel: Sequence[int], stride: Sequence[int], layout: torch.memory_format, mask: Sequence[bool], taken: list[int]
) -> None:
    torch.manual_seed(0)
    w = torch.randn(16, 5, *kernel).contiguous(memory_format=layout)
    agree(torch.randn(3, 5, 8, 12).contiguous(memory_format=layout), w, stride, mask)
    agree(torch.randn(3, 5, 11, 13).contiguous(memory_format=layout), w.contiguous(), stride, mask)
    assert len(taken) == 2


def test_other_windows_overlap_or_reach_over_the_edge(taken: list[int]) -> None:
    for kernel, stride, padding, dilation in ((3, 2, 0, 1), (2, 2, 1, 1), (2, 2, 0, 2), (3, 1, 0, 1)):
        x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 8, kernel, kernel)
        y = torch.nn.functional.conv2d(x, w, None, stride, padding, dilation)
        with hubel.enabled():
            both, two = (padding, padding), (stride, stride)
            _gradients(y, x, w, None, two, both, (dilation, dilation), False, (0, 0), 1, MASKS[0])
    agree(torch.randn(2, 8, 8, 8), torch.randn(8, 4, 2, 2), (2, 2), MASKS[0], groups=2)
    agree(torch.randn(2, 16, 8, 8), torch.randn(8, 16, 1, 1), (1, 1), MASKS[0])
    assert not taken


def test_one_number_for_all_dimensions(taken: list[int]) -> None:
    x, w, dy = torch.randn(2, 8, 6, 6), torch.randn(16, 8, 2, 2), torch.randn(2, 16, 3, 3)
    arguments = (dy, x, w, None, [2], [0], [1], False, [0], 1, MASKS[4])
    expected = _gradients(*arguments)
    with hubel.enabled():
        found = _gradients(*arguments)
    for ours, theirs in zip(found[:2], expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert taken


@pytest.mark.parametrize("size", [(11,), (6, 7), (4, 5, 6)])
def test_each_number_of_dimensions(size: tuple[int, ...], taken: list[int]) -> None:
    agree(torch.randn(2, 16, *size), torch.randn(8, 16, *(1,) * len(size)), (2,) * len(size), (True, True, True))
    assert taken


def test_groups_other_types_and_tensors_with_gaps(taken: list[int]) -> None:
    agree(torch.randn(2, 32, 8, 8), torch.randn(16, 8, 1, 1), (2, 2), (True, True, False), groups=4)
    taken.clear()
    agree(
        torch.randn(2, 32, 8, 8, dtype=torch.bfloat16),
        torch.randn(16, 32, 1, 1, dtype=torch.bfloat16),
        (2, 2),
        MASKS[4],
    )
    agree(torch.randn(2, 64, 8, 16)[:, ::2, :, 1::2], torch.randn(16, 32, 1, 1), (2, 2), (True, True, False))
    assert taken


def test_training_a_layer_gives_torchs_gradients(taken: list[int]) -> None:
    torch.manual_seed(1)
    net, x = torch.nn.Conv2d(16, 24, 1, stride=2), torch.randn(2, 16, 10, 10, requires_grad=True)
    expected = torch.autograd.grad(net(x).square().sum(), (x, *net.parameters()))
    with hubel.enabled():
        found = torch.autograd.grad(net(x).square().sum(), (x, *net.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert taken


def test_which_way_is_gone_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> None:
    x, w, dy = torch.randn(24, 16, 8, 8), torch.randn(32, 16, 1, 1), torch.randn(24, 32, 4, 4)
    of_one_image = 2 * 16 * 32 * 16
    config = ([2, 2], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False])
    for least, calls_taken in ((of_one_image + 1, 0), (of_one_image, 2)):
        calls.forget()
        taken.clear()
        monkeypatch.setattr(backward, "_MUCH_WORK", least)
        with hubel.enabled():
            whole, one = (_gradients(dy[:n], x[:n], w, None, *config)[0] for n in (24, 1))
        assert len(taken) == calls_taken and torch.equal(whole[:1], one)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 8), (1, 1, 1), (2, 2, 1), (5, 1, 2)])
def test_a_weights_gradient_may_lie_as_the_weight_does(
    kernel: int, stride: int, groups: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    w = torch.randn(16, 8 // groups, kernel, kernel).contiguous(memory_format=layout)
    for other in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 12, 12).contiguous(memory_format=other)
        config = [stride] * 2, [0, 0], [1, 1], False, [0, 0], groups
        dy = torch.randn_like(torch.ops.aten.convolution.default(x, w, None, *config))
        found = calls.convolution_backward(dy, x, w, None, *config, (True, True, False), like_weight=True)
        for ours, theirs in zip(found[:2], _gradients(dy, x, w, None, *config, (True, True, False)), strict=False):
            assert ours is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
        assert found[1] is not None and found[1].stride() == w.stride()
