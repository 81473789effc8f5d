"""From torch's arguments to a prepared call: everything that can be decided from shapes is decided once.

`convolution` and `convolution_backward` take the arguments of torch's operators of these names. What a call needs
depends on shapes, strides, dtypes and the convolution's parameters only; these make a key, and behind the key lies a
function that allocates the results and starts the kernels, or that hands the call to torch and says why. A call that
came before costs one look into a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hubel.engine.invoke import Invocation, prepare
from hubel.engine.spec import ConvSpec, Direction, Problem
from hubel.errors import SpecError, UnsupportedError
from hubel.ops import accuracy
from hubel.ops.fallback import torch_convolution, torch_convolution_backward
from hubel.ops.log import announce, count_fallback, count_native
from hubel.ops.strides import Config, Strides, result_formats, strides_of
from hubel.ops.weights import one_of, packed

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

_get_num_threads = torch.get_num_threads
_mkldnn_enabled = torch._C._get_mkldnn_enabled
# What Inductor's code allocates with: past the dispatcher, 1 µs less than `torch.empty_strided` on every call, and no
# default device, dtype or torch function mode can change what comes back.
_empty = torch._C._dynamo.guards._empty_strided_cpu
_FLOAT = torch.float32
_CPU = torch.device("cpu")
_DISPATCH = "__torch_dispatch__"
_PLAIN_TYPES = frozenset({Tensor, nn.Parameter, nn.Buffer})

# Beyond so many different calls the oldest are not worth their memory.
_MOST_CALLS = 4096
_forward: dict[tuple, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {}
_backward: dict[tuple, Callable[[Tensor, Tensor, Tensor], Gradients]] = {}


class _Handed(Exception):
    """This call is torch's; the message is the reason that the log shows."""


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
        x.shape, x.stride(), x.dtype, type(x),
        w.shape, w.stride(), w.dtype, type(w),
        None if b is None else (b.shape, b.stride(), b.dtype),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _forward.get(key)
    if run is None:
        config = (key[9], key[10], key[11], transposed, key[13], groups)
        run = _remember(_forward, key, _prepare_forward(x, w, b, config, key[15]))
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
        dy.shape, dy.stride(), dy.dtype, type(dy),
        x.shape, x.stride(), x.dtype, type(x),
        w.shape, w.stride(), w.dtype, type(w),
        None if bias_sizes is None else tuple(bias_sizes),
        tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(output_padding), groups,
        tuple(output_mask), _get_num_threads(), _mkldnn_enabled(),
    )  # fmt: skip
    run = _backward.get(key)
    if run is None:
        config = (key[13], key[14], key[15], transposed, key[17], groups)
        run = _remember(_backward, key, _prepare_backward(dy, x, w, key[12], config, key[19], key[20]))
    return run(dy, x, w)


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


# --- forward -----------------------------------------------------------------------------------------------------


