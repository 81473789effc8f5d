"""Training steps and call overhead compared: what is checked, counted and said. The clock is wound by hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

from hubel.errors import DataError, HubelError
from hubel.lab import bench, engines, overhead, step_time, timing
from hubel.lab.timing import Rounds, Sample
from hubel.records import Document, Value, json_schema


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Idle teams of other tests' threads would only make these slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Clock(timing.Meter):
    """A clock that an engine's context moves: what a call costs inside is `cost`."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        self.now += 0.010
        return self.now

    def waited(self) -> float:
        return 0.0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(5, 1, 6, 6, generator=draw), torch.randint(3, (5,), generator=draw)


def quick(**options: Any) -> step_time.StepTime:
    return step_time.step_time(network, batch(), rounds=8, meter=Clock(), **options)


def test_three_contenders_take_a_step_a_round():
    outcome = quick(hubel=nullcontext)
    assert set(outcome.engines) == {"torch", "torch channels-last", "hubel"}
    assert {len(samples) for samples in outcome.rounds.samples.values()} == {8}
    assert outcome.ratio.value == pytest.approx(1.0)
    assert outcome.ratio.decided is False
    assert outcome.ratio.n == 8


def test_every_round_counts_slow_and_disturbed_ones_too():
    torch_steps = [Sample(0.002)] * 6 + [Sample(0.001), Sample(0.009, waited=0.5)]
    hubel_steps = [Sample(0.001)] * 6 + [Sample(0.002), Sample(0.001)]
    slow = [Sample(0.005)] * 8
    taken = Rounds({"torch": torch_steps, "torch channels-last": slow, "hubel": hubel_steps})
    outcome = step_time._outcome(taken, threads=2)
    assert outcome.torch == "torch"
    assert outcome.ratio.n == 8
    assert outcome.ratio.value == pytest.approx(2.0)
    assert outcome.slower == pytest.approx(1 / 8)
    assert outcome.spread[0] < 2.0 < outcome.spread[1]
    text = str(outcome)
    assert "1.00 ms under hubel and 2.00 ms under torch: x2.00" in text
    assert "slower in 12% of 8 rounds; 2 threads" in text


def test_copies_train_and_the_callers_network_does_not():
    nets: list[nn.Module] = []

    def factory() -> nn.Module:
        nets.append(network())
        return nets[-1]

    before = network().state_dict()
    step_time.step_time(factory, batch(), rounds=2, meter=Clock(), hubel=nullcontext)
    assert len(nets) == 1
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, before[name])


def test_the_steps_context_is_entered_and_threads_are_restored():
    entered = []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append(torch.get_num_threads())
        yield

    before = torch.get_num_threads()
    quick(hubel=context, threads=2)
    assert entered
    assert set(entered) == {2}
    assert torch.get_num_threads() == before


@contextmanager
def broken_backward(spoil: float) -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")

    def backward(dy, x, w, *arguments):
        return x * spoil, w * spoil, dy.sum((0, 2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("convolution_backward", backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


@pytest.mark.parametrize("spoil", [2.0, float("nan")])
def test_wrong_gradients_are_never_timed(spoil):
    with pytest.raises(HubelError, match="gradients must be torch's"):
        quick(hubel=lambda: broken_backward(spoil))


def test_hubels_own_step_is_right():
    outcome = quick()
    assert outcome.ratio.value is not None


def test_the_document_of_a_step(monkeypatch):
    monkeypatch.setattr(timing, "Meter", Clock)
    document = step_time.run("lenet5", batch=2, rounds=2)
    jsonschema.validate(json.loads(document.to_json()), json_schema())
    again = Document.from_json(document.to_json())
    text = bench.render_text(again)
    assert text == bench.render_text(document)
    assert "bench: lenet5 training step" in text
    assert "slower steps included" in text
    assert {row["target"] for row in again.record("step").rows} == {"torch", "torch channels-last", "hubel"}


def test_overhead_is_above_the_empty_override_within_rounds():
    taken = Rounds(
        {
            "torch": [Sample(20e-6), Sample(60e-6), Sample(20e-6)],
            "empty": [Sample(10e-6), Sample(50e-6), Sample(10e-6)],
            "hubel": [Sample(16e-6), Sample(56e-6), Sample(17e-6, waited=0.5)],
        }
    )
    assert overhead.overhead(taken).value == pytest.approx(6.0)
    assert overhead.overhead(taken).n == 2
    record = overhead.record(taken)
    assert "overhead" not in record.row("empty")
    cell = record.row("torch")["overhead"]
    assert isinstance(cell, Value)
    assert cell.value == pytest.approx(10.0)


def test_the_empty_override_answers_and_goes_away():
    x, w = torch.ones(1, 8, 3, 3), torch.ones(8, 8, 3, 3)
    with overhead.returning_empty((7, 7)):
        assert torch.conv2d(x, w).shape == (7, 7)
    assert torch.conv2d(x, w).shape == (1, 8, 1, 1)
    with engines.enabled() as log:
        torch.conv2d(x, w)
    assert log.native == 1


def test_the_document_of_the_overhead():
    document = overhead.run(rounds=2, threads=1, meter=Clock())
    jsonschema.validate(json.loads(document.to_json()), json_schema())
    text = bench.render_text(document)
    assert "above empty" in text
    assert {"torch", "empty", "hubel"} == {row["target"] for row in document.record("overhead").rows}


def test_the_overhead_of_a_gradient_is_refused():
    with pytest.raises(DataError, match="one forward problem"):
        overhead.run("c8o8i3x3k3p1/input_gradient")
