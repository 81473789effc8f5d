"""From what torch captured to a network of ours: a graph of `aten` operators becomes a `Graph`.

Every node is asked of `CONVERT`, which is written out in `converters`; what is not there, or what declines, becomes a
`torch` node that runs in place. Sizes that are symbols become `size` and `whole` nodes, so that the network stays free
in what torch left free. In-place operators become new values, where nothing else can see the memory that they write to.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node as FxNode

from hubel.errors import ModelError
from hubel.graph import Graph, Input, Node, Ref
from hubel.graph.host import Operand

aten = torch.ops.aten

_ARITHMETIC = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.floordiv: "floordiv", operator.mod: "mod",
    torch.sym_max: "max", torch.sym_min: "min",
}  # fmt: skip
# Checks of sizes that torch leaves in a graph: ours are made when sizes are bound.
_CHECKS = {
    "aten._assert_scalar.default", "aten.sym_constrain_range.default", "aten.sym_constrain_range_for_size.default",
    "aten._assert_async.msg", "aten._assert_tensor_metadata.default",
}  # fmt: skip


class Declined(Exception):
    """A converter has no node for these arguments; torch's operator runs."""


@dataclass
class Capture:
    """A graph being made. names: of the value that each fx node is now, or a tuple of them."""

    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    names: dict[FxNode, Any] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _sizes: dict[tuple[str, int], str] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        count, found = 0, name
        while found in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def input(self, node: FxNode) -> None:
        """A tensor that every call passes."""
        value = node.meta["val"]
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        example = tuple(size if isinstance(size, int) else size.node.hint for size in value.shape)
        self.names[node] = self.unique(node.name)
        self.inputs[self.names[node]] = Input(shape, dtype_of(value), () if None in example else example)

    def constant(self, name: str, tensor: Tensor | np.ndarray) -> str:
        """A tensor that is a part of the network."""
        unique = self.unique(name)
        self.constants[unique] = tensor if isinstance(tensor, np.ndarray) else array_of(tensor)
        return unique

    def add(self, op: str, inputs: tuple[str, ...], name: str = "", **attributes: Any) -> str:
        """One more node; returns its name."""
        node = Node(self.unique(name or op), op, inputs, attributes)
        self.nodes.append(node)
        return node.name

    def value(self, node: Any) -> str:
        """The name of an operand. Raises Declined for what is no tensor of one name."""
        name = self.names.get(node) if isinstance(node, FxNode) else None
        if not isinstance(name, str):
            raise Declined
        return name

    def tensor(self, node: Any) -> str:
        """The name of an operand that native nodes can read: a float32 tensor."""
        name = self.value(node)
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise Declined
        return name

    def whole(self, value: Any) -> int | Ref:
        """A size: a number, or a Ref to the node that computes it."""
        if isinstance(value, FxNode):
            name = self.names.get(value)
            if isinstance(name, Ref | int):
                return name
            raise Declined
        if isinstance(value, bool) or not isinstance(value, int):
            raise Declined
        return value


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor's values; shares its memory where that is dense. Raises ModelError for dtypes numpy does not have."""
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise ModelError(
            f"constants of a network are of a dtype that numpy has, on the CPU. Received: {tensor.dtype} on "
            f"{tensor.device}. Convert the network with `.float()` or `.cpu()`."
        ) from error


