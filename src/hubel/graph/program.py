"""A network for one size of its inputs, ready to run: words that lack only addresses, and memory to run in.

A program is a list of steps. A step is a run of jobs, done in one parallel region with a barrier between jobs, or a
call of the host. The words of all jobs, and behind them the operand words of epilogues, are one array; `Relocations`
say which of its words are addresses, and what they are counted from. An *instance* is a copy of the words and an arena:
one call runs in it at a time, and it is kept for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from hubel.engine.machine import physical_memory
from hubel.engine.threads import Block, Job, launch_placed
from hubel.errors import ModelError
from hubel.graph.binder import (
    ABSOLUTE,
    ARENA,
    CALL,
    NULL,
    SELF,
    Address,
    Binder,
    Buffer,
    Entry,
    Operands,
    Place,
    packed_strides,
    place_buffers,
)
from hubel.graph.host import Host, Made
from hubel.graph.lower import LOWER, copy
from hubel.graph.memory import ALIGNMENT
from hubel.graph.network import Node, resolved
from hubel.graph.weights import aligned


@dataclass
class Relocations:
    """Word `where[i]` is `at[i]` + base `plus[i]` − base `minus[i]`."""

    where: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    plus: list[int] = field(default_factory=list)
    minus: list[int] = field(default_factory=list)

    def add(self, where: int, plus: Address, minus: Address = NULL) -> None:
        self.where.append(where)
        self.at.append(plus.at - minus.at)
        self.plus.append(plus.base)
        self.minus.append(minus.base)


@dataclass(frozen=True)
class Region:
    """Jobs that run in one launch: where their block begins in the words, and the scratch they need."""

    start: int
    shared_bytes: int
    scratch_bytes: int


@dataclass(frozen=True)
class HostCall:
    """An operator of the host. operands: names of values. views: those that lie in the arena. copied: what native nodes
    read of it.
    """

    node: Node
    arguments: Any
    keywords: Any


class Program:
    """Made by `bind`. `run` may be called by several threads at once."""

    def __init__(
        self, binder: Binder, outputs: Sequence[Place | None], threads: int, flush: bool, separate: bool = False
    ) -> None:
        self.separate = separate
        self.threads, self.flush = threads, int(flush)
        self.graph, self.host = binder.graph, binder.host
        self.entries = binder.entries
        self.outputs = tuple(outputs)
        self.arena_bytes = place_buffers(binder.entries)
        scratch = max((e.shared_bytes + threads * e.scratch_bytes for e in binder.entries), default=0)
        if self.arena_bytes + scratch > physical_memory():
            raise ModelError(
                "a network must fit into memory. Received: inputs for which it needs "
                f"{(self.arena_bytes + scratch) / 2**30:,.0f} GiB. Use fewer images, or smaller ones."
            )
        self.places = binder.places
        self.steps: list[Region | HostCall] = []
        self.scratch_bytes = 0
        self._relocations = Relocations()
        self._words: list[int] = []
        self._assemble(binder)
        self._idle: deque[Instance] = deque()
        where, at, plus, minus = (
            np.array(n, np.int64)
            for n in (self._relocations.where, self._relocations.at, self._relocations.plus, self._relocations.minus)
        )
        self.fixed = (plus < CALL) & (minus < CALL)
        self.relocations = (where, at, plus, minus)
        self.words = np.array(self._words, np.int64)
        self.patches = [
            (int(w), int(a), int(p) - CALL if p >= CALL else -1, int(m) - CALL if m >= CALL else -1, int(p), int(m))
            for w, a, p, m in zip(*(n[~self.fixed] for n in self.relocations), strict=True)
        ]

    def _assemble(self, binder: Binder) -> None:
        operands: list[tuple[int, Operands]] = []
        run: list[Entry] = []
        for entry in [*self.entries, None]:
            if entry is not None and entry.jobs and not (self.separate and run):
                run.append(entry)
                continue
            if run:
                self._region(run, operands)
                run = []
            if entry is not None and entry.jobs:
                run = [entry]
            elif entry is not None:
                known = resolved(entry.node.attributes, binder.numbers)
                self.steps.append(HostCall(entry.node, known.get("arguments"), known.get("keywords")))
        for where, words in operands:
            at = len(self._words)
            self._words += [0, 0, 0, 0]
            self._relocations.add(where, Address(SELF, 8 * at))
            for i, address in enumerate((words.bias, words.scale, words.shift)):
                self._relocations.add(at + i, address)
            if words.residual is not None:
                self._relocations.add(at + 3, _address(words.residual), _address(words.output))

    def _region(self, run: Sequence[Entry], operands: list[tuple[int, Operands]]) -> None:
        jobs: list[Job] = [job for entry in run for job in entry.jobs]
        block, start = Block(jobs), len(self._words)
        places = iter(block.pointers_at)
        for entry in run:
            for _ in entry.jobs:
                at = start + next(places)
                for i, pointer in enumerate(entry.pointers):
                    if isinstance(pointer, Operands):
                        operands.append((at + i, pointer))
                    else:
                        self._relocations.add(at + i, _address(pointer))
        self._words += block.words.tolist()
        shared, scratch = max(e.shared_bytes for e in run), max(e.scratch_bytes for e in run)
        self.steps.append(Region(start, shared, scratch))

    def run(self, pointers: Sequence[int], objects: Sequence[Any]) -> list[Any]:
        """Run on the addresses of the inputs and then of the outputs that are to be written (0 for others).

        objects: the inputs as operands of the host. Returns what the host made of each output, None where it was
        written.
        """
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = Instance(self)
        try:
            return instance.run(pointers, objects)
        finally:
            self._idle.append(instance)


class Instance:
    """Words with addresses in them, and an arena. One call at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory = np.empty(program.arena_bytes + ALIGNMENT, np.uint8)
        self.words = program.words.copy()
        start = aligned(self.memory)
        self.arena = self.memory[start - self.memory.ctypes.data :]
        self.address = self.words.ctypes.data
        self._bases = [0, start, self.address]
        where, at, plus, minus = (n[program.fixed] for n in program.relocations)
        bases = np.array(self._bases, np.int64)
        self.words[where] = at + bases[plus] - bases[minus]
        self._patches = [
            (where, at + (self._bases[p] if plus < 0 else 0) - (self._bases[m] if minus < 0 else 0), plus, minus)
            for where, at, plus, minus, p, m in program.patches
        ]
        self._regions = [
            (self.address + 8 * s.start, program.threads, s.shared_bytes, s.scratch_bytes, program.flush)
            if isinstance(s, Region) else s for s in program.steps
        ]  # fmt: skip
        first = self._regions[0] if len(self._regions) == 1 else None
        self._only = None if isinstance(first, HostCall) else first
        self._views = {
            name: program.host.view(self._array(place))
            for name, place in program.places.items()
            if program.host is not None and place.buffer.base == ARENA and name in _seen_by_host(program)
        }

    def _array(self, place: Place) -> np.ndarray:
        """The memory of a place as an array."""
        at = place.buffer.address + 4 * place.offset
        numbers = self.arena[at:].view(np.float32)
        return np.lib.stride_tricks.as_strided(numbers, place.shape, [4 * s for s in place.strides])

    def run(self, pointers: Sequence[int], objects: Sequence[Any]) -> list[Any]:
        words = self.words
        for where, at, plus, minus in self._patches:
            words[where] = at + (pointers[plus] if plus >= 0 else 0) - (pointers[minus] if minus >= 0 else 0)
        program = self.program
        if self._only is not None:
            launch_placed(*self._only)
            return [None] * len(program.outputs)
        made: dict[str, Any] = dict(zip(program.graph.inputs, objects, strict=True))
        for step in self._regions:
            if isinstance(step, HostCall):
                self._call(step, made)
            else:
                launch_placed(*step)
        return [
            made.get(name) if place is None else None
            for name, place in zip(program.graph.outputs, program.outputs, strict=True)
        ]

    def seconds(self, pointers: Sequence[int], objects: Sequence[Any], rounds: int) -> list[float]:
        """The least time of each step over some rounds, for programs without calls of the host."""
        least = [float("inf")] * len(self._regions)
        self.run(pointers, objects)
        for _ in range(rounds):
            for i, step in enumerate(self._regions):
                if isinstance(step, HostCall):
                    continue
                start = perf_counter()
                launch_placed(*step)
                least[i] = min(least[i], perf_counter() - start)
        return least

    def _call(self, step: HostCall, made: dict[str, Any]) -> None:
        program, node = self.program, step.node
        host = program.host
        assert host is not None
        if node.op == "item":
            result = made[node.inputs[0]][node["index"]]
        else:
            operands = []
            for name in node.inputs:
                if name in made:
                    operands.append(made[name])
                elif name in self._views:
                    operands.append(self._views[name])
                else:
                    operands.append(host.view(program.graph.constants[name]))
            result = host.call(node["target"], step.arguments, step.keywords, operands)
        if node.name in self._views:
            host.copy(result, self._views[node.name])
        else:
            made[node.name] = result


