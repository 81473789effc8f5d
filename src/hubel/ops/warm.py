"""Compiling ahead of time: run the network once, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hubel.ops.calls import in_the_foreground
from hubel.ops.log import Log
from hubel.ops.override import enabled
from hubel.ops.weights import learn_buffers


def warmup(net: nn.Module, x: Any, backward: bool = False) -> Log:
    """Compile every kernel that `net` needs for inputs like `x`, and pack its weights. Returns the log of the run.

    x: the network's input, or a tuple of its inputs. backward: the gradients' kernels too, as training needs them.
    The network runs once in evaluation mode; its modes, buffers and gradients and the random state stay as they are.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    learn_buffers(net)
    with enabled() as log, in_the_foreground(), undisturbed(net), torch.set_grad_enabled(backward):
        if backward:
            # Gradients reach the first layer's input only where it asks for one; in training it does not.
            parameters = [p for p in net.parameters() if p.requires_grad]
            total = sum(t.sum() for t in _tensors(net(*inputs)) if t.requires_grad)
            if isinstance(total, Tensor):
                torch.autograd.grad(total, parameters, allow_unused=True)
        else:
            net(*inputs)
    return log


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's mode and torch's random state as they were."""
    modes = [(module, module.training) for module in net.modules()]
    with torch.random.fork_rng(devices=[]):
        net.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
