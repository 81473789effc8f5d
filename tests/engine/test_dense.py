"""Fully connected layers of training steps against float64: ragged sizes, every tile, nothing beside is touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hubel.engine.between import Work, dense_input_gradient, dense_outputs, dense_weight_gradient
from hubel.engine.between import dense as module
from hubel.engine.between.dense import dots_function, fits, inputs_function, tile_of, weights_function
from hubel.engine.between.work import work
from hubel.engine.compile import emit_assembly
from hubel.engine.ir import Function, module_text
from hubel.engine.machine import MACHINES, Machine
from hubel.engine.threads import Block, launch
from tests.engine.fences import Fenced
from tests.engine.test_generated_code import SPILLED_VECTOR, arithmetic_loops, multiply_adds

LANES = Machine.detect().lanes
# (rows, inputs, outputs): one tile and less, ends of every kind, more than one stretch, block, strip and item.
SIZES = [
    (1, 8 * LANES, 8), (2, 8 * LANES + 1, 9), (3, 300, 33), (5, 1031, 37), (6, 257, 64), (7, 512, 257), (16, 2500, 70),
    (17, 1024, 515), (33, 640, 100), (64, 1283, 31),
]  # fmt: skip


def operands(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, ...]:
    """x, w, bias and dy."""
    draw = np.random.default_rng(rows + inputs + outputs)
    shapes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    return tuple(draw.standard_normal(shape).astype(np.float32) for shape in shapes)


def run(work: Work, p0: int, p1: int, p2: int, p3: int, threads: int = 2) -> None:
    block = Block(work.jobs, work.keep)
    launch(block.address, p0, p1, p2, p3, threads, work.shared_bytes, work.scratch_bytes, 0)


def three(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, dy: np.ndarray, threads: int = 2) -> list[np.ndarray]:
    """y, dx and dw by the kernels."""
    rows, inputs, outputs = *x.shape, len(w)
    y, dx, dw = np.full_like(dy, 7), np.full_like(x, 7), aligned(w.shape)
    at = [a.ctypes.data for a in (x, w, dy, y, dx, dw)]
    bias_at = 0 if bias is None else bias.ctypes.data
    run(dense_outputs(rows, inputs, outputs, bias is not None), at[0], at[1], bias_at, at[3], threads)
    run(dense_input_gradient(rows, inputs, outputs), at[2], at[1], 0, at[4], threads)
    run(dense_weight_gradient(rows, inputs, outputs), at[2], at[0], 0, at[5], threads)
    return [y, dx, dw]


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    memory = np.full(count + 16, 7, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    return memory[start : start + count].reshape(shape)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
def test_against_float64(size: tuple[int, int, int], with_bias: bool) -> None:
    x, w, bias, dy = operands(*size)
    y, dx, dw = three(x, w, bias if with_bias else None, dy)
    xd, wd, dyd = (a.astype(np.float64) for a in (x, w, dy))
    for ours, exact in ((y, xd @ wd.T + bias * with_bias), (dx, dyd @ wd), (dw, dyd.T @ xd)):
        assert np.linalg.norm(ours - exact) <= 2e-6 * np.linalg.norm(exact)


def test_a_gradient_larger_than_the_caches_goes_past_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small, made = replace(Machine.detect(), l3=2**20), []

    def spy(name: str, *rest: Any, **more: Any) -> Work:
        made.append(name)
        return work(name, *rest, **more)

    monkeypatch.setattr(module, "Machine", SimpleNamespace(detect=lambda: small))
    monkeypatch.setattr(module, "work", spy)
    x, w, _, dy = operands(3, 4096, 88)
    dw = aligned(w.shape)
    run(dense_weight_gradient(3, 4096, 88), dy.ctypes.data, x.ctypes.data, 0, dw.ctypes.data)
    np.testing.assert_allclose(dw, dy.T @ x, rtol=1e-5, atol=1e-5)
    assert [name[-1] for name in made] == ["p"]
    past, plain = (module_text(weights_function(4, 2, way, LANES), LANES) for way in (True, False))
    assert "!nontemporal" in past and "!nontemporal" not in plain


def test_the_same_bits_on_any_number_of_threads() -> None:
    x, w, bias, dy = operands(16, 2500, 515)
    for one, other in zip(three(x, w, bias, dy, 1), three(x, w, bias, dy, 2), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "beginning"])
@pytest.mark.parametrize("size", [SIZES[1], SIZES[3], SIZES[5]], ids=str)
def test_no_memory_beside_the_tensors_is_touched(size: tuple[int, int, int], at_end: bool) -> None:
    x, w, bias, dy = operands(*size)
    read = [Fenced(a, at_end).read_only() for a in (x, w, bias, dy)]
    fx, fw, fb, fdy = (a.address for a in read)
    y, dx, dw = (Fenced(a, at_end) for a in (dy, x, w))
    run(dense_outputs(*size, True), fx, fw, fb, y.address)
    run(dense_input_gradient(*size), fdy, fw, 0, dx.address)
    run(dense_weight_gradient(*size), fdy, fx, 0, dw.address)


def test_nan_goes_where_it_belongs() -> None:
    x, w, bias, dy = operands(5, 300, 33)
    x[2, 299] = np.nan
    w[7, 5] = np.inf
    y, dx, dw = three(x, w, bias, dy)
    assert np.isnan(y[2]).all() and np.isfinite(np.delete(np.delete(y, 2, 0), 7, 1)).all()
    assert not np.isfinite(dx[:, 5]).any() and np.isfinite(np.delete(dx, 5, 1)).all()
    assert np.isnan(dw[:, 299]).all() and np.isfinite(dw[:, :299]).all()


def test_small_layers_are_left_to_others() -> None:
    assert fits(16, 4096, 1000) and fits(1, 8 * LANES, 8)
    assert not fits(16, 8 * LANES - 1, 1000) and not fits(16, 4096, 7) and not fits(0, 4096, 1000)


KERNELS: dict[str, Callable[[int, int, int], Function]] = {
    "dots": lambda height, vectors, lanes: dots_function(height, vectors, 1, True, lanes),
    "inputs": inputs_function,
    "weights": lambda height, vectors, lanes: weights_function(height, vectors, True, lanes),
}


@pytest.mark.parametrize("name", ["haswell", "zen3", "skylake-avx512", "neoverse-n1"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_inner_loops_on_named_machines(kernel: str, name: str) -> None:
    machine = MACHINES[name]
    lanes = machine.lanes
    for rows in (2, 16, 64):
        height, vectors = tile_of(rows, machine.registers, 16 // lanes if kernel == "weights" else 1)
        text = emit_assembly(module_text(KERNELS[kernel](height, vectors, lanes), lanes), machine)
        loops = arithmetic_loops(text, lanes)
        assert any(multiply_adds(loop, lanes) % (height * vectors) == 0 for loop in loops), text
        assert not [line for loop in loops for line in loop if re.search(SPILLED_VECTOR, line)], text
