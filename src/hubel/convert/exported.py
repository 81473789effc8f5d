"""A `.pt2` of torch.export becomes a network whose convolutions are layers again.

An exported program is a flat graph of basic operators. The microscope and the plan speak of layers, so each convolution
with weights of its own becomes the layer it was, at the address of its weights, and norms and activations become the
functions that they were written as. The numbers that come out are the same.

A `.pt2` is a program, and torch evaluates expressions in it: load those you trust. What can be refused is refused:
archives with pickled objects or compiled libraries, and tensors that need more than `weights_only=True`.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from hubel.convert.weights import require_file
from hubel.errors import ModelError

aten = torch.ops.aten

# Operator: (layer, the layer's arguments in the order in which the operator has them after the bias).
_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_LAYERS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    aten.conv1d.default: (nn.Conv1d, _CONV),
    aten.conv2d.default: (nn.Conv2d, _CONV),
    aten.conv3d.default: (nn.Conv3d, _CONV),
    aten.conv1d.padding: (nn.Conv1d, _CONV),
    aten.conv2d.padding: (nn.Conv2d, _CONV),
    aten.conv3d.padding: (nn.Conv3d, _CONV),
    aten.conv_transpose1d.default: (nn.ConvTranspose1d, _TRANSPOSED),
    aten.conv_transpose2d.input: (nn.ConvTranspose2d, _TRANSPOSED),
    aten.conv_transpose3d.input: (nn.ConvTranspose3d, _TRANSPOSED),
}
# Functions with the operator's own arguments, by which the microscope knows what follows a convolution.
_FUNCTIONS: dict[Any, Any] = {
    aten.batch_norm.default: torch.batch_norm,
    aten.relu.default: torch.relu,
    aten.relu_.default: torch.relu_,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.silu.default: F.silu,
    aten.gelu.default: F.gelu,
    aten.elu.default: F.elu,
    aten.leaky_relu.default: F.leaky_relu,
    aten.hardtanh.default: F.hardtanh,
    aten.hardswish.default: F.hardswish,
}


@dataclass(frozen=True)
class Exported:
    """The network, the shape of one image if the archive tells it, and the batch size if only one is allowed."""

    network: nn.Module
    input_shape: tuple[int, ...] | None
    batch: int | None


def read_exported(path: Path) -> Exported:
    """The network in a `.pt2`. ModelError if it cannot be read or holds code."""
    require_file(path, "MODEL")
    _refuse_code(path)
    try:
        with _weights_only():
            program = torch.export.load(path)
            network = program.module()
    except Exception as error:  # whatever the bytes provoke
        raise _unreadable(path, error) from error
    assert isinstance(network, GraphModule)
    sizes: list[Any] = next((list(n.meta["val"].shape) for n in network.graph.nodes if n.op == "placeholder"), [])
    examples = program.example_inputs[0] if program.example_inputs else ()
    shape = tuple(examples[0].shape[1:]) if examples and isinstance(examples[0], torch.Tensor) else None
    fixed = sizes[0] if sizes and isinstance(sizes[0], int) else None
    return Exported(_with_layers(network), shape, fixed)


def _with_layers(network: GraphModule) -> GraphModule:
    """The same graph with layers and functions in place of operators."""
    for node in list(network.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
        elif node.target in _LAYERS:
            _make_layer(network, node)
    # A new module keeps what the graph uses, and lets go of torch's refusal to switch to evaluation.
    rebuilt = GraphModule(network, network.graph, type(network).__name__)
    rebuilt.graph.eliminate_dead_code()
    rebuilt.recompile()
    return rebuilt


def _make_layer(network: GraphModule, node: Node) -> None:
    """Turn one convolution into a call of a layer, if its weights are its own; else leave it as it is."""
    kind, names = _LAYERS[node.target]
    values: dict[str, Any] = dict(zip(("input", "weight", "bias", *names), node.args, strict=False)) | node.kwargs
    x, weight, bias = values.pop("input"), values.pop("weight"), values.pop("bias", None)
    if not isinstance(weight, Node) or weight.op != "get_attr" or not str(weight.target).endswith(".weight"):
        return
    if isinstance(bias, Node) and bias.op != "get_attr":
        return
    address = str(weight.target).removesuffix(".weight")
    w = operator.attrgetter(str(weight.target))(network)
    b = operator.attrgetter(str(bias.target))(network) if isinstance(bias, Node) else None
    groups = values.get("groups", 1)
    layer: Any = network.get_submodule(address)
    if not isinstance(layer, kind):
        if any(layer.children()) or {name for name, _ in layer.named_parameters()} - {"weight", "bias"}:
            return
        out, into = (w.shape[1] * groups, w.shape[0]) if names is _TRANSPOSED else (w.shape[0], w.shape[1] * groups)
        layer = kind(into, out, tuple(w.shape[2:]), bias=False, device="meta", **values)
        layer.weight, layer.bias = w, b
        network.set_submodule(address, layer)
    elif not _same(layer, values):
        return
    with network.graph.inserting_before(node):
        call = network.graph.call_module(address, (x,))
    call.meta = node.meta
    node.replace_all_uses_with(call)
    network.graph.erase_node(node)


def _same(layer: nn.Module, values: dict[str, Any]) -> bool:
    """Whether a layer that is used twice is used with the same arguments."""
    for name, value in values.items():
        have = getattr(layer, name)
        want = value if isinstance(value, str | int) else tuple(value)
        if have != want:
            return False
    return True


def _refuse_code(path: Path) -> None:
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        with PT2ArchiveReader(os.fspath(path)) as archive:
            entries = [name.lower() for name in archive.get_file_names()]
    except Exception as error:
        raise _unreadable(path, error) from error
    code = [name for name in entries if "custom_obj" in name or "opaque_obj" in name or "aotinductor" in name]
    if code:
        raise ModelError(
            f"A .pt2 must hold a graph and tensors only. Received: {path}, which holds {code[0]}: objects or compiled "
            "code that would run on opening. Export the network again without them."
        )


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.export.load passes weights_only=False for some tensors; this variable overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"A .pt2 must be an archive of torch.export.save that torch {torch.__version__} can read. Received: {path} "
        f"({reason}). Export the network again: torch.export.save(torch.export.export(net, (x,)), 'net.pt2')."
    )
