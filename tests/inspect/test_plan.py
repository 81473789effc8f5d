"""hubel.plan: a row a convolution, predicted and, on request, measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hubel
from hubel.engine import Machine, Problem
from hubel.errors import ModelError, UnsupportedError
from hubel.inspect.plan import plan_problem


def network() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
    return nn.Sequential(first, nn.ReLU(), second)


def test_times_are_predicted_and_on_request_measured() -> None:
    x = torch.ones(1, 3, 16, 16)
    predicted = hubel.plan(network(), x)
    assert [row.address for row in predicted.rows] == ["0", "2"]
    assert all(row.ms and row.roof_ms and not row.measured_ms for row in predicted.rows)
    assert all(0 < row.roofline <= 1 for row in predicted.rows)  # type: ignore[operator]
    assert "ms predicted" in str(predicted)
    measured = hubel.plan(network(), x, measure=True)
    assert all(row.measured_ms for row in measured.rows)
    assert [row.ms for row in measured.rows] == [row.ms for row in predicted.rows]
    (of_problem, _) = measured.rows
    seconds = (of_problem.measured_ms or 0.0) * 1e-3
    assert of_problem.gflops == pytest.approx(of_problem.problem.spec.flops / seconds * 1e-9)
    cells = measured.record().rows[0]
    assert cells["measured_ms"] == of_problem.measured_ms and cells["ms"] == of_problem.ms
    assert "ms measured" in str(measured)


def test_channels_last_networks_have_channels_last_problems() -> None:
    x = torch.ones(1, 3, 16, 16).to(memory_format=torch.channels_last)
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = hubel.plan(net, x, backward=True, measure=True).rows
    assert [row.problem.layout for row in rows] == ["channels_last"] * 6
    assert all(row.measured_ms for row in rows)


def test_of_another_machine_no_time_is_told() -> None:
    row = plan_problem(Problem.parse("n1c64o64i56x56k3x3s1p1"), machine=Machine.named("neoverse-n1"), measure=True)
    assert row.plan is not None and row.plan.machine.name == "neoverse-n1"
    assert row.ms is row.measured_ms is row.gflops is row.roofline is None


def test_gradients_have_rows_of_their_own() -> None:
    rows = hubel.plan(network(), torch.ones(1, 3, 16, 16), backward=True).rows
    assert [row.address for row in rows] == [
        "0", "0/input_gradient", "0/weight_gradient", "2", "2/input_gradient", "2/weight_gradient",
    ]  # fmt: skip


def test_what_torch_does_says_why() -> None:
    (row, _) = hubel.plan(network().double(), torch.ones(1, 3, 16, 16).double()).rows
    assert row.algorithm == "torch" and "float64" in row.reason and row.roofline is None
    with pytest.raises(UnsupportedError, match="float64"):
        plan_problem(Problem.parse("n1c3o8i16x16k3x3/float64"))


def test_a_network_that_cannot_run_on_the_input_says_so() -> None:
    with pytest.raises(ModelError, match=r"Received: \[1, 5, 16, 16\]"):
        hubel.plan(network(), torch.ones(1, 5, 16, 16))
