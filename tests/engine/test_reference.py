"""The definition obeys the laws of convolution and agrees with torch in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from hubel.engine import reference
from hubel.engine.spec import ConvSpec
from hubel.errors import SpecError
from tests.strategies import KINDS, LAYOUTS, integers, layouts, seeds, specs

CONV = (F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

# The loops run several times in most laws here.
small = specs(macs=1500)


def arrays(spec: ConvSpec, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, w, b and dy of small integers."""
    shapes = spec.input_shape, spec.weight_shape, (spec.out_channels,), spec.output_shape
    x, w, b, dy = (integers(shape, seed + place) for place, shape in enumerate(shapes))
    return x, w, b, dy


# --- laws


@given(small, seeds())
def test_forward_is_linear_in_the_input(spec: ConvSpec, seed: int) -> None:
    x, w, _, _ = arrays(spec, seed)
    other = integers(spec.input_shape, seed + 9)
    together = reference.forward(spec, 2 * x - 3 * other, w)
    assert np.array_equal(together, 2 * reference.forward(spec, x, w) - 3 * reference.forward(spec, other, w))


@given(small, seeds())
def test_forward_is_linear_in_the_weights(spec: ConvSpec, seed: int) -> None:
    x, w, _, _ = arrays(spec, seed)
    other = integers(spec.weight_shape, seed + 9)
    together = reference.forward(spec, x, 2 * w - 3 * other)
    assert np.array_equal(together, 2 * reference.forward(spec, x, w) - 3 * reference.forward(spec, x, other))


@given(small, seeds())
def test_the_bias_is_added_once_an_output(spec: ConvSpec, seed: int) -> None:
    x, w, b, _ = arrays(spec, seed)
    column = b.reshape(-1, *(1,) * spec.ndim)
    assert np.array_equal(reference.forward(spec, x, w, b), reference.forward(spec, x, w) + column)


@given(specs(kinds=["depthwise"]), seeds())
def test_a_delta_kernel_samples_the_input(spec: ConvSpec, seed: int) -> None:
    spec = dataclasses.replace(spec, out_channels=spec.in_channels, padding=(0,) * spec.ndim, input_size=_room(spec))
    x = integers(spec.input_shape, seed)
    w = np.zeros(spec.weight_shape)
    centre = tuple(k // 2 for k in spec.kernel_size)
    w[:, 0, *centre] = 1
    seen = tuple(
        slice(c * d, c * d + (o - 1) * s + 1, s)
        for c, d, o, s in zip(centre, spec.dilation, spec.output_size, spec.stride, strict=True)
    )
    assert np.array_equal(reference.forward(spec, x, w), x[:, :, *seen])


def _room(spec: ConvSpec) -> tuple[int, ...]:
    """The input size that has the padding of `spec` inside it."""
    return tuple(i + 2 * p for i, p in zip(spec.input_size, spec.padding, strict=True))


@given(small, seeds())
def test_padding_is_a_frame_of_zeros(spec: ConvSpec, seed: int) -> None:
    x, w, b, _ = arrays(spec, seed)
    framed = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in spec.padding)])
    bare = dataclasses.replace(spec, padding=(0,) * spec.ndim, input_size=_room(spec))
    assert np.array_equal(reference.forward(spec, x, w, b), reference.forward(bare, framed, w, b))


@given(specs(kinds=["grouped", "depthwise"], macs=1500), seeds())
def test_groups_are_a_concatenation(spec: ConvSpec, seed: int) -> None:
    x, w, b, _ = arrays(spec, seed)
    C, O = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    one = dataclasses.replace(spec, in_channels=C, out_channels=O, groups=1)
    parts = [
        reference.forward(one, x[:, g * C : g * C + C], w[g * O : g * O + O], b[g * O : g * O + O])
        for g in range(spec.groups)
    ]
    assert np.array_equal(reference.forward(spec, x, w, b), np.concatenate(parts, axis=1))


@given(small, seeds())
def test_gradients_are_adjoint_to_forward(spec: ConvSpec, seed: int) -> None:
    x, w, b, dy = arrays(spec, seed)
    inner = np.sum(reference.forward(spec, x, w) * dy)
    assert np.sum(x * reference.input_gradient(spec, dy, w)) == inner
    assert np.sum(w * reference.weight_gradient(spec, x, dy)) == inner
    with_bias = np.sum(reference.forward(spec, x, w, b) * dy)
    assert np.sum(b * reference.bias_gradient(dy)) == with_bias - inner


@given(specs(batches=[3], macs=1500), seeds())
def test_images_do_not_meet(spec: ConvSpec, seed: int) -> None:
    x, w, b, dy = arrays(spec, seed)
    alone = dataclasses.replace(spec, batch=1)
    y = [reference.forward(alone, x[n : n + 1], w, b) for n in range(3)]
    dw = [reference.weight_gradient(alone, x[n : n + 1], dy[n : n + 1]) for n in range(3)]
    assert np.array_equal(reference.forward(spec, x, w, b), np.concatenate(y))
    assert np.array_equal(reference.weight_gradient(spec, x, dy), sum(dw))


