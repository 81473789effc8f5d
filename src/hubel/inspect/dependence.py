"""Which pixels a unit can depend on, asked of the network as it runs: branches, dilation, residuals, functional code.

One forward pass with the network's own numbers, in which every function of torch is given a backward pass of its own:
not gradients go back, but "this depends on that". A convolution hands on its window whatever its weights are, a ReLU
hands on what it would have zeroed, a product (a gate, squeeze and excitation) both of its sides, a norm over positions
every position. Autograd carries the marks, so that slices, concatenations and reshapes need no rules here.

The convolution's window is marked by its size alone: channels are tracked by group, and a weight that happens to be
zero counts. Functions that this file has no rule for are taken to depend on everything where the shape changes, and on
the same place where it does not; `assumed` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hubel.inspect.hooks import watch
from hubel.inspect.layers import CONVOLUTIONS

Marks = Callable[[Tensor], tuple[Tensor | None, ...]]

# Autograd's own backward pass hands marks on as they are, or as positive multiples.
_CARRIED = frozenset(
    "add add_ __add__ __radd__ __iadd__ cat concat concatenate stack view view_as reshape flatten unflatten "
    "permute transpose t movedim moveaxis swapaxes contiguous clone squeeze unsqueeze expand expand_as repeat "
    "chunk split narrow select __getitem__ getitem index_select pad avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum interpolate upsample pixel_shuffle "
    "pixel_unshuffle channel_shuffle roll flip to float double type unbind unfold identity dropout dropout2d "
    "feature_dropout dropout_ detach requires_grad_ register_hook size dim numel __get__ shape data_ptr "
    "is_floating_point stride storage_offset _conv_forward repeat_interleave as_strided tensor_split hsplit "
    "vsplit dsplit alpha_dropout feature_alpha_dropout".split()
)
_OVER_LAST = frozenset({"layer_norm", "rms_norm"})
_OVER_PLACES = frozenset({"group_norm", "instance_norm"})
_POOLS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", "lp_pool1d", "lp_pool2d", "boolean_dispatch"})
_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "mm", "linear"})
_OVER_ONE = frozenset({"softmax", "log_softmax", "softmin", "normalize", "local_response_norm"})
_REDUCTIONS = frozenset({"max", "min", "amax", "amin", "median", "logsumexp", "prod", "std", "var", "norm"})
_MIXING = frozenset(
    "scaled_dot_product_attention multi_head_attention_forward cumsum sort einsum fft rfft fft2 ifft2".split()
)


class _Marked(torch.autograd.Function):
    """The value as it is; backward hands on what `marks` makes of the mark of the result."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, marks: Marks, *sources: Tensor) -> Tensor:
        ctx.marks = marks
        ctx.metas = [(s.shape, s.dtype) for s in sources]
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, mark: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if ctx.marks is _same_place:
            return (None, None, *[mark.to(dtype) for _, dtype in ctx.metas])
        # What is the same all along an axis is marked once.
        found = ctx.marks(_as_marks(_narrow(mark).abs(), 0.0).expand(mark.shape))
        back = [
            # Marks that leave a rule count something, and so are 1 at least, up to the rounding of a fast algorithm.
            None if m is None else _as_marks(_narrow(m), 0.5).to(dtype).expand(shape)
            for m, (shape, dtype) in zip(found, ctx.metas, strict=True)
        ]
        return (None, None, *back)


def _as_marks(counts: Tensor, above: float) -> Tensor:
    """1 where a count, which is never negative, is above this, and 0 elsewhere."""
    return torch.gt(counts, above, out=torch.empty_like(counts, memory_format=torch.contiguous_format))


def _narrow(mark: Tensor) -> Tensor:
    """The mark with size 1 along the axes along which it was expanded."""
    for axis, (size, step) in enumerate(zip(mark.shape, mark.stride(), strict=True)):
        if step == 0 and size > 1:
            mark = mark.narrow(axis, 0, 1)
    return mark