def _prepare_forward(x: Tensor, w: Tensor, b: Tensor | None, config: Config, threads: int) -> Any:
    call = f"convolution {describe(x, w, b is not None, config)}"
    try:
        tensors = (x, w) if b is None else (x, w, b)
        _check_tensors(*tensors)
        config = _one_a_dimension(config, x.dim() - 2)
        spec = spec_of(x.shape, w.shape, config)
        if b is not None and b.shape != (w.shape[1] * config[5] if config[3] else w.shape[0],):
            raise _Handed("the bias has not one number an output channel; torch says so")
        run = _native_forward(x, w, b, config, spec, threads)
    except (_Handed, SpecError, UnsupportedError) as error:
        reason = str(error)
        announce(call, f"torch, because {reason}")

        def handed(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            count_fallback(call, reason)
            return torch_convolution(x, w, b, *config)

        return handed
    return run


def _native_forward(x: Tensor, w: Tensor, b: Tensor | None, config: Config, spec: ConvSpec, threads: int) -> Any:
    transposed = config[3]
    shape = spec.input_shape if transposed else spec.output_shape
    if not prod(shape):
        raise _Handed("the output is empty")
    formats = result_formats(x, w, b, None if b is None else b.shape, config)
    strides = torch_convolution(x, w, b, *config).stride() if formats is None else strides_of(shape, formats[0])

    direction = Direction.INPUT_GRADIENT if transposed else Direction.FORWARD
    problem = Problem(spec, direction, b is not None and not transposed)
    # A transposed convolution reads a gradient, in the place of the output, and writes in the place of the input.
    places = (strides, w.stride(), x.stride()) if transposed else (x.stride(), w.stride(), strides)
    invocation = _invocation(problem, places, threads)

    key = one_of(invocation.packing_key)

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        y = _empty(shape, strides, _FLOAT)
        weights = packed(w, invocation, key, threads)
        invocation(x.data_ptr(), weights.address, 0 if b is None else b.data_ptr(), y.data_ptr(), threads)
        count_native()
        return y

    if b is None or (not transposed and b.is_contiguous()):
        return run

    # An input gradient has no bias, and kernels read a bias as neighbours.
    def run_with_bias(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if not transposed:
            return run(x, w, b.contiguous())
        return run(x, w, None).add_(b.view(-1, *(1,) * len(spec.input_size)))

    return run_with_bias


# --- backward ----------------------------------------------------------------------------------------------------


def _prepare_backward(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: Any, config: Config, mask: Sequence[bool], threads: int
) -> Any:
    call = f"convolution_backward {describe(x, w, bool(mask[2]), config)}"
    try:
        _check_tensors(dy, x, w)
        config = _one_a_dimension(config, x.dim() - 2)
        spec = spec_of(x.shape, w.shape, config)
        run = _native_backward(dy, x, w, bias_sizes, config, mask, spec, threads)
    except (_Handed, SpecError, UnsupportedError) as error:
        reason = str(error)
        announce(call, f"torch, because {reason}")

        def handed(dy: Tensor, x: Tensor, w: Tensor) -> Gradients:
            count_fallback(call, reason)
            return torch_convolution_backward(dy, x, w, bias_sizes, *config, mask)

        return handed
    return run


def _native_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Any,
    config: Config,
    mask: Sequence[bool],
    spec: ConvSpec,
    threads: int,
) -> Any:
    transposed = config[3]
    if dy.shape != (spec.input_shape if transposed else spec.output_shape):
        raise _Handed("the gradient has not the output's shape; torch says so")
    if not dy.numel():
        raise _Handed("the output is empty")

    formats = result_formats(x, w, None, bias_sizes, config)
    if formats is None:
        asked = torch_convolution_backward(dy, x, w, bias_sizes, *config, (True, True, False))
        x_strides, w_strides = asked[0].stride(), asked[1].stride()
    else:
        x_strides, w_strides = strides_of(x.shape, formats[0]), strides_of(w.shape, formats[1])

    wants_x, wants_w, wants_b = mask
    of_input = _input_gradient(dy, x, w, spec, transposed, x_strides, threads) if wants_x else None
    of_weight = _weight_gradient(dy, x, w, spec, transposed, w_strides, wants_b, threads) if wants_w else None

    def run(dy: Tensor, x: Tensor, w: Tensor) -> Gradients:
        dx = of_input(dy, w) if of_input else None
        dw, db = of_weight(dy, x) if of_weight else (None, None)
        if wants_b and db is None:
            db = bias_gradient(dy)
        count_native()
        return dx, dw, db

    return run


def _input_gradient(
    dy: Tensor, x: Tensor, w: Tensor, spec: ConvSpec, transposed: bool, strides: Strides, threads: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """dx = f(dy, w). A transposed convolution's is the plain convolution of dy."""
    shape = tuple(x.shape)
    problem = Problem(spec, Direction.FORWARD if transposed else Direction.INPUT_GRADIENT)
    invocation = _invocation(
        problem, (dy.stride(), w.stride(), strides) if transposed else (strides, w.stride(), dy.stride()), threads
    )

    key = one_of(invocation.packing_key)

    def run(dy: Tensor, w: Tensor) -> Tensor:
        dx = _empty(shape, strides, _FLOAT)
        weights = packed(w, invocation, key, threads)
        invocation(dy.data_ptr(), weights.address, 0, dx.data_ptr(), threads)
        return dx

    return run


def _weight_gradient(
    dy: Tensor, x: Tensor, w: Tensor, spec: ConvSpec, transposed: bool, strides: Strides, wants_b: bool, threads: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """(dw, db) = f(dy, x); db only where it is asked for and the kernel sums the right tensor.

    A transposed convolution's weight gradient is that of `spec`, which reads dy and of which x is the gradient.
    """
    shape = tuple(w.shape)
    plain = strides_of(shape, torch.contiguous_format)
    problem = Problem(spec, Direction.WEIGHT_GRADIENT, wants_b and not transposed)
    read, gradient = (dy, x) if transposed else (x, dy)
    invocation = _invocation(problem, (read.stride(), plain, gradient.stride()), threads)
    # Dimensions of size 1 may have any stride: the same memory then has torch's strides.
    rearranged = any(n > 1 and s != p for n, s, p in zip(shape, strides, plain, strict=True))

    def run(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        dw = _empty(shape, plain if rearranged else strides, _FLOAT)
        db = _empty((spec.out_channels,), (1,), _FLOAT) if problem.bias else None
        read, gradient = (dy, x) if transposed else (x, dy)
        invocation(read.data_ptr(), gradient.data_ptr(), 0 if db is None else db.data_ptr(), dw.data_ptr(), threads)
        if rearranged:
            dw = _empty(shape, strides, _FLOAT).copy_(dw)
        return dw, db

    return run


def bias_gradient(dy: Tensor) -> Tensor:
    """The sum of dy over the batch and all positions, where no weight gradient's kernel has it."""
    return dy.sum((0, *range(2, dy.dim())))


# --- what both share ---------------------------------------------------------------------------------------------


def spec_of(x_shape: Sequence[int], w_shape: Sequence[int], config: Config) -> ConvSpec:
    """The convolution of these arguments; of a transposed one, the convolution whose input gradient it is.

    Raises `SpecError` where there is none, `UnsupportedError` where there is one that Hubel does not do.
    """
    stride, padding, dilation, transposed, output_padding, groups = config
    if not 3 <= len(x_shape) <= 5 or len(x_shape) != len(w_shape):
        raise SpecError(
            "input and weight must both have 3, 4 or 5 dimensions: batch, channels and 1, 2 or 3 sizes. "
            f"Received: {tuple(x_shape)} and {tuple(w_shape)}. Give each its batch and channel dimension."
        )
    n, c, *size = x_shape
    kernel = tuple(w_shape[2:])
    if not n or not c:
        raise UnsupportedError("the input is empty")
    if min(groups, *w_shape) < 1:
        raise UnsupportedError("the weight is empty")
    if transposed:
        spec = ConvSpec.for_transposed(
            n, c, w_shape[1] * groups, size, kernel, stride, padding, output_padding, dilation, groups
        )
    else:
        spec = ConvSpec(n, c, w_shape[0], size, kernel, stride, padding, dilation, groups)
    if tuple(w_shape) != spec.weight_shape:
        raise SpecError(
            f"the weight must have the shape {spec.weight_shape}. Received: {tuple(w_shape)} for an input of shape "
            f"{tuple(x_shape)} and groups={groups}. Make the input's channels and the weight's agree."
        )
    return spec


def describe(x: Tensor, w: Tensor, bias: bool, config: Config) -> str:
    """One call in a log: the problem's text where there is one, the shapes otherwise."""
    dtype = str(x.dtype).removeprefix("torch.")
    try:
        text = str(spec_of(x.shape, w.shape, _one_a_dimension(config, x.dim() - 2)))
        text += "/transposed" if config[3] else ""
    except (_Handed, SpecError, UnsupportedError, ValueError):
        text = f"{tuple(x.shape)} * {tuple(w.shape)}{' transposed' if config[3] else ''}"
    return text + ("/bias" if bias else "") + ("" if dtype == "float32" else f"/{dtype}")


def _check_tensors(*tensors: Tensor) -> None:
    for t in tensors:
        if t.dtype != _FLOAT:
            raise _Handed(f"the dtype is {t.dtype}; Hubel computes in torch.float32")
        if t.device != _CPU or t.layout != torch.strided:
            raise _Handed(f"a tensor is {t.layout} on {t.device}; Hubel reads dense tensors on the CPU")
        if type(t) not in _PLAIN_TYPES and getattr(type(t), _DISPATCH) is not getattr(Tensor, _DISPATCH):
            raise _Handed(f"a tensor is a {type(t).__name__}, which has operators of its own")
        if not t.numel():
            raise _Handed("a tensor is empty")


def _one_a_dimension(config: Config, ndim: int) -> Config:
    """torch takes one number for all dimensions in every list."""

    def expanded(numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(numbers) not in (1, ndim):
            raise _Handed("a parameter has not one number a dimension; torch says so")
        return numbers * ndim if len(numbers) == 1 else numbers

    stride, padding, dilation, transposed, output_padding, groups = config
    return expanded(stride), expanded(padding), expanded(dilation), transposed, expanded(output_padding), groups


def _invocation(problem: Problem, strides: tuple[Strides, Strides, Strides], threads: int) -> Invocation:
    """strides: of the tensors in the places of input, weight and output, whatever the direction."""
    invocation = prepare(problem, *strides, accuracy.policy(threads))
    announce(str(problem), invocation.plan.algorithm)
    return invocation
