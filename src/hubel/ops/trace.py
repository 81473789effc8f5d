"""A module becomes a graph of ours through torch.export, with batch and image size free where the network allows it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubel.errors import ModelError
from hubel.graph import Graph
from hubel.ops.capture import Capture, array_of, convert, graph_of, writes_are_private

# Code that asks for sizes on its own account: torch's, and that of our operators.
_FRAMEWORKS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass(frozen=True)
class Captured:
    """The graph, how its outputs are put together, and of which parameter or buffer each constant is the value."""

    graph: Graph
    structure: Any
    origins: dict[str, str]

    def with_weights_of(self, net: nn.Module) -> Graph:
        """The graph with the values that the module has now. Raises ModelError where shapes changed."""
        tensors = dict(net.state_dict(keep_vars=True)) | dict(net.named_buffers())
        constants = dict(self.graph.constants)
        for name, origin in self.origins.items():
            tensor = tensors.get(origin)
            if tensor is None or tuple(tensor.shape) != constants[name].shape:
                now = "none" if tensor is None else tuple(tensor.shape)
                raise ModelError(
                    f"a refreshed network has the tensors it was captured with. Received: {origin} of shape {now}, "
                    f"captured as {constants[name].shape}. Make a new Session."
                )
            constants[name] = array_of(tensor)
        return replace(self.graph, constants=constants)


def captured(net: nn.Module, examples: Sequence[Tensor]) -> Captured:
    """The network in evaluation mode. Raises ModelError where torch.export cannot capture it."""
    if not isinstance(net, nn.Module):
        raise ModelError(f"a Session is made of a torch.nn.Module. Received: {type(net).__name__}. Wrap it in one.")
    with _evaluating(net), torch.no_grad():
        program = _exported(net, tuple(examples))
        if not writes_are_private(program.graph.nodes):
            program = program.run_decompositions({})
    return _from_program(program)


def _exported(net: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """The exported program, with as many free sizes as the network allows."""
    free = torch.export.Dim.AUTO
    # Of one image torch would take the batch size for a constant.
    doubled = tuple(torch.cat([x, x]) if x.dim() > 1 and x.shape[0] == 1 else x for x in examples)
    attempts = [
        (doubled, tuple({i: free for i in range(x.dim()) if i != 1 or x.dim() < 3} for x in doubled)),
        (doubled, tuple({0: free} if x.dim() > 1 else {} for x in doubled)),
        (examples, None),
    ]
    last: Exception | None = None
    for inputs, dynamic in attempts:
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")  # of torch's, about itself
                program = torch.export.export(net, inputs, dynamic_shapes=dynamic)
            if not _branches(program):
                return program
        except Exception as error:  # whatever a module's own code raises
            last = error
    reason = str(last).strip().splitlines()[0] if str(last).strip() else type(last).__name__
    raise ModelError(
        f"the network must be one that torch.export can capture, on the example given. Received: {type(net).__name__} "
        f"({reason}). Use torch.compile(net, backend='hubel'), which leaves what it cannot capture to Python."
    ) from last


def _branches(program: Any) -> bool:
    """Whether the network's own Python code chose by a free size what to do: what it did for the example is no program
    for every size. (What torch's code asks about sizes is about strides and checks.)
    """
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    environment = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    asked = [guard.sloc.framework_loc for guard in environment.guards] if environment is not None else []
    return any(at is not None and not at.filename.startswith(_FRAMEWORKS) for at in asked)


def _from_program(program: Any) -> Captured:
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        names = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise ModelError(
            f"a Session's network writes to nothing but its outputs. Received: one that writes to {names}."
        )
    origins = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = dict(signature.inputs_to_lifted_tensor_constants)
    capture, constants = Capture(), {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in origins:
            origin = origins[node.name]
            tensor = program.state_dict[origin] if origin in program.state_dict else program.constants[origin]
            if not node.users:
                continue
            capture.names[node] = capture.constant(origin, tensor)
            constants[capture.names[node]] = origin
        elif node.name in lifted:
            capture.names[node] = capture.constant(lifted[node.name], program.constants[lifted[node.name]])
        elif isinstance(node.meta.get("val"), Tensor):
            capture.input(node)
        else:
            raise ModelError(
                f"a Session's network takes tensors. Received: {node.meta.get('val')!r}. Fix it in a wrapper."
            )
    outputs = convert(capture, program.graph.nodes)
    return Captured(graph_of(capture, outputs), _structure(program, len(outputs)), constants)


def _structure(program: Any, count: int) -> Any:
    """Where each output goes: the network's own return value with numbers in the place of tensors."""
    from torch.utils._pytree import tree_unflatten

    structure = tree_unflatten(list(range(count)), program.call_spec.out_spec)
    return _plain(structure)


def _plain(part: Any) -> Any:
    if isinstance(part, int):
        return part
    if type(part) in (tuple, list):
        return type(part)(_plain(value) for value in part)
    if isinstance(part, dict) and all(isinstance(key, str) for key in part):
        return {key: _plain(value) for key, value in part.items()}
    raise ModelError(
        f"a Session's network returns tensors, in tuples, lists and dicts. Received: {type(part).__name__}. Wrap it."
    )


@contextmanager
def _quiet() -> Any:
    """torch logs every size that it takes for a constant and every inequality it cannot solve: what is free stands in
    the graph's inputs.
    """
    loggers = [logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "_export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _evaluating(net: nn.Module) -> Any:
    """The module in evaluation mode, and afterwards every part in the mode it had."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
