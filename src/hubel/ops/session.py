"""`hubel.Session`: a network captured once, its weights frozen, that starts in microseconds.

    run = hubel.Session(net, x)         captured in evaluation mode; x: an example of its input, any batch size
    y = run(x)                          tensors or numpy arrays; what goes in decides what comes out
    run.refresh()                       take the weights over as they are now
    run.save("net.hubel")               graph and weights; hubel.Session.load runs it without the model's code

A Session may be called by several threads at once. Batch and image size are free within what the network allows: each
size is planned once, and kernels are compiled only for size classes that are new.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import ModelError, unknown
from hubel.graph import Graph, Network
from hubel.graph.file import read, write
from hubel.graph.network import Input
from hubel.graph.program import HostCall, Program
from hubel.ops import accuracy
from hubel.ops.foreign import TorchHost, decoded, encoded
from hubel.ops.results import room
from hubel.ops.trace import Captured, captured

Memory = Literal["fast", "small"]
_MEMORY = ("fast", "small")
# Combinations of sizes and threads whose calls are kept prepared.
MOST_CALLS = 64


class Session:
    """Runs a network for inference. See the module.

    net: a module, captured as it is in evaluation mode and left as it was. x: an example of its input, or a tuple of
    them. memory: "fast" keeps packed weights and arenas for every size that came by; "small" keeps them for the last
    one only, and the raw weights in a temporary file.

    Raises ModelError for a network that torch cannot capture, UnknownNameError for another `memory`.
    """

    def __init__(self, net: nn.Module, x: Any, *, memory: Memory = "fast") -> None:
        if memory not in _MEMORY:
            raise unknown("memory of a Session", memory, _MEMORY)
        examples = tuple(_tensor(value) for value in (x if isinstance(x, tuple | list) else (x,)))
        self._made(captured(net, examples), net, memory)

    def _made(self, capture: Captured, net: nn.Module | None, memory: Memory) -> None:
        self._capture, self._net, self._memory = capture, net, memory
        self._calls = self._new_calls(capture.graph)
        if net is None:
            # There is nothing to read again: the network as it runs has all that is needed.
            self._capture = replace(capture, graph=self._calls.network.graph)

    def _new_calls(self, graph: Graph) -> Calls:
        network = Network(graph, TorchHost(), accuracy.policy(1), small=self._memory == "small")
        if self._net is not None:
            network.own()
        return Calls(network, self._capture.structure, 1 if self._memory == "small" else MOST_CALLS)

    def __call__(self, *inputs: Any) -> Any:
        """The network's outputs for these inputs: in the same structure, as numpy arrays if arrays went in.

        Raises ModelError for inputs of another number, dtype or size than the network takes.
        """
        calls = self._calls
        if len(inputs) == 1:
            x = inputs[0]
            if type(x) is Tensor and x.dtype is torch.float32:
                call = calls.known.get((x.shape, torch.get_num_threads()))
                if call is not None:
                    return call.one(x)
        given = calls.network.graph.inputs
        if len(inputs) != len(given):
            raise ModelError(f"this network takes {len(given)} inputs. Received: {len(inputs)}. Pass one of each.")
        tensors = [_checked(value, name, want) for value, (name, want) in zip(inputs, given.items(), strict=True)]
        result = calls(tensors)
        return _arrays(result) if any(isinstance(value, np.ndarray) for value in inputs) else result

    def refresh(self) -> Session:
        """Take over the network's weights as they are now, and return the Session.

        Raises ModelError if the network is gone (a loaded Session has none) or its tensors changed their shapes.
        """
        if self._net is None:
            raise ModelError("refresh() reads the network again. Received: a Session that was loaded. Make a new one.")
        # Calls that are under way keep the weights that they began with.
        self._calls = self._new_calls(self._capture.with_weights_of(self._net))
        return self

    @property
    def graph(self) -> Graph:
        """The network as it runs: folded and fused. Prints as a list of nodes."""
        return self._calls.network.graph

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write graph and weights to one `.hubel` file. Raises ModelError for operators that no file may name."""
        write(path, self._calls.network.graph, self._capture.structure, encoded)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, memory: Memory = "fast") -> Session:
        """The Session of a `.hubel` file. Nothing in it is executed; everything in it is checked.

        Raises ModelError for a file that is none, is damaged, or names what a file may not.
        """
        if memory not in _MEMORY:
            raise unknown("memory of a Session", memory, _MEMORY)
        session = cls.__new__(cls)
        graph, structure = read(path, decoded)
        session._made(Captured(graph, structure, {}), None, memory)
        return session

    def __repr__(self) -> str:
        given = ", ".join(str(value) for value in self._calls.network.graph.inputs.values())
        return f"Session({given}; {len(self._calls.network.graph.nodes)} nodes)"


