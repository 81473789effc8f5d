"""`torch.compile(net, backend="hubel")`: the captured graphs of a network, with Hubel's operators for the convolutions.

torch captures the network and traces forward and backward down to its basic operators; here every convolution among
them, and every convolution's gradient, becomes the operator `hubel::convolution` or `hubel::convolution_backward`.
All other nodes run as torch's own, in the order in which they were captured. Nothing process-wide is switched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from hubel.errors import unknown
from hubel.ops import library

# What `options=` of torch.compile may hold.
OPTIONS: tuple[str, ...] = ()

REPLACED = {
    torch.ops.aten.convolution.default: library.convolution,
    torch.ops.aten.convolution_backward.default: library.convolution_backward,
}


def hubel(
    graph: GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend, as torch.compile calls it: a callable that does what `graph` does.

    Raises UnknownNameError for an option that is not in `OPTIONS`, and for a `mode`: there are none.
    """
    for name in options or {}:
        if name not in OPTIONS:
            raise unknown('option of the backend "hubel"', name, OPTIONS)
    if mode is not None:
        raise unknown('mode of the backend "hubel"', mode, ())
    # Importing dynamo takes seconds; whoever gets here has done so already.
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(fw_compiler=_replace, bw_compiler=_replace)(graph, inputs)


def _replace(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """The graph of basic operators with Hubel's in place of torch's convolutions."""
    from functorch.compile import make_boxed_func  # pyright: ignore[reportPrivateImportUsage]

    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in REPLACED:
            node.target = REPLACED[node.target]
    graph.recompile()
    return make_boxed_func(graph.forward)
