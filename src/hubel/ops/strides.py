"""The strides that torch gives to a convolution's results, exactly: models that call `.view` on them depend on it.

torch picks a backend by the sizes, then a memory format by the layouts of input and weight, makes both contiguous in
that format and looks at them once more, because a tensor with dimensions of size 1 can be contiguous in two formats.
Everything here follows ATen/native/Convolution.cpp of torch 2.13, checked by `tests/ops/test_strides.py` against the
original kernels over many layouts. What it does not follow (`None`) is asked of torch itself, by running it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# (stride, padding, dilation, transposed, output_padding, groups)
Config = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]
Strides = tuple[int, ...]

_Backend: Any = torch._C._ConvBackend  # type: ignore[attr-defined]
_backend_format = torch._C._conv_determine_backend_memory_format

# The backends that look at the formats a second time, on the tensors that they have made contiguous.
_IM2COL = frozenset({_Backend.Slow2d, _Backend.SlowDilated2d, _Backend.SlowTranspose2d})
# Between Mkldnn and MkldnnEmpty lies the one for transposed convolutions, which torch has not given a name in Python.
_ONEDNN = frozenset({_Backend.Mkldnn, _Backend(int(_Backend.Mkldnn) + 1)})
_PLAIN = frozenset({_Backend.Slow3d, _Backend.SlowDilated3d, _Backend.SlowTranspose3d})


def result_formats(
    x: Tensor, w: Tensor, b: Tensor | None, bias_sizes: Sequence[int] | None, config: Config
) -> tuple[torch.memory_format, torch.memory_format] | None:
    """(format of output and input's gradient, format of the weight's gradient); None where torch must be asked."""
    backend = torch._C._select_conv_backend(x, w, b, *config, bias_sizes)
    groups = config[5]
    if backend in _IM2COL and groups > 1:
        return None  # computed a group at a time and concatenated, which has rules of its own
    if backend not in _IM2COL | _ONEDNN | _PLAIN:
        return None

    # Meta tensors have layouts and no data. They are on no CPU, which the im2col backends' rule wants to see; oneDNN's
    # is otherwise the same.
    x, w = (torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, w))
    if x.dim() == 3:
        x, w = x.contiguous().unsqueeze(2), w.unsqueeze(2)
    asked = backend if backend in _PLAIN else _Backend.Mkldnn
    first = _backend_format(x, w, asked)
    x, w = x.contiguous(memory_format=first), w.contiguous(memory_format=first)
    second = _backend_format(x, w, asked)
    if backend in (_Backend.Slow2d, _Backend.SlowTranspose2d):
        return second, _backend_format(w, w, asked)  # of the weight alone
    return second, second


def strides_of(shape: Sequence[int], format: torch.memory_format) -> Strides:
    """The strides of a new tensor of `shape`; torch runs 1-D convolutions as 2-D ones of height 1."""
    if len(shape) == 3:
        flat = torch.empty((shape[0], shape[1], 1, shape[2]), device="meta", memory_format=format)
        return flat.squeeze(2).stride()
    return torch.empty(tuple(shape), device="meta", memory_format=format).stride()
