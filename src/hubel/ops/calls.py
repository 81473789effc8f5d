"""From torch's arguments to a prepared call: everything that can be decided from shapes is decided once.

`convolution` and `convolution_backward` take the arguments of torch's operators of these names. What a call needs
depends on shapes, strides, dtypes and the convolution's parameters only; these make a key, and behind the key lies a
function that allocates the results and starts the kernels, or that hands the call to torch and says why. A call that
came before costs one look into a dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hubel.ops import accuracy
from hubel.ops.arguments import REASONS, describe
from hubel.ops.backward import Backward, Gradients, prepare_backward
from hubel.ops.fallback import torch_convolution, torch_convolution_backward
from hubel.ops.forward import Forward, prepare_forward
from hubel.ops.log import announce, count_fallback
from hubel.ops.strides import Config

_get_num_threads = torch.get_num_threads
_mkldnn_enabled = torch._C._get_mkldnn_enabled

# Beyond so many different calls the oldest are not worth their memory.
_MOST_CALLS = 4096
_forward: dict[tuple, Forward] = {}
_backward: dict[tuple, Backward] = {}


def convolution(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """`aten::convolution` for dense CPU tensors. Raises what torch raises."""
    key = (
        x.shape, x.stride(), x.dtype, w.shape, w.stride(), w.dtype,
        None if b is None else (b.shape, b.stride(), b.dtype),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _forward.get(key)
    if run is None:
        config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
        run = _remember(_forward, key, _prepared_forward(x, w, b, config))
    return run(x, w, b)


def convolution_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """`aten::convolution_backward` for dense CPU tensors: gradients of input, weight and bias, None where not asked."""
    key = (
        dy.shape, dy.stride(), dy.dtype, x.shape, x.stride(), x.dtype, w.shape, w.stride(), w.dtype,
        None if bias_sizes is None else tuple(bias_sizes),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        tuple(output_mask), _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _backward.get(key)
    if run is None:
        config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
        run = _remember(_backward, key, _prepared_backward(dy, x, w, bias_sizes, config, tuple(output_mask)))
    return run(dy, x, w)


def _prepared_forward(x: Tensor, w: Tensor, b: Tensor | None, config: Config) -> Forward:
    try:
        return prepare_forward(x, w, b, config, _get_num_threads())
    except REASONS as reason:
        call = f"convolution {describe(x, w, b is not None, config)}"
        return _handed(torch_convolution, call, str(reason), lambda x, w, b: (x, w, b, *config))


def _prepared_backward(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: Sequence[int] | None, config: Config, mask: tuple[bool, ...]
) -> Backward:
    try:
        return prepare_backward(dy, x, w, bias_sizes, config, mask, _get_num_threads())
    except REASONS as reason:
        call = f"convolution_backward {describe(x, w, mask[2], config)}"
        kernel = torch_convolution_backward
        return _handed(kernel, call, str(reason), lambda dy, x, w: (dy, x, w, bias_sizes, *config, mask))


def forget() -> None:
    """Prepare every call anew. Compiled kernels and packed weights stay."""
    _forward.clear()
    _backward.clear()


accuracy.on_change(forget)


def _remember(calls: dict, key: tuple, run: Any) -> Any:
    if len(calls) >= _MOST_CALLS:
        calls.clear()
    calls[key] = run
    return run


def _handed(kernel: Any, call: str, reason: str, arguments: Any) -> Any:
    """torch's kernel in the place of a prepared call; arguments: from the call's tensors to the kernel's arguments."""
    announce(call, f"torch, because {reason}")

    def run(*tensors: Tensor | None) -> Any:
        count_fallback(call, reason)
        return kernel(*arguments(*tensors))

    return run
