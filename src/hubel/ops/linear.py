"""Fully connected layers of training graphs on kernels of our own, where a batch has few rows.

torch makes a layer `addmm(bias, x, wᵗ)`, and of its gradients `mm(dy, w)` and `mm(dyᵗ, x)`: `product` knows each by how
its operands lie (`engine.between.dense`). What is none of the three is torch's, and so is everything under *strict*.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

from hubel.engine.between import Work, dense_input_gradient, dense_outputs, dense_weight_gradient
from hubel.engine.between.dense import fits
from hubel.engine.between.work import CHUNK
from hubel.engine.threads import Block, launch
from hubel.ops import accuracy
from hubel.ops.recipe import Argument, Made, Recipe, Result, of_work
from hubel.ops.results import room

_aten = torch.ops.aten
# With more rows weights are used often enough for a library's packing to pay.
MOST_ROWS = 64


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`aten::mm`, or `aten::addmm` with the bias first."""
    found = _layer(a, b, bias)
    if found is None:
        return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    shape = a.shape[0], b.shape[1]
    result = room(shape, (shape[1], 1), a.dtype)()
    work, block = _prepared(*found)
    threads = torch.get_num_threads() if a.numel() * shape[1] > CHUNK else 1
    launch(
        block.address, a.data_ptr(), b.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(), threads,
        work.shared_bytes, work.scratch_bytes, 1,
    )  # fmt: skip
    return result


def recipe(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Recipe | None:
    """What `product` does with tensors laid out like these; None where torch does it."""
    found = _layer(a, b, bias)
    if found is None:
        return None
    work, _ = _prepared(*found)
    shape = a.shape[0], b.shape[1]
    launch = of_work(work, Argument(0), Argument(1), None if bias is None else Argument(2), Result(0))
    return Recipe((Made(shape, (shape[1], 1), a.dtype),), (launch,))


def _layer(a: Tensor, b: Tensor, bias: Tensor | None) -> tuple[Any, ...] | None:
    """What the product is, and its sizes: rows, inputs and outputs of the layer, and of outputs whether they have a
    bias. None where it is torch's.
    """
    # Sums of dx are not blocked: they stay within what the default allows, but not within strict.
    if not (_lies(a) and _lies(b)) or accuracy.policy(1).accuracy == "strict":
        return None
    (m, k), n = a.shape, b.shape[1]
    if a.is_contiguous():
        found = (dense_outputs, m, k, n) if b.stride() == (1, k) else (dense_input_gradient, m, n, k)
        lies = b.stride() == (1, k) or b.is_contiguous()
    else:
        found, lies = (dense_weight_gradient, k, n, m), a.stride() == (1, m) and b.is_contiguous()
    if not lies or found[1] > MOST_ROWS or not fits(*found[1:]):
        return None
    if found[0] is dense_outputs:
        return (*found, bias is not None) if bias is None or _is_bias(bias, b) else None
    return found if bias is None else None


def _lies(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu" and not x.is_neg()


def _is_bias(bias: Tensor, b: Tensor) -> bool:
    return _lies(bias) and bias.shape == b.shape[1:] and bias.is_contiguous()


@lru_cache(maxsize=1024)
def _prepared(make: Callable[..., Work], *sizes: int) -> tuple[Work, Block]:
    work = make(*sizes)
    return work, Block(work.jobs, work.keep)


def replace_products(graph: Graph) -> None:
    """Put `product` in the place of torch's operators."""
    for node in list(graph.nodes):
        if node.target is _aten.addmm.default and not node.kwargs:
            bias, a, b = node.args
        elif node.target is _aten.mm.default and not node.kwargs:
            (a, b), bias = node.args, None
        else:
            continue
        node.target, node.args = product, (a, b, bias)
