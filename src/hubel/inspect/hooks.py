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

import weakref
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

_BOUNDS = {"relu6": (0.0, 6.0), "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}

Edit = Callable[[str, Tensor], Tensor]
Read = Callable[[str, str, Tensor], None]


@dataclass
class Call:
    """One convolution of one forward pass. `output` is the convolution's own, `activation` is taken at `tap`; copies.

    Where nothing was kept they are on the device "meta": shapes without numbers.

    tap: the name of the activation function that directly follows, "pre_add" where only a norm does, or "convolution".
    bounds: what that function cannot leave, where it is bounded on both sides.
    """

    address: str
    module: nn.Module | None
    input: Tensor
    output: Tensor
    activation: Tensor
    tap: str = "convolution"
    bounds: tuple[float, float] | None = None


class _Watcher(TorchFunctionMode):
    """Follows the tensors of one forward pass from each convolution to its tap."""

    def __init__(self, net: nn.Module, edit: Edit | None, keep: bool, read: Read | None):
        super().__init__()
        self.names = {id(module): name for name, module in net.named_modules()}
        # In an exported graph no module runs: its convolutions are known by their weights.
        graph = layers_of(net) if isinstance(net, torch.fx.GraphModule) else {}
        self.weights = {id(layer.weight): layer.address for layer in graph.values()}
        self.edit, self.keep, self.read = edit, keep, read
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.inside: list[nn.Module] = []
        # By id. Weak, because a network's memory is not ours to hold.
        self.pending: dict[int, tuple[weakref.ref[Tensor], Call]] = {}

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
            shape = torch.empty_like(output, device="meta")
            call = Call(address, module, torch.empty_like(input, device="meta"), shape, shape)
        self.calls.append(call)
        self.pending[id(output)] = (weakref.ref(output), call)
        if self.read:
            self.read(address, call.tap, output)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]  # operators of a graph are called relu.default
        call = self._pending(args[0]) if args and isinstance(args[0], Tensor) else None
        result = func(*args, **(kwargs or {}))
        follows = call is not None and (name in _ACTIVATIONS or (name in _NORMS and call.tap == "convolution"))
        if call is not None and not follows and (result is args[0] or name == "__setitem__"):
            # `out += identity` writes into the tensor itself: the activation after it is no longer the convolution's.
            del self.pending[id(args[0])]
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
        return self._followed(call, name, args, kwargs or {}, result) if call is not None and follows else result

    def _pending(self, tensor: Tensor) -> Call | None:
        """The convolution whose output, so far, this tensor is. (An id alone may be that of a tensor that is gone.)"""
        reference, call = self.pending.get(id(tensor), (None, None))
        return call if reference is not None and reference() is tensor else None

    def _followed(self, call: Call, name: str, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        source = args[0]
        del self.pending[id(source)]
        if self.edit:
            edited = self.edit(call.address, result)
            # Whoever wrote `x.relu_()` goes on with x, not with what it returned.
            result = source.copy_(edited) if result is source else edited
        call.activation = result.detach().clone() if self.keep else call.activation
        call.tap = "pre_add" if name in _NORMS else name.rstrip("_")
        call.bounds = _bounds(call.tap, args[1:], kwargs)
        if name in _NORMS:  # an activation may still follow; after one the chain ends
            self.pending[id(result)] = (weakref.ref(result), call)
        if self.read:
            self.read(call.address, call.tap, result)
        return result


def _bounds(tap: str, args: Any, kwargs: Any) -> tuple[float, float] | None:
    if tap != "hardtanh":
        return _BOUNDS.get(tap)
    # nn.ReLU6 calls it, too: F.hardtanh(x, 0.0, 6.0)
    lo, hi = [*args, *[-1.0, 1.0][len(args) :]][:2]
    return float(kwargs.get("min_val", lo)), float(kwargs.get("max_val", hi))


@contextmanager
def evaluating(net: nn.Module, gradients: bool = False) -> Iterator[nn.Module]:
    """Within the block `net` is in evaluation mode, without gradients; the mode of each of its modules is put back.

    gradients: with gradients instead. Whoever wants them asks `torch.autograd.grad` for those of an input: that leaves
        every `.grad` as it was.
    """
    modes = [(module, module.training) for module in net.modules()]
    try:
        for module, _ in modes:
            module.training = False  # not net.eval(): exported networks refuse it
        with torch.set_grad_enabled(gradients):
            yield net
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def watch(
    net: nn.Module, edit: Edit | None = None, keep: bool = True, read: Read | None = None, gradients: bool = False
) -> Iterator[list[Call]]:
    """Within the block `net` is in evaluation mode, without gradients, and fills the yielded list with Calls.

    edit(address, tensor) may replace a convolution's output; it is asked again after each of its followers, so that a
        channel set to zero stays zero behind a batch norm.
    keep: False spares the copies where only `edit` or `read` matters.
    read(address, stage, tensor) is shown the same tensors as they pass, the network's own and not a copy: what is not
        looked at at once may be overwritten by an in-place operation. stage: what `Call.tap` would be if nothing more
        followed; `taps` tells which of them is the last.
    gradients: see `evaluating`.
    Compiled networks are watched through the module that they were compiled from.
    """
    net = getattr(net, "_orig_mod", net)
    watcher = _Watcher(net, edit, keep, read)
    with ExitStack() as stack:
        stack.enter_context(evaluating(net, gradients))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for module in net.modules():
            stack.callback(module.register_forward_pre_hook(watcher.enter).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        yield watcher.calls
