"""`hubel.conv1d` to `hubel.conv_transpose3d`: torch.nn.functional's signatures, Hubel's kernels, Hubel's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hubel.errors import SpecError
from hubel.ops.library import convolve

# One number for all spatial dimensions, or one for each.
Sizes: TypeAlias = int | Sequence[int]


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv1d. input: (N, C, L) or (C, L); weight: (O, C / groups, k). Raises `SpecError`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv2d. input: (N, C, H, W) or (C, H, W); weight: (O, C / groups, kh, kw).

    Raises `SpecError`.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv3d. input: (N, C, D, H, W) or (C, D, H, W); weight: (O, C / groups, kd, kh, kw).

    Raises `SpecError`.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv_transpose1d. weight: (C, O / groups, k). Raises `SpecError`."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv_transpose2d. weight: (C, O / groups, kh, kw). Raises `SpecError`."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv_transpose3d. weight: (C, O / groups, kd, kh, kw). Raises `SpecError`."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv(
    ndim: int, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    _check_tensors(f"conv{ndim}d", ndim, x, w, b)
    steps, holes = _sizes("stride", stride, ndim, 1), _sizes("dilation", dilation, ndim, 1)
    if isinstance(padding, str):
        pads, extra = _named_padding(padding, w.shape[2:], steps, holes)
        if any(extra):
            # An odd total: one more at the end, as torch has it.
            x = F.pad(x, [n for more in reversed(extra) for n in (0, more)])
    else:
        pads = _sizes("padding", padding, ndim, 0)
    _check_channels(x, w, b, groups, transposed=False)
    for axis in range(ndim):
        _check_extent(axis, x.shape[axis - ndim], w.shape[2 + axis], pads[axis], holes[axis])
    return _run(ndim, x, w, b, steps, pads, holes, False, (0,) * ndim, groups)


def _conv_transpose(
    ndim: int, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, output_padding: Any, groups: int,
    dilation: Any,
) -> Tensor:  # fmt: skip
    _check_tensors(f"conv_transpose{ndim}d", ndim, x, w, b)
    steps, holes = _sizes("stride", stride, ndim, 1), _sizes("dilation", dilation, ndim, 1)
    pads, extra = _sizes("padding", padding, ndim, 0), _sizes("output_padding", output_padding, ndim, 0)
    _check_channels(x, w, b, groups, transposed=True)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, holes, strict=True)):
        raise SpecError(
            "output_padding must be less than stride or dilation. "
            f"Received: output_padding={extra}, stride={steps}, dilation={holes}. Use a smaller output_padding."
        )
    size = tuple(
        (i - 1) * s - 2 * p + d * (k - 1) + e + 1
        for i, s, p, d, k, e in zip(x.shape[-ndim:], steps, pads, holes, w.shape[2:], extra, strict=True)
    )
    if any(n < 1 for n in size):
        raise SpecError(
            "a transposed convolution must have an output. "
            f"Received: input size {tuple(x.shape[-ndim:])}, kernel size {tuple(w.shape[2:])}, stride={steps}, "
            f"padding={pads}, which gives the output size {size}. Use less padding or a larger input."
        )
    return _run(ndim, x, w, b, steps, pads, holes, True, extra, groups)


def _run(ndim: int, x: Tensor, w: Tensor, b: Tensor | None, *config: Any) -> Tensor:
    if x.dim() == ndim + 1:
        return convolve(x.unsqueeze(0), w, b, *config).squeeze(0)
    return convolve(x, w, b, *config)


def _check_tensors(name: str, ndim: int, x: Tensor, w: Tensor, b: Tensor | None) -> None:
    for what, tensor in (("input", x), ("weight", w)) if b is None else (("input", x), ("weight", w), ("bias", b)):
        if not isinstance(tensor, Tensor):
            raise SpecError(
                f"{name} works on tensors. Received: {what} of type {type(tensor).__name__}. Pass a Tensor."
            )
    if x.dim() not in (ndim + 1, ndim + 2):
        raise SpecError(
            f"the input of {name} must have {ndim + 2} dimensions (batch, channels, {ndim} of space), or {ndim + 1} "
            f"without a batch. Received: input of shape {tuple(x.shape)}. Reshape it."
        )
    if w.dim() != ndim + 2:
        raise SpecError(
            f"the weight of {name} must have {ndim + 2} dimensions. Received: weight of shape {tuple(w.shape)}. "
            f"Its last {ndim} are the kernel's size."
        )
    # Autocast makes the dtypes equal later.
    if x.dtype != w.dtype and not torch.is_autocast_enabled(x.device.type):
        raise SpecError(
            f"input and weight must have one dtype. Received: {x.dtype} and {w.dtype}. Convert one with `.to(...)`."
        )


def _check_channels(x: Tensor, w: Tensor, b: Tensor | None, groups: Any, transposed: bool) -> None:
    channels = x.shape[1 - w.dim()]
    if not isinstance(groups, int) or groups < 1:
        raise SpecError(f"groups must be a whole number of at least 1. Received: groups={groups!r}. Use 1 for none.")
    if channels % groups or w.shape[0] % groups:
        raise SpecError(
            "input and output channels must be divisible by groups. "
            f"Received: input of shape {tuple(x.shape)}, weight of shape {tuple(w.shape)}, groups={groups}. "
            "Choose groups from their common divisors."
        )
    expected = w.shape[0] if transposed else w.shape[1] * groups
    if channels != expected:
        raise SpecError(
            f"the weight expects an input of {expected} channels. Received: {channels}, in an input of shape "
            f"{tuple(x.shape)}, for a weight of shape {tuple(w.shape)} and groups={groups}. "
            "Channels come before the spatial dimensions."
        )
    out = w.shape[1] * groups if transposed else w.shape[0]
    if b is not None and (b.dim() != 1 or b.shape[0] != out):
        raise SpecError(
            f"the bias must have one number for each of the {out} output channels. Received: bias of shape "
            f"{tuple(b.shape)}. Pass {out} numbers or None."
        )


def _check_extent(axis: int, size: Any, kernel: Any, pad: Any, dilation: Any) -> None:
    if size + 2 * pad < dilation * (kernel - 1) + 1:
        raise SpecError(
            f"the kernel must fit into the padded input. Received along spatial dimension {axis}: input size {size}, "
            f"padding={pad}, kernel size {kernel}, dilation={dilation}. Use more padding or a smaller kernel."
        )


def _sizes(name: str, value: Any, ndim: int, at_least: int) -> tuple[Any, ...]:
    """One number or `ndim` of them as a tuple of `ndim`."""
    numbers = tuple(value) if isinstance(value, Iterable) else (value,) * ndim
    if len(numbers) == 1:
        numbers *= ndim
    if len(numbers) != ndim:
        raise SpecError(f"{name} must be one number or {ndim}. Received: {name}={value}. Pass one a dimension.")
    if any(not isinstance(n, (int, torch.SymInt)) or n < at_least for n in numbers):
        raise SpecError(
            f"{name} must be whole numbers of at least {at_least}. Received: {name}={value}. Use larger numbers."
        )
    return numbers


def _named_padding(
    name: str, kernel: Sequence[int], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(padding on both sides, one more at the end where the total is odd) for "same" and "valid"."""
    none = (0,) * len(kernel)
    if name == "valid":
        return none, none
    if name != "same":
        raise SpecError(f'padding must be numbers, "same" or "valid". Received: padding="{name}". Use one of these.')
    if any(s != 1 for s in stride):
        raise SpecError(f'padding="same" needs stride 1. Received: stride={stride}. Give the padding as numbers.')
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(t // 2 for t in totals), tuple(t % 2 for t in totals)
