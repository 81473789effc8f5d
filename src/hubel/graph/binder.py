"""A graph and the sizes of its inputs become a list of jobs that lacks only addresses.

    shapes     of every value, and the whole numbers computed from them
    layouts    whether channels lie side by side, for every size of map (`layouts`)
    places     every value gets a place in a buffer: of its own, or in another's: reshapes and slices are views, and
               what will be concatenated is written where it will lie
    entries    every node becomes jobs on four pointers each (`lower`), or a call of the host
    arena      buffers whose lives do not meet share memory (`memory`)

Pointers are `Address`es: a base and a distance. Bases are the arena, the tensors of a call, or nothing (constants).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from hubel.engine.algorithms.geometry import packed_strides as laid_out_strides
from hubel.engine.problem import Policy
from hubel.engine.threads import Job
from hubel.errors import ModelError
from hubel.graph.host import Host, Made
from hubel.graph.layouts import layouts_of
from hubel.graph.memory import ALIGNMENT, Life, arena
from hubel.graph.network import Graph, Node, resolved
from hubel.graph.operators import bounds, shape_of, whole_number
from hubel.graph.weights import Weights

# What an address is counted from.
ABSOLUTE, ARENA, SELF, CALL = 0, 1, 2, 3


@dataclass(frozen=True)
class Address:
    """base: ABSOLUTE, ARENA, SELF (the words of the program) or CALL + i for tensor i of a call. at: bytes from it."""

    base: int
    at: int


NULL = Address(ABSOLUTE, 0)


@dataclass
class Buffer:
    """Memory for one or several values. base: as in `Address`; for the arena the place is found at the end."""

    base: int
    bytes: int = 0
    address: int = 0
    values: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a value lies: offset and strides in numbers."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        return self.lies(packed_strides(self.shape))

    def lies(self, strides: Sequence[int]) -> bool:
        """Whether its numbers are where these strides say."""
        return all(size == 1 or own == n for size, own, n in zip(self.shape, self.strides, strides, strict=True))

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel are side by side, and pixels are not."""
        return len(self.shape) > 2 and self.strides[1] == 1 and self.shape[1] > 1 and prod(self.shape[2:]) > 1

    def laid_out(self, last: bool) -> Place:
        """A place with channels side by side, or in planes, and no gaps."""
        return replace(self, strides=laid_out_strides(self.shape, "channels_last" if last else "planes"))


@dataclass
class Entry:
    """Some jobs on four pointers, or a call of the host.

    pointers: places, addresses or operand words. touches: the buffers that must be alive.
    """

    node: Node
    jobs: tuple[Job, ...] = ()
    pointers: tuple[Any, ...] = ()
    keep: tuple[object, ...] = ()
    scratch_bytes: int = 0
    shared_bytes: int = 0
    touches: list[Buffer] = field(default_factory=list)
    how: str = ""


@dataclass(frozen=True)
class Operands:
    """The four words of a convolution with an epilogue (`engine.epilogue.operand_words`)."""

    bias: Address
    scale: Address
    shift: Address
    residual: Place | None
    output: Place