class _Rules(TorchFunctionMode):
    """Puts `_Marked` around every function that is handed an image, or what came of one."""

    def __init__(self) -> None:
        super().__init__()
        self.assumed: set[str] = set()
        self.cut: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        sources = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
        before = args[0] if args and isinstance(args[0], Tensor) else None
        if not sources or name in _CARRIED:
            return func(*args, **kwargs)
        with torch.no_grad():
            version = before._version if before is not None else 0
            result = func(*args, **kwargs)
            in_place = before is not None and before._version != version and result is before
        value = result[0] if isinstance(result, tuple) and result and isinstance(result[0], Tensor) else result
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return result
        marks = self._marks(name, args, kwargs, sources, value)
        marked = _Marked.apply(value, marks, *sources)
        if in_place:
            # Whoever wrote `x.relu_()` goes on with x: the mark must be found there.
            assert before is not None
            return before.copy_(marked)
        # torch's named tuples (`x.max(1).values`) are made of one sequence, as plain ones are.
        return type(result)([marked, *result[1:]]) if isinstance(result, tuple) else marked

    def _marks(self, name: str, args: Any, kwargs: Any, sources: list[Tensor], value: Tensor) -> Marks:
        x = sources[0]
        if name in CONVOLUTIONS and args and x is args[0]:
            return _convolution(self, name, args, kwargs, x, len(sources))
        if name in _POOLS and x.ndim >= 3 and value.ndim == x.ndim:
            return _pool(self, args, kwargs, x)
        if name in _PRODUCTS:
            return _matrix(name, args, sources)
        if name in _OVER_LAST:
            shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            return _over(tuple(range(-len(shape), 0)), len(sources))
        if name in _OVER_ONE:
            dim = kwargs.get(
                "dim", args[1] if len(args) > 1 and name in ("softmax", "log_softmax", "softmin") else None
            )
            return _over((1 if dim is None else int(dim),), len(sources))
        if name in _REDUCTIONS and (axes := _axes(args, kwargs, x)) is not None:
            return _reduced(axes, x, len(sources))
        if name in _OVER_PLACES:
            # Groups of channels are one here: too much by channel, the same by place.
            return _over(tuple(range(1, x.ndim)), len(sources))
        if name in _MIXING or value.shape != torch.broadcast_shapes(*(s.shape for s in _fitting(sources, value))):
            if name not in _MIXING:
                self.assumed.add(name)
            return _over(tuple(range(1, value.ndim)), len(sources), [s.shape for s in sources])
        if all(s.shape == value.shape for s in sources):
            return _same_place
        return lambda mark: tuple(mark.sum_to_size(s.shape) for s in sources)


def _same_place(mark: Tensor) -> tuple[Tensor | None, ...]:
    """Each entry depends on that at its own place in every source: marks go back as they are."""
    return (mark,)


def _fitting(sources: list[Tensor], value: Tensor) -> list[Tensor]:
    """The sources if each can be broadcast to the value, else none that could."""
    try:
        return (
            sources if torch.broadcast_shapes(*(s.shape for s in sources), value.shape) == value.shape else [value[:0]]
        )
    except RuntimeError:
        return [value[:0]]


def _over(axes: tuple[int, ...], sources: int, shapes: list[torch.Size] | None = None) -> Marks:
    """A result each of whose entries depends on all entries along `axes`; of other shapes, on everything."""

    def marks(mark: Tensor) -> tuple[Tensor | None, ...]:
        some = mark.amax(axes, keepdim=True) if axes else mark
        if shapes is None:
            return (some.expand(mark.shape), *[None] * (sources - 1))
        return tuple(mark.amax().expand(shape) for shape in shapes)

    return marks


def _axes(args: Any, kwargs: Any, x: Tensor) -> tuple[int, ...] | None:
    """The axes that a reduction goes over, counted from 0; None if it goes over all or the call says it otherwise."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, (list, tuple)) or not dims or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(sorted(d % x.ndim for d in dims))


def _reduced(axes: tuple[int, ...], x: Tensor, sources: int) -> Marks:
    """A maximum over channels depends on all channels of its place, and on no other place."""

    def marks(mark: Tensor) -> tuple[Tensor | None, ...]:
        if mark.ndim < x.ndim:
            for axis in axes:
                mark = mark.unsqueeze(axis)
        return (mark.expand(x.shape), *[None] * (sources - 1))

    return marks


def _convolution(rules: _Rules, name: str, args: Any, kwargs: Any, x: Tensor, sources: int) -> Marks:
    names = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    if "transpose" in name:
        names = ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
    if name == "convolution":
        names = ["input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"]
    given = dict(zip(names, args, strict=False)) | kwargs
    w, dims = given["weight"], x.ndim - 2
    stride, dilation = (_each(given.get(key, 1), dims) for key in ("stride", "dilation"))
    groups, size = given.get("groups", 1), tuple(w.shape[2:])
    transposed = "transpose" in name or bool(given.get("transposed", False))
    padding = given.get("padding", 0)
    if padding == "same":
        # torch puts the odd pixel behind; in front are floor(d (k - 1) / 2).
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, size, strict=True)]
    padding = _each(0 if padding == "valid" else padding, dims)

    def marks(mark: Tensor) -> tuple[Tensor | None, ...]:
        if mark.stride(1) == 0:
            some = mark[:, :groups]
        else:
            shape = (len(mark), groups, mark.shape[1] // groups, *mark.shape[2:])
            some = mark.reshape(shape).amax(2)  # (N, G, *places): a group's outputs see the same inputs
        ones = mark.new_ones((groups, 1, *size))
        if transposed:
            spread = _convolve(some, ones, dims, groups, stride, padding, dilation)
            spread = _cut(spread, x.shape[2:])
        else:
            spread = _spread(rules, some, ones, x.shape[2:], groups, stride, padding, dilation)
        spread = spread if groups == 1 else spread.repeat_interleave(x.shape[1] // groups, 1)
        return (spread.expand(x.shape), *[None] * (sources - 1))

    return marks


def _pool(rules: _Rules, args: Any, kwargs: Any, x: Tensor) -> Marks:
    names = ["input", "kernel_size", "stride", "padding", "dilation"]
    given = dict(zip(names, args, strict=False)) | kwargs
    if "norm_type" in kwargs or isinstance(args[1] if len(args) > 1 else 1, float):
        given = dict(zip(["input", "norm_type", "kernel_size", "stride"], args, strict=False)) | kwargs
    dims = x.ndim - 2
    size = _each(given["kernel_size"], dims)
    stride = _each(given["stride"] if given.get("stride") not in (None, [], ()) else size, dims)
    padding, dilation = (_each(given.get(key, other), dims) for key, other in (("padding", 0), ("dilation", 1)))

    def marks(mark: Tensor) -> tuple[Tensor | None, ...]:
        flat = mark.reshape(-1, 1, *mark.shape[2:])
        spread = _spread(rules, flat, mark.new_ones((1, 1, *size)), x.shape[2:], 1, stride, padding, dilation)
        return (spread.reshape(x.shape),)

    return marks


def _spread(
    rules: _Rules,
    marks: Tensor,
    ones: Tensor,
    size: torch.Size,
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Back through windows: every input that some marked output sees. Inputs behind the last window stay unmarked."""
    dims = len(size)
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    spread = transpose(marks, ones, None, stride, 0, 0, groups, dilation)
    index = [slice(None), slice(None)]
    grow = []
    for axis in range(dims):
        have = spread.shape[2 + axis] - padding[axis]
        index.append(slice(padding[axis], padding[axis] + size[axis]))
        grow = [0, max(0, size[axis] - have), *grow]
    for axis in range(dims):
        # Marks on the padding: here the border of the image may have hidden pixels.
        edges = [spread.narrow(2 + axis, 0, padding[axis])]
        behind = padding[axis] + size[axis]
        if spread.shape[2 + axis] > behind:
            edges.append(spread.narrow(2 + axis, behind, spread.shape[2 + axis] - behind))
        if any(bool((edge > 0.5).any()) for edge in edges):
            rules.cut.add(axis - dims)
    return F.pad(spread[tuple(index)], grow)


