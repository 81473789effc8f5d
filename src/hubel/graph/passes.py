"""Passes: each takes a graph and returns a smaller one that computes the same. `PASSES` is their order.

drop_identities       dropout in evaluation, pooling by one pixel, reshapes to the same
fold_batch_norm       into the convolution or linear layer before it; else it becomes an `affine`
fold_factor           a constant for each channel, into the layer before it
fuse_activation       into the node before it
fuse_residual         a sum becomes the end of the convolution or linear layer that made one of its terms
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hubel.graph.network import Editor, Graph, Node, pruned

# Nodes with weights.
_LAYERS = ("conv", "linear")
# Nodes that can end in an activation.
_ENDING = ("conv", "linear", "affine", "binary")
# A batch norm that multiplies by more, or by what is no number, stays a step of its own: a variance that is almost
# nothing would put its rounding errors, magnified, into the weights.
MOST_SCALE = 1e4


def optimised(graph: Graph) -> Graph:
    """The graph after all passes."""
    for apply in PASSES.values():
        graph = apply(graph)
    return pruned(graph)


def drop_identities(graph: Graph) -> Graph:
    """Without nodes that return what they read."""
    edit = Editor(graph)
    for node in graph.nodes:
        if _is_identity(node):
            edit.drop(node.name, edit.now(node.inputs[0]))
    return edit.done()


def _is_identity(node: Node) -> bool:
    if node.op == "activation":
        return not node["activation"]
    if node.op == "pool":
        return (
            all(set(node[n]) == {v} for n, v in (("kernel", 1), ("stride", 1), ("padding", 0))) and not node["divisor"]
        )
    if node.op == "permute":
        return list(node["dims"]) == list(range(len(node["dims"])))
    if node.op == "flatten":
        return node["start"] == node["end"]
    if node.op == "concat":
        return len(node.inputs) == 1
    return False


def fold_batch_norm(graph: Graph) -> Graph:
    """A batch norm right after a convolution that nobody else reads goes into its weights, computed in float64; the
    others become a scale and a shift.
    """
    edit = Editor(graph)
    for node in graph.nodes:
        if node.op != "batch_norm" or any(name and name not in edit.constants for name in node.inputs[1:]):
            continue
        scale, shift = scale_and_shift(node, edit.constants)
        source = edit.now(node.inputs[0])
        before = edit.maker(source)
        if before and before.op in _LAYERS and edit.read_once(source) and _foldable(before, edit, scale):
            edit.put(_scaled(before, edit, scale, shift))
            edit.drop(node.name, before.name)
            continue
        names = [
            edit.constant(f"{node.name}.{part}", value.astype(np.float32))
            for part, value in (("scale", scale), ("shift", shift))
        ]
        edit.put(Node(node.name, "affine", (node.inputs[0], *names), {}))
    return edit.done()


def scale_and_shift(node: Node, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm multiplies by and adds, in float64: γ ∕ √(variance + ε), and β − mean · that."""
    gamma, beta, mean, variance = (constants[n].astype(np.float64) if n else None for n in node.inputs[1:])
    assert mean is not None and variance is not None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = (1.0 if gamma is None else gamma) / np.sqrt(variance + node["eps"])
        shift = (0.0 if beta is None else beta) - mean * scale
    return scale, shift


def _foldable(before: Node, edit: Editor, scale: np.ndarray) -> bool:
    constants = all(not name or name in edit.constants for name in before.inputs[1:3])
    ends = before.get("activation") or before.operand(3)
    small = bool(np.isfinite(scale).all() and np.abs(scale).max(initial=0) <= MOST_SCALE)
    return constants and not ends and small


def _scaled(before: Node, edit: Editor, scale: np.ndarray, shift: np.ndarray) -> Node:
    """The convolution with weights and bias multiplied and shifted."""
    weight = edit.constants[before.operand(1)]
    if before.op == "conv" and before["transposed"]:
        # (in, out ∕ groups, ...): output channels of a group lie along the second axis.
        groups = before["groups"]
        factors = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        factors = factors.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    else:
        factors = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    bias_name = before.operand(2)
    bias = edit.constants[bias_name].astype(np.float64) if bias_name else 0.0
    # In float64 piece by piece: as a whole it would take twice the weight's memory, and time to map it.
    folded = np.multiply(weight, factors, out=np.empty_like(weight, np.float32), dtype=np.float64, casting="same_kind")
    weight_name = edit.constant(f"{before.operand(1)}.folded", folded)
    bias_name = edit.constant(f"{before.name}.bias", np.asarray(bias * scale + shift, np.float32))
    return Node(before.name, before.op, (before.operand(0), weight_name, bias_name), before.attributes)


