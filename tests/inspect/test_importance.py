"""Importance: measured effects of removal, first-order estimates, and no discoveries where there is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubel import inspect
from hubel.errors import DataError, UnknownNameError
from hubel.inspect import effects
from hubel.inspect.gradients import products
from hubel.inspect.importance import choose
from hubel.inspect.running import scores, scores_of
from hubel.records import Value
from tests.inspect.nets import NETS, build


class Small(nn.Module):
    def __init__(self, kernels: int = 6, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, kernels, 3), nn.Linear(kernels, 2)
        with torch.no_grad():
            self.head.weight *= scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_a_kernel_that_nobody_reads_has_exactly_no_effect() -> None:
    torch.manual_seed(0)
    net, x, y = Small(), torch.randn(40, 1, 7, 7), torch.arange(40) % 2
    with torch.no_grad():
        net.head.weight[:, 2] = 0
    row = inspect.importance(net, x, y).row("conv:2")
    change = row["loss_change"]
    assert (change.value, change.lo, change.hi, change.decided) == (0.0, 0.0, 0.0, False)
    assert row["lost"] == row["gained"] == 0 and row["taylor"] == row["first_order"] == 0.0
    bound = 1 - 0.025 ** (1 / 40)
    assert row["accuracy_change"] == Value(0.0, -bound, bound, 0.95, 40, "images", "binomial, zero events", False)
    assert inspect.importance(net, x).row("conv:2")["kl"].hi == 0.0
    assert inspect.importance(net, x, y, method="taylor").row("conv:2") == {
        "target": "conv:2",
        "taylor": 0.0,
        "first_order": 0.0,
    }


def test_the_effect_is_the_change_of_the_loss_and_agrees_with_ablation() -> None:
    torch.manual_seed(0)
    net, x, y = Small(), torch.randn(30, 1, 7, 7), torch.arange(30) % 2
    record, other = inspect.importance(net, x, y), inspect.ablation(net, x, y)
    for mine, theirs in zip(record.rows, other.rows, strict=True):
        assert mine["loss_change"].value == pytest.approx(theirs["loss_change"].value, abs=1e-6)
        assert (mine["lost"], mine["gained"], mine["drawn"]) == (theirs["lost"], theirs["gained"], 0)
        assert mine["first_order"] == pytest.approx(mine["loss_change"].value, abs=0.02)


def test_a_network_that_rests_on_one_kernel_says_so() -> None:
    torch.manual_seed(0)
    net, x = Small(), torch.randn(100, 1, 7, 7)
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.weight[1, 3] = 20
        net.head.bias.zero_()
        feature = F.relu(net.conv(x)).mean((2, 3))[:, 3]
        net.head.bias[1] = -20 * feature.median()
    y = (feature > feature.median()).long()
    record = inspect.importance(net, x, y)
    decided = {row["target"] for row in record.rows if row["loss_change"].decided}
    assert decided == {"conv:3"} and record.row("conv:3")["lost"] > 30
    assert record.arrays["classes"].data.tolist() == [0, 1]
    effect, sure = record.arrays["class_effect"].data, record.arrays["class_decided"].data
    assert effect.shape == (6, 2, 3) and sure[3].any() and not np.delete(sure, 3, 0).any()
    assert effect[3, 1, 0] > 0, "images of the class that the kernel votes for lose by it"


def test_means_instead_of_zeros() -> None:
    torch.manual_seed(0)
    net, x, y = Small(), torch.randn(30, 1, 7, 7), torch.arange(30) % 2
    with pytest.raises(DataError, match=r'value="mean" .*Received: no sweep'):
        inspect.importance(net, x, y, value="mean")
    found = inspect.importance(net, x, y, value="mean", sweep=inspect.sweep(net, x), kernels=["conv:1"])
    features = F.relu(net.conv(x)).mean((2, 3))
    features[:, 1] = features[:, 1].mean()
    expected = F.cross_entropy(net.head(features), y) - F.cross_entropy(net(x), y)
    assert found.rows[0]["loss_change"].value == pytest.approx(expected.item(), abs=1e-6)


def test_candidates_are_chosen_on_one_half_and_measured_on_the_other() -> None:
    torch.manual_seed(0)
    net, x, y = Small(24), torch.randn(41, 1, 7, 7), torch.arange(41) % 2
    record = inspect.importance(net, x, y, most=8)
    assert len(record.rows) == 8 and sum(row["drawn"] for row in record.rows) == 4
    params = record.method["params"]
    assert (params["choosing"], params["measuring"], params["kernels"], params["known"]) == (20, 21, 8, 24)
    assert record.rows[0]["loss_change"].n == 21
    estimates = record.arrays["conv:taylor"].data
    assert estimates.shape == record.arrays["conv:first_order"].data.shape == (24,)
    for row in record.rows:
        assert row["taylor"] == pytest.approx(estimates[int(row["target"].rpartition(":")[2])], rel=1e-5)
    assert "8 of 24 kernels: 4 by taylor, 4 at random" in record.uncovered[0]["reason"]
    assert {"target": "classes", "reason": "a class of its own needs 30 images, and none has them"} in record.uncovered
    with pytest.raises(DataError, match=r"Half of the images choose .* Received: 1 image\. Pass more, or name"):
        inspect.importance(net, x[:1], y[:1], most=8)


def test_chosen_are_the_largest_and_some_at_random() -> None:
    worth = np.arange(20.0)
    names, drawn = choose([f"c:{k}" for k in range(20)], {"c": (worth, worth)}, 6, np.random.default_rng(0))
    assert {f"c:{k}" for k in (17, 18, 19)} <= set(names) and len(names) == 6 and len(drawn) == 3
    assert drawn.isdisjoint({"c:17", "c:18", "c:19"})


@pytest.mark.parametrize("name", NETS)
def test_products_are_activation_times_gradient(name: str) -> None:
    """Against finite differences: scaling a kernel's activation by 1 + ε changes the objective by ε Σ a·∂/∂a."""
    net, x = build(name).double().eval(), torch.randn(3, 3, 10, 10, dtype=torch.float64)
    weights = torch.randn(3, dtype=torch.float64)

    def objective(answer: object, at: int, n: int) -> Tensor:
        found = answer["scores"] if isinstance(answer, dict) else answer
        return (found * weights).sum()  # type: ignore[operator]

    found = products(net, x, objective, batch=2)
    epsilon = 1e-6
    with inspect.watch(net, keep=False) as calls:
        net(x)
    taps = {call.address: call.tap for call in calls}
    for address in found:
        k, values = 1, []
        for scale in (1 + epsilon, 1 - epsilon):
            seen: list[str] = []

            def scaled(where: str, tensor: Tensor, scale=scale, address=address, seen=seen, k=k) -> Tensor:
                seen.append(where)
                last = {"convolution": 1, "pre_add": 2}.get(taps[address], 3 if name == "residual" else 2)
                if where != address or seen.count(where) != last:
                    return tensor
                tensor = tensor.clone()
                tensor[:, k] *= scale
                return tensor

            with inspect.watch(net, edit=scaled, keep=False):
                answer = net(x)
            rows = answer["scores"] if isinstance(answer, dict) else answer
            values.append((rows * weights).sum(1))
        slope = ((values[0] - values[1]) / (2 * epsilon)).numpy()
        assert np.allclose(found[address][:, k], slope, rtol=1e-4, atol=1e-7), address


