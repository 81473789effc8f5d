"""Runs of our own operators in a training graph, each as one launch.

Called one by one, the operators of a step leave 30 to 50 µs of Python between two kernels, to allocate, to look a call
up and to start it: 16 of the 54 ms of a step of MobileNet v2 (batch 16, 64²; Zen 3). What all this comes to is the
same in every step. So it is worked out once, from the tensors of the first: operators that say what they do
(`recipe`), and of which none needs to wait for one of torch's, make a *segment*. It has the jobs of all its operators
in one list, done in one parallel region; what nobody else reads lies in one piece of memory, in places used again.

    x, weights, …  ->  [convolution, batch norm, convolution, batch norm]  ->  what the backward graph keeps

Sums of residuals and activations, which are torch's operators, join in (`elementwise`). Each size, and each way to lie
in memory, has segments of its own; a step on other terms (strict, under a profiler, with a layer left out) runs
operator by operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from hubel.engine.threads import Block, Job, launch_placed
from hubel.graph.memory import ALIGNMENT, Life, arena
from hubel.ops import accuracy, batch_norm, calls, elementwise, library, linear
from hubel.ops.exclude import excluded
from hubel.ops.kept_memory import serving
from hubel.ops.log import count_native_calls
from hubel.ops.override import switched_off_by_environment
from hubel.ops.recipe import Argument, Launch, Made, Pointer, Recipe, Result, Room, Table, made_like
from hubel.ops.results import is_large, part, room

# What says what an operator does, from arguments like its own.
_RECIPES: dict[Any, Callable[..., Recipe | None]] = {
    library.run_convolution: calls.convolution_recipe,
    library.run_backward: calls.backward_recipe,
    batch_norm.batch_norm: batch_norm.forward_recipe,
    batch_norm.batch_norm_backward: batch_norm.backward_recipe,
    linear.product: linear.recipe,
    **elementwise.RECIPES,
}
# Whose results the graph picks one by one.
_SEVERAL = (library.run_backward, batch_norm.batch_norm, batch_norm.batch_norm_backward)
# A segment of one operator gains nothing.
_FEWEST = 2
# Beyond so many combinations of terms the graphs that were cut for them are not worth their memory.
_MOST_TERMS = 8
# Bases of addresses: nothing, the words themselves, the memory inside; then what a segment is given, and what it makes.
_NOTHING, _SELF, _INSIDE, _GIVEN = range(4)
# A value of the graph: a node, or one of a node's results.
Value: TypeAlias = tuple[Node, int]
_profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
_shape = operator.attrgetter("shape")


def in_segments(graph: GraphModule, returned: int | None = None) -> Callable[..., Any]:
    """What does what `graph` does: the first call on some terms operator by operator, later ones in segments.

    returned: how many of the results are the caller's, those behind them being kept for the backward graph; None: all.
    """
    # A list: hashing some hundred sizes takes longer than to find that they are those of last time.
    cut: list[_Cut] = []

    def run(*given: Any) -> Any:
        terms = _terms(given)
        if terms is None:
            return graph.forward(*given)
        for known in cut:
            if known.terms == terms:
                return known(*given)
        copied = Graph()
        copied.output(copied.graph_copy(graph.graph, {}))
        first = _First(GraphModule(graph, copied))
        results = first.run(*given)
        _Cutter(copied, first.made, _kept(copied, returned)).cut()
        cut.insert(0, _Cut(terms, GraphModule(graph, copied).forward))
        del cut[_MOST_TERMS:]
        return results

    return run


@dataclass
class _Cut:
    """A graph in segments, for some terms."""

    terms: tuple[Any, ...]
    function: Callable[..., Any]
    began: bool = False

    def __call__(self, *given: Any) -> Any:
        if not self.began:
            self.began = True
            # Operator by operator results had memory of other sizes, which nobody will ask for again: 350 MB of a step
            # of ResNet-50 (batch 32, 96²).
            memory = serving()
            if memory is not None:
                memory.clear()
        return self.function(*given)


class _First(Interpreter):
    """Runs a graph operator by operator. made: how the results of each lie."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.made: dict[Node, Made] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.made[n] = made_like(result)
        return result


def _terms(given: Sequence[Any]) -> tuple[Any, ...] | None:
    """What all recipes of a graph depend on: settings, and how what it is given lies; None where there can be no
    segments.
    """
    policy = accuracy.policy(torch.get_num_threads())
    tensors = [value for value in given if isinstance(value, Tensor)]
    # Strict gradients look at their results.
    off = policy.accuracy == "strict" or excluded or _profiling() or switched_off_by_environment()
    if off or any(map(Tensor.is_neg, tensors)):
        return None
    numbers = tuple(value for value in given if not isinstance(value, Tensor)) if len(tensors) < len(given) else ()
    lie = tuple(map(_shape, tensors)), tuple(map(Tensor.stride, tensors))
    return policy, torch._C._get_mkldnn_enabled(), calls.in_background(), numbers, lie