def _seen_by_host(program: Program) -> set[str]:
    seen: set[str] = set()
    for entry in program.entries:
        if not entry.jobs:
            seen |= {entry.node.name, *entry.node.inputs}
    return seen


def _address(pointer: Place | Address) -> Address:
    if isinstance(pointer, Address):
        return pointer
    return Address(pointer.buffer.base, pointer.buffer.address + 4 * pointer.offset)


def bind(binder: Binder, separate: bool = False) -> Program:
    """The program for the sizes that the binder was made with. separate: every node in a region of its own."""
    b, graph = binder, binder.graph
    native = _read_natively(b)
    for i, (name, given) in enumerate(graph.inputs.items()):
        if b.dtypes.get(name) == "float32" and given.dtype == "float32":
            shape = b.shapes[name]
            b.put(name, Place(Buffer(CALL + i), 0, shape, packed_strides(shape)))
    outputs = _output_places(b)
    for node in graph.nodes:
        if node.op in ("size", "whole"):
            continue
        if node.op in LOWER:
            LOWER[node.op](b, node)
        else:
            _call_host(b, node, native)
    places: list[Place | None] = []
    for i, name in enumerate(graph.outputs):
        if name not in b.places and name not in graph.constants:
            places.append(None)
            continue
        place = b.place(name)
        if place.buffer is not outputs[i].buffer:
            node = graph.node(name) or Node(name, "reshape", (name,))
            copy(b, node, place, outputs[i])
        places.append(outputs[i])
    return Program(b, places, b.policy.threads, b.policy.accuracy != "strict", separate)