# --- torch


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind: str) -> None:
    @given(specs(kinds=[kind]), seeds())
    def agrees(spec: ConvSpec, seed: int) -> None:
        x, w, b, dy = (array.astype(np.float64) for array in arrays(spec, seed))
        tx, tw, tb = (torch.from_numpy(array).requires_grad_() for array in (x, w, b))
        ty = CONV[spec.ndim - 1](tx, tw, tb, spec.stride, spec.padding, spec.dilation, spec.groups)
        dx, dw, db = torch.autograd.grad(ty, (tx, tw, tb), torch.from_numpy(dy))
        assert np.array_equal(reference.forward(spec, x, w, b), ty.detach().numpy())
        assert np.array_equal(reference.input_gradient(spec, dy, w), dx.numpy())
        assert np.array_equal(reference.weight_gradient(spec, x, dy), dw.numpy())
        assert np.array_equal(reference.bias_gradient(dy), db.numpy())

    agrees()


def test_agrees_with_torch_on_real_numbers() -> None:
    spec = ConvSpec.parse("n2c6o4i9x7k3x2s2x1p1d1x2g2")
    x, w = (np.random.default_rng(0).standard_normal(shape) for shape in (spec.input_shape, spec.weight_shape))
    y = F.conv2d(torch.from_numpy(x), torch.from_numpy(w), None, spec.stride, spec.padding, spec.dilation, spec.groups)
    np.testing.assert_allclose(reference.forward(spec, x, w), y.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "extra", "dilation", "groups"),
    [
        ((5,), 3, 2, 1, 1, 1, 1),
        ((3, 4), 3, 2, 0, (0, 1), 1, 2),
        ((4, 4), 2, 2, 0, 0, 1, 1),
        ((3, 3), 3, 1, 1, 0, 2, 1),
        ((2, 3, 2), (1, 2, 3), (1, 3, 2), (0, 0, 1), (0, 2, 1), 1, 1),
    ],
)
def test_the_input_gradient_is_the_transposed_convolution(
    size: tuple, kernel: int, stride: int, padding: int, extra: int, dilation: int, groups: int
) -> None:
    spec = ConvSpec.for_transposed(2, 4, 6, size, kernel, stride, padding, extra, dilation, groups)
    _, w, _, dy = (torch.from_numpy(array.astype(np.float64)) for array in arrays(spec, 0))
    y = CONV_TRANSPOSE[spec.ndim - 1](dy, w, None, stride, padding, extra, groups, dilation)
    assert np.array_equal(reference.input_gradient(spec, dy.numpy(), w.numpy()), y.numpy())


# --- arrays


@given(small, seeds(), layouts(), layouts(), layouts())
def test_layout_does_not_matter(spec: ConvSpec, seed: int, of_x: str, of_w: str, of_dy: str) -> None:
    x, w = integers(spec.input_shape, seed, of_x), integers(spec.weight_shape, seed + 1, of_w)
    dy = integers(spec.output_shape, seed + 2, of_dy)
    plain = [np.ascontiguousarray(array) for array in (x, w, dy)]
    assert np.array_equal(reference.forward(spec, x, w), reference.forward(spec, plain[0], plain[1]))
    assert np.array_equal(reference.input_gradient(spec, dy, w), reference.input_gradient(spec, plain[2], plain[1]))
    assert np.array_equal(reference.weight_gradient(spec, x, dy), reference.weight_gradient(spec, plain[0], plain[2]))


def test_an_empty_batch_has_zero_gradients() -> None:
    spec = ConvSpec(0, 2, 3, (4, 4), 3)
    x, w, b, dy = arrays(spec, 0)
    assert reference.forward(spec, x, w, b).shape == (0, 3, 2, 2)
    assert reference.input_gradient(spec, dy, w).shape == (0, 2, 4, 4)
    assert np.array_equal(reference.weight_gradient(spec, x, dy), np.zeros((3, 2, 3, 3)))
    assert np.array_equal(reference.bias_gradient(dy), np.zeros(3))


def test_results_are_contiguous_float64() -> None:
    spec = ConvSpec(1, 2, 3, (4, 4), 3)
    x, w, b, dy = arrays(spec, 0)
    for result in (
        reference.forward(spec, x, w, b),
        reference.input_gradient(spec, dy, w),
        reference.weight_gradient(spec, x, dy),
        reference.bias_gradient(dy),
    ):
        assert result.dtype == np.float64
        assert result.flags.c_contiguous


def test_wrong_shapes_are_named() -> None:
    spec = ConvSpec(1, 2, 3, (4, 4), 3)
    x, w, b, dy = arrays(spec, 0)
    with pytest.raises(SpecError, match=r"the input must have .*\(1, 2, 4\) instead of \(1, 2, 4, 4\)"):
        reference.forward(spec, x[..., 0], w)
    with pytest.raises(SpecError, match=r"the bias must have .*\(2,\) instead of \(3,\)"):
        reference.forward(spec, x, w, b[:2])
    with pytest.raises(SpecError, match="the weights must have"):
        reference.input_gradient(spec, dy, w[:1])
    with pytest.raises(SpecError, match="the output gradient must have"):
        reference.weight_gradient(spec, x, x)


# --- the arrays that tests run on


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_show_integers_in_memory_of_nan(layout: str) -> None:
    shape = (2, 3, 4, 5)
    array = integers(shape, 1, layout)
    assert array.shape == shape
    assert np.array_equal(array, np.round(array))
    assert (
        torch.from_numpy(array).stride()
        == {
            "contiguous": (60, 20, 5, 1),
            "channels_last": (60, 1, 15, 3),
            "transposed": (1, 2, 6, 24),
            "sliced": (960, 160, 20, 2),
            "window": (336, 56, 8, 1),
            "expanded_batch": (0, 20, 5, 1),
            "expanded_channels": (20, 0, 5, 1),
            "expanded_all": (0, 0, 0, 0),
        }[layout]
    )
