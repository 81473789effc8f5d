"""What a value of an ONNX graph is while it becomes a graph of torch.fx, and the graph that is being built.

A value is a constant (a tensor whose numbers are known), or a node of the new graph: of a tensor, or of sizes, which
are a tuple of Python numbers or one of them. What is computed from constants alone is computed at once.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from hubel.errors import ModelError

Value = Tensor | fx.Node | None
# A constant that a small file makes large would fill the memory before anything has run.
MOST_FOLDED = 2**27


@dataclass(frozen=True)
class Operator:
    """A node of the ONNX file. attributes: by name. opset: the version of ONNX's operators that it is written in."""

    kind: str
    name: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: tuple[str, ...]

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def refuse(self, what: str) -> ModelError:
        """The error for a form of this operator that the mapping does not have; the caller raises it."""
        return ModelError(
            f"An ONNX file is read if every operator has a form in torch. Received: {self}, {what}. "
            "Export the network again without it, or give it as .pt2."
        )

    def __str__(self) -> str:
        return f'{self.kind} (node "{self.name}")'


@dataclass
class Builder:
    """The network that is being built: modules and tensors in `root`, calls in `graph`."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    ranks: dict[str, int] = field(default_factory=dict)
    _sizes: set[fx.Node] = field(default_factory=set)
    _layers: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _tensors: dict[int, tuple[Tensor, str]] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call in the graph, or its result if no argument has to wait for the input."""
        if any(isinstance(arg, fx.Node) for arg in _leaves((args, kwargs))):
            args, kwargs = self.stored(args), self.stored(kwargs)
            return self.graph.call_function(function, args, kwargs)
        return function(*args, **kwargs)

    def sizes(self, function: Callable[..., Any], *args: Any) -> Any:
        """The same, where the result is sizes."""
        result = self.call(function, *args)
        if isinstance(result, fx.Node):
            self._sizes.add(result)
            return result
        return torch.tensor(result, dtype=torch.int64)

    def is_sizes(self, value: Value) -> bool:
        return isinstance(value, fx.Node) and value in self._sizes

    def numbers(self, value: Value) -> Any:
        """A constant as Python numbers (nested tuples), sizes as they are."""
        return _tuples(value.tolist()) if isinstance(value, Tensor) else value

    def layer(self, layer: Callable[[], nn.Module], weight: Tensor, key: tuple[Any, ...], *inputs: Any) -> fx.Node:
        """A call of a layer at the address of its weight; one of the same key is called again.

        layer: makes it, with its tensors in place.
        """
        key = (id(weight), *key)
        if key not in self._layers:
            name = self._names.get(id(weight), "layer")
            address = self._free(re.sub(r"\.(weight|w_\d+)$", "", name))
            self._nested(address, layer())
            self._layers[key] = address
        return self.graph.call_module(self._layers[key], self.stored(inputs))

    def constant(self, name: str, value: Tensor) -> Tensor:
        """Remember what a constant is called in the file."""
        self._names.setdefault(id(value), name)
        # the id stays this tensor's as long as it lives
        self._tensors.setdefault(id(value), (value, ""))
        return value

    def _nested(self, address: str, layer: nn.Module) -> None:
        *path, last = address.split(".")
        parent = self.root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, layer)

    def _free(self, wanted: str) -> str:
        """An address that is none yet: `wanted` if torch wrote it, else its letters, digits and underscores."""
        parts = [re.sub(r"\W", "_", part) or "_" for part in wanted.split(".")]
        parts = [f"{part}_" if keyword.iskeyword(part) else part for part in parts]
        parts = [f"_{part}" if part[0].isdigit() and len(parts) == 1 else part for part in parts]
        address, number = ".".join(parts), 1
        while self._taken(address):
            number += 1
            address = f"{'_'.join(parts)}_{number}"
        return address

    def _taken(self, address: str) -> bool:
        module: Any = self.root
        *path, last = address.split(".")
        if hasattr(fx.GraphModule, (*path, last)[0]):  # what the network itself has: forward, graph, code
            return True
        for part in path:
            if not hasattr(module, part):
                return False
            module = getattr(module, part)
            # inside a layer there is no place for another
            if type(module) is not nn.Module:
                return True
        return hasattr(module, last)

    def stored(self, value: Any) -> Any:
        """Constant tensors among arguments become tensors of the network, read by nodes of the graph."""
        if isinstance(value, Tensor):
            return self._read(value)
        if isinstance(value, tuple | list):
            return type(value)(self.stored(part) for part in value)
        return {key: self.stored(part) for key, part in value.items()} if isinstance(value, dict) else value

    def _read(self, value: Tensor) -> fx.Node:
        _, address = self._tensors.get(id(value), (value, ""))
        if not address:
            address = self._free(self._names.get(id(value), "constant").replace(".", "_"))
            if value.is_floating_point() and value.numel() > 1:
                self.root.register_parameter(address, nn.Parameter(value))
            else:
                self.root.register_buffer(address, value)
            self._tensors[id(value)] = (value, address)
        return self.graph.get_attr(address)


def bounded(sizes: Iterable[int], operator: Operator) -> None:
    """Refuse a constant of a size that no network needs."""
    count = 1
    for size in sizes:
        count *= max(int(size), 0)
    if count > MOST_FOLDED:
        raise operator.refuse(f"which makes a constant of {count:,} numbers; {MOST_FOLDED:,} are the most")


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    elif isinstance(value, slice):
        yield from _leaves((value.start, value.stop, value.step))
    else:
        yield value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
