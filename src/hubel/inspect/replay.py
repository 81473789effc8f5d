"""The same images through the same network again and again, each time with a change somewhere: what lies before the
change answers from memory.

A module that finished before the changed layer began cannot have seen the change. In a first pass the outputs of the
network's blocks are kept; later passes put a function that returns the kept output in the place of `forward` of every
such block. The numbers are the same bits; on average half of the work is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hubel.inspect.hooks import evaluating, watch
from hubel.inspect.running import BATCH

# Kept outputs of one batch, at most; batches are cut to it.
BYTES = 192 * 2**20


@dataclass
class _Kept:
    module: nn.Module
    output: Tensor
    ended: int


class Replay:
    """Kept outputs of the blocks of `net` on one batch of images, and when each layer first began.

    answer: what the network as it is returned.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.net, self.images = getattr(net, "_orig_mod", net), images
        self.clock = 0
        self.began: dict[str, int] = {}
        self.kept: dict[str, _Kept] = {}
        self._record()

    def _record(self) -> None:
        blocks = {id(module): name for name, module in blocks_of(self.net).items()}
        calls: dict[str, int] = {}

        def started(module: nn.Module, args: Any, name: str) -> None:
            self.clock += 1
            self.began.setdefault(name, self.clock)

        def finished(module: nn.Module, args: Any, output: Any, name: str) -> None:
            self.clock += 1
            calls[name] = calls.get(name, 0) + 1
            if calls[name] == 1 and isinstance(output, Tensor):
                # A copy: what follows may write into it.
                self.kept[name] = _Kept(module, output.detach().clone(), self.clock)
            else:
                self.kept.pop(name, None)

        with ExitStack() as stack:
            stack.enter_context(evaluating(self.net))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            for name, module in self.net.named_modules():
                hook = lambda m, args, name=name: started(m, args, name)  # noqa: E731
                stack.callback(module.register_forward_pre_hook(hook).remove)
                if id(module) in blocks:
                    end = lambda m, args, output, name=name: finished(m, args, output, name)  # noqa: E731
                    stack.callback(module.register_forward_hook(end).remove)
            self.answer = self.net(self.images)

    @contextmanager
    def before(self, address: str) -> Iterator[None]:
        """Within the block, modules that finish before the layer `address` begins answer from memory."""
        module = address.partition("@")[0].partition("/")[0]
        start = self.began.get(module, 0)
        changed = []
        try:
            for kept in self.kept.values():
                if kept.ended < start and "forward" not in vars(kept.module):
                    output = kept.output
                    kept.module.forward = lambda *args, output=output, **kwargs: output.clone()  # type: ignore[method-assign]
                    changed.append(kept.module)
            yield
        finally:
            for module_ in changed:
                del module_.forward


def recorded(net: nn.Module, images: Tensor) -> Iterator[Replay]:
    """A Replay of every batch in turn, of no more images than memory is set aside for."""
    for x in images.split(_batch_for(net, images[:1], BATCH)):
        yield Replay(net, x)


def blocks_of(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that a network is a row of: its children, and theirs where a child is no more than a row itself."""
    found: dict[str, nn.Module] = {}
    for name, child in net.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child):
            found |= {f"{name}.{inner}": module for inner, module in blocks_of(child).items()}
        else:
            found[name] = child
    return found


def _batch_for(net: nn.Module, image: Tensor, most: int) -> int:
    """How many images fit into BYTES of kept outputs; image: (1, C, H, W). At least 1."""
    blocks, total = {id(m) for m in blocks_of(net).values()}, 0

    def weigh(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    with ExitStack() as stack:
        for module in net.modules():
            if id(module) in blocks:
                stack.callback(module.register_forward_hook(weigh).remove)
        with watch(net, keep=False):
            net(image)
    return max(1, min(most, BYTES // max(total, 1)))