def test_refusals() -> None:
    net, x = Small(), torch.randn(4, 1, 7, 7)
    with pytest.raises(UnknownNameError, match='unknown kernel "conv:6"'):
        inspect.importance(net, x, kernels=["conv:6"])
    with pytest.raises(UnknownNameError, match='unknown method of importance "tailor". Did you mean "taylor"?'):
        inspect.importance(net, x, method="tailor")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Labels count the 2 scores from 0\. Received: 0 to 5"):
        inspect.importance(net, x, torch.tensor([0, 1, 2, 5]))
    with pytest.raises(DataError, match="Labels are one an image. Received: 3 for 4 images."):
        inspect.importance(net, x, torch.zeros(3, dtype=torch.long))
    assert scores(net, x).shape == scores_of(net(x), 4).shape == (4, 2)


@pytest.mark.parametrize("networks", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_networks_in_which_nothing_matters_give_few_discoveries(networks: int) -> None:
    """Labels are coins, and features symmetric about zero: removing a kernel moves the loss up as often as down. Every
    discovery is false, and Benjamini-Hochberg allows one in at most 5 % of the networks."""
    discoveries = 0
    for seed in range(networks):
        torch.manual_seed(seed)
        net: Any = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        with torch.no_grad():
            net[3].weight *= 1e-4
            net[3].bias.zero_()
        x, y = torch.randn(80, 1, 5, 5), torch.randint(0, 2, (80,))
        record = inspect.importance(net, x, y, resamples=400, seed=seed)
        sure = record.arrays["class_decided"].data.any() if "class_decided" in record.arrays else False
        discoveries += bool(sure) or any(row["loss_change"].decided for row in record.rows)
    # 0.999 quantile of Binomial(networks, 0.05): 5 of 20, 21 of 200.
    assert discoveries <= {20: 5, 200: 21}[networks]


def test_statistics_of_effects() -> None:
    assert effects.without_events(500) == pytest.approx(1 - 0.05 ** (1 / 500))
    assert effects.without_events(0) == 1.0
    # Order statistics of 15: the 4th and the 12th enclose the median with 96.5 %.
    value = effects.median_of(list(range(1, 16)))
    assert (value.value, value.lo, value.hi, value.n) == (8, 4, 12, 15)
    assert effects.median_of([1.0, 2.0]).lo is None
    rho = effects.spearman(np.array([1, 2, 3, 4, 5.0]), np.array([1, 3, 2, 4, 50.0]))
    assert rho.value == pytest.approx(0.9) and rho.lo is not None and rho.lo < 0.9
    assert effects.spearman(np.ones(5), np.arange(5.0)).value is None
    assert np.array_equal(effects.ranks(np.array([3.0, 1.0, 3.0])), [2.5, 1, 2.5])
    share = effects.wilson(5, 10)
    assert share.value == 0.5 and share.lo == pytest.approx(0.2366, abs=1e-4)