def dtype_of(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def shape_of(node: FxNode) -> tuple[Any, ...]:
    """Sizes that torch recorded, whole numbers or symbols."""
    return tuple(node.meta["val"].shape)


def same_shape(a: FxNode, b: FxNode) -> bool:
    """Whether two tensors have one shape whatever the sizes, by their symbols."""
    first, second = shape_of(a), shape_of(b)
    return len(first) == len(second) and all(str(m) == str(n) for m, n in zip(first, second, strict=True))


def arguments(node: FxNode) -> dict[str, Any]:
    """The operator's arguments by name, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    found |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def convert(capture: Capture, nodes: Any) -> tuple[str, ...]:
    """Add the nodes of an fx graph, whose placeholders are named already. Returns the names of its outputs.

    Raises ModelError for a graph that cannot be run: control flow, writes into memory that others see.
    """
    from hubel.ops.converters import CONVERT

    for node in nodes:
        if node.op == "call_function":
            _one(capture, node, CONVERT)
        elif node.op == "output":
            return tuple(_outputs(capture, node))
        elif node.op != "placeholder":
            raise ModelError(
                f"a captured graph holds operators. Received: {node.op} {node.target}. Export the network."
            )
    raise ModelError("a captured graph ends with its outputs. Received: one without.")


def _one(capture: Capture, node: FxNode, table: Mapping[Any, Any]) -> None:
    if str(node.target) in _CHECKS:
        return
    if _symbolic(capture, node):
        return
    if node.target is operator.getitem:
        source, index = node.args
        parts = capture.names.get(source)  # type: ignore[arg-type]
        if isinstance(parts, tuple):
            capture.names[node] = parts[index]  # type: ignore[index]
        else:
            capture.names[node] = capture.add("item", (parts,), node.name, index=index)  # type: ignore[arg-type]
        return
    before = len(capture.nodes)
    make = table.get(node.target)
    try:
        if make is None:
            raise Declined
        capture.names[node] = make(capture, node, arguments(node))
    except Declined:
        del capture.nodes[before:]
        capture.names[node] = _foreign(capture, node)
    _write(capture, node)


def _symbolic(capture: Capture, node: FxNode) -> bool:
    """Whole numbers computed from sizes."""
    if node.target is aten.sym_size.int:
        source, axis = node.args
        name = capture.names[source]  # type: ignore[index]
        capture.names[node] = Ref(capture.add("size", (name,), node.name, dim=axis))
        return True
    value = node.meta.get("val")
    if isinstance(value, torch.SymBool | bool) or node.target in _COMPARISONS:
        return True  # read by checks alone
    if not isinstance(value, torch.SymInt | int):
        return False
    kind = _ARITHMETIC.get(node.target)
    if kind is None:
        raise ModelError(f"sizes are computed by +, −, ×, ∕∕ and %. Received: {node.format_node()}.")
    of = tuple(capture.whole(a) for a in node.args)
    capture.names[node] = Ref(capture.add("whole", (), node.name, kind=kind, of=of))
    return True


_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}


def _foreign(capture: Capture, node: FxNode) -> str:
    """torch's own operator, to be run in place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise ModelError(
            f"a network runs operators. Received: {target}, which is none (control flow, or Python). Keep it outside."
        )
    inputs: list[str] = []

    def listed(value: Any) -> Any:
        if isinstance(value, FxNode):
            name = capture.names[value]
            if isinstance(name, str):
                if name not in inputs:
                    inputs.append(name)
                return Operand(inputs.index(name))
            return listed_names(name)
        if isinstance(value, tuple | list):
            return tuple(listed(part) for part in value)
        if isinstance(value, slice | FxNode):
            raise ModelError(f"an operator's arguments are tensors and numbers. Received: {value} of {target}.")
        return value

    def listed_names(name: Any) -> Any:
        if isinstance(name, tuple):
            return tuple(Operand(_index(inputs, part)) for part in name)
        return name

    given = tuple(listed(value) for value in node.args)
    keywords = {key: listed(value) for key, value in node.kwargs.items()}
    return capture.add(
        "torch", tuple(inputs), node.name, target=str(target), arguments=given, keywords=keywords
    )  # fmt: skip


def _index(inputs: list[str], name: str) -> int:
    if name not in inputs:
        inputs.append(name)
    return inputs.index(name)


def writes(node: FxNode) -> list[FxNode]:
    """The operands that an operator writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = arguments(node)
    return [
        given[a.name] for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and isinstance(given.get(a.name), FxNode)
    ]  # fmt: skip


def _write(capture: Capture, node: FxNode) -> None:
    """What was written to is from now on what the operator returned."""
    for target in writes(node):
        root = target
        while writes(root):
            root = writes(root)[0]
        for other, name in list(capture.names.items()):
            if name == capture.names[root]:
                capture.names[other] = capture.names[node]


def writes_are_private(nodes: Any) -> bool:
    """Whether every write goes to memory that only the graph's later nodes see, under one name: then it is a new value.

    Otherwise torch must make the graph functional first.
    """
    from hubel.ops.converters import FRESH

    for node in nodes:
        for target in writes(node) if node.op == "call_function" else ():
            chain = [target]
            while writes(chain[-1]):
                chain.append(writes(chain[-1])[0])
            root = chain[-1]
            if root.op != "call_function" or root.target not in FRESH:
                return False
            seen = [user for link in chain for user in link.users if user is not node and user not in chain]
            if any(user.op != "output" and not writes(user) and user.target not in FRESH for user in seen):
                return False
    return True


def _outputs(capture: Capture, node: FxNode) -> list[str]:
    flat = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
    names = []
    for value in flat:
        name = capture.names.get(value) if isinstance(value, FxNode) else None
        if not isinstance(name, str):
            raise ModelError(f"a network returns tensors. Received: {value!r}. Leave it out, or make it a tensor.")
        names.append(name)
    return names


def graph_of(capture: Capture, outputs: tuple[str, ...]) -> Graph:
    """The finished graph, checked."""
    return Graph(capture.inputs, capture.constants, tuple(capture.nodes), outputs).check()
