"""From torch's arguments to a prepared call: everything that can be decided from shapes is decided once.

`convolution` and `convolution_backward` take the arguments of torch's operators of these names. What a call needs
depends on shapes, strides, dtypes and the convolution's parameters only; these make a key, and behind the key lies a
function that allocates the results and starts the kernels, or that hands the call to torch and says why. A call that
came before costs one look into a dict. Under torch's profiler it carries the names of its problems and algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from hubel.ops import accuracy, background, native
from hubel.ops.arguments import REASONS, describe
from hubel.ops.backward import Backward, Gradients, prepare_backward
from hubel.ops.exclude import REASON as EXCLUDED
from hubel.ops.exclude import excluded
from hubel.ops.fallback import torch_convolution, torch_convolution_backward
from hubel.ops.forward import Forward, prepare_forward
from hubel.ops.log import announce, announced, count_fallback
from hubel.ops.recipe import Recipe

_get_num_threads = torch.get_num_threads
_mkldnn_enabled = torch._C._get_mkldnn_enabled
_profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]

# Beyond so many different calls the oldest are not worth their memory.
_MOST_CALLS = 4096
_forward: dict[tuple, Forward] = {}
_backward: dict[tuple, Backward] = {}
# Whether new calls are prepared in the background.
_in_background = False


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
    if excluded and id(w) in excluded:
        count_fallback(f"convolution of a weight of shape {tuple(w.shape)}", EXCLUDED)
        return torch_convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups)
    key = (
        x.shape, x.stride(), x.dtype, w.shape, w.stride(), w.dtype,
        None if b is None else (b.shape, b.stride(), b.dtype),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _forward.get(key)
    if run is None:
        config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
        threads = _get_num_threads()
        run = _remember(
            _forward, key, lambda: prepare_forward(x, w, b, config, threads),
            f"convolution {describe(x, w, b is not None, config)}", torch_convolution,
            lambda x, w, b: (x, w, b, *config),
        )  # fmt: skip
    if _profiling():
        with record_function(_label(run)):
            return run(x, w, b)
    y = run(x, w, b)
    prepared = getattr(run, "prepared", None)
    if prepared is not None:
        native.offer(prepared, x, w, b, (stride, padding, dilation, output_padding), transposed, groups)
    return y


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
    *,
    like_weight: bool = False,
) -> Gradients:
    """`aten::convolution_backward` for dense CPU tensors: gradients of input, weight and bias, None where not asked.

    like_weight: the weight's gradient lies in memory as a dense weight does, instead of as torch would lay it out.
    """
    if excluded and id(w) in excluded:
        count_fallback(f"convolution_backward of a weight of shape {tuple(w.shape)}", EXCLUDED)
        config = (stride, padding, dilation, transposed, output_padding, groups)
        return torch_convolution_backward(dy, x, w, bias_sizes, *config, output_mask)
    key = (
        dy.shape, dy.stride(), dy.dtype, x.shape, x.stride(), x.dtype, w.shape, w.stride(), w.dtype,
        None if bias_sizes is None else tuple(bias_sizes),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        tuple(output_mask), like_weight, _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _backward.get(key)
    if run is None:
        config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
        mask, threads = tuple(output_mask), _get_num_threads()
        run = _remember(
            _backward, key, lambda: prepare_backward(dy, x, w, bias_sizes, config, mask, threads, like_weight),
            f"convolution_backward {describe(x, w, mask[2], config)}", torch_convolution_backward,
            lambda dy, x, w: (dy, x, w, bias_sizes, *config, mask),
        )  # fmt: skip
    if _profiling():
        with record_function(_label(run)):
            return run(dy, x, w)
    return run(dy, x, w)


def convolution_recipe(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int,
) -> Recipe | None:  # fmt: skip
    """What `convolution` does with tensors laid out like these; None where it is more than launches, or torch's."""
    config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
    try:
        run = prepare_forward(x, w, b, config, _get_num_threads())
    except REASONS:
        return None
    return run.recipe() if hasattr(run, "recipe") else None  # type: ignore[attr-defined]


def backward_recipe(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: Sequence[int] | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, output_mask: Sequence[bool],
    *, like_weight: bool = False,
) -> Recipe | None:  # fmt: skip
    """The same of `convolution_backward`."""
    config = (tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups)
    try:
        mask = tuple(output_mask)
        run = prepare_backward(dy, x, w, bias_sizes, config, mask, _get_num_threads(), like_weight)
    except REASONS:
        return None
    return run.recipe() if hasattr(run, "recipe") else None  # type: ignore[attr-defined]


def forget() -> None:
    """Prepare every call anew. Compiled kernels and packed weights stay."""
    _forward.clear()
    _backward.clear()
    native.forget()


accuracy.on_change(forget)


def prepare_in_background(on: bool) -> None:
    """Whether torch's kernels serve new calls until Hubel's are compiled."""
    global _in_background
    _in_background = on


def in_background() -> bool:
    return _in_background


@contextmanager
def in_the_foreground() -> Iterator[None]:
    """Within the block new calls wait for their kernels, and those begun in the background are ready."""
    global _in_background
    before = _in_background
    background.wait()
    _in_background = False
    try:
        yield
    finally:
        _in_background = before


def _remember(
    calls: dict,
    key: tuple,
    prepare: Callable[[], Any],
    call: str,
    kernel: Callable[..., Any],
    arguments: Callable[..., tuple],
) -> Any:
    """What runs the call `key` from now on: what `prepare` gives, or torch's kernel where that declines.

    call: the call in words. arguments: from the call's tensors to the arguments of torch's kernel.
    """

    def on_torch(reason: str) -> Any:
        announce(call, f"torch, because {reason}")

        def run(*tensors: Tensor | None) -> Any:
            count_fallback(call, reason)
            return kernel(*arguments(*tensors))

        return run

    def prepared() -> Any:
        with announced() as said:
            try:
                run = prepare()
            except REASONS as reason:
                run = on_torch(str(reason))
        run.label = f"hubel::{call.split()[0]} {'; '.join(said)}"
        return run

    if len(calls) >= _MOST_CALLS:
        calls.clear()
    meanwhile = on_torch(background.REASON) if _in_background else None
    calls[key] = background.serve(calls, key, prepared, meanwhile) if meanwhile else prepared()
    return calls[key]


def _label(run: Any) -> str:
    return getattr(run, "label", "hubel: torch's kernel, while Hubel's are compiled")
