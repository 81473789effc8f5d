"""Looking into a network while it runs, and leaving it as it came.

`watch(net)` is the one place where hooks are set. Within the block every convolution reports its output, and then the
output of the batch norm and of the activation that directly follow it; the last of these is the convolution's *tap*,
the place where its activation is read. Modules are followed by forward hooks; the functions that follow them
(`F.relu`, `x.relu()`, `nn.ReLU`, which calls the former) by a torch function mode, so that both styles of writing a
network look alike. On leaving, whatever happened, hooks, training modes and the random state are as before.

Addresses: `layer1.0.conv2` is a module, `conv@2` its second call in one forward pass, `block/conv2d#1` the first
functional convolution that `block` calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from hubel.inspect.layers import CONVOLUTIONS, layers_of, name_of

_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm"})
_ACTIVATIONS = frozenset(
    "celu celu_ elu elu_ gelu hardsigmoid hardswish hardtanh hardtanh_ leaky_relu leaky_relu_ mish prelu relu relu_ "
    "relu6 rrelu selu selu_ sigmoid sigmoid_ silu softplus softsign tanh tanh_".split()
)

Edit = Callable[[str, Tensor], Tensor]


@dataclass
class Call:
    """One convolution of one forward pass. `output` is the convolution's own, `activation` is taken at `tap`; copies.

    tap: the name of the activation function that directly follows, "pre_add" where only a norm does, or "convolution".
    """

    address: str
    module: nn.Module | None
    input: Tensor
    output: Tensor
    activation: Tensor
    tap: str = "convolution"


class _Watcher(TorchFunctionMode):
    """Follows the tensors of one forward pass from each convolution to its tap."""

    def __init__(self, net: nn.Module, edit: Edit | None, keep: bool):
        super().__init__()
        self.names = {id(module): name for name, module in net.named_modules()}
        # In an exported graph no module runs: its convolutions are known by their weights.
        graph = layers_of(net) if isinstance(net, torch.fx.GraphModule) else {}
        self.weights = {id(layer.weight): layer.address for layer in graph.values()}
        self.edit, self.keep = edit, keep
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.inside: list[nn.Module] = []
        # id(tensor) -> (tensor, call): the tensor is held, so that its id cannot be another's.
        self.pending: dict[int, tuple[Tensor, Call]] = {}

    def enter(self, module: nn.Module, _args: Any) -> None:
        self.inside.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.inside.pop()
        if isinstance(module, _ConvNd) and isinstance(output, Tensor):
            address = self._numbered(name_of(self.names[id(module)], module))
            return self._convolved(address, module, args[0], output)
        return None

    def _numbered(self, name: str) -> str:
        self.counts[name] += 1
        return name if self.counts[name] == 1 else f"{name}@{self.counts[name]}"

    def _convolved(self, address: str, module: nn.Module | None, input: Tensor, output: Tensor) -> Tensor:
        output = self.edit(address, output) if self.edit else output
        if self.keep:
            copy = output.detach().clone()
            call = Call(address, module, input.detach().clone(), copy, copy)
        else:
            call = Call(address, module, input, output, output)
        self.calls.append(call)
        self.pending[id(output)] = (output, call)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]  # operators of a graph are called relu.default
        entry = self.pending.get(id(args[0])) if args and isinstance(args[0], Tensor) else None
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        # A functional convolution; those that a convolution module makes are reported by the module.
        if name in CONVOLUTIONS and not (self.inside and isinstance(self.inside[-1], _ConvNd)):
            known = self.weights.get(id(args[1])) if len(args) > 1 else None
            if known is not None:
                return self._convolved(self._numbered(known), None, args[0], result)
            where = f"{self.names[id(self.inside[-1])]}/{name}" if self.inside else name
            self.counts[where] += 1
            return self._convolved(f"{where.lstrip('/')}#{self.counts[where]}", None, args[0], result)
        if entry is None or not (name in _ACTIVATIONS or (name in _NORMS and entry[1].tap == "convolution")):
            return result
        return self._followed(entry[1], name, args[0], result)

    def _followed(self, call: Call, name: str, source: Tensor, result: Tensor) -> Tensor:
        del self.pending[id(source)]
        if self.edit:
            edited = self.edit(call.address, result)
            # Whoever wrote `x.relu_()` goes on with x, not with what it returned.
            result = source.copy_(edited) if result is source else edited
        call.activation = result.detach().clone() if self.keep else result
        call.tap = "pre_add" if name in _NORMS else name.rstrip("_")
        if name in _NORMS:  # an activation may still follow; after one the chain ends
            self.pending[id(result)] = (result, call)
        return result


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """Within the block `net` is in evaluation mode, without gradients; the mode of each of its modules is put back."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        for module, _ in modes:
            module.training = False  # not net.eval(): exported networks refuse it
        with torch.no_grad():
            yield net
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def watch(net: nn.Module, edit: Edit | None = None, keep: bool = True) -> Iterator[list[Call]]:
    """Within the block `net` is in evaluation mode, without gradients, and fills the yielded list with Calls.

    edit(address, tensor) may replace a convolution's output; it is asked again after each of its followers, so that a
        channel set to zero stays zero behind a batch norm.
    keep: False spares the copies where only `edit` matters.
    Compiled networks are watched through the module that they were compiled from.
    """
    net = getattr(net, "_orig_mod", net)
    watcher = _Watcher(net, edit, keep)
    with ExitStack() as stack:
        stack.enter_context(evaluating(net))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for module in net.modules():
            stack.callback(module.register_forward_pre_hook(watcher.enter).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        yield watcher.calls
