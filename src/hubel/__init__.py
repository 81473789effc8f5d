"""Hubel makes the convolution kernels of a PyTorch network fast on the CPU, visible, and accountable.

    import torch, hubel

    hubel.enable()                       every convolution on Hubel's kernels, forward and backward; hubel.disable()
    with hubel.enabled() as log: ...     the same for a block; log.native, log.fallback, log.reasons
    hubel.exclude(net.conv1)             this layer stays on torch; hubel.include(net.conv1)
    y = hubel.conv2d(x, w, b)            one convolution; also conv1d, conv3d, conv_transpose1d/2d/3d
    net = hubel.nn.swap(net)             torch's layers become Hubel's; hubel.nn.restore(net)
    print(hubel.plan(net, x))            a row a convolution: what will run, and why
    run = hubel.Session(net, x); y = run(x)   a whole network, fused and frozen; run.save("net.hubel")
    run = hubel.lab.train("lenet5", "mnist");  hubel.report(run.model, "mnist", out="report.html")

Importing this module stays cheap: what needs more than torch and the engine is imported when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hubel.engine.cache import cache_info
from hubel.errors import HubelError
from hubel.ops.accuracy import set_accuracy, set_deterministic, set_planning
from hubel.ops.exclude import exclude, include
from hubel.ops.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from hubel.ops.override import disable, enable, enabled
from hubel.ops.warm import warmup
from hubel.ops.weights import repack

if TYPE_CHECKING:
    from hubel import check, convert, data, inspect, lab, nn, report, zoo
    from hubel.engine.wisdom import export_wisdom, import_wisdom
    from hubel.inspect.plan import plan
    from hubel.ops.session import Session

__version__ = "0.1.0"

__all__ = [
    "enable", "disable", "enabled",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "nn", "set_accuracy", "set_deterministic", "set_planning", "warmup", "repack", "cache_info", "exclude", "include",
    "export_wisdom", "import_wisdom",
    "Session", "plan", "zoo", "data", "convert", "inspect", "lab", "check", "report",
    "HubelError",
]  # fmt: skip

# Imported when they are first named: where each of them is.
_LAZY = {
    "nn": "hubel.nn", "zoo": "hubel.zoo", "data": "hubel.data", "convert": "hubel.convert", "inspect": "hubel.inspect",
    "lab": "hubel.lab", "check": "hubel.check", "Session": "hubel.ops.session:Session", "report": "hubel.report",
    "plan": "hubel.inspect.plan:plan",
    "export_wisdom": "hubel.engine.wisdom:export_wisdom", "import_wisdom": "hubel.engine.wisdom:import_wisdom",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hubel' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
