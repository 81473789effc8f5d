"""Kernels between convolutions against their definitions in numpy: ragged sizes, strides, broadcasting, NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hubel.engine.between import Windows, Work, layer_normed, mapped, pooled, softmaxed
from hubel.engine.between.maps import merged
from hubel.engine.threads import Block, launch
from hubel.errors import UnsupportedError

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def steps(x: np.ndarray) -> tuple[int, ...]:
    return tuple(s // 4 for s in x.strides)


def run(work: Work, *operands: np.ndarray | None, out: np.ndarray, threads: int = 1) -> None:
    pointers = [0 if a is None else a.ctypes.data for a in operands] + [0] * (3 - len(operands))
    block = Block(work.jobs, work.keep)
    p0, p1, p2 = pointers
    launch(block.address, p0, p1, p2, out.ctypes.data, threads, work.shared_bytes, work.scratch_bytes, 0)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "copy": lambda a: a, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "maximum": np.maximum,
    "through_relu": lambda g, y: np.where(y <= 0, np.float32(0), g),
    "through_relu6": lambda g, y: np.where((y <= 0) | (y >= 6), np.float32(0), g),
    "affine": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 3, 1, 1), (1, 17), (1,), (2, 20_011), (0, 3)])
def test_whole_tensors(function: str, shape: tuple[int, ...]) -> None:
    count = {"copy": 1, "affine": 3}.get(function, 2)
    operands = [numbers(*shape) for _ in range(count)]
    out, wanted = np.full(shape, 7, np.float32), FUNCTIONS[function](*operands)
    run(mapped(function, shape, steps(out), *map(steps, operands)), *operands, out=out, threads=2)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (5, 1, 9), (2, 1, 7, 1), (), (1, 1, 1, 9)])
def test_operands_are_broadcast(shape: tuple[int, ...]) -> None:
    x, small = numbers(2, 5, 7, 9), numbers(*shape)
    wide = np.broadcast_to(small, x.shape)
    out = np.empty_like(x)
    run(mapped("mul", x.shape, steps(out), steps(x), steps(wide)), x, small, out=out)
    np.testing.assert_array_equal(out, x * wide)


def test_any_strides_and_nothing_beside_them() -> None:
    room, source = np.full((3, 8, 6, 11), 7, np.float32), numbers(11, 3, 6, 5)
    out, x = room[:, 2:7], source.transpose(1, 3, 2, 0)
    run(mapped("copy", out.shape, steps(out), steps(x)), source, out=out)
    np.testing.assert_array_equal(out, x)
    assert (room[:, :2] == 7).all() and (room[:, 7:] == 7).all()


def test_an_operand_may_be_the_output() -> None:
    x, y = numbers(3, 1000), numbers(3, 1000)
    wanted = np.maximum(x + y, 0)
    run(mapped("add", x.shape, steps(x), steps(x), steps(y), activation="relu"), x, y, out=x)
    np.testing.assert_array_equal(x, wanted)


def test_the_maximum_with_nan_is_nan() -> None:
    a, b = np.array([1, np.nan, 3, np.nan], np.float32), np.array([np.nan, 2, 4, np.nan], np.float32)
    out = np.empty(4, np.float32)
    run(mapped("maximum", (4,), (1,), (1,), (1,)), a, b, out=out)
    np.testing.assert_array_equal(out, np.maximum(a, b))


def test_axes_are_merged_where_all_step_alike() -> None:
    assert merged((2, 3, 4), [(12, 4, 1), (12, 4, 1)]).sizes == (24,)
    assert merged((2, 3, 4), [(12, 4, 1), (0, 1, 0)]).sizes == (2, 3, 4)
    assert merged((2, 3, 4, 5), [(60, 20, 5, 1), (0, 1, 0, 0)]).sizes == (2, 3, 20)
    assert merged((1, 1), [(1, 1)]).sizes == (1,)


def test_more_axes_than_a_kernel_walks_are_refused() -> None:
    strides = tuple(2**i for i in range(7))
    with pytest.raises(UnsupportedError, match="walks 6 axes. Received: shape .* Make the tensors contiguous"):
        mapped("copy", (2,) * 7, strides, tuple(reversed(strides)))


POOLS = [
    (2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 1, 1, 1, False), (3, 2, 0, 1, True), (2, 2, 1, 1, True),
    (3, 3, 1, 1, True), (3, 1, 1, 2, False), (5, 2, 2, 1, False), (2, 1, 0, 3, False), (1, 2, 0, 1, False),
]  # fmt: skip
SIZES = [(7, 9), (16, 16), (5, 33), (14, 21)]


def pooled_by_us(kind: str, x: np.ndarray, y: Windows, w: Windows, last: bool, divisor: int = 0) -> np.ndarray:
    n, c = x.shape[:2]
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        out = np.full((n, y.outputs, w.outputs, c), 7, np.float32).transpose(0, 3, 1, 2)
    else:
        out = np.full((n, c, y.outputs, w.outputs), 7, np.float32)
    run(pooled(kind, n, c, y, w, steps(x), steps(out), divisor), x, out=out, threads=2)
    return out


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_is_torchs(pool: tuple[int, int, int, int, bool], last: bool) -> None:
    kernel, step, pad, hole, ceil = pool
    for size in SIZES:
        x = numbers(2, 19, *size)
        if size[0] + 2 * pad < hole * (kernel - 1) + 1:
            continue
        x[0, 0, 1, 1] = np.nan
        y, w = (Windows.sliding(n, kernel, step, pad, hole, ceil) for n in size)
        wanted = F.max_pool2d(torch.from_numpy(x), kernel, step, pad, hole, ceil).numpy()
        np.testing.assert_array_equal(pooled_by_us("max", x, y, w, last), wanted)
        if hole > 1:
            continue
        for count_pad in (True, False):
            y, w = (Windows.sliding(n, kernel, step, pad, 1, ceil, count_pad) for n in size)
            wanted = F.avg_pool2d(torch.from_numpy(x), kernel, step, pad, ceil, count_pad).numpy()
            np.testing.assert_allclose(pooled_by_us("mean", x, y, w, last), wanted, rtol=2e-6, atol=1e-6)
        wanted = F.avg_pool2d(torch.from_numpy(x), kernel, step, pad, ceil, divisor_override=5).numpy()
        np.testing.assert_allclose(pooled_by_us("mean", x, y, w, last, 5), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("outputs", [(1, 1), (6, 6), (7, 3), (2, 16)])
def test_adaptive_pooling_is_torchs(outputs: tuple[int, int], last: bool) -> None:
    for size in SIZES:
        x = numbers(1, 21, *size)
        y, w = (Windows.adaptive(n, o) for n, o in zip(size, outputs, strict=True))
        wanted = F.adaptive_avg_pool2d(torch.from_numpy(x), outputs).numpy()
        np.testing.assert_allclose(pooled_by_us("mean", x, y, w, last), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, 3, 8, 50, 197])
def test_rows(length: int) -> None:
    x, w, b = numbers(5, length) * 3 + 1, numbers(length), numbers(length)
    out, double = np.empty_like(x), torch.from_numpy(x).double()
    for weight, bias in ((w, b), (w, None), (None, b), (None, None)):
        run(layer_normed(5, length, 1e-5, weight is not None, bias is not None), x, weight, bias, out=out)
        given = [None if v is None else torch.from_numpy(v).double() for v in (weight, bias)]
        wanted = F.layer_norm(double, (length,), *given, eps=1e-5).numpy()
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=2e-5)
    run(softmaxed(5, length), x, out=out)
    np.testing.assert_allclose(out, double.softmax(1).numpy(), rtol=2e-6)
    x[2, length // 2] = np.nan
    run(softmaxed(5, length), x, out=out)
    assert np.isnan(out[2]).all() and not np.isnan(out[[0, 1, 3, 4]]).any()
