"""Any image size, no recompiling: at most four kernels a layer and direction, compiled on first use, then nothing more.

Weights are packed once for several sizes too: a packed form is shared by all invocations with its key.
"""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hubel.engine import Invocation, Policy, choose, compile, invoke, prepare
from hubel.engine.cache import counters
from hubel.engine.machine import Machine
from hubel.engine.plan import error_unit, terms_of
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from tests.engine.guards import convolve, normal

# From a single pixel to several boxes of rows, odd ones, wide ones and tall ones.
SIZES = [(n, n) for n in range(1, 101)] + [(n, 3 * n + 1) for n in range(1, 51)] + [(5 * n, n) for n in range(1, 51)]
LAYERS = {
    "dense": {"in_channels": 40, "out_channels": 72, "kernel_size": 3, "padding": 1},
    "pointwise": {"in_channels": 64, "out_channels": 24, "kernel_size": 1},
    "depthwise": {"in_channels": 48, "out_channels": 48, "kernel_size": 3, "padding": 1, "groups": 48},
    "strided": {"in_channels": 3, "out_channels": 20, "kernel_size": 7, "padding": 3, "stride": 2},
}
SWEPT = ["dense", "depthwise", *(pytest.param(layer, marks=pytest.mark.slow) for layer in ("pointwise", "strided"))]
MEGABYTE = 2**20


def problem(layer: str, size: tuple[int, int], direction: Direction, batch: int = 1) -> Problem:
    return Problem(ConvSpec(batch, input_size=size, **LAYERS[layer]), direction, direction is Direction.WEIGHT_GRADIENT)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s // 4 for s in np.empty(shape, np.float32).strides)


def prepared(layer: str, size: tuple[int, int], direction: Direction, batch: int = 1) -> Invocation:
    made = problem(layer, size, direction, batch)
    spec = made.spec
    return prepare(made, strides(spec.input_shape), strides(spec.weight_shape), strides(spec.output_shape), Policy())


@pytest.fixture
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a new process with a new cache folder."""
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compile, "_libraries", {})
    invoke.prepare.cache_clear()
    yield
    invoke.prepare.cache_clear()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", SWEPT)
@pytest.mark.usefixtures("empty_caches")
def test_two_hundred_sizes(layer: str, direction: Direction) -> None:
    assert len(set(SIZES)) == 200 - len([n for n in range(1, 51) if (n, n) == (5 * n, n)])
    before = counters.compiled, counters.loaded
    kernels = {prepared(layer, size, direction).plan.kernel_key for size in SIZES}
    assert 1 <= len(kernels) <= 4
    # Beside each kernel that convolves, the small ones that serve it: packing, adding partial sums, the bias gradient.
    compiled = counters.compiled - before[0]
    assert compiled <= 2 * len(kernels) + (direction is Direction.WEIGHT_GRADIENT)
    assert counters.loaded == before[1]

    invoke.prepare.cache_clear()
    for size in SIZES:
        prepared(layer, size, direction)
    assert counters.compiled == before[0] + compiled
    assert counters.loaded == before[1]


@pytest.mark.parametrize("name", ["haswell", "skylake-avx512", "neoverse-n1"])
def test_at_most_four_kernels_on_any_machine(name: str) -> None:
    for layer in LAYERS:
        for direction in Direction:
            plans = [choose(problem(layer, size, direction), Machine.named(name), Policy()) for size in SIZES[::12]]
            kernels = {plan.kernel_key for plan in plans}
            assert len(kernels) <= 4, f"{layer} {direction}: {sorted(kernels)}"


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.usefixtures("empty_caches")
def test_batches_share_the_kernels(direction: Direction) -> None:
    """Batch sizes are arguments too."""
    kernels = {prepared("dense", size, direction, n).plan.kernel_key for size in SIZES[::10] for n in (1, 2, 7, 64)}
    assert len(kernels) <= 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell resident memory")
@pytest.mark.usefixtures("empty_caches")
def test_memory_does_not_grow() -> None:
    """What two passes over 200 sizes leave behind, for one layer in all directions: the prepared calls, and no more."""

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for direction in Direction:
        for size in SIZES[::20]:
            prepared("dense", size, direction)
    before = resident()
    for _ in range(2):
        for direction in Direction:
            for size in SIZES:
                prepared("dense", size, direction)
    grown = resident() - before
    assert grown < 10 * MEGABYTE, f"{grown / MEGABYTE:.1f} MB"


@pytest.mark.usefixtures("empty_caches")
def test_memory_does_not_grow_from_pass_to_pass() -> None:
    sizes = SIZES[::10]

    def run() -> None:
        for size in sizes:
            made = problem("strided", size, Direction.FORWARD)
            x, w, _, _ = normal(made.spec)
            convolve(made, x, w, policy=Policy())
        gc.collect()

    run()
    tracemalloc.start()
    try:
        run()
        start = tracemalloc.get_traced_memory()[0]
        run()
        grown = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    # The scratch arena is of the last size in all passes.
    assert grown < MEGABYTE / 4, f"{grown / MEGABYTE:.2f} MB"


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.INPUT_GRADIENT])
def test_equal_packing_keys_mean_equal_packed_weights(direction: Direction) -> None:
    """Packed at one size, used at another."""
    forms: dict[object, np.ndarray] = {}
    w = normal(problem("dense", (8, 8), direction).spec)[1]
    for size in SIZES[::8]:
        run = prepared("dense", size, direction)
        packed = np.full(run.packed_bytes // 4, np.nan, np.float32)
        run.pack(w.ctypes.data, packed.ctypes.data)
        assert not np.isnan(packed).any()
        assert np.array_equal(forms.setdefault(run.packing_key, packed), packed)
    assert len(forms) <= 4


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_size_is_right(layer: str, direction: Direction) -> None:
    for size in SIZES[::25]:
        made = problem(layer, size, direction)
        spec = made.spec
        x, w, _, dy = normal(spec)
        a, b = {"forward": (x, w), "input_gradient": (dy, w), "weight_gradient": (x, dy)}[direction]
        out, _ = convolve(made, a, b)
        u = error_unit(terms_of(made))
        wide = [torch.from_numpy(array).double() for array in (dy, x, w)]
        how = spec.stride, spec.padding, spec.dilation, False, [0, 0], spec.groups
        if direction is Direction.FORWARD:
            ref = torch.convolution(*wide[1:], None, *how)
        else:
            mask = direction is Direction.INPUT_GRADIENT, direction is Direction.WEIGHT_GRADIENT, False
            ref = torch.ops.aten.convolution_backward(*wide, None, *how, mask)[not mask[0]]
        # Single numbers may cancel.
        limit = 2 * u if out.size > 20 else 20 * u
        assert np.linalg.norm(out - ref.numpy()) <= limit * np.linalg.norm(ref.numpy()), f"{size}"
