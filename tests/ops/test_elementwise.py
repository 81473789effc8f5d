"""torch's operators between convolutions as launches: what they say of themselves, and what they leave to torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hubel.engine.threads import Block, launch
from hubel.ops.elementwise import RECIPES
from hubel.ops.recipe import Recipe, made_like

aten = torch.ops.aten


def numbers(*shape: int, seed: int = 0, channels_last: bool = True) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, 6.0, float("nan"), float("inf"), -1.0])
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def done(recipe: Recipe, *given: Tensor) -> Tensor:
    """What the launches of a recipe compute."""
    (made,), (work,) = recipe.results, recipe.launches
    assert made is not None
    result = torch.empty_strided(made.shape, made.strides, dtype=made.dtype)
    pointers = [given[p.index].data_ptr() if p is not None else 0 for p in work.pointers[:3]]  # type: ignore[union-attr]
    p0, p1, p2 = pointers
    launch(Block(work.jobs).address, p0, p1, p2, result.data_ptr(), 2, work.shared_bytes, work.scratch_bytes, 0)
    return result


CASES: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, ()), (aten.add_.Tensor, ()), (aten.relu.default, ()), (aten.relu_.default, ()),
    (aten.hardtanh.default, (0.0, 6.0)), (aten.hardtanh_.default, (0, 6)), (aten.threshold_backward.default, (0,)),
    (aten.hardtanh_backward.default, (0.0, 6.0)),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "further"), CASES, ids=lambda case: str(case))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 16, 33, 40), (1, 1, 1, 7)])
def test_launches_have_the_bits_of_the_operator(
    operator: Any, further: tuple[Any, ...], channels_last: bool, shape: tuple[int, ...]
) -> None:
    count = sum(isinstance(a.type, torch.TensorType) for a in operator._schema.arguments)
    given = [numbers(*shape, seed=i, channels_last=channels_last) for i in range(count)]
    if operator is aten.hardtanh_backward.default:
        # torch's vectors stop the gradient at NaN, its remainders let it through.
        given[1].nan_to_num_()
    recipe = RECIPES[operator](*given, *further)
    assert recipe is not None
    assert recipe.results == (made_like(given[0]),)
    found = done(recipe, *given)
    wanted = operator(*(t.clone() for t in given), *further)
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_gradients_that_are_told_where_to_write() -> None:
    dy, y = numbers(2, 8, 5, 5), numbers(2, 8, 5, 5, seed=1)
    recipe = RECIPES[aten.threshold_backward.grad_input](dy, y, 0, grad_input=dy)
    assert recipe is not None
    np.testing.assert_array_equal(done(recipe, dy, y).numpy(), aten.threshold_backward(dy, y, 0).numpy())


X = numbers(2, 8, 4, 4)


@pytest.mark.parametrize(
    ("operator", "given", "options"),
    [
        (aten.add.Tensor, (X, X), {"alpha": 2}),
        (aten.add.Tensor, (X, 1), {}),
        (aten.add.Tensor, (X, X.contiguous()), {}),
        (aten.add.Tensor, (X, X[:, :, :1, :1]), {}),
        (aten.add.Tensor, (X.long(), X.long()), {}),
        (aten.add.Tensor, (X.double(), X.double()), {}),
        (aten.add.Tensor, (X[:, ::2], X[:, ::2]), {}),
        (aten.add.Tensor, (X[:0], X[:0]), {}),
        (aten.add.Tensor, (X[:1, :1, :1, :1].expand(2, 8, 4, 4),) * 2, {}),
        (aten.hardtanh.default, (X, -1.0, 1.0), {}),
        (aten.hardtanh_backward.default, (X, X, -1.0, 1.0), {}),
        (aten.threshold_backward.default, (X, X, 0.5), {}),
    ],
)
def test_all_else_is_torchs(operator: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    assert RECIPES[operator](*given, **options) is None