class Calls:
    """A network's calls, prepared once for each combination of sizes. most: how many are kept."""

    def __init__(self, network: Network, structure: Any, most: int = MOST_CALLS) -> None:
        self.network, self._structure, self._most = network, structure, most
        self.known: dict[Any, _Call] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        threads = torch.get_num_threads()
        key = (*(tensor.shape for tensor in tensors), threads)
        call = self.known.get(key)
        if call is None:
            while len(self.known) >= self._most:
                self.known.pop(next(iter(self.known)), None)
            call = _Call(self.network.program([tuple(t.shape) for t in tensors], threads), self._structure)
            self.known[key] = call
        return call(tensors)


class _Call:
    """A call with tensors of known sizes: what is left is to allocate the outputs and start."""

    def __init__(self, program: Program, structure: Any) -> None:
        self.program = program
        self._run = program.run
        self._outputs = [p if p is None else room(p.shape, p.strides, torch.float32) for p in program.outputs]
        self._rebuild: Callable[[list[Any]], Any] = _rebuilder(structure, len(self._outputs))
        self._single = structure == 0 and self._outputs[0] is not None
        self._hosted = any(isinstance(step, HostCall) for step in program.steps)

    def one(self, x: Tensor) -> Any:
        x = _ready(x)
        if self._single:
            y = self._outputs[0]()  # type: ignore[misc]
            self._run((x.data_ptr(), y.data_ptr()), (x,))
            return y
        return self([x])

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        tensors = [_ready(x) for x in tensors]
        outputs = [None if allocate is None else allocate() for allocate in self._outputs]
        pointers = [x.data_ptr() for x in tensors] + [0 if y is None else y.data_ptr() for y in outputs]
        if not self._hosted:
            self._run(pointers, tensors)
            return self._rebuild(outputs)
        with torch.no_grad():
            made = self._run(pointers, tensors)
        return self._rebuild([y if y is not None else m for y, m in zip(outputs, made, strict=True)])


def _ready(x: Tensor) -> Tensor:
    """The tensor as kernels read it: contiguous, on the CPU, without a conjugate or negative bit."""
    if x.is_contiguous() and x.is_cpu and not x.is_neg() and not x.requires_grad:
        return x
    if not x.is_cpu:
        raise ModelError(f"a Session runs on the CPU. Received: a tensor on {x.device}. Pass it as `x.cpu()`.")
    return x.detach().resolve_neg().contiguous()


def _checked(value: Any, name: str, want: Input) -> Tensor:
    tensor = _tensor(value)
    if str(tensor.dtype) != f"torch.{want.dtype}":
        raise ModelError(
            f"input {name} is {want}. Received: {tensor.dtype}. Convert it with `.to(torch.{want.dtype})`."
        )
    return tensor


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        # torch takes no negative strides, and warns of what may not be written.
        return torch.from_numpy(np.require(np.ascontiguousarray(value), requirements="W"))
    raise ModelError(f"a Session takes tensors or numpy arrays. Received: {type(value).__name__}. Convert it.")


def _rebuilder(structure: Any, count: int) -> Callable[[list[Any]], Any]:
    """From the list of outputs to what the network returns. structure: an index, or a list or dict of structures."""

    def build(part: Any, values: list[Any]) -> Any:
        if isinstance(part, Mapping):
            return {key: build(value, values) for key, value in part.items()}
        if isinstance(part, tuple | list):
            return type(part)(build(value, values) for value in part)
        return values[part]

    if structure == list(range(count)):
        return lambda values: values
    return lambda values: build(structure, values)


def _arrays(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.numpy()
    if isinstance(result, Mapping):
        return {key: _arrays(value) for key, value in result.items()}
    return type(result)(_arrays(value) for value in result)
