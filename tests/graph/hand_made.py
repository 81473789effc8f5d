"""Small networks made by hand, and what they compute by torch's functions in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hubel.graph import Graph, Input, Node
from hubel.graph.network import resolved
from hubel.graph.operators import whole_number

CONV: dict[str, Any] = {
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
    "transposed": False,
    "output_padding": (0, 0),
}
POOL: dict[str, Any] = {
    "kind": "max",
    "kernel": (3, 3),
    "stride": (2, 2),
    "padding": (1, 1),
    "dilation": (1, 1),
    "ceil": False,
    "count_padding": True,
    "divisor": 0,
}
RELU: dict[str, Any] = {"activation": "relu", "slope": 0.01}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def graph(
    nodes: list[Node], outputs: tuple[str, ...], constants: Mapping[str, np.ndarray], *sizes: int | None
) -> Graph:
    return Graph({"x": Input((None, *sizes) if sizes else (None, 3, None, None))}, constants, tuple(nodes), outputs)


def norm(channels: int, name: str = "n") -> dict[str, np.ndarray]:
    return {
        f"{name}.gamma": numbers(channels, seed=1),
        f"{name}.beta": numbers(channels, seed=2),
        f"{name}.mean": numbers(channels, seed=3),
        f"{name}.var": np.abs(numbers(channels, seed=4)) + 0.1,
    }


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum}


def defined(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph, node by node, by torch in float64."""
    values: dict[str, Any] = {"x": torch.from_numpy(x).double()}
    values |= {name: torch.from_numpy(value).double() for name, value in graph.constants.items()}
    whole: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in ("size", "whole"):
            whole[node.name] = whole_number(node, {n: tuple(v.shape) for n, v in values.items()}, whole)
            continue
        a = Node(node.name, node.op, node.inputs, resolved(node.attributes, whole))
        values[node.name] = _value(a, [values[name] if name else None for name in node.inputs])
    return [values[name].numpy() for name in graph.outputs]


def _value(a: Node, given: list[Any]) -> Any:
    x = given[0]
    if a.op == "conv":
        axes = x.dim() - 2
        bias = given[2] if len(given) > 2 else None
        if a["transposed"]:
            f = (F.conv_transpose1d, F.conv_transpose2d)[axes - 1]
            y = f(x, given[1], bias, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
        else:
            f = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
            y = f(x, given[1], bias, a["stride"], a["padding"], a["dilation"], a["groups"])
        return _ended(a, y + given[3] if len(given) > 3 else y)
    if a.op == "linear":
        y = F.linear(x, given[1], given[2] if len(given) > 2 else None)
        return _ended(a, y + given[3] if len(given) > 3 else y)
    if a.op == "batch_norm":
        return F.batch_norm(x, given[3], given[4], given[1], given[2], eps=a["eps"])
    if a.op == "affine":
        shape = (-1, *(1,) * (x.dim() - 2))
        return _ended(a, x * given[1].view(shape) + given[2].view(shape))
    if a.op == "binary":
        return _ended(a, BINARY[a["kind"]](x, given[1]))
    if a.op == "pool" and a["kind"] == "max":
        return F.max_pool2d(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])
    if a.op == "pool":
        divisor = a["divisor"] or None
        return F.avg_pool2d(x, a["kernel"], a["stride"], a["padding"], a["ceil"], a["count_padding"], divisor)
    simple = {
        "activation": lambda: _ended(a, x),
        "adaptive_pool": lambda: F.adaptive_avg_pool2d(x, a["size"]),
        "layer_norm": lambda: F.layer_norm(x, x.shape[-1:], *given[1:], eps=a["eps"]),
        "softmax": lambda: x.softmax(-1),
        "concat": lambda: torch.cat(given, a["dim"]),
        "slice": lambda: x[(slice(None),) * a["dim"] + (slice(a["start"], a["end"]),)],
        "reshape": lambda: x.reshape(a["shape"]),
        "flatten": lambda: x.flatten(a["start"], a["end"]),
        "permute": lambda: x.permute(a["dims"]),
    }
    return simple[a.op]()


def _ended(a: Node, y: Any) -> Any:
    name = a.get("activation", "")
    if name == "leaky_relu":
        return F.leaky_relu(y, a["slope"])
    return ACTIVATIONS[name](y) if name else y


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    """In the norm of the whole tensor, as errors are stated."""
    assert found.shape == wanted.shape
    error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)
    assert error <= tolerance, f"{error:.1e} > {tolerance:.1e}"
