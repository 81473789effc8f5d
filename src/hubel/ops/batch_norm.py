"""Batch norms of training graphs, with the activations that follow them, on kernels of our own.

    y, mean, spread, running mean, running variance = batch_norm(x, weight, bias, …)
    dx, dweight, dbias = batch_norm_backward(dy, x, weight, …)

For channels-last tensors of float32 (`engine.between.batch_norm`). In the forward graph the activation disappears; in
the backward graph its gradient does, which is made of y on the way. `fuse_batch_norms` finds both.
"""

from __future__ import annotations

import ctypes
import operator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from hubel.engine.between import Work, batch_norm_gradients, batch_normed
from hubel.engine.between.batch_norm import fits
from hubel.engine.between.work import CHUNK
from hubel.engine.threads import Block, launch
from hubel.ops import accuracy
from hubel.ops.recipe import Argument, Recipe, Result, Table, made_like, of_work
from hubel.ops.results import empty, empty_like

_aten = torch.ops.aten
_NORM = _aten._native_batch_norm_legit_functional.default
_NORM_BACKWARD = _aten.native_batch_norm_backward.default
# Activations: the operator with its further arguments, and that of its gradient with those behind y.
_ACTIVATIONS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "relu": ((_aten.relu.default,), (_aten.threshold_backward.default, 0)),
    "relu6": ((_aten.hardtanh.default, 0.0, 6.0), (_aten.hardtanh_backward.default, 0.0, 6.0)),
}


