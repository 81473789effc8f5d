"""A network that returns what its inner modules return: `features=["layer1", "layer4"]`.

The network is traced with torch.fx; the outputs of the named modules become the outputs of the graph, and what none of
them needs is left out, computation and parameters. The result is a module like any other: its state dict has the
network's own names, it trains, compiles and exports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from hubel.errors import ModelError, unknown
from hubel.zoo.audio import LogMel


class _Watching(fx.Tracer):
    """Remembers what each module returned; of a module that is called twice, the last."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # The spectrogram reads its input's sizes, which a trace does not know.
        return isinstance(m, LogMel) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        self.returned[self.path_of_module(m)] = result
        return result


def with_features(net: nn.Module, names: Sequence[str], *, called: str) -> nn.Module:
    """`net` with a dict as its output: name → what the module of that name returns, in the order of `names`.

    names: modules of `net`, as `net.named_modules()` has them ("features.3", "layer1.0.conv2"); "" is all of it.
    called: the network, in messages. What is behind the last one named is left out. Parameters stay those of `net`.

    ModelError for no names, a name that comes twice, or a module that does not run; UnknownNameError for one that does
    not exist.
    """
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ModelError(
            f"features are names of modules of {called}, each once, as a list. Received: {names!r}. "
            f'Write features=["{next(iter(dict(net.named_children())), "")}"].'
        )
    known = [name for name, _ in net.named_modules()]
    for name in names:
        if name not in known:
            raise unknown(f"module of {called}", name, known[1:])
    training = {name: module.training for name, module in net.named_modules()}
    tracer = _Watching()
    # Auxiliary classifiers exist in training only, and their outputs are no module's.
    try:
        graph = tracer.trace(net.eval())
    finally:
        for name, module in net.named_modules():
            module.training = training[name]
    (output,) = (node for node in graph.nodes if node.op == "output")
    taps = {name: _nodes(output.args[0] if name == "" else tracer.returned.get(name), name, called) for name in names}
    graph.erase_node(output)
    graph.output({name: _kept(net, tap) for name, tap in taps.items()})
    tapped = fx.GraphModule(net, graph, f"{type(net).__name__}Features")
    tapped.graph.eliminate_dead_code()
    tapped.delete_all_unused_submodules()
    tapped.recompile()
    tapped.training = net.training
    return tapped


def _kept(net: nn.Module, tap: Any) -> Any:
    """A copy, where the layer that follows would overwrite what is to be returned."""
    if not isinstance(tap, fx.Node):
        return tap
    readers = [net.get_submodule(str(user.target)) for user in tap.users if user.op == "call_module"]
    if not any(getattr(reader, "inplace", False) for reader in readers):
        return tap
    with tap.graph.inserting_after(tap):
        return tap.graph.call_function(torch.clone, (tap,))


def _nodes(returned: Any, name: str, called: str) -> Any:
    """The graph's node of what a module returned."""
    if returned is None:
        raise ModelError(
            f"A module must run to have an output. Received: features with {name!r} of {called}, whose forward pass "
            "does not call it. Name a module around it or in it."
        )
    return map_aggregate(returned, lambda value: value.node if isinstance(value, fx.Proxy) else value)
