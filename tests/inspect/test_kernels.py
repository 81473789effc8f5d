"""The weights as a record: the right numbers under the right addresses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.errors import ModelError, UnknownNameError
from hubel.inspect import layers_of
from hubel.inspect.kernels import smoothness


def test_rows_and_arrays_are_the_weights() -> None:
    second = nn.Conv2d(3, 4, 3)
    record = inspect.kernels(nn.Sequential(nn.Conv2d(1, 3, 5), nn.ReLU(), second))
    w = second.weight.detach().numpy()
    assert [row["target"] for row in record.rows] == ["0:0", "0:1", "0:2", "2:0", "2:1", "2:2", "2:3"]
    assert np.array_equal(record.arrays["2"].data, w)
    row = record.row("2:1")
    assert row["norm"] == pytest.approx(np.linalg.norm(w[1]))
    assert (row["min"], row["max"]) == (w[1].min(), w[1].max())
    assert record.method["params"]["layers"]["2"]["limit"] == np.abs(w).max()


def test_large_layers_keep_the_strongest_in_the_networks_order() -> None:
    net = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        net.weight.zero_()
        for k, size in ((4, 3.0), (1, 2.0)):
            net.weight[k, 2] = size
            net.weight[k, 0] = size / 2
    record = inspect.kernels(net, most=2, most_slices=2)
    assert record.arrays["conv2d:kernels"].data.tolist() == [1, 4]
    assert record.arrays["conv2d:slices"].data.tolist() == [[0, 2], [0, 2]]
    assert record.arrays["conv2d"].data[:, :, 0, 0].tolist() == [[1.0, 2.0], [1.5, 3.0]]
    assert len(record.rows) == 6, "rows tell of every kernel, pictures of some"


def test_before_and_after_share_a_scale_and_say_how_far() -> None:
    net = nn.Conv2d(1, 2, 3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        net.weight *= 3
    record = inspect.kernels(net, before=before)
    assert [row["moved"] for row in record.rows] == pytest.approx([2.0, 2.0])
    assert np.array_equal(record.arrays["conv2d:before"].data * 3, record.arrays["conv2d"].data)
    assert record.method["params"]["layers"]["conv2d"]["limit"] == np.abs(net.weight.detach().numpy()).max()
    with pytest.raises(
        ModelError, match=r"state_dict of the same network, with 'weight'\. Received: one with \['fc'\]"
    ):
        inspect.kernels(net, before={"fc": torch.ones(1)})


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_kernels_are_what_one_output_channel_is_made_with(groups: int) -> None:
    module = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    kernels = layers_of(module)["convtranspose2d"].by_kernel()
    assert kernels.shape == (6, 4 // groups, 3, 3)
    # One bright pixel in input channel i paints the kernel's slice onto every output channel of its group.
    for i in range(4):
        x = torch.zeros(1, 4, 1, 1)
        x[0, i] = 1
        painted = module(x)[0].detach().numpy()
        group, inside = divmod(i, 4 // groups)
        for o in range(6):
            expected = kernels[o, inside] if o // (6 // groups) == group else np.zeros((3, 3))
            assert np.array_equal(painted[o], expected)


def test_smoothness_is_a_correlation_of_neighbours() -> None:
    ramp = np.add.outer(np.arange(9.0), np.arange(9.0))[None, None]
    board = (np.indices((8, 8)).sum(0) % 2 * 2.0 - 1)[None, None]
    noise = np.random.default_rng(0).normal(size=(200, 1, 7, 7))
    assert smoothness(ramp)[0] > 0.6
    assert smoothness(board)[0] == pytest.approx(-1.0)
    assert abs(smoothness(noise).mean()) < 0.05
    assert np.isnan(smoothness(np.ones((1, 2, 3, 3)))).all(), "equal weights have no correlation"
    assert np.isnan(smoothness(np.ones((1, 2, 1, 1)))).all()


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 5), nn.Conv3d(1, 2, 3), nn.Conv2d(8, 8, 3, groups=8)])
def test_any_dimension_and_grouping(layer: nn.Module) -> None:
    record = inspect.kernels(nn.Sequential(layer))
    assert record.arrays["0"].data.shape[2:] == layer.kernel_size


def test_weights_that_are_no_numbers_are_told_not_drawn() -> None:
    broken = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        broken.weight[0, 0, 1, 1] = float("nan")
    record = inspect.kernels(nn.Sequential(broken, nn.Conv2d(1, 1, 3)))
    assert record.uncovered[0] == {"target": "0", "reason": "1 weights are NaN or infinite"}
    assert [row["target"] for row in record.rows] == ["1:0"]


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"Received: Linear, which has none"):
        inspect.kernels(nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match=r'unknown convolution "conv2d_"\. Did you mean "conv2d"'):
        inspect.kernels(nn.Conv2d(1, 1, 1), layers=["conv2d_"])


def test_a_parametrised_weight_is_seen_as_it_acts_and_goes_without_its_past() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.Conv2d(2, 2, 3))
    record = inspect.kernels(net, before=net.state_dict())
    assert "1:before" in record.arrays and "0:before" not in record.arrays
    assert record.uncovered == [{"target": "0", "reason": "`before` has no '0.weight' of shape (2, 1, 3, 3)"}]
    first = net[0]
    assert isinstance(first, nn.Conv2d)
    assert np.array_equal(record.arrays["0"].data, first.weight.detach().numpy())


def test_what_is_not_shown_has_its_norm_and_every_shape_its_view() -> None:
    torch.manual_seed(0)
    views = {
        "0": (nn.Conv2d(3, 8, 5), "colour"),
        "1": (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        "2": (nn.Conv2d(8, 4, 1), "mixing"),
        "3": (nn.Conv2d(4, 3, 3), "slices"),
        "4": (nn.Conv3d(3, 2, 3), "volume"),
        "5": (nn.Conv1d(2, 2, 3), "curve"),
    }
    net = nn.Sequential(*[layer for layer, _ in views.values()])
    record = inspect.kernels(net, most_slices=2)
    assert {a: record.method["params"]["layers"][a]["view"] for a in views} == {a: v for a, (_, v) in views.items()}
    whole, shown = views["3"][0].weight.detach().numpy(), record.arrays["3"].data
    assert shown.shape[1] == 2
    for k in range(3):
        rest = np.delete(whole[k], record.arrays["3:slices"].data[k], axis=0)
        assert record.arrays["3:rest"].data[k] == pytest.approx(np.linalg.norm(rest), rel=1e-5)
    assert not record.arrays["1:rest"].data.any(), "depthwise kernels are shown whole"


def test_weights_of_another_training_are_told_apart() -> None:
    torch.manual_seed(0)
    net, other = (nn.Sequential(nn.Conv2d(3, 32, 5), nn.Conv2d(32, 32, 3)) for _ in range(2))
    near = {name: value + 0.01 * torch.randn_like(value) for name, value in net.state_dict().items()}
    assert not inspect.kernels(net, before=near).uncovered
    (found,) = inspect.kernels(net, before=other.state_dict()).uncovered
    assert found["target"] == "before" and "of one run?" in found["reason"]
