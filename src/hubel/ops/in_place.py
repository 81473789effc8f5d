"""Elementwise operators of a traced graph that may write over what they read.

torch traces a network without writes in place, so that every activation, and every activation's gradient, has memory of
its own: pages to be faulted in, and one more stream through the caches. Where an operator is the last to read a tensor
that the graph itself has made, it may as well keep it. The numbers are the same.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from hubel.ops import library

_aten = torch.ops.aten
# Operators with a form that writes over the first argument, and those that can be told where to write.
_OVER = {
    _aten.relu.default: _aten.relu_.default,
    _aten.hardtanh.default: _aten.hardtanh_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
}
_TO = {
    _aten.threshold_backward.default: _aten.threshold_backward.grad_input,
    _aten.hardtanh_backward.default: _aten.hardtanh_backward.grad_input,
}
# Whose results are memory of their own, nobody else's.
_MAKERS = {
    *_OVER, *_TO, library.convolution, library.convolution_backward, _aten._native_batch_norm_legit_functional.default,
    _aten.native_batch_norm_backward.default, _aten.max_pool2d_with_indices_backward.default,
}  # fmt: skip


def write_in_place(graph: Graph, returned: int | None = None) -> None:
    """Have operators write in place where nobody can tell. returned: how many of the graph's outputs leave it (None:
    all); the others are kept for the backward graph.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    leaving = {node for node in results[:returned] if isinstance(node, Node)}
    for node in graph.nodes:
        if node.target not in _OVER and node.target not in _TO:
            continue
        first, *others = node.args
        if node.target is _aten.add.Tensor and not node.kwargs and not _may_keep(first, node, output, leaving):
            # The sum is the same in the other order.
            first, others = others[0], [first]
        if not _may_keep(first, node, output, leaving):
            continue
        node.args = (first, *others)
        if node.target in _OVER:
            node.target = _OVER[node.target]
        else:
            node.target, node.kwargs = _TO[node.target], {"grad_input": first}


def _may_keep(given: Any, node: Node, output: Node, leaving: set[Node]) -> bool:
    """Whether `node` may write its result over `given`."""
    return _made_here(given) and _alike(given, node) and _last_read(given, node, output, leaving)


def _made_here(value: Any) -> bool:
    if not isinstance(value, Node) or value.op != "call_function":
        return False
    if value.target is operator.getitem:
        value = value.args[0]  # type: ignore[assignment]
    return value.target in _MAKERS or value.target in _OVER.values() or value.target in _TO.values()


def _alike(given: Node, result: Node) -> bool:
    """Whether the result fits into the memory of what is given, number by number."""
    a, b = given.meta.get("val"), result.meta.get("val")
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    )


def _last_read(given: Node, node: Node, output: Node, leaving: set[Node]) -> bool:
    """Whether nobody but `node` reads `given`, or nobody who could tell the difference."""
    if sum(argument is given for argument in node.args) != 1:
        return False
    if set(given.users) == {node}:
        return True
    # It is kept for hardtanh's gradient, which asks where it was within the bounds: there the result is, too.
    bounded = node.target is _aten.hardtanh.default and set(given.users) == {node, output}
    return bounded and given not in leaving
