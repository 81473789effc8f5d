"""Output and gradient strides under enable() are torch's, over layouts that are ambiguous in every way we know."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import hubel
from hubel.ops import calls
from hubel.ops.fallback import torch_convolution, torch_convolution_backward


def _laid_out(shape: tuple[int, ...], how: str) -> Tensor:
    """A tensor of this shape whose memory is: its own, channels-last, expanded, transposed, or part of a larger one."""
    n, c, *size = shape
    match how:
        case "channels_last":
            return torch.randn(n, *size, c).movedim(-1, 1)
        case "expanded_batch":
            return torch.randn(1, c, *size).expand(shape)
        case "expanded_channels":
            return torch.randn(n, 1, *size).expand(shape)
        case "transposed":
            return torch.randn(c, n, *size).transpose(0, 1)
        case "transposed_size":
            return torch.randn(n, c, *size[::-1]).permute(0, 1, *range(1 + len(size), 1, -1))
        case "every_second":
            return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
        case "cropped":
            return torch.randn(*shape[:-1], shape[-1] + 3)[..., : shape[-1]]
        case "some_channels":
            return _laid_out((n, c + 2, *size), "channels_last")[:, :c]
        case "cropped_channels_last":
            return _laid_out((*shape[:-1], shape[-1] + 3), "channels_last")[..., : shape[-1]]
    return torch.randn(shape)


LAYOUTS = (
    "plain", "plain", "plain", "channels_last", "channels_last", "expanded_batch", "expanded_channels", "transposed",
    "transposed_size", "every_second", "cropped", "some_channels", "cropped_channels_last",
)  # fmt: skip


def _drawn(rng: random.Random) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """Input, weight, bias and parameters of a small convolution; sizes of 1 and 0 are frequent."""
    ndim = rng.choice((1, 2, 2, 2, 3))
    groups = rng.choice((1, 1, 1, 2, 3))
    into, out = groups * rng.choice((1, 1, 2, 4)), groups * rng.choice((1, 1, 2, 4))
    if rng.random() < 0.2:
        groups = out = into
    kernel = tuple(rng.choice((1, 1, 2, 3)) for _ in range(ndim))
    stride = tuple(rng.choice((1, 1, 2)) for _ in range(ndim))
    padding = tuple(rng.choice((0, 0, 1)) for _ in range(ndim))
    # oneDNN 3.12 writes out of bounds where a kernel of size 1 is dilated and the input padded.
    dilation = tuple(1 if k == 1 else rng.choice((1, 1, 2)) for k in kernel)
    if rng.random() < 0.5:
        stride, dilation = stride[:1] * ndim, (1,) * ndim
    size = tuple(rng.choice((1, 1, 2, 5, 6, 17)) for _ in range(ndim))
    transposed = rng.random() < 0.35
    extra = (0,) * ndim
    if transposed and rng.random() < 0.3:
        extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
    w_shape = ((into, out // groups) if transposed else (out, into // groups)) + kernel
    x = _laid_out((rng.choice((0, 1, 1, 1, 2, 3)), into, *size), rng.choice(LAYOUTS))
    w = _laid_out(w_shape, rng.choice(LAYOUTS) if rng.random() < 0.5 else "plain")
    b = torch.randn(out) if rng.random() < 0.5 else None
    return x, w, b, (stride, padding, dilation, transposed, extra, groups)


@pytest.mark.parametrize("seed", range(6))
def test_strides_are_torchs(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    compared = 0
    while compared < 40:
        x, w, b, config = _drawn(rng)
        try:
            theirs = torch_convolution(x, w, b, *config)
        except RuntimeError:
            continue  # no such convolution
        compared += 1
        dy = _laid_out(tuple(theirs.shape), rng.choice(LAYOUTS))
        sizes = None if b is None else b.shape
        rest: Any = (sizes, *config, (True, True, b is not None))
        their_gradients = torch_convolution_backward(dy, x, w, *rest)

        ours = calls.convolution(x, w, b, *config)
        gradients = calls.convolution_backward(dy, x, w, *rest)
        call = f"{tuple(x.shape)} {x.stride()} * {tuple(w.shape)} {w.stride()} {config}"
        assert _form(ours) == _form(theirs), f"output of {call}"
        for name, our, their in zip(("input", "weight", "bias"), gradients, their_gradients, strict=True):
            assert _form(our) == _form(their), f"gradient of the {name} of {call}, dy {dy.stride()}"
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for our, their in zip(gradients, their_gradients, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-4)


def _form(t: Tensor | None) -> tuple[Any, ...] | None:
    return None if t is None else (t.shape, t.stride(), t.dtype, t.storage_offset())


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_view_after_a_convolution_works_as_before(format):
    x = torch.randn(2, 8, 5, 5).to(memory_format=format)
    net = torch.nn.Conv2d(8, 4, 3)
    with hubel.enabled() as log:
        y = net(x)
    assert log.native == 1
    assert y.is_contiguous(memory_format=format)
    if format is torch.contiguous_format:
        assert y.view(2, -1).shape == (2, 36)


def test_results_have_storage_of_their_own():
    x, w = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 1, 1, requires_grad=True)
    with hubel.enabled():
        results = [torch.conv2d(x, w), torch.conv2d(x, w)]
        results += torch.autograd.grad(results[0].sum(), (x, w), retain_graph=True)
        results += torch.autograd.grad(results[0].sum(), (x, w))
    assert len({t.untyped_storage().data_ptr() for t in (*results, x, w)}) == 8
    assert all(t._base is None for t in results)


def test_onednn_switched_off_changes_strides_as_torchs_do():
    x = torch.randn(1, 4, 3, 6, 6).to(memory_format=torch.channels_last_3d)
    w = torch.randn(6, 2, 2, 3, 3)
    config: Any = ((1, 1, 1), (0, 0, 0), (1, 1, 1), False, (0, 0, 0), 2)
    found = []
    try:
        for enabled in (True, False):
            # What torch.backends.mkldnn.flags does, without its warning about Intel GPUs.
            torch._C._set_mkldnn_enabled(enabled)
            found.append(calls.convolution(x, w, None, *config).stride())
            assert found[-1] == torch_convolution(x, w, None, *config).stride()
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert found[0] != found[1]