def _read_natively(b: Binder) -> set[str]:
    """Values that some native node reads."""
    return {name for node in b.graph.nodes if node.op in LOWER for name in node.inputs if name}


def _output_places(b: Binder) -> list[Place]:
    """A place for each output in the caller's memory; the value is written there at once where it can be."""
    from hubel.graph.binder import _WRITES_ANYWHERE

    first, places = CALL + len(b.graph.inputs), []
    for i, name in enumerate(b.graph.outputs):
        shape = b.shapes.get(name, ())
        place = Place(Buffer(first + i), 0, shape, packed_strides(shape))
        places.append(place)
        maker = b.graph.node(name)
        # Whoever reads it on the way could be the host, which reads the arena only.
        quiet = all(user.op in LOWER for user in b.users.get(name, ()))
        wanted = maker and maker.op in (*_WRITES_ANYWHERE, "linear") and quiet and name not in b.homes
        if wanted and name not in b.places:
            b.put(name, place)
    return places


def _call_host(b: Binder, node: Node, native: set[str]) -> None:
    """A node that the host runs. What native nodes read of it is copied into the arena."""
    entry, graph = Entry(node, how=node.get("target", node.op)), b.graph
    for name in node.inputs:
        if name not in b.places or name in graph.inputs or name in graph.constants:
            continue
        if b.places[name].buffer.base != ARENA:
            # A view of an input or a constant: the host sees the arena only.
            place = b.places[name]
            target = b.room(replace(place, strides=packed_strides(place.shape)))
            copy(b, node, place, target)
            b.put(name, target)
        entry.touches.append(b.places[name].buffer)
    if node.name in native and b.dtypes.get(node.name) == "float32":
        place = b.new(node.name)
        entry.touches.append(place.buffer)
    b.entries.append(entry)


def made_of(shape: Sequence[int], dtype: str) -> Made:
    return Made(tuple(shape), dtype)


__all__ = ["ABSOLUTE", "Host", "Instance", "Program", "Region", "bind"]