def _convolve(
    marks: Tensor,
    ones: Tensor,
    dims: int,
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return convolve(marks, ones, None, stride, padding, dilation, groups)


def _cut(marks: Tensor, size: torch.Size) -> Tensor:
    index = (slice(None), slice(None), *[slice(0, s) for s in size])
    grow: list[int] = []
    for axis, s in enumerate(size):
        grow = [0, max(0, s - marks.shape[2 + axis]), *grow]
    return F.pad(marks[index], grow)


def _matrix(name: str, args: Any, sources: list[Tensor]) -> Marks:
    a, b = args[0], args[1]

    def marks(mark: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for source in sources:
            if source is a:  # its row, all along the sum
                some = mark.amax(-1, keepdim=True) if mark.ndim else mark
                found.append(_fit(some, source.shape))
            elif source is b and name != "linear":
                some = mark.amax(-2, keepdim=True) if mark.ndim > 1 else mark
                found.append(_fit(some, source.shape))
            else:
                found.append(None)
        return tuple(found)

    return marks


def _fit(mark: Tensor, shape: torch.Size) -> Tensor:
    """`mark`, with size 1 along the sum, for a factor of this shape; broadcast axes are joined."""
    while mark.ndim > len(shape):
        mark = mark.amax(0)
    for axis, size in enumerate(shape):
        if size == 1 and mark.shape[axis] != 1:
            mark = mark.amax(axis, keepdim=True)
    return mark.expand(shape)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(int(v) for v in (values * dims if len(values) == 1 else values))


@contextmanager
def dependence(net: nn.Module) -> Iterator[tuple[dict[str, Tensor], _Rules]]:
    """Within the block, a pass through `net` of an x that requires gradients fills a dict: address -> tap.

    The gradient of any entry of a tap with respect to x is not zero where that entry depends on x, and zero elsewhere.
    Beside it what the rules noted: `assumed`, the functions that were taken to depend on everything for want of a rule;
    `cut`, the axes (−1 is the last) along which, in some backward pass since it was cleared, a window reached into
    padding.
    """
    taps: dict[str, Tensor] = {}
    rules = _Rules()

    def read(address: str, stage: str, tensor: Tensor) -> None:
        # The last of its stages stays; a copy, so that in-place operations that follow are not in it.
        taps[address] = tensor.clone() if tensor.requires_grad else tensor

    with ExitStack() as stack:
        # Weights are no pixels: without gradients of their own they are never taken for something that an image made.
        for parameter in net.parameters():
            if parameter.requires_grad:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        # Rules first, so that watching, which is asked before them, sees their results.
        stack.enter_context(rules)
        stack.enter_context(watch(net, keep=False, read=read, gradients=True))
        yield taps, rules
