"""The operators `hubel::convolution` and `hubel::convolution_backward`: what `hubel.conv*` and `hubel.nn` call.

Three visible pieces: the op (real tensors), the fake (shapes and strides, for torch.compile and export), the autograd
formula. Besides them what torch's own convolution has too: autocast and vmap. The arguments are those of
`aten::convolution` and `aten::convolution_backward`; gradients that are not asked for are empty tensors, since an
operator must return tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hubel.ops import calls
from hubel.ops.override import switched_off_by_environment

_PARAMETERS = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups"
)
CONVOLUTION = f"convolution(Tensor input, Tensor weight, Tensor? bias, {_PARAMETERS}) -> Tensor"
BACKWARD = (
    "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[]? bias_sizes, "
    f"{_PARAMETERS}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
)

_library = torch.library.Library("hubel", "DEF")
for _schema in (CONVOLUTION, BACKWARD):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

# --- op ----------------------------------------------------------------------------------------------------------


def run_convolution(*arguments: Any) -> Tensor:
    """Dense CPU tensors: Hubel's kernels."""
    if switched_off_by_environment():
        return torch.ops.aten.convolution.default(*arguments)
    return calls.convolution(*arguments)


def run_backward(*arguments: Any, like_weight: bool = False) -> list[Tensor]:
    if switched_off_by_environment():
        return _backward_elsewhere(*arguments)
    return _all_tensors(calls.convolution_backward(*arguments, like_weight=like_weight), arguments[0])


def _convolution_elsewhere(*arguments: Any) -> Tensor:
    """Other devices and layouts: torch's kernels."""
    return torch.ops.aten.convolution.default(*arguments)


def _backward_elsewhere(*arguments: Any) -> list[Tensor]:
    return _all_tensors(torch.ops.aten.convolution_backward.default(*arguments), arguments[0])


def _all_tensors(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if gradient is None else gradient for gradient in gradients]


_library.impl("convolution", run_convolution, "CPU")
_library.impl("convolution_backward", run_backward, "CPU")
_library.impl("convolution", _convolution_elsewhere, "CompositeExplicitAutograd")
_library.impl("convolution_backward", _backward_elsewhere, "CompositeExplicitAutograd")

convolution = torch.ops.hubel.convolution.default
convolution_backward = torch.ops.hubel.convolution_backward.default


def convolve(*arguments: Any) -> Tensor:
    """`hubel::convolution`, also inside torch.func's transforms, which know autograd Functions but not operators'."""
    return _Convolution.apply(*arguments) if _transforming() else convolution(*arguments)  # type: ignore[return-value]


def convolve_backward(*arguments: Any) -> Sequence[Tensor]:
    """`hubel::convolution_backward`, likewise."""
    return _ConvolutionBackward.apply(*arguments) if _transforming() else convolution_backward(*arguments)  # type: ignore[return-value]


_transforming = torch._C._are_functorch_transforms_active

# --- fake --------------------------------------------------------------------------------------------------------
# Shapes and strides are torch's, so torch's own fakes say them.

torch.library.register_fake("hubel::convolution", _convolution_elsewhere, lib=_library)
torch.library.register_fake("hubel::convolution_backward", _backward_elsewhere, lib=_library)

