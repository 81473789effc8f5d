"""A network as a list of nodes: what is computed, before anyone asks how. Knows no sizes but those of constants.

    Graph      inputs, constants, nodes in the order in which they run, outputs
    Node       an operator of the table `OPERATORS`, the names of what it reads, its attributes
    Ref        in an attribute: a whole number that is known only when the sizes of the inputs are

Every node makes one value, under its own name. Nothing is ever written to after it was made, so that passes may move
and join nodes. Batch and image size are free: shapes are worked out anew for each size (`shapes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hubel.errors import ModelError


@dataclass(frozen=True)
class Ref:
    """The whole number that the node of this name computes."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class Node:
    """One operation. inputs: names of values, "" where an operand is left out."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def operand(self, index: int) -> str:
        """The name of an operand, "" if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def with_(self, **attributes: Any) -> Node:
        """The same node with other attributes."""
        return replace(self, attributes={**self.attributes, **attributes})

    def reads(self) -> list[str]:
        """All that must be there before it runs: operands, and whole numbers in its attributes."""
        return [name for name in self.inputs if name] + [ref.name for ref in refs(self.attributes)]

    def __str__(self) -> str:
        operands = ", ".join(name or "-" for name in self.inputs)
        settings = ", ".join(f"{key}={_shown(value)}" for key, value in self.attributes.items())
        return f"{self.name} = {self.op}({operands}{'; ' if operands and settings else ''}{settings})"


@dataclass(frozen=True)
class Input:
    """shape: None where any size may come. dtype: as numpy writes it. example: sizes that it takes, () if unknown."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    example: tuple[int, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Graph:
    """A network. Passes take one and return another; a graph is never changed."""

    inputs: Mapping[str, Input]
    constants: Mapping[str, np.ndarray]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {given}" for name, given in self.inputs.items()]
        lines += [str(node) for node in self.nodes]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])

    def node(self, name: str) -> Node | None:
        """The node that makes this value; None for inputs and constants."""
        return self._by_name().get(name)

    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        """Who reads each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.reads()):
                found.setdefault(name, []).append(node)
        return found

    def check(self) -> Graph:
        """The graph itself. Raises ModelError if a node reads what was not made before it, or a name is given twice."""
        known = set(self.inputs) | set(self.constants)
        if len(known) < len(self.inputs) + len(self.constants):
            raise ModelError("values of a network have names of their own. Received: a constant named as an input.")
        whole: set[str] = set()
        for node in self.nodes:
            if any(ref.name not in whole for ref in refs(node.attributes)):
                raise ModelError(f"a Ref names a whole number that was computed before. Received: {node}.")
            if node.op in ("size", "whole"):
                whole.add(node.name)
            missing = [name for name in node.reads() if name not in known]
            if missing:
                raise ModelError(
                    f"a node reads what was made before it. Received: {node}, which reads {missing[0]}. Put the nodes "
                    "in the order in which they run."
                )
            if node.name in known or not node.name:
                raise ModelError(f"values of a network have names of their own. Received: {node.name!r} twice.")
            known.add(node.name)
        for name in self.outputs:
            if name not in known:
                raise ModelError(f"an output is a value of the network. Received: {name!r}. Name one that is made.")
        return self


class Editor:
    """A graph being rewritten: nodes by name, in order, with what reads them; `done` gives the new graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.constants = dict(graph.constants)
        self._renamed: dict[str, str] = {}
        self._readers: dict[str, int] = {}
        for node in graph.nodes:
            for name in node.reads():
                self._readers[name] = self._readers.get(name, 0) + 1
        for name in graph.outputs:
            self._readers[name] = self._readers.get(name, 0) + 1

    def now(self, name: str) -> str:
        """The name under which a value goes after the replacements so far."""
        while name in self._renamed:
            name = self._renamed[name]
        return name

    def maker(self, name: str) -> Node | None:
        return self.nodes.get(self.now(name))

    def read_once(self, name: str) -> bool:
        """Whether a value has one reader, and is no output of the network."""
        return self._readers.get(name, 0) == 1

    def put(self, node: Node) -> None:
        """Exchange the node of this name."""
        self.nodes[node.name] = node

    def drop(self, name: str, instead: str) -> None:
        """Take a node out; what it made is now the value `instead`."""
        del self.nodes[name]
        self._renamed[name] = instead
        # Its reading of `instead` ends, and its readers read that.
        self._readers[instead] = self._readers.get(instead, 0) - 1 + self._readers.pop(name, 0)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant under this name, or one like it; returns its name."""
        self.constants[name := self._unused(name)] = value
        return name

    def add(self, node: Node) -> str:
        """Add a node under its name, or one like it; returns its name."""
        name = self._unused(node.name)
        self.nodes[name] = replace(node, name=name)
        return name

    def _unused(self, name: str) -> str:
        taken = (self.constants, self.nodes, self._renamed, self.graph.inputs)
        unique, count = name, 0
        while any(unique in names for names in taken):
            count += 1
            unique = f"{name}.{count}"
        return unique

    def done(self) -> Graph:
        """The graph as it is now, without what nobody reads."""
        nodes = [
            replace(
                node,
                inputs=tuple(self.now(n) if n else "" for n in node.inputs),
                attributes=_with_refs(node.attributes, self.now),
            )
            for node in self.nodes.values()
        ]
        outputs = tuple(self.now(name) for name in self.graph.outputs)
        return pruned(Graph(self.graph.inputs, self.constants, tuple(_in_order(nodes)), outputs))


def _in_order(nodes: Iterable[Node]) -> list[Node]:
    """The nodes so that each comes after what it reads; otherwise as they were."""
    waiting = {node.name: node for node in nodes}
    placed: list[Node] = []

    def place(first: Node) -> None:
        stack = [first]
        while stack:
            node = stack[-1]
            before = [waiting[n] for n in node.reads() if n in waiting and n != node.name]
            if before:
                stack += before[:1]
            else:
                stack.pop()
                if waiting.pop(node.name, None) is not None:
                    placed.append(node)

    for node in list(waiting.values()):
        if node.name in waiting:
            place(node)
    return placed


def pruned(graph: Graph) -> Graph:
    """The graph without nodes and constants that no output needs."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.name in needed:
            kept.append(node)
            needed.update(node.reads())
    constants = {name: value for name, value in graph.constants.items() if name in needed}
    return replace(graph, nodes=tuple(reversed(kept)), constants=constants)


def refs(value: Any) -> list[Ref]:
    """Every Ref inside an attribute."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, Mapping):
        return [ref for part in value.values() for ref in refs(part)]
    if isinstance(value, tuple | list):
        return [ref for part in value for ref in refs(part)]
    return []


def resolved(value: Any, numbers: Mapping[str, int]) -> Any:
    """The attribute with every Ref replaced by its number."""
    if isinstance(value, Ref):
        return numbers[value.name]
    if isinstance(value, Mapping):
        return {key: resolved(part, numbers) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(resolved(part, numbers) for part in value)
    return value


def _with_refs(value: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(value, Ref):
        return Ref(rename(value.name))
    if isinstance(value, Mapping):
        return {key: _with_refs(part, rename) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with_refs(part, rename) for part in value)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 1 and len(set(map(repr, value))) == 1:
        return _shown(value[0])
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_shown(part) for part in value) + ")"
    return str(value)
