"""Removing one kernel, and the statistics of what that costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.errors import DataError, UnknownNameError
from hubel.inspect.effects import benjamini_hochberg, bootstrap, mcnemar, sign_flip
from hubel.records import Value


def classifier(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation, head)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.ReLU(inplace=True)])
def test_a_removed_kernel_has_an_empty_map_and_the_others_do_not_notice(activation: nn.Module) -> None:
    net, x = classifier(activation).eval(), torch.randn(5, 1, 8, 8)
    maps = net[:3](x).clone()
    maps[:, 2] = 0
    expected = net[3](maps)
    before = net(x)
    with inspect.without(net, "0:2"):
        assert torch.equal(net(x), expected)
    assert torch.equal(net(x), before), "the kernel is back"


def test_scores_of_every_kernel_are_those_without_it() -> None:
    net, x = classifier(nn.ReLU()).eval(), torch.randn(3, 1, 8, 8)
    record = inspect.ablation(net, x, torch.tensor([0, 1, 2]))
    assert [row["target"] for row in record.rows] == ["0:0", "0:1", "0:2", "0:3"]
    for i, row in enumerate(record.rows):
        with inspect.without(net, row["target"]):
            assert np.array_equal(record.arrays["scores_without"].data[i], net(x).detach().numpy())
    assert np.array_equal(record.arrays["scores"].data, net(x).detach().numpy())


def test_effects_are_paired_changes_with_counts() -> None:
    net, x = classifier(nn.ReLU()), torch.randn(40, 1, 8, 8)
    labels = net.eval()(x).argmax(1)
    record = inspect.ablation(net, x, labels, kernels=["0:1"], keep_scores=0)
    row = record.rows[0]
    with inspect.without(net, "0:1"), torch.no_grad():
        after = net(x)
    with torch.no_grad():
        whole = net(x)
    change = nn.functional.cross_entropy(after, labels) - nn.functional.cross_entropy(whole, labels)
    assert row["loss_change"].value == pytest.approx(float(change), abs=1e-6)
    assert row["loss_change"].lo <= row["loss_change"].value <= row["loss_change"].hi
    assert row["lost"] == int((after.argmax(1) != labels).sum())
    assert row["gained"] == 0, "all were right, so none can be gained"
    assert row["accuracy_change"].value == -row["lost"] / 40
    assert not record.arrays


def test_where_no_answer_changes_the_bound_is_exact() -> None:
    net = classifier(nn.ReLU())
    with torch.no_grad():
        for parameter in [*net[0].parameters(), *net[1].parameters()]:
            parameter.zero_()
    record = inspect.ablation(net, torch.randn(30, 1, 8, 8), torch.zeros(30, dtype=torch.long), kernels=["0:0"])
    change = record.rows[0]["accuracy_change"]
    bound = 1 - 0.025 ** (1 / 30)
    assert (change.value, change.lo, change.hi) == (0.0, pytest.approx(-bound), pytest.approx(bound))
    assert change.how == "binomial, zero events" and change.decided is False
    assert record.rows[0]["loss_change"].decided is False


def test_without_labels_the_answer_of_the_whole_network_is_the_measure() -> None:
    net = classifier(nn.ReLU())
    record = inspect.ablation(net, torch.randn(20, 1, 8, 8))
    for row in record.rows:
        assert isinstance(row["kl"], Value) and (row["kl"].value or 0.0) >= 0
        assert 0 <= row["changed"] <= 20


def test_a_kernel_of_a_module_that_runs_twice_is_gone_both_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    net = Twice()
    with inspect.without(net, "conv:0"):
        out = net(torch.randn(1, 2, 2, 2))
    assert out[:, 0].abs().max() == 0 and out[:, 1].abs().max() > 0


def test_the_same_seed_gives_the_same_intervals() -> None:
    net, x, y = classifier(nn.ReLU()), torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.long)
    one, two = (inspect.ablation(net, x, y, seed=3).rows for _ in range(2))
    assert one == two


def test_mcnemar_is_the_binomial_test() -> None:
    # Two-sided binomial(n, 1/2): 5 of 6 -> 2 (1 + 6) / 64.
    assert mcnemar(5, 1) == mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 1024)


def test_benjamini_hochberg_on_the_example_of_its_paper() -> None:
    # Benjamini and Hochberg 1995, section 3.2: of these fifteen, four are kept at 5 %.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    assert benjamini_hochberg(p, 0.05) == [True] * 4 + [False] * 11
    assert benjamini_hochberg(p[::-1], 0.05) == [False] * 11 + [True] * 4
    assert benjamini_hochberg([], 0.05) == []


def test_bootstrap_and_sign_flip_know_signal_from_noise() -> None:
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(size=200), rng.normal(size=200) + 0.5
    (noise_lo, signal_lo), (noise_hi, signal_hi) = bootstrap(np.stack([noise, signal]), 0.95, 500, rng)
    assert noise_lo < 0 < noise_hi and 0 < signal_lo < signal_hi
    # The interval of a mean has half width 1.96/sqrt(200) here; the bootstrap must come near.
    assert signal_hi - signal_lo == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)
    p_noise, p_signal = sign_flip(np.stack([noise, signal]), 500, rng)
    assert p_noise > 0.05 and p_signal == pytest.approx(1 / 501)


def test_refusals() -> None:
    net, x = classifier(nn.ReLU()), torch.randn(4, 1, 8, 8)
    with pytest.raises(UnknownNameError, match='unknown kernel "0:4"'):
        inspect.ablation(net, x, kernels=["0:4"])
    with pytest.raises(DataError, match="4 images, 3 labels"):
        inspect.ablation(net, x, torch.zeros(3, dtype=torch.long))
    with pytest.raises(DataError, match=r"Labels count the 3 scores from 0\. Received: 0 to 7"):
        inspect.ablation(net, x, torch.tensor([0, 1, 2, 7]))