def _kept(graph: Graph, returned: int | None) -> set[Node]:
    """Values that only operators of ours read, of this graph and of the backward graph: nobody tells where they lie."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    theirs = set(results if returned is None else results[:returned])
    return {
        node for node in graph.nodes
        if node not in theirs and all(user is output or user.target in _RECIPES for user in node.users)
    }  # fmt: skip


class _Cutter:
    """Goes through a graph once, gathers operators, and puts a segment in their place where one has to end."""

    def __init__(self, graph: Graph, made: dict[Node, Made], kept: set[Node]) -> None:
        self._graph, self._made, self._kept = graph, made, kept
        self._gathered: dict[Node, Recipe] = {}
        self._members: dict[Node, Value] = {}
        self._segments: list[Segment] = []

    def cut(self) -> None:
        parts: set[Node] = set()
        for node in list(self._graph.nodes):
            if node.op == "placeholder" or node in parts:
                continue
            recipe = self._recipe(node)
            if recipe is not None:
                self._gathered[node] = recipe
                parts |= set(_values(node))
                self._members |= {value: (node, _place(value)) for value in _values(node)}
                continue
            if _writes(node) or any(n in self._members for n in node.all_input_nodes):
                self._end(node)
        most = max((segment.inside_bytes for segment in self._segments), default=0)
        for segment in self._segments:
            segment.share(most)

    def _recipe(self, node: Node) -> Recipe | None:
        find = _RECIPES.get(node.target)
        if find is None or any(n not in self._made for n in node.all_input_nodes):
            return None
        known = [(n, self._made[n]) for n in node.all_input_nodes]
        # Memory that nobody writes to costs nothing.
        like = {n: torch.empty_strided(m.shape, m.strides, dtype=m.dtype) for n, m in known}
        recipe = find(*map_arg(node.args, like.__getitem__), **map_arg(node.kwargs, like.__getitem__))
        values = _values(node)
        places = [_place(value) for value in values]
        if recipe is None or not values or len(set(places)) < len(places):
            return None
        made = [self._made.get(value) for value in values]
        return recipe if made == [recipe.results[place] for place in places] else None

    def _end(self, before: Node) -> None:
        """Put what was gathered in a segment in front of this node."""
        gathered, members = self._gathered, self._members
        self._gathered, self._members = {}, {}
        if len(gathered) < _FEWEST:
            return
        inside = {*gathered, *members}
        leaving = [node for node in members if set(node.users) - inside]
        segment = Segment(gathered, members, leaving, self._made, self._kept)
        self._segments.append(segment)
        with self._graph.inserting_before(before):
            whole = self._graph.call_function(segment, tuple(segment.given))
            for i, node in enumerate(leaving):
                result = self._graph.call_function(operator.getitem, (whole, i))
                self._made[result] = self._made[node]
                node.replace_all_uses_with(result, lambda user: user not in inside)
        for node in reversed([n for n in self._graph.nodes if n in inside]):
            self._graph.erase_node(node)


def _values(node: Node) -> list[Node]:
    """The nodes that are an operator's results: itself, or what picks one of several."""
    users = list(node.users)
    if node.target not in _SEVERAL:
        return [node]
    return users if all(user.target is operator.getitem for user in users) else []


def _place(value: Node) -> int:
    """Which of the results it is."""
    index: Any = value.args[1] if value.target is operator.getitem else 0
    return index


def _writes(node: Node) -> bool:
    """Whether it may do more than to make something of what it is given, or ends the graph."""
    if node.op == "get_attr" or node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable


