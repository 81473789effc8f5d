"""An inference graph of torch.compile as a network of ours, whose weights may change between calls.

torch hands a network's parameters and buffers over with every call. They are folded and packed once, and again when
they are no longer what they were, by the rules of `weights`: object and `data_ptr`, `_version`, the count of optimizer
steps, and a sample of the values.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from hubel.errors import ModelError
from hubel.graph import Graph, Network, Ref
from hubel.ops import accuracy, weights
from hubel.ops.capture import Capture, array_of, convert, dtype_of, graph_of
from hubel.ops.foreign import TorchHost
from hubel.ops.log import count_native_calls
from hubel.ops.sampled import Samples
from hubel.ops.session import Calls
from hubel.ops.weights import is_dense

# Whoever wants to know which compiled networks run, and on what (`hubel.plan`).
listeners: list[Callable[[Compiled, list[Tensor]], None]] = []


class Compiled:
    """Does what an fx graph does. static: which of its inputs are parameters and buffers.

    Raises ModelError for a graph that cannot be a network of ours, or has nothing in it that would gain by it.
    """

    def __init__(self, module: GraphModule, static: Sequence[int]) -> None:
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        # Weights as they were traced have no values yet: zeros of their shapes stand for them.
        capture, self._static = Capture(), {}
        symbols = []
        for i, node in enumerate(placeholders):
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                # torch also passes numbers that nothing reads: an input's strides, once they have differed.
                symbols += [(node, value)] if node.users else []
            elif i in static and all(isinstance(size, int) for size in value.shape):
                name = capture.constant(node.name, _nothing(value))
                capture.names[node] = name
                self._static[name] = i
            else:
                capture.input(node)
        self._dynamic = [i for i, node in enumerate(placeholders) if capture.names.get(node) in capture.inputs]
        for node, value in symbols:
            capture.names[node] = _size(capture, placeholders, node, value)
        outputs = convert(capture, module.graph.nodes)
        self._graph = graph_of(capture, outputs)
        self._convolutions = sum(node.op == "conv" for node in self._graph.nodes)
        if not self._convolutions:
            raise ModelError(
                "a compiled network of ours has convolutions. Received: a graph without any. torch runs it."
            )
        self._last = _channels_last_outputs(module)
        used = {name for node in self._graph.nodes for name in node.inputs}
        self._static = {name: i for name, i in self._static.items() if name in used}
        self._places = list(self._static.values())
        self._lock = threading.Lock()
        self._state: _State | None = None

    def __call__(self, args: list[Any]) -> list[Tensor]:
        """The graph's outputs. args: its inputs, all of them; the list is emptied, as torch expects."""
        given = list(args)
        args.clear()
        state = self._state
        if state is None or not self._fresh(state, given):
            state = self._renewed(given)
        tensors = [given[i] for i in self._dynamic]
        for listener in listeners:
            listener(self, tensors)
        results = state.calls(tensors)
        count_native_calls(self._convolutions)
        for i in self._last:
            results[i] = results[i].contiguous(memory_format=torch.channels_last)
        return results

    @property
    def network(self) -> Network:
        """The network as it ran last."""
        assert self._state is not None
        return self._state.calls.network

    def _fresh(self, state: _State, given: Sequence[Any]) -> bool:
        """Whether the weights are those that were folded and packed, under the accuracy that holds now."""
        if state.generation != weights._generation or state.calls.network.policy != accuracy.policy(1):
            return False
        return state.watched.unchanged([given[i] for i in self._places])

    def _renewed(self, given: Sequence[Any]) -> _State:
        with self._lock:
            if self._state is not None and self._fresh(self._state, given):
                return self._state  # another thread was here first
            # Read before folding: a write in the meantime then shows as a difference.
            generation = weights._generation
            watched = _Watched([given[i] for i in self._places])
            constants = dict(self._graph.constants)
            constants |= {name: array_of(given[i]) for name, i in self._static.items()}
            graph = Graph(self._graph.inputs, constants, self._graph.nodes, self._graph.outputs)
            network = Network(graph, TorchHost(), accuracy.policy(1))
            network.own()
            calls = Calls(network, list(range(len(graph.outputs))))
            self._state = _State(calls, watched, generation)
            return self._state


_version = operator.attrgetter("_version")


@dataclass(frozen=True)
class _State:
    """A network and what its weights were: exchanged as one, for several threads may be calling."""

    calls: Calls
    watched: _Watched
    generation: int


class _Watched:
    """What the weights were when they were last read."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._pointers = [w.data_ptr() for w in weights]
        # Inference tensors have no version, and of what does not lie dense in memory no sample is taken.
        known = all(not w.is_inference() and is_dense(w) for w in weights)
        self._versions = [w._version for w in weights] if known else []
        self._samples = Samples(weights) if known else None

    def unchanged(self, weights: Sequence[Tensor]) -> bool:
        if self._samples is None or list(map(Tensor.data_ptr, weights)) != self._pointers:
            return False
        try:
            if list(map(_version, weights)) != self._versions:
                return False
        except RuntimeError:
            return False  # an inference tensor has none
        # Last: the memory may be read only if it is still the weights'.
        return self._samples.unchanged()


def _nothing(like: Tensor) -> np.ndarray:
    """Zeros like a tensor that was traced. Raises ModelError for what is no tensor of numpy's dtypes on the CPU."""
    try:
        dtype = np.dtype(dtype_of(like))
    except TypeError:
        dtype = None
    if dtype is None or like.device.type != "cpu":
        raise ModelError(f"weights are of a dtype that numpy has, on the CPU. Received: {like.dtype} on {like.device}.")
    # All elements are one: nothing is allocated for weights that will be there at the first call.
    return np.broadcast_to(np.zeros((), dtype), tuple(like.shape))


def _size(capture: Capture, placeholders: Sequence[Any], node: Any, value: Any) -> Any:
    """A size that is passed as a number: read from a tensor that has it."""
    if isinstance(value, int):
        return value
    for other in placeholders:
        name = capture.names.get(other)
        if name in capture.inputs:
            for axis, size in enumerate(other.meta["val"].shape):
                if not isinstance(size, int) and str(size) == str(value):
                    return Ref(capture.add("size", (name,), node.name, dim=axis))
    raise ModelError(f"sizes of a network are those of its inputs. Received: {node.name}, {value}. torch runs it.")


def _channels_last_outputs(module: GraphModule) -> list[int]:
    """Outputs that torch would give in channels-last memory."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    found = []
    for i, node in enumerate(output.args[0]):
        value = node.meta.get("val") if hasattr(node, "meta") else None
        if isinstance(value, Tensor) and value.dim() == 4 and not value.is_contiguous():
            found.append(i)
    return found
