"""`.hubel`: a network in one file. Graph and specs as JSON, weights beside them, in the safetensors format.

From a file only these are believed. Tiles, offsets, strides and the arena are worked out anew by whoever runs it, on
whatever machine; there is no pickle and no code in it. Reading checks every operator, attribute, name and size against
`OPERATORS`, and foreign operators against a list of `ops`; what does not fit is one `ModelError`, before anything runs.

    {"schema": "hubel-graph/1", "inputs": {name: {"shape": [null, 3, ...], "dtype": "float32", "example": [2, 3, ...]}},
     "nodes": [{"name", "op", "inputs": [...], "attributes": {...}}], "outputs": [...], "structure": ...}

A Ref is written as {"ref": name}; a structure is a number (of an output), a list, a dict, or {"tuple": [...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hubel.errors import ModelError
from hubel.graph.network import Graph, Input, Node, Ref
from hubel.graph.operators import check_attributes

SCHEMA = "hubel-graph/1"
KEY = "hubel"
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
MOST_NODES, MOST_DIMENSIONS, MOST_SIZE = 200_000, 16, 2**40

# How the arguments of a foreign operator are written and read; the reader also says whether a file may name it.
Encode = Callable[[Node], Mapping[str, Any]]
Decode = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def write(path: str | os.PathLike[str], graph: Graph, structure: Any, encode: Encode) -> None:
    """Write a network. Raises ModelError if it names an operator that no file may name."""
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "attributes": dict(encode(node)) if node.op == "torch" else _written(node.attributes),
        }
        for node in graph.nodes
    ]
    document = {
        "schema": SCHEMA,
        "inputs": {
            name: {"shape": list(i.shape), "dtype": i.dtype, "example": list(i.example)}
            for name, i in graph.inputs.items()
        },
        "nodes": nodes,
        "outputs": list(graph.outputs),
        "structure": _written_structure(structure),
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    constants = {name: np.ascontiguousarray(value) for name, value in graph.constants.items()}
    content = save(constants, {KEY: text})
    # Whole or not at all: a file that exists is one that was written to its end.
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], decode: Decode) -> tuple[Graph, Any]:
    """The network of a file, and how its outputs are put together. Raises ModelError for a file that is none."""
    if not Path(path).is_file():
        raise ModelError(f"a .hubel file is a file. Received: {path}, which is not there. Check the path.")
    try:
        text, constants = _content(path)
        document = json.loads(text)
        graph = _graph(document, constants, decode)
        return graph, _read_structure(document["structure"], len(graph.outputs))
    except ModelError as error:
        raise ModelError(f"{Path(path).name} cannot be run: {error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"a .hubel file holds a network as Session.save writes it. Received: {path} ({type(error).__name__}: "
            f"{reason}). Save it again."
        ) from error


def _content(path: str | os.PathLike[str]) -> tuple[str, dict[str, np.ndarray]]:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if KEY not in metadata:
            raise ModelError("it holds weights without a graph. Load it as the weights of a network instead.")
        return metadata[KEY], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _graph(document: Any, constants: dict[str, np.ndarray], decode: Decode) -> Graph:
    if document["schema"] != SCHEMA:
        raise ModelError(f"its schema must be {SCHEMA}. Received: {document['schema']!r}. Use the Hubel that wrote it.")
    for name, value in constants.items():
        if str(value.dtype) not in DTYPES or value.ndim > MOST_DIMENSIONS:
            raise ModelError(f"weights are one of {', '.join(DTYPES)}. Received: {value.dtype}, of {name!r}.")
    inputs = {_text(name): _input(given) for name, given in document["inputs"].items()}
    if len(document["nodes"]) > MOST_NODES:
        raise ModelError(f"a network has at most {MOST_NODES} nodes. Received: {len(document['nodes'])}.")
    nodes = tuple(_node(given, decode) for given in document["nodes"])
    outputs = tuple(_text(name) for name in document["outputs"])
    return Graph(inputs, constants, nodes, outputs).check()


def _input(given: Any) -> Input:
    shape = tuple(None if size is None else _size(size) for size in given["shape"])
    if given["dtype"] not in DTYPES or len(shape) > MOST_DIMENSIONS:
        raise ModelError(f"inputs are one of {', '.join(DTYPES)}. Received: {given['dtype']!r}.")
    example = tuple(_size(size) for size in given.get("example", ()))
    if len(example) not in (0, len(shape)):
        raise ModelError(f"an example has as many sizes as its input. Received: {len(example)} for {len(shape)}.")
    return Input(shape, given["dtype"], example)


def _node(given: Any, decode: Decode) -> Node:
    names = tuple(_text(name) for name in given["inputs"])
    op, attributes = _text(given["op"]), given["attributes"]
    attributes = decode(attributes) if op == "torch" else {_text(k): _read(v) for k, v in attributes.items()}
    node = Node(_text(given["name"]), op, names, attributes)
    check_attributes(node)
    return node


def _written(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Mapping):
        return {key: _written(part) for key, part in value.items()}
    return [_written(part) for part in value] if isinstance(value, tuple | list) else value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return Ref(_text(value["ref"]))
    return tuple(_read(part) for part in value) if isinstance(value, list) else value


def _written_structure(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {"dict": {key: _written_structure(value) for key, value in part.items()}}
    if isinstance(part, tuple):
        return {"tuple": [_written_structure(value) for value in part]}
    return [_written_structure(value) for value in part] if isinstance(part, list) else part


def _read_structure(part: Any, outputs: int) -> Any:
    if isinstance(part, dict) and "dict" in part:
        return {_text(key): _read_structure(value, outputs) for key, value in part["dict"].items()}
    if isinstance(part, dict):
        return tuple(_read_structure(value, outputs) for value in part["tuple"])
    if isinstance(part, list):
        return [_read_structure(value, outputs) for value in part]
    if isinstance(part, bool) or not isinstance(part, int) or not 0 <= part < outputs:
        raise ModelError(f"its outputs are numbered up to {outputs - 1}. Received: {part!r}.")
    return part


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name was expected, not {value!r}")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SIZE:
        raise ValueError(f"a size was expected, not {value!r}")
    return value
