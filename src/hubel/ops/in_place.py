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
from hubel.ops.batch_norm import batch_norm, batch_norm_backward

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
    *_OVER, *_TO, batch_norm, batch_norm_backward, library.convolution, library.convolution_backward,
    library.run_convolution, library.run_backward, _aten._native_batch_norm_legit_functional.default,
    _aten.native_batch_norm_backward.default, _aten.max_pool2d_with_indices_backward.default,
}  # fmt: skip


def keep_clipped(graph: Graph, leaving: set[Node]) -> None:
    """Keep hardtanh's results for the backward graph where its arguments, or copies of them, are kept: its gradient
    asks where they lay within the bounds, and results lie there just where arguments do. leaving: nodes that the graph
    returns to its caller.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    for node in list(graph.nodes):
        if node.target is not _aten.hardtanh.default:
            continue
        given: Any = node.args[0]
        copies = [user for user in given.users if user.target is _aten.clone.default and set(user.users) == {output}]
        if set(given.users) - {node, output, *copies}:
            continue
        for kept in (given, *copies):
            if output in kept.users and kept not in leaving:
                output.replace_input_with(kept, node)
        for copy in copies:
            if not copy.users:
                graph.erase_node(copy)


def write_in_place(graph: Graph) -> None:
    """Have operators write in place where nobody can tell."""
    for node in graph.nodes:
        if node.target not in _OVER and node.target not in _TO:
            continue
        first, *others = node.args
        if node.target is _aten.add.Tensor and not node.kwargs and not _may_keep(first, node):
            # The sum is the same in the other order.
            first, others = others[0], [first]
        if not _may_keep(first, node):
            continue
        node.args = (first, *others)
        if node.target in _OVER:
            node.target = _OVER[node.target]
        else:
            node.target, node.kwargs = _TO[node.target], {"grad_input": first}


def _may_keep(given: Any, node: Node) -> bool:
    """Whether `node` may write its result over `given`."""
    return _made_here(given) and _alike(given, node) and _last_read(given, node)


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


def _last_read(given: Node, node: Node) -> bool:
    """Whether nobody but `node` reads `given`, and reads it once."""
    return set(given.users) == {node} and sum(argument is given for argument in node.args) == 1