def batch_norm(
    x: Tensor, w: Tensor, b: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`aten::_native_batch_norm_legit_functional` in training, then the activation: relu, relu6, or none ("")."""
    if not _lies(x):
        y, *rest = _NORM(x, w, b, mean, variance, True, momentum, eps)
        return (_applied(activation, y), *rest)  # type: ignore[return-value]
    channels = x.shape[1]
    y, found = empty_like(x), [empty((channels,), (1,), x.dtype) for _ in range(4)]
    work = _forward(x.numel() // channels, channels, eps, momentum, activation)
    _run(work, x, [_dense(t) for t in (w, b, mean, variance)] + found, 0, y)
    return (y, *found)  # type: ignore[return-value]


def batch_norm_backward(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, spread: Tensor, y: Tensor | None, activation: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`aten::native_batch_norm_backward` of the gradient that the activation lets through where y is its output."""
    if not (_lies(x) and _lies(dy) and (y is None or _lies(y))):
        if activation:
            _, (gradient, *further) = _ACTIVATIONS[activation]
            dy = gradient(dy, y, *further)
        return _NORM_BACKWARD(dy, x, w, None, None, mean, spread, True, eps, [True, True, True])
    channels = x.shape[1]
    dx, found = empty_like(x), [empty((channels,), (1,), x.dtype) for _ in range(2)]
    # Without an activation nobody reads y.
    given = [dy if y is None else y, *(_dense(t) for t in (w, mean, spread))]
    _run(_backward(x.numel() // channels, channels, activation), dy, given + found, x.data_ptr(), dx)
    return (dx, *found)  # type: ignore[return-value]


def forward_recipe(
    x: Tensor, w: Tensor, b: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float, activation: str
) -> Recipe | None:
    """What `batch_norm` does with tensors laid out like these; None where it is more than launches."""
    given = (w, b, mean, variance)
    if not _lies(x) or any(_dense(t) is not t for t in given):
        return None
    work, _ = _forward(x.numel() // x.shape[1], x.shape[1], eps, momentum, activation)
    table = Table((*(Argument(1 + i) for i in range(4)), *(Result(1 + i) for i in range(4))))
    return Recipe((made_like(x), *[made_like(w)] * 4), (of_work(work, Argument(0), table, None, Result(0)),))


def backward_recipe(
    dy: Tensor, x: Tensor, w: Tensor, mean: Tensor, spread: Tensor, y: Tensor | None, activation: str, eps: float
) -> Recipe | None:
    """What `batch_norm_backward` does with tensors laid out like these; None where it is more than launches."""
    tensors, given = (dy, x) if y is None else (dy, x, y), (w, mean, spread)
    if not all(_lies(t) for t in tensors) or any(_dense(t) is not t for t in given):
        return None
    work, _ = _backward(x.numel() // x.shape[1], x.shape[1], activation)
    table = Table((Argument(0 if y is None else 5), *(Argument(2 + i) for i in range(3)), Result(1), Result(2)))
    launch = of_work(work, Argument(0), table, Argument(1), Result(0))
    return Recipe((made_like(x), *[made_like(w)] * 2), (launch,))


def _applied(activation: str, y: Tensor) -> Tensor:
    if not activation:
        return y
    (function, *further), _ = _ACTIVATIONS[activation]
    return function(y, *further)


def _lies(x: Tensor) -> bool:
    """Whether a tensor is what the kernels read."""
    return x.dtype is torch.float32 and x.numel() > x.shape[1] and x.is_contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=1024)
def _forward(*sizes: Any) -> tuple[Work, Block]:
    work = batch_normed(*sizes)
    return work, Block(work.jobs, work.keep)


@lru_cache(maxsize=1024)
def _backward(*sizes: Any) -> tuple[Work, Block]:
    work = batch_norm_gradients(*sizes)
    return work, Block(work.jobs, work.keep)


def _dense(numbers: Tensor) -> Tensor:
    """One number a channel, side by side, as float32."""
    if numbers.dtype is torch.float32 and numbers.is_contiguous() and not numbers.is_neg():
        return numbers
    return numbers.to(torch.float32).resolve_neg().contiguous()


def _run(prepared: tuple[Work, Block], source: Tensor, others: list[Tensor], other: int, target: Tensor) -> None:
    """others: whose addresses the kernels find in a list."""
    work, block = prepared
    table = (ctypes.c_int64 * len(others))(*[t.data_ptr() for t in others])
    threads = torch.get_num_threads() if source.numel() > CHUNK else 1
    flush = int(accuracy.policy(1).accuracy != "strict")
    launch(
        block.address, source.data_ptr(), ctypes.addressof(table), other, target.data_ptr(), threads,
        work.shared_bytes, work.scratch_bytes, flush,
    )  # fmt: skip


def fuse_batch_norms(graph: Graph) -> None:
    """Put these functions in the place of torch's operators."""
    for node in list(graph.nodes):
        if node.target is _NORM:
            _fuse_forward(graph, node)
        elif node.target is _NORM_BACKWARD:
            _fuse_backward(graph, node)


def _fuse_forward(graph: Graph, node: Node) -> None:
    given: Any = node.args
    x, w, b, mean, variance, training, momentum, eps = given
    if not training or None in (w, b, mean, variance) or not _may_lie(x) or not isinstance(momentum, float):
        return
    y = next((user for user in node.users if user.target is operator.getitem and user.args[1] == 0), None)
    if y is None or not y.users:
        return  # only the statistics are used
    name, activation = "", None
    user = next(iter(y.users))
    for other, ((function, *further), _) in _ACTIVATIONS.items():
        if len(y.users) == 1 and user.target is function and list(user.args[1:]) == further:
            name, activation = other, user
    node.target, node.args = batch_norm, (x, w, b, mean, variance, momentum, eps, name)
    if activation is not None:
        activation.replace_all_uses_with(y)
        graph.erase_node(activation)


def _fuse_backward(graph: Graph, node: Node) -> None:
    given: Any = node.args
    dy, x, w, _, _, mean, spread, training, eps, mask = given
    if not training or w is None or list(mask) != [True, True, True] or not _may_lie(x):
        return
    name, y, given = "", None, dy
    for other, (_, (gradient, *further)) in _ACTIVATIONS.items():
        if dy.target is gradient and list(dy.args[2:]) == further and len(dy.users) == 1 and _may_lie(dy.args[1]):
            name, (given, y) = other, dy.args[:2]
    if not _may_lie(given):
        # As behind a mean over the image, whose gradient lies in planes. A copy costs less than what torch would do.
        with graph.inserting_before(node):
            given = graph.call_function(_aten.clone.default, (given,), {"memory_format": torch.channels_last})
    node.target, node.args = batch_norm_backward, (given, x, w, mean, spread, y, name, eps)
    if y is not None:
        graph.erase_node(dy)


def _may_lie(node: Any) -> bool:
    """Whether a tensor was traced as what the kernels read; sizes may be unknown."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor) or value.dim() != 4 or value.dtype is not torch.float32:
        return False
    channels, apart = value.shape[1], value.stride(1)
    return isinstance(channels, int) and isinstance(apart, int) and apart == 1 and fits(channels)
