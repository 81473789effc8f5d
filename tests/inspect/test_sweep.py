"""One pass over the images: what it gathers is what the activations are; it goes on where it stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hubel.errors import DataError
from hubel.inspect import sweep, watch
from hubel.inspect.running import in_batches
from hubel.inspect.sweep import PLACES, Sweep, from_bytes, to_bytes
from tests.inspect.nets import NETS, build


@pytest.mark.parametrize("name", NETS)
def test_it_gathers_what_the_activations_are(name: str) -> None:
    net, x = build(name), torch.randn(7, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    with watch(net) as calls:
        answer = net(x)
    found = sweep(net, x, batch=3)
    assert list(found.taps) == [call.address for call in calls] and found.complete
    for call in calls:
        tap, maps = found.taps[call.address], call.activation.flatten(2)
        assert (tap.tap, tap.size) == (call.tap, tuple(call.activation.shape[2:]))
        assert np.allclose(tap.maxima, maps.amax(-1).numpy(), atol=1e-5)  # torch's last bits depend on the batch
        assert np.allclose(np.take_along_axis(maps.numpy(), tap.where[..., None], -1)[..., 0], tap.maxima, atol=1e-5)
        assert np.allclose(tap.means, maps.mean(-1).numpy(), atol=1e-6)
        assert np.allclose(tap.total, maps.double().sum((0, 2)).numpy(), rtol=1e-4, atol=1e-4)
        assert np.allclose(tap.squares, maps.double().square().sum((0, 2)).numpy(), rtol=1e-5)
        assert np.allclose(tap.lowest, maps.amin((0, 2)).numpy(), atol=1e-5)
        assert np.array_equal(tap.positive, (maps > 0).sum((0, 2)).numpy())
        assert np.array_equal(tap.fired, (maps > 0).any(-1).sum(0).numpy())
    scores = answer["scores"] if isinstance(answer, dict) else answer
    assert found.scores is not None and np.allclose(found.scores, scores.numpy(), atol=1e-6)


def test_correlations_are_those_of_the_sampled_places() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 4, 1))
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = torch.tensor([1.0, 2.0, -1.0, 0.0])
        net[0].bias.copy_(torch.tensor([1000.0, 0.0, 5.0, 3.0]))
    tap = sweep(net, torch.randn(20, 1, 9, 9), batch=6).taps["0"]
    found = tap.correlations()
    assert found is not None and tap.samples == 20 * PLACES
    assert np.allclose(found[:3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-3)
    assert np.isnan(found[3]).all(), "a constant has no correlation"


def test_an_interrupted_one_goes_on_where_it_stopped_and_survives_being_written() -> None:
    net, x = build("residual"), torch.randn(9, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = sweep(net, x, batch=2)

    def stop(done: int, total: int) -> None:
        assert total == 9
        if done == 4:
            raise KeyboardInterrupt

    state = Sweep(9)
    with pytest.raises(KeyboardInterrupt):
        sweep(net, x, start=state, batch=2, progress=stop)
    assert (state.done, state.complete, state.torn) == (4, False, False)
    state = sweep(net, x, start=from_bytes(to_bytes(state)), batch=2)
    assert state.complete and list(state.taps) == list(whole.taps)
    for address, tap in whole.taps.items():
        for key, value in vars(tap).items():
            other = getattr(state.taps[address], key)
            assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other, (address, key)
    assert np.array_equal(state.scores, whole.scores)  # type: ignore[arg-type]


def test_batches_are_halved_where_memory_runs_out() -> None:
    sizes: list[int] = []

    def work(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return x * 2

    x = torch.arange(7.0)
    parts = list(in_batches(x, 7, work))
    assert torch.equal(torch.cat([part for _, part in parts]), 2 * x)
    assert [start for start, _ in parts] == [0, 3, 6] and sizes == [7, 3, 3, 1]
    with pytest.raises(RuntimeError, match="always"):
        list(in_batches(x, 4, lambda part: (_ for _ in ()).throw(RuntimeError("out of memory, always"))))


def test_a_sweep_halves_its_batches_too_and_gathers_the_same() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            if len(x) > 2:
                raise MemoryError
            return x.mean((2, 3))

    net, x = Narrow(), torch.randn(7, 1, 5, 5)
    assert np.allclose(sweep(net, x, batch=7).taps["conv"].maxima, sweep(net, x, batch=2).taps["conv"].maxima)


def test_bounds_of_bounded_activations_are_known() -> None:
    net: Any = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU6())
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = torch.tensor([1.0, 100.0, -1.0])
    tap = sweep(net, torch.ones(2, 1, 2, 2)).taps["0"]
    assert tap.bounds == (0.0, 6.0) and tap.bounded.tolist() == [0, 8, 0]
    tanh = sweep(nn.Sequential(net[0], nn.Tanh()), torch.ones(2, 1, 2, 2)).taps["0"]
    assert tanh.bounds == (-1.0, 1.0) and tanh.bounded.tolist() == [0, 8, 0]


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"Activations are those of images\. Received: none\."):
        sweep(build("plain"), torch.zeros(0, 3, 8, 8))