# --- autograd ----------------------------------------------------------------------------------------------------
# Functions of our own where `torch.library.register_autograd` makes one, since torch.func knows no way through those.


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return convolution(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        x, w, b, *ctx.config = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        ctx.bias_sizes = None if b is None else b.shape

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        x, w = ctx.saved_tensors
        mask = [*ctx.needs_input_grad[:2], ctx.bias_sizes is not None and ctx.needs_input_grad[2]]
        found = convolve_backward(dy, x, w, ctx.bias_sizes, *ctx.config, mask)
        return (*(g if wanted else None for g, wanted in zip(found, mask, strict=True)), *(None,) * 6)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, w_tangent: Tensor | None, b_tangent: Tensor | None, *_: Any) -> Tensor:  # type: ignore[override]
        """Linear in input, weight and bias: the sum of what each tangent adds."""
        x, w = ctx.saved_tensors
        terms: list[Tensor] = [] if x_tangent is None else [convolve(x_tangent, w, None, *ctx.config)]
        terms += [] if w_tangent is None else [convolve(x, w_tangent, None, *ctx.config)]
        terms += [] if b_tangent is None else [b_tangent.view(-1, *(1,) * (x.dim() - 2))]
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        return _vmapped(info, in_dims, *arguments)


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(convolution_backward(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        dy, x, w, _, *ctx.config, ctx.mask = inputs
        ctx.save_for_backward(dy, x, w)
        # What nobody differentiated by arrives as None, and not as zeros to be convolved.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *second: Tensor | None) -> tuple:
        """A convolution is linear in the input and in the weight, so each derivative is one more convolution.

        With dx = A(dy, w), dw = B(dy, x), db = Σ dy, and ddx, ddw, ddb the gradients of these:
        to dy: conv(ddx, w) + conv(x, ddw) + ddb · to x: A(dy, ddw) · to w: B(dy, ddx).
        """
        dy, x, w = ctx.saved_tensors
        ddx, ddw, ddb = (g if asked else None for g, asked in zip(second, ctx.mask, strict=True))
        to_dy, to_x, to_w = ctx.needs_input_grad[:3]
        terms: list[Tensor] = []
        if to_dy and ddx is not None:
            terms.append(convolve(ddx, w, None, *ctx.config))
        if to_dy and ddw is not None:
            terms.append(convolve(x, ddw, None, *ctx.config))
        if to_dy and ddb is not None:
            terms.append(ddb.view(-1, *(1,) * (dy.dim() - 2)).expand_as(dy))
        gradients: list[Tensor | None] = [sum(terms[1:], terms[0]) if terms else None, None, None]
        if to_x and ddw is not None:
            gradients[1] = convolve_backward(dy, x, ddw, None, *ctx.config, [True, False, False])[0]
        if to_w and ddx is not None:
            gradients[2] = convolve_backward(dy, ddx, w, None, *ctx.config, [False, True, False])[1]
        return (*gradients, *(None,) * 8)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        return _vmapped_backward(info, in_dims, *arguments)


def _differentiable(function: type[torch.autograd.Function], op: Any) -> Any:
    """The operator's kernel for tensors that may ask for gradients."""

    def kernel(keys: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    return kernel


_library.impl("convolution", _differentiable(_Convolution, convolution), "Autograd", with_keyset=True)
_library.impl(
    "convolution_backward", _differentiable(_ConvolutionBackward, convolution_backward), "Autograd", with_keyset=True
)

# --- autocast, vmap ----------------------------------------------------------------------------------------------

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _autocast(x: Tensor, w: Tensor, b: Tensor | None, *config: Any) -> Tensor:
    """As torch's convolutions under `torch.autocast("cpu")`: floating-point arguments in the lower precision."""
    dtype = torch.get_autocast_dtype("cpu")
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        lower = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, w, b)]
        return convolve(*lower, *config)


_library.impl("convolution", _autocast, "AutocastCPU")


def _vmapped(info: Any, in_dims: tuple, x: Tensor, w: Tensor, b: Tensor | None, *config: Any) -> tuple[Tensor, int]:
    if in_dims[1] is None and in_dims[2] is None:
        # The same weights for all: so many more images.
        x = x.movedim(in_dims[0], 0)
        y = convolve(x.flatten(0, 1), w, b, *config)
        return y.unflatten(0, x.shape[:2]), 0
    slices = _slices(info.batch_size, in_dims[:3], (x, w, b))
    return torch.stack([convolve(*slice_, *config) for slice_ in slices]), 0


def _vmapped_backward(info: Any, in_dims: tuple, dy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple:
    slices = _slices(info.batch_size, in_dims[:3], (dy, x, w))
    found = zip(*(convolve_backward(*slice_, *rest) for slice_ in slices), strict=True)
    return tuple(torch.stack(gradients) for gradients in found), (0, 0, 0)


def _slices(count: int, dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[tuple]:
    return [
        tuple(t if dim is None or t is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True))
        for i in range(count)
    ]


torch.library.register_vmap("hubel::convolution", _vmapped, lib=_library)
torch.library.register_vmap("hubel::convolution_backward", _vmapped_backward, lib=_library)