class Segment:
    """Does what some operators of a graph do. given: the nodes whose values it is called with, in this order; it gives
    back the values of the `leaving` nodes. kept: those that may share their memory with others.
    """

    # fx names its calls by this.
    __name__ = "segment"

    def __init__(
        self, gathered: dict[Node, Recipe], members: dict[Node, Value], leaving: Sequence[Node], made: dict[Node, Made],
        kept: set[Node],
    ) -> None:  # fmt: skip
        arguments = [n for node in gathered for n in node.all_input_nodes]
        self.given = list(dict.fromkeys(n for n in arguments if n not in members))
        self._leaving = list(leaving)
        self._native = sum(recipe.native for recipe in gathered.values())
        self._threads = torch.get_num_threads()
        self._make_results = _Results([made[n] for n in leaving], [n in kept for n in leaving])
        self._assemble(gathered, members)

    def _assemble(self, gathered: dict[Node, Recipe], members: dict[Node, Value]) -> None:
        """The words of all jobs, and which of them are addresses: word `where` is base `base` + `at`."""
        places = _Places(gathered, members, self.given, self._leaving)
        launches = [(node, launch) for node, recipe in gathered.items() for launch in recipe.launches]
        jobs: list[Job] = [job for _, launch in launches for job in launch.jobs]
        block = Block(jobs)
        words, pointers_at = block.words.tolist(), iter(block.pointers_at)
        patches: list[tuple[int, int, int]] = []
        for node, launch in launches:
            found = []
            for pointer in launch.pointers:
                if isinstance(pointer, Table):
                    found.append((_SELF, 8 * len(words)))
                    patches += [(len(words) + i, *places.of(node, p)) for i, p in enumerate(pointer.pointers)]
                    words += [0] * len(pointer.pointers)
                else:
                    found.append(places.of(node, pointer))
            for _ in launch.jobs:
                at = next(pointers_at)
                patches += [(at + i, *address) for i, address in enumerate(found)]
        self._words = np.array(words, np.int64)
        self._where, self._base, self._at = (np.array(column, np.int64) for column in zip(*patches, strict=True))
        self._shared = max(launch.shared_bytes for _, launch in launches)
        self._scratch = max(launch.scratch_bytes for _, launch in launches)
        self.inside_bytes = places.bytes
        self._keep: list[Launch] = [launch for _, launch in launches]

    def share(self, size: int) -> None:
        """Have memory of so many bytes inside: as much as the segments before and behind, so that all use the same."""
        self._make_inside = room((size // 4,), (1,), torch.float32)

    def __call__(self, *given: Tensor) -> list[Tensor]:
        made, inside, words = self._make_results(), self._make_inside(), self._words.copy()
        address = words.ctypes.data
        bases = [0, address, inside.data_ptr(), *map(Tensor.data_ptr, given), *map(Tensor.data_ptr, made)]
        words[self._where] = np.array(bases, np.int64)[self._base] + self._at
        launch_placed(address, self._threads, self._shared, self._scratch, 1)
        count_native_calls(self._native)
        return made


class _Results:
    """Allocates tensors. Large ones that may share memory lie in one block: one of its own takes a tensor 5 µs."""

    def __init__(self, made: Sequence[Made], may_share: Sequence[bool]) -> None:
        # Of each tensor what allocates it, or how it lies in the block: shape, strides, first number.
        self._each: list[Callable[[], Tensor] | tuple[Any, ...]] = []
        numbers = 0
        for m, shares in zip(made, may_share, strict=True):
            if shares and m.dtype is torch.float32 and is_large(m.shape, m.dtype):
                self._each.append((m.shape, m.strides, numbers))
                numbers += -(-_bytes(m) // ALIGNMENT) * ALIGNMENT // 4
            else:
                self._each.append(room(m.shape, m.strides, m.dtype))
        self._make_block = room((numbers,), (1,), torch.float32)

    def __call__(self) -> list[Tensor]:
        block = self._make_block()
        return [part(block, *each) if type(each) is tuple else each() for each in self._each]  # type: ignore[operator]


class _Places:
    """Where a segment's values lie: as a base, and the bytes from there."""

    def __init__(
        self, gathered: dict[Node, Recipe], members: dict[Node, Value], given: Sequence[Node], leaving: Sequence[Node]
    ) -> None:
        self._members, self._gathered = members, gathered
        self._given = {node: _GIVEN + i for i, node in enumerate(given)}
        self._left = {members[node]: _GIVEN + len(given) + i for i, node in enumerate(leaving)}
        lives: dict[tuple[Node, int | Room], Life] = {}
        last = self._last_reads()
        for i, (node, recipe) in enumerate(gathered.items()):
            for j, made in enumerate(recipe.results):
                if made is not None and (node, j) not in self._left:
                    lives[node, j] = Life(_bytes(made), i, last.get((node, j), i))
            lives |= {(node, room): Life(size, i, i) for room, size in recipe.rooms.items()}
        at, self.bytes = arena(list(lives.values()))
        self._inside = dict(zip(lives, at, strict=True))

    def _last_reads(self) -> dict[Value, int]:
        """The number of the last operator that reads a value."""
        return {
            self._members[n]: i for i, node in enumerate(self._gathered) for n in node.all_input_nodes
            if n in self._members
        }  # fmt: skip

    def of(self, node: Node, pointer: Pointer) -> tuple[int, int]:
        """Where what an operator calls so is."""
        if pointer is None:
            return _NOTHING, 0
        if isinstance(pointer, Room):
            return _INSIDE, self._inside[node, pointer]
        if isinstance(pointer, Result):
            return self._value((node, pointer.index))
        assert isinstance(pointer, Argument)
        argument: Any = node.args[pointer.index]
        return (self._given[argument], 0) if argument in self._given else self._value(self._members[argument])

    def _value(self, value: Value) -> tuple[int, int]:
        return (self._left[value], 0) if value in self._left else (_INSIDE, self._inside[value])


def _bytes(made: Made) -> int:
    return made.dtype.itemsize * (1 + sum((n - 1) * s for n, s in zip(made.shape, made.strides, strict=True)))
