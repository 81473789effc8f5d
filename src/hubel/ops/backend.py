"""`torch.compile(net, backend="hubel")`: the captured graphs of a network on Hubel's kernels.

torch captures the network and traces it down to its basic operators. A graph for inference becomes a network of ours
(`compiled`): batch norms folded, activations, sums and concatenations fused, one arena, as few parallel regions as can
be; what it does not know runs as torch's own operator in place. In a graph for training images lie in channels-last
memory, whatever they came in (`channels_last`); every convolution, and every convolution's gradient, becomes Hubel's;
batch norms take the activations behind them along (`batch_norm`); so do fully connected layers of a few images
(`linear`); all other nodes run as torch's own, in place where nobody can tell (`in_place`); from the second step on
operators run many at a time (`segments`). Nothing process-wide is switched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node

from hubel.errors import HubelError, unknown
from hubel.ops import library
from hubel.ops.batch_norm import fuse_batch_norms
from hubel.ops.channels_last import lay_out_in_channels_last
from hubel.ops.compiled import Compiled
from hubel.ops.in_place import keep_clipped, write_in_place
from hubel.ops.kept_memory import KeptMemory
from hubel.ops.linear import replace_products
from hubel.ops.max_pool import max_pool2d_with_indices
from hubel.ops.override import switched_off_by_environment
from hubel.ops.segments import in_segments

# What `options=` of torch.compile may hold, and its default: fuse=False runs inference graphs as those of training.
OPTIONS: dict[str, object] = {"fuse": True}
# What runs in place of torch's operators in graphs that are not fused.
REPLACED = {
    torch.ops.aten.max_pool2d_with_indices.default: max_pool2d_with_indices,
    torch.ops.aten.convolution.default: library.convolution,
    torch.ops.aten.convolution_backward.default: library.convolution_backward,
}
# What the operators of ours do with dense tensors on the CPU.
DIRECT = {library.convolution: library.run_convolution, library.convolution_backward: library.run_backward}


def hubel(
    graph: GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend, as torch.compile calls it: a callable that does what `graph` does. With HUBEL_DISABLE=1, the graph.

    options: {"fuse": False} keeps torch's own operators between the convolutions of inference graphs, too.

    Raises UnknownNameError for an option that is not in `OPTIONS`, and for a `mode`: there are none; HubelError for an
    option that is neither True nor False.
    """
    chosen = dict(OPTIONS)
    for name, value in (options or {}).items():
        if name not in OPTIONS:
            raise unknown('option of the backend "hubel"', name, OPTIONS)
        if not isinstance(value, bool):
            raise HubelError(f'the option "{name}" is True or False. Received: {value!r}. Use one of these.')
        chosen[name] = value
    if mode is not None:
        raise unknown('mode of the backend "hubel"', mode, ())
    if switched_off_by_environment():
        return graph.forward
    # Importing dynamo takes seconds; whoever gets here has done so already.
    from torch._dynamo.backends.common import aot_autograd

    direct: list[Compiled] = []
    memory = KeptMemory()

    def forward(module: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        """What a training step returns beyond the network's own results is kept for the backward graph."""
        metadata = _metadata()
        return _replace(module, given, memory, metadata.num_forward_returns if metadata is not None else None)

    def backward(module: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        return _replace(module, given, memory)

    def fused(module: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        metadata = _metadata()
        compiled = _fused(module, metadata)
        if compiled is None:
            return _replace(module, given)
        if len(given) == len(inputs) and _is_plain(metadata):
            direct.append(compiled)

        def run(args: list[Any]) -> list[Any]:
            return compiled(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    if torch.is_grad_enabled() and any(isinstance(given, Tensor) and given.requires_grad for given in inputs):
        lay_out_in_channels_last(graph)
    infer = fused if chosen["fuse"] else _replace
    wrapped = aot_autograd(fw_compiler=forward, bw_compiler=backward, inference_compiler=infer)(graph, inputs)
    return _directly(direct[0], wrapped) if direct else wrapped


def _fused(graph: GraphModule, metadata: Any) -> Compiled | None:
    """The graph as a network of ours, where it can be one."""
    static = metadata.static_input_indices if metadata is not None else []
    try:
        return Compiled(graph, list(static))
    except HubelError:
        return None


def _is_plain(metadata: Any) -> bool:
    """Whether the graph takes and gives what the network does: nothing is written to, no result is a view of another
    tensor, and no tensor is a subclass's.
    """
    from torch._functorch._aot_autograd.schemas import PlainTensorMeta

    return metadata is not None and not (
        metadata.num_mutated_inp_runtime_indices
        or metadata.num_outputs_aliased
        or metadata.num_intermediate_bases
        or metadata.tokens
        or any(type(meta) is not PlainTensorMeta for meta in metadata.subclass_inp_meta)
    )


def _directly(compiled: Compiled, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """The network without torch's wrapper, which takes 20 µs a call to find that it has nothing to do."""

    def run(*args: Any) -> Any:
        # Operators of torch in the network have been cast already.
        if torch.is_autocast_enabled("cpu"):
            return wrapped(*args)
        return compiled(list(args))

    return run


def _replace(
    graph: GraphModule, inputs: Sequence[Any], memory: KeptMemory | None = None, returned: int | None = None
) -> Callable[..., Any]:
    """The graph of basic operators with `REPLACED` in place of torch's, writing in place where nobody can tell.

    memory: where large results go, if they are not allocated anew with each call. returned: how many outputs leave the
    graph, those behind them being kept for the backward graph; None: all.
    """
    from functorch.compile import make_boxed_func  # pyright: ignore[reportPrivateImportUsage]

    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in REPLACED:
            node.target = REPLACED[node.target]
            # What the dispatcher would find takes it 20 µs to find.
            if all(_on_cpu(argument) for argument in node.all_input_nodes):
                node.target = DIRECT.get(node.target, node.target)
            if node.target is library.run_backward and _is_only_returned(node, 1):
                # Where it lies as its weight does, autograd takes it as it is; otherwise it would make a copy.
                node.kwargs = {"like_weight": True}
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    keep_clipped(graph.graph, leaving=set(output.args[0][:returned]))
    fuse_batch_norms(graph.graph)
    replace_products(graph.graph)
    write_in_place(graph.graph)
    graph.recompile()
    return make_boxed_func(graph.forward if memory is None else memory.served(in_segments(graph, returned)))


def _metadata() -> Any:
    """What torch knows of the graph being compiled, or None."""
    context = TracingContext.try_get()
    return context.fw_metadata if context is not None else None


def _is_only_returned(node: Node, place: int) -> bool:
    """Whether nobody in the graph reads this one of an operator's results."""
    picked = [user for user in node.users if user.args[1:] == (place,)]
    return all(reader.op == "output" for user in picked for reader in user.users)


def _on_cpu(node: Node) -> bool:
    value = node.meta.get("val")
    return type(value) is FakeTensor and value.device.type == "cpu" and value.layout is torch.strided
