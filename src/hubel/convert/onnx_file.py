"""An `.onnx` file becomes a network of torch: convolutions, norms and linear layers are layers again, the rest calls.

The mapping is our own. The one importer in wide use, onnx2torch, had its last release in August 2024 and needs
torchvision; and what it makes of a convolution is not always a layer at the address of its weights, of which the
microscope and the plan speak.

Nothing in the file is executed: it is a list of operators, and every one of them is in `OPERATORS` or the file is
refused before anything is built. Weights beside the file are read from its own folder only.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from hubel.convert.onnx_functions import as_tensor
from hubel.convert.onnx_operators import OPERATORS
from hubel.convert.onnx_values import Builder, Operator, Value
from hubel.convert.weights import require_file
from hubel.errors import HubelError, ModelError

OLDEST = 7
_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Imported:
    """The network, the shape of one example if the file tells it, and the batch size if it takes only one."""

    network: nn.Module
    input_shape: tuple[int, ...] | None
    batch: int | None


def read_onnx(path: str | Path) -> Imported:
    """The network in an `.onnx`, in eval mode. Its results are a tensor, or a tuple of them if the file has several.

    ModelError if there is no such file, it cannot be read, or it holds an operator that the mapping lacks: the message
    names operator and node, and nothing has been built or run.
    """
    path = Path(path)
    require_file(path, "MODEL")
    model = _parsed(path)
    opset = _opset(model, path)
    _refuse_unknown(model, path)
    try:
        network, inputs = _built(model, opset)
    except HubelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # whatever sizes and types that do not belong together provoke
        raise ModelError(
            f"An ONNX file must be one that onnx.checker passes and whose sizes fit. Received: {path} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Export it again."
        ) from error
    shape, batch = _sizes(inputs)
    if batch is not None and _takes_any_batch(network, shape, batch):
        batch = None
    return Imported(network.eval(), shape, batch)


def library() -> Any:
    """The package onnx, or ModelError with the remedy."""
    try:
        import onnx
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise ModelError(
            f"Reading and writing .onnx needs the package onnx. Received: {error}. "
            "Install it: pip install 'hubel[onnx]'."
        ) from error
    return onnx


def _parsed(path: Path) -> Any:
    onnx = library()
    try:
        # with the weights that a large network keeps beside its file; onnx itself refuses paths that leave the folder
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, the checker's and the loader's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"An .onnx file must hold a whole ONNX model. Received: {path}, which does not ({reason}). It may be cut "
            "off or damaged; copy or export it again."
        ) from error
    if model.functions:
        raise ModelError(
            f"An ONNX file is read if it has operators only. Received: {path}, with functions of its own "
            f"({model.functions[0].name}). Inline them with onnx.inliner, or give the network as .pt2."
        )
    return model


def _opset(model: Any, path: Path) -> int:
    opset = max((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=0)
    if opset < OLDEST:
        raise ModelError(
            f"ONNX operators are read from opset {OLDEST} on. Received: {path}, opset {opset}. Convert it with "
            "onnx.version_converter.convert_version(model, 17)."
        )
    return opset


def _refuse_unknown(model: Any, path: Path) -> None:
    unknown = [node for node in model.graph.node if node.op_type not in OPERATORS or node.domain not in _DOMAINS]
    if not unknown:
        return
    first, kinds = unknown[0], Counter(_called(node) for node in unknown)
    others = [f"{name} ({count})" for name, count in kinds.items() if name != _called(first)]
    more = f"; also {', '.join(others[:4])}" if others else ""
    raise ModelError(
        f"Every operator of an ONNX file must be one of the {len(OPERATORS)} that Hubel reads. Received: {path}, with "
        f'{_called(first)} (node "{_name(first)}", {kinds[_called(first)]} in all{more}). Give the network as .pt2, '
        "or run this file in onnxruntime."
    )


def _called(node: Any) -> str:
    return node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"


def _name(node: Any) -> str:
    return node.name or next(iter(node.output), "")


def _built(model: Any, opset: int) -> tuple[fx.GraphModule, list[Any]]:
    onnx = library()
    graph = model.graph
    b = Builder(ranks=_ranks(onnx, model))
    values: dict[str, Value] = {"": None}
    for entry in graph.initializer:
        values[entry.name] = b.constant(entry.name, _tensor(onnx, entry))
    inputs = [entry for entry in graph.input if entry.name not in values]
    for number, entry in enumerate(inputs):
        values[entry.name] = b.graph.placeholder("x" if len(inputs) == 1 else f"x{number + 1}")
    for node in graph.node:
        attributes = dict(_attributes(onnx, node))
        op = Operator(node.op_type, _name(node), attributes, opset, tuple(node.output))
        given: list[Any] = [values[name] for name in node.input]
        while given and given[-1] is None:
            given.pop()
        try:
            results = OPERATORS[node.op_type](b, op, *given)
        except HubelError:
            raise
        except Exception as error:
            raise op.refuse(f"whose inputs do not fit it ({' '.join(str(error).split())[:160]})") from error
        for name, result in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
            values[name] = b.constant(name, result) if isinstance(result, Tensor) else result
    outputs = tuple(_output(b, values[entry.name]) for entry in graph.output)
    b.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    b.graph.lint()
    network = fx.GraphModule(b.root, b.graph, "OnnxNetwork")
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network, inputs


def _output(b: Builder, value: Value) -> Any:
    """A result of the network: a constant one is read from the network, sizes become a tensor."""
    if b.is_sizes(value):
        return b.call(as_tensor, value)
    return b.stored(value)


def _tensor(onnx: Any, proto: Any) -> Tensor:
    # a copy: arrays of onnx are read-only views of the file
    return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())


def _attributes(onnx: Any, node: Any) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = _tensor(onnx, value)
        elif isinstance(value, bytes):
            value = value.decode()
        elif not isinstance(value, int | float | str):
            value = tuple(value) if hasattr(value, "__iter__") else value
        yield attribute.name, value


def _ranks(onnx: Any, model: Any) -> dict[str, int]:
    """The number of dimensions of every value that onnx can tell."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph
    known = [*graph.value_info, *graph.input, *graph.output]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known if v.type.tensor_type.HasField("shape")}
    return ranks | {entry.name: len(entry.dims) for entry in graph.initializer}


def _sizes(inputs: list[Any]) -> tuple[tuple[int, ...] | None, int | None]:
    """The shape of one example, and the batch size, of the first input as far as they are numbers."""
    if not inputs or not inputs[0].type.tensor_type.HasField("shape"):
        return None, None
    batch, *rest = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] or [0]
    return (tuple(rest) if rest and all(n > 0 for n in rest) else None), (batch if batch > 0 else None)


def _takes_any_batch(network: nn.Module, shape: tuple[int, ...] | None, batch: int) -> bool:
    """Whether a network that was exported with one batch size runs with another too: tried with shapes alone."""
    if shape is None:
        return False
    try:
        trial = copy.deepcopy(network).to("meta").eval()
        with torch.no_grad():
            result: Any = trial(torch.empty((batch + 1, *shape), device="meta"))
    except Exception:  # any: then it does not
        return False
    return isinstance(result, Tensor) and result.dim() > 0 and result.shape[0] == batch + 1