def fold_factor(graph: Graph) -> Graph:
    """A constant factor for each channel goes into the weights of the layer before it, be its rows seen as images in
    between or not.
    """
    edit = Editor(graph)
    for node in graph.nodes:
        if node.op != "binary" or node["kind"] != "mul" or node.get("activation"):
            continue
        for factor, value in (node.inputs, node.inputs[::-1]):
            layer, seen = _layer_before(edit, value)
            if layer is None or not {factor, layer.operand(1)} <= edit.constants.keys():
                continue
            scale = _of_channels(edit.constants[factor], layer, seen, edit.constants[layer.operand(1)])
            if scale is not None and _foldable(layer, edit, scale):
                edit.put(_scaled(layer, edit, scale, np.zeros_like(scale)))
                edit.drop(node.name, edit.now(value))
                break
    return edit.done()


def _layer_before(edit: Editor, value: str) -> tuple[Node | None, Node | None]:
    """The layer that made a value which nobody else reads, and the permutation behind it, if there is one."""
    before, seen = edit.maker(value), None
    if before and before.op == "permute" and edit.read_once(before.name):
        before, seen = edit.maker(before.inputs[0]), before
    return (before, seen) if before and before.op in _LAYERS and edit.read_once(before.name) else (None, None)


def _of_channels(factor: np.ndarray, layer: Node, seen: Node | None, weight: np.ndarray) -> np.ndarray | None:
    """The factor as a number for each output channel, in float64; None where it is anything else."""
    # Axes from the channels' on, and all: of a linear layer's rows only the last one is known.
    behind = most = 1
    if layer.op == "conv":
        behind, most = weight.ndim - 1, weight.ndim
    if seen is not None:
        most = len(seen["dims"])
        behind = most - seen["dims"].index(most - 1 if layer.op == "linear" else 1)
    if not behind <= factor.ndim <= most or factor.shape[-behind] != factor.size:
        return None
    channels = weight.shape[1] * layer["groups"] if layer.get("transposed") else weight.shape[0]
    return np.broadcast_to(factor.astype(np.float64).reshape(-1), (channels,))


def fuse_activation(graph: Graph) -> Graph:
    """An activation becomes the end of what it alone reads."""
    edit = Editor(graph)
    for node in graph.nodes:
        if node.op != "activation":
            continue
        source = edit.now(node.inputs[0])
        before = edit.maker(source)
        if before and before.op in _ENDING and edit.read_once(source) and not before.get("activation"):
            edit.put(before.with_(activation=node["activation"], slope=node["slope"]))
            edit.drop(node.name, before.name)
    return edit.done()


def fuse_residual(graph: Graph) -> Graph:
    """A sum of two tensors of one shape, with its activation, becomes the end of the convolution that made one.

    The convolution then runs after whoever makes the other tensor. Of two convolutions it is the one that comes last.
    Whether a sum broadcasts cannot be seen here: whoever makes the graph says of those that never do that their shapes
    are the `same`.
    """
    edit = Editor(graph)
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "binary" or node["kind"] != "add" or not node.get("same", False):
            continue
        terms = [edit.now(name) for name in node.inputs]
        if terms[0] == terms[1] or any(name in edit.constants for name in terms):
            continue
        for i in sorted((0, 1), key=lambda i: -position.get(terms[i], -1)):
            (before, seen), other = _layer_before(edit, terms[i]), terms[1 - i]
            if before is None or before.get("activation") or before.operand(3) or _depends(edit, other, before.name):
                continue
            if seen is not None:
                # The other term is seen as the layer's rows.
                back = tuple(sorted(range(len(seen["dims"])), key=seen["dims"].__getitem__))
                other = edit.add(Node(f"{node.name}.rows", "permute", (other,), {"dims": back}))
            operands = (*before.inputs, *("",) * (3 - len(before.inputs)), other)
            ended = Node(before.name, before.op, operands, before.attributes)
            edit.put(ended.with_(**{k: node.attributes[k] for k in ("activation", "slope") if k in node.attributes}))
            edit.drop(node.name, terms[i])
            break
    return edit.done()


def _depends(edit: Editor, value: str, on: str) -> bool:
    """Whether a value is made from another."""
    seen, waiting = set(), [value]
    while waiting:
        name = edit.now(waiting.pop())
        if name == on:
            return True
        node = edit.nodes.get(name)
        if node is not None and name not in seen:
            seen.add(name)
            waiting += node.reads()
    return False


PASSES: dict[str, Callable[[Graph], Graph]] = {
    "drop_identities": drop_identities,
    "fold_batch_norm": fold_batch_norm,
    "fold_factor": fold_factor,
    "fuse_activation": fuse_activation,
    "fuse_residual": fuse_residual,
}