class Binder:
    """Binds one graph to sizes. `lower` writes the entries; everything it needs is asked of this object."""

    def __init__(
        self, graph: Graph, inputs: Mapping[str, Made], policy: Policy, weights: Weights, host: Host | None
    ) -> None:
        self.graph, self.policy, self.weights, self.host = graph, policy, weights, host
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.made: dict[str, Any] = {}
        self.numbers: dict[str, int] = {}
        self.places: dict[str, Place] = {}
        self.entries: list[Entry] = []
        self.users = graph.users()
        self.position = {node.name: i for i, node in enumerate(graph.nodes)}
        self._turned: dict[str, Place] = {}
        self._infer(inputs)
        self._plan_concatenations()
        self.layouts = layouts_of(self)

    # --- shapes ---

    def _infer(self, inputs: Mapping[str, Made]) -> None:
        for name, made in inputs.items():
            self._made(name, made)
        for name, value in self.graph.constants.items():
            self._made(name, Made(value.shape, str(value.dtype)))
        for node in self.graph.nodes:
            if node.op in ("size", "whole"):
                self.numbers[node.name] = whole_number(node, self.shapes, self.numbers)
            elif node.op == "torch":
                known = resolved(node.attributes, self.numbers)
                operands = [self.made[name] for name in node.inputs]
                if self.host is None:
                    raise ModelError(f"this network needs torch's operators. Received: {node}. Run it from a Session.")
                self._made(node.name, self.host.makes(node["target"], known["arguments"], known["keywords"], operands))
            elif node.op == "item":
                self._made(node.name, self.made[node.inputs[0]][node["index"]])
            else:
                for name in filter(None, node.inputs):
                    if self.dtypes.get(name) != "float32":
                        raise ModelError(
                            f"native nodes read float32. Received: {self.dtypes.get(name, 'no tensor')}, in {node}."
                        )
                shapes = [self.shapes[name] if name else () for name in node.inputs]
                self._made(node.name, Made(shape_of(node, shapes, self.numbers), "float32"))

    def _made(self, name: str, made: Any) -> None:
        self.made[name] = made
        if isinstance(made, Made) and made.shape is not None:
            self.shapes[name], self.dtypes[name] = tuple(made.shape), made.dtype

    def attributes(self, node: Node) -> Node:
        """The node with numbers in the place of Refs."""
        return Node(node.name, node.op, node.inputs, resolved(node.attributes, self.numbers))

    # --- places ---

    def _plan_concatenations(self) -> None:
        """For values that will be concatenated: in which buffer, and how far along the axis.

        A concatenation whose operands begin another's is a part of that one (dense blocks).
        """
        self.homes: dict[str, tuple[str, int]] = {}
        nodes = [node for node in self.graph.nodes if node.op == "concat"]
        for node in sorted(nodes, key=lambda n: (-len(n.inputs), self.position[n.name])):
            longer = [
                other for other in nodes
                if other is not node and other["dim"] == node["dim"] and len(other.inputs) > len(node.inputs)
                and other.inputs[: len(node.inputs)] == node.inputs
            ]  # fmt: skip
            if longer:
                self.homes[node.name] = (max(longer, key=lambda n: len(n.inputs)).name, 0)
                continue
            at = 0
            for name in node.inputs:
                maker = self.graph.node(name)
                alone = node.inputs.count(name) == 1
                if alone and name not in self.homes and maker and maker.op in _WRITES_ANYWHERE:
                    self.homes[name] = (node.name, at)
                at += self.shapes[name][node["dim"]]

    def place(self, name: str) -> Place:
        """Where a value lies that was made before, or a constant."""
        if name not in self.places and name in self.graph.constants:
            shape = self.shapes[name]
            memory = Buffer(ABSOLUTE, 4 * prod(shape), self.weights.address(name))
            self.places[name] = Place(memory, 0, shape, packed_strides(shape))
        return self.places[name]

    def room(self, like: Place) -> Place:
        """Memory of the arena for a tensor with this shape and these strides."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.strides, strict=True))
        return Place(Buffer(ARENA, 4 * span), 0, like.shape, like.strides)

    def new(self, name: str) -> Place:
        """A place for a value about to be made: where a concatenation wants it, or a buffer of its own."""
        if name in self.places:
            return self.places[name]
        shape = self.shapes[name]
        if name in self.homes:
            whole_name, at = self.homes[name]
            whole = self.new(whole_name)
            axis = self.attributes(self.made_by(whole_name))["dim"]
            place = Place(whole.buffer, whole.offset + at * whole.strides[axis], shape, whole.strides)
        else:
            place = Place(Buffer(ARENA, 4 * prod(shape)), 0, shape, self.strides(name))
        return self.put(name, place)

    def strides(self, name: str) -> tuple[int, ...]:
        """How a value lies that has memory of its own."""
        last = name in self.layouts.last
        return laid_out_strides(self.shapes[name], "channels_last") if last else packed_strides(self.shapes[name])

    def put(self, name: str, place: Place) -> Place:
        """Say where a value lies."""
        self.places[name] = place
        place.buffer.values.append(name)
        return place

    def made_by(self, name: str) -> Node:
        """The node that makes a value."""
        node = self.graph.node(name)
        assert node is not None
        return node

    def dies(self, name: str, node: Node) -> bool:
        """Whether after `node` nobody reads the buffer in which this value lies, so that it may be overwritten."""
        buffer = self.places[name].buffer
        if buffer.base != ARENA:
            return False
        now = self.position[node.name]
        for value in buffer.values:
            if value in self.graph.outputs or value in self.homes:
                return False
            if any(self.position[user.name] > now for user in self.users.get(value, ())):
                return False
        return True

    def contiguous(self, name: str, node: Node) -> Place:
        """The value in a contiguous place, copied if it must be."""
        place = self.places[name]
        packed = replace(place, strides=packed_strides(place.shape))
        return packed if place.contiguous else self._copied(place, packed, node)

    def turned(self, name: str, node: Node) -> Place:
        """The value with its channels side by side if they are not, else in planes. Copied once for all who ask."""
        place = self.places[name]
        if name not in self._turned:
            self._turned[name] = self._copied(place, place.laid_out(not place.channels_last), node)
        return self._turned[name]

    def _copied(self, place: Place, like: Place, node: Node) -> Place:
        from hubel.graph.lower import copy

        copy(self, node, place, target := self.room(like))
        return target

    # --- entries ---

    def add(self, node: Node, work: Any, *pointers: Any, how: str = "") -> None:
        """Jobs of a Work or an Invocation, on the pointers p0 to p3: places, addresses or `Operands`."""
        keep = getattr(work, "keep", (work,))
        entry = Entry(node, tuple(work.jobs), pointers, keep, work.scratch_bytes, work.shared_bytes, how=how)
        for pointer in pointers:
            if isinstance(pointer, Place):
                entry.touches.append(pointer.buffer)
            elif isinstance(pointer, Operands) and pointer.residual is not None:
                entry.touches.append(pointer.residual.buffer)
        self.entries.append(entry)

    def constant(self, name: str) -> Address:
        """The address of a constant."""
        return Address(ABSOLUTE, self.weights.address(name)) if name else NULL


# Operators whose result can be written into a part of a larger tensor.
_WRITES_ANYWHERE = frozenset({"conv", "affine", "activation", "binary", "pool", "adaptive_pool", "concat"})


def packed_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def strided_view(place: Place, node: Node) -> Place | None:
    """The place of a view (`node` with its attributes as numbers), or None where strides cannot say it."""
    shape, strides = place.shape, place.strides
    if node.op == "slice":
        axis = node["dim"]
        first, last = bounds(node, shape[axis])
        cut = (*shape[:axis], last - first, *shape[axis + 1 :])
        return Place(place.buffer, place.offset + first * strides[axis], cut, strides)
    if node.op == "permute":
        order = node["dims"]
        return Place(place.buffer, place.offset, tuple(shape[i] for i in order), tuple(strides[i] for i in order))
    return None


def reshaped(place: Place, shape: tuple[int, ...]) -> Place | None:
    """The place seen with another shape, or None where its numbers do not follow each other that way."""
    if place.contiguous:
        return Place(place.buffer, place.offset, shape, packed_strides(shape))
    # Runs of axes that are dense among themselves can be cut anew.
    old = [(n, s) for n, s in zip(place.shape, place.strides, strict=True) if n != 1]
    runs: list[list[int]] = []
    for size, stride in old:
        if runs and runs[-1][1] == stride * size:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    strides: list[int] = []
    left = list(runs)
    for size in reversed(shape):
        if size == 1:
            strides.append(1)
            continue
        if not left or left[-1][0] % size:
            return None
        strides.append(left[-1][1])
        left[-1] = [left[-1][0] // size, left[-1][1] * size]
        if left[-1][0] == 1:
            left.pop()
    return Place(place.buffer, place.offset, shape, tuple(reversed(strides)))


def lives(entries: Sequence[Entry]) -> tuple[list[Buffer], list[Life]]:
    """The buffers of the arena, and when each is in use."""
    found: dict[int, tuple[Buffer, int, int]] = {}
    for i, entry in enumerate(entries):
        for buffer in entry.touches:
            if buffer.base == ARENA:
                known = found.get(id(buffer))
                found[id(buffer)] = (buffer, known[1] if known else i, i)
    buffers = [buffer for buffer, _, _ in found.values()]
    return buffers, [Life(buffer.bytes, first, last) for buffer, first, last in found.values()]


def place_buffers(entries: Sequence[Entry]) -> int:
    """Give every buffer of the arena its address in it; returns the arena's bytes."""
    buffers, when = lives(entries)
    addresses, size = arena(when)
    for buffer, address in zip(buffers, addresses, strict=True):
        buffer.address = address
    return size + ALIGNMENT
