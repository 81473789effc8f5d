"""Who reads a layer's activation next: a plain convolution or linear layer, a sum, a concatenation, a grouped one."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hubel.inspect.hooks import Call, watch
from hubel.inspect.layers import CONVOLUTIONS
from hubel.inspect.running import run

# What changes places and keeps every channel to itself.
_PASSES = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool2d dropout dropout2d flatten mean pad interpolate "
    "contiguous boolean_dispatch feature_dropout squeeze clone".split()
)
_LOOKED_AT = frozenset(
    {"size", "dim", "__get__", "shape", "detach", "numel", "is_floating_point", "data_ptr", "empty_like"}
)


class _Followers(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.tracked: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.found: dict[str, list[str]] = {}

    def track(self, tensor: Tensor, address: str) -> None:
        self.tracked[id(tensor)] = (weakref.ref(tensor), address)

    def _address(self, tensor: Any) -> str | None:
        reference, address = self.tracked.get(id(tensor), (None, None))
        return address if reference is not None and reference() is tensor else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
        seen = {a for a in map(self._address, flat) if a is not None}
        result = func(*args, **(kwargs or {}))
        if name in _LOOKED_AT:
            return result
        for address in seen:
            if name in _PASSES and isinstance(result, Tensor):
                self.track(result, address)
            else:
                groups = (kwargs or {}).get("groups", args[6] if len(args) > 6 else 1)
                grouped = name in CONVOLUTIONS and groups != 1
                self.found.setdefault(address, []).append(f"grouped {name}" if grouped else name)
        return result


def followers(net: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """For each tap the functions that read it, by name; what pools or flattens is followed further."""
    layout: dict[str, Call] = {call.address: call for call in run(net, x, keep=False)[0]}
    mode = _Followers()

    def read(address: str, stage: str, tensor: Tensor) -> None:
        if layout[address].tap == stage:
            mode.track(tensor, address)

    with mode, watch(net, keep=False, read=read):
        net(x)
    return mode.found


def why_not_merged(readers: list[str] | None) -> str | None:
    """Why two kernels of a layer cannot become one by adding up the weights that read them; None if they can."""
    if not readers:
        return "nobody reads its maps"
    for name in readers:
        if name.startswith("grouped"):
            return "a grouped convolution reads its maps"
        if name in ("cat", "concat", "concatenate", "stack"):
            return "its maps are concatenated with others"
        if "add" in name:
            return "its maps are added to others (a residual)"
        if name not in CONVOLUTIONS and name != "linear":
            return f"its maps are read by {name}"
    return None
