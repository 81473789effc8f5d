"""Training graphs of networks that lie in planes go through channels-last memory.

Kernels read pixels whose channels lie side by side in lines: a step of MobileNet v2 takes half the time, one of
ResNet-50 four fifths (batch 16, 64²; Zen 3, 2026-11). Nobody needs to convert a network for that: where a chain of
convolutions begins in a graph that torch captured, its tensor is laid out anew, and torch's tracing does the rest.
Parameters stay as they are, and so do results, which are laid out again as they would have been.

    x -> [contiguous(channels_last)] -> convolution -> … -> flatten -> linear        most classifiers: one small copy

Only where that cannot change what is computed: all operators on images are of a list of those that mean the same in any
memory, and none writes to what a view of another tensor is in one layout and a copy in the other.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import is_contiguous_or_false
from torch.fx import GraphModule, Node

from hubel.engine.machine import Machine
from hubel.ops import library

_CONVOLUTIONS = {torch.conv2d, F.conv2d, torch.conv_transpose2d, F.conv_transpose2d, library.convolution}
# Whose results are memory of their own.
_MAKERS: set[Any] = {
    *_CONVOLUTIONS, F.batch_norm, F.group_norm, F.instance_norm, torch.cat, torch.empty, F.linear,
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    F.layer_norm, F.pad, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    torch.sigmoid, torch.tanh, F.softplus, F.gelu, torch.relu,
    "add", "sub", "mul", "div", "sigmoid", "tanh", "relu",
}  # fmt: skip
# Functions that write in place if they are told so.
_ACTIVATIONS: set[Any] = {
    F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.celu, F.selu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.dropout, F.dropout2d,
}  # fmt: skip
_IN_PLACE: set[Any] = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_,
    "relu_", "add_", "sub_", "mul_", "div_", "bernoulli_",
}  # fmt: skip
# Whose results are views, or lie in another way.
_VIEWS: set[Any] = {
    torch.mean, torch.sum, torch.permute, torch.transpose, torch.chunk, torch.split, torch.squeeze, torch.unsqueeze,
    operator.getitem, "mean", "sum", "permute", "transpose", "chunk", "split", "squeeze", "unsqueeze",
    "contiguous",
}  # fmt: skip
# Which make of an image what is none, with a copy or without.
_ENDS: set[Any] = {torch.flatten, "flatten", "reshape", "view", "size"}


def lay_out_in_channels_last(graph: GraphModule) -> None:
    """Change a graph, as torch captured it, so that its images lie in channels-last memory; leave it as it is where it
    may then compute something else, or may not be faster.
    """
    nodes = list(graph.graph.nodes)
    calls = [node for node in nodes if node.op in ("call_function", "call_method")]
    if not _pays(calls) or not all(map(_means_the_same, calls)) or _writes_behind_a_copy(calls):
        return
    # What comes of a convolution, and of that the images that lie in channels-last memory.
    moved, laid = set[Node](), set[Node]()
    for node in calls:
        if node.target in _CONVOLUTIONS or moved.intersection(node.all_input_nodes):
            moved.add(node)
            if node.target not in _VIEWS and _axes(node) >= 4:
                laid.add(node)
    returned = [result for result in nodes[-1].all_input_nodes if result in moved and _axes(result)]
    if not all(map(_lies_in_planes, returned)):
        return
    for node in calls:
        given: Any = node.args[0] if node.args else None
        if node.target in _CONVOLUTIONS and given not in laid:
            _insert(graph, node, given, torch.channels_last)
        if node.target == "view" and _axes(given) >= 4:
            node.target = "reshape"
    for result in returned:
        _insert(graph, nodes[-1], result, torch.contiguous_format)
    graph.recompile()


def _insert(graph: GraphModule, before: Node, given: Node, memory_format: torch.memory_format) -> None:
    """Have this node read what it is given from memory laid out so."""
    with graph.graph.inserting_before(before):
        laid_out = graph.graph.call_method("contiguous", (given,))
        laid_out.kwargs = {"memory_format": memory_format}
    before.replace_input_with(given, laid_out)


def _pays(calls: Sequence[Node]) -> bool:
    """Whether convolutions are of images in planes, in float32, and most have channels enough to fill vectors."""
    convolutions = [node for node in calls if node.target in _CONVOLUTIONS]
    if any(len(node.args) < 2 for node in convolutions):
        return False  # named, by somebody's own function
    images, weights = ([_value(node.args[i]) for node in convolutions] for i in (0, 1))
    if not all(isinstance(x, Tensor) and x.dim() == 4 and x.dtype is torch.float32 for x in images):
        return False
    wide = sum(len(w) >= Machine.detect().lanes for w in weights)
    return wide > len(weights) / 2 and any(_lies_in_planes(node.args[0]) for node in convolutions)


def _means_the_same(node: Node) -> bool:
    """Whether an operator computes the same wherever images lie."""
    writes = _writes_in_place(node)
    if (writes or node.target in _VIEWS or node.target in _ENDS) and not (node.args and isinstance(node.args[0], Node)):
        return False  # given by name
    if "out" in node.kwargs or (writes and not _is_made(node.args[0])):
        return False
    if not any(_axes(given) >= 4 for given in node.all_input_nodes):
        return True
    target = node.target
    if target in _ENDS:
        return _axes(node) < 4
    return any(target in known for known in (_MAKERS, _ACTIVATIONS, _IN_PLACE, _VIEWS))


def _writes_in_place(node: Node) -> bool:
    target: Any = node.target
    if target in _ACTIVATIONS:
        return bool(inspect.signature(target).bind(*node.args, **node.kwargs).arguments.get("inplace"))
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return target in _IN_PLACE or name in ("setitem", "__setitem__") or (name.endswith("_") and not name.endswith("__"))


def _is_made(value: Any) -> bool:
    """Whether it is memory of its own, no view; or what the graph is given, if that is no image."""
    while value.op not in ("placeholder", "get_attr"):
        if not _writes_in_place(value):
            return value.target in _MAKERS or value.target in _ACTIVATIONS
        value = value.args[0]
    return _axes(value) < 4


def _writes_behind_a_copy(calls: Sequence[Node]) -> bool:
    """Whether anything is written to after it was given to what makes a view or a copy of it."""
    copied = set[Any]()
    for node in calls:
        if node.target in _ENDS or node.target == "contiguous":
            copied.add(_origin(node.args[0]))
        elif _writes_in_place(node) and _origin(node.args[0]) in copied:
            return True
    return False


def _origin(value: Any) -> Any:
    """Whose memory it may be."""
    while value.op in ("call_function", "call_method") and (
        value.target in _VIEWS or value.target in _ENDS or _writes_in_place(value)
    ):
        value = value.args[0]
    return value


def _value(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, Node) else None


def _axes(node: Any) -> int:
    value = _value(node)
    return value.dim() if isinstance(value, Tensor) else 0


def _lies_in_planes(node: Any) -> bool:
    return is_contiguous_or_false(_value(node))
