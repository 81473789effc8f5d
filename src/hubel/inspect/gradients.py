"""Σ (a − about)·∂objective/∂a at every tap: what one backward pass says of every kernel at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hubel.engine.machine import give_back_memory
from hubel.inspect.hooks import Call, watch
from hubel.inspect.running import BATCH, in_batches, run

# (what the network answered, the first image of the batch, how many) -> the sum over these images
Objective = Callable[[object, int, int], Tensor]


def products(
    net: nn.Module,
    images: Tensor,
    objective: Objective,
    *,
    about: Mapping[str, np.ndarray] | None = None,
    batch: int = BATCH // 2,
) -> dict[str, np.ndarray]:
    """For each tap (N, K): the sum over places of (a − about)·∂objective/∂a, image by image.

    objective: must be a sum over images, each of which depends on its own image only. about: of each layer a number a
    kernel (K,), its mean for example; zero by default. A tap that the objective does not depend on is left out.
    No `.grad` changes.
    """
    layout = {call.address: call for call in run(net, images[:1], keep=False)[0]}
    found: dict[str, list[np.ndarray]] = {}
    begun = 0

    def work(x: Tensor) -> dict[str, np.ndarray]:
        return _one_batch(net, x, objective, about or {}, layout, begun)

    for start, part in in_batches(images, batch, work):
        for address, terms in part.items():
            found.setdefault(address, []).append(terms)
        begun = start + len(next(iter(part.values()))) if part else begun
        give_back_memory()  # a batch's graph is the largest thing that an analysis holds
    return {address: np.concatenate(terms) for address, terms in found.items() if sum(map(len, terms)) == len(images)}


def _one_batch(
    net: nn.Module,
    x: Tensor,
    objective: Objective,
    about: Mapping[str, np.ndarray],
    layout: Mapping[str, Call],
    start: int,
) -> dict[str, np.ndarray]:
    terms: dict[str, np.ndarray] = {}

    def read(address: str, stage: str, tensor: Tensor) -> None:
        call = layout.get(address)
        if call is None or call.tap != stage or not tensor.requires_grad or len(tensor) != len(x) or tensor.ndim < 3:
            return
        # A copy, because a later in-place operation (`out += identity`) may write into it.
        a = tensor.detach().flatten(2).clone()
        if address in about:
            a -= torch.as_tensor(about[address]).to(a)[:, None]
        # A hook gets the gradient of the values that the tensor has now, whatever is written into it later.
        tensor.register_hook(lambda g: terms.__setitem__(address, (a * g.flatten(2)).sum(-1).float().cpu().numpy()))

    x = x.detach().clone().requires_grad_()
    with watch(net, keep=False, read=read, gradients=True):
        value = objective(net(x), start, len(x))
        torch.autograd.grad(value, x, allow_unused=True)
    return terms
