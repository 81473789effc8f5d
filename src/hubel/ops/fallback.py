"""torch's own kernels, as they were before anybody overrode them: the answer to every call that Hubel does not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The schemas that the override was written against; another torch may have changed them.
SCHEMAS = {
    "aten::convolution": (
        "aten::convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"
    ),
    "aten::convolution_backward": (
        "aten::convolution_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[]? bias_sizes, "
        "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, "
        "SymInt groups, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
}

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _kernel(name: str) -> Callable[..., Any]:
    kernel = torch.library.get_kernel(name, "CPU")

    def call(*arguments: Any) -> Any:
        return kernel.call_boxed(_CPU, *arguments)

    return call


# Taken when this module is imported, which is before Hubel registers anything.
torch_convolution = _kernel("aten::convolution")
torch_convolution_backward = _kernel("aten::convolution_backward")


def why_not_this_torch() -> str:
    """Why the override must not be installed on this torch; empty if it may."""
    for name, tested in SCHEMAS.items():
        namespace, op = name.split("::")
        found = str(getattr(getattr(torch.ops, namespace), op).default._schema)
        if found != tested:
            return f"{name} of torch {torch.__version__} has the schema {found}, and Hubel was tested with {tested}"
    return ""
