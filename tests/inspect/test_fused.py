"""`hubel.plan` of a Session and of a compiled network: the steps, what went into them, and what torch still runs."""

from __future__ import annotations

import pytest
import torch

import hubel
from hubel.errors import ModelError
from hubel.inspect.fused import FusedPlan
from tests.ops.nets import ready

X = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def test_a_session_tells_its_steps() -> None:
    run = hubel.Session(ready("residual"), X)
    with pytest.raises(ModelError, match="a Session that never ran, and no x"):
        hubel.plan(run)
    plan = hubel.plan(run, X)
    assert [step.does for step in plan.steps] == ["conv", "pool", *["conv"] * 6, "adaptive_pool", "linear"]
    assert plan.steps[0].ends == "bias, relu" and plan.steps[0].by.startswith("n2c3o8i32x40k7x7s2p3/bias/relu ")
    assert [step.ends for step in plan.steps].count("bias, sum, relu") == 2
    assert plan.gone == {"batch_norm": 7, "activation": 5, "binary": 2, "flatten": 1}
    assert plan.regions == 1 and not plan.foreign and plan.arena_bytes > 0
    text = str(plan)
    assert "fused or free: 7 batch_norm, 5 activation, 2 binary, 1 flatten; 1 parallel regions" in text
    # Without an input: what it ran on last.
    assert hubel.plan(run) == plan


def test_operators_of_torch_that_remain_are_listed() -> None:
    plan = hubel.plan(hubel.Session(ready("tokens"), X), X)
    assert "aten.scaled_dot_product_attention.default" in plan.foreign
    assert plan.regions > 1 and "torch's: " in str(plan)
    assert all(step.does == "torch" for step in plan.steps if step.foreign)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_network_tells_its_steps() -> None:
    torch._dynamo.reset()
    plan = hubel.plan(torch.compile(ready("inverted"), backend="hubel"), X)  # type: ignore[arg-type]
    assert isinstance(plan, FusedPlan)
    assert sum(step.does == "conv" for step in plan.steps) == 5 and plan.regions == 1
    with pytest.raises(ModelError, match="fuse=False, or a network without convolutions"):
        hubel.plan(torch.compile(ready("inverted"), backend="eager"), X)  # type: ignore[arg-type]
    torch._dynamo.reset()


def test_a_network_is_planned_on_an_input() -> None:
    with pytest.raises(ModelError, match="planned on an input. Received: none"):
        hubel.plan(ready("residual"))  # type: ignore[call-overload]
