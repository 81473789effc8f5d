"""A network that runs: a graph after its passes, its weights, and a program for each size that came by.

net = Network(graph)
net.run_numpy(x)                  without torch, when the graph has no foreign operators
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from hubel.engine.problem import Policy
from hubel.errors import ModelError
from hubel.graph.binder import Binder, Place
from hubel.graph.host import Host, Made
from hubel.graph.network import Graph
from hubel.graph.passes import optimised
from hubel.graph.program import Program, bind
from hubel.graph.spill import Spilled
from hubel.graph.weights import Weights

# Programs that are kept, one for each combination of sizes and threads.
MOST_PROGRAMS = 64
# Below this much work one thread is done before a second has woken up; barriers between its many short jobs included.
SERIAL_FLOPS, SERIAL_WEIGHTS = 3_000_000, 100_000

Key = tuple[tuple[tuple[int, ...], ...], int]


class Network:
    """Runs a graph for any sizes it allows."""

    def __init__(
        self, graph: Graph, host: Host | None = None, policy: Policy | None = None, small: bool = False
    ) -> None:
        self.given = graph
        self.graph = optimised(graph.check())
        self._spilled = Spilled(self.graph.constants) if small else None
        if self._spilled is not None:
            # Nothing here keeps the raw weights in memory.
            self.graph = self.given = replace(self.graph, constants=self._spilled.constants)
        self.weights = Weights(self.graph.constants, self._spilled)
        self.host, self.policy, self._small = host, policy or Policy(), small
        self._programs: dict[Key, Program] = {}
        # What a program's words point to lives as long as the program.
        self._kept: WeakKeyDictionary[Program, Weights] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def own(self) -> None:
        """Copy the constants that are still the memory of whoever made the graph."""
        if self._spilled is not None:
            return
        theirs = {id(value) for value in self.given.constants.values()}
        kept = {n: v.copy() if id(v) in theirs else v for n, v in self.graph.constants.items()}
        self.graph = replace(self.graph, constants=kept)
        self.weights = Weights(kept)

    def program(self, shapes: Sequence[tuple[int, ...]], threads: int) -> Program:
        """The program for inputs of these shapes. Raises ModelError for sizes that the network does not allow."""
        key = (tuple(shapes), threads)
        found = self._programs.get(key)
        if found is None:
            with self._lock:
                found = self._programs.get(key) or self._bound(key)
        return found

    def _bound(self, key: Key) -> Program:
        shapes, threads = key
        made = {}
        for (name, given), shape in zip(self.graph.inputs.items(), shapes, strict=True):
            fits = len(shape) == len(given.shape) and all(
                want is None or want == have for want, have in zip(given.shape, shape, strict=True)
            )
            if not fits:
                raise ModelError(
                    f"an input has the sizes the network was captured with, any where it says ?. Received: "
                    f"{list(shape)} for {name}: {given}. Pass tensors of such a shape."
                )
            made[name] = Made(shape, given.dtype)
        policy = replace(self.policy, threads=threads)
        if self._small:
            # Packed forms are this size's alone. Calls that are under way hold their own program, which holds its own.
            self._programs.clear()
            self.weights = Weights(self.graph.constants, self._spilled)
        binder = Binder(self.graph, made, policy, self.weights, self.host)
        weights = sum(value.size for value in self.graph.constants.values())
        if threads > 1 and flops(binder) < SERIAL_FLOPS and weights < SERIAL_WEIGHTS:
            binder.policy = replace(policy, threads=1)
        program = bind(binder)
        self._kept[program] = self.weights
        while len(self._programs) >= MOST_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = program
        return program

    def run_numpy(self, *inputs: np.ndarray, threads: int = 1) -> list[Any]:
        """The outputs for these inputs, as arrays. For networks without foreign operators."""
        arrays = [np.ascontiguousarray(x, dtype=np.float32) for x in inputs]
        program = self.program([x.shape for x in arrays], threads)
        outputs = [np.empty(place.shape, np.float32) for place in program.outputs if isinstance(place, Place)]
        program.run([array.ctypes.data for array in [*arrays, *outputs]], arrays)
        return outputs


def flops(binder: Binder) -> int:
    """Of the convolutions and linear layers, two a multiply-add."""
    total = 0
    for node in binder.graph.nodes:
        if node.op in ("conv", "linear"):
            weight = binder.shapes[node.inputs[1]]
            # Every output of a convolution, and every input of a transposed one, meets so many weights.
            pixels = binder.shapes[node.inputs[0] if node.get("transposed") else node.name]
            total += 2 * prod(pixels) * prod(weight[1:])
    return total
