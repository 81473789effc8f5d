"""Windows: position j·step + shift of the input lies at scratch[phase(shift)][j + advance(shift)], or a zero."""

from __future__ import annotations

from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubel.engine.algorithms.geometry import Sum, sums
from hubel.engine.ir import pointer_to
from hubel.engine.ir.window import fill_window_function
from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.engine.tables import Tables
from hubel.engine.window import Axis, Window
from tests.engine.calls import LANES, native
from tests.engine.guards import CANARY
from tests.engine.stored import narrow
from tests.strategies import integers, layouts, seeds, specs

GUARD = 256


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Any axis of a forward convolution: shifts t·dilation − padding."""
    step, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 6))
    shifts = tuple(t * dilation - padding for t in range(draw(st.integers(1, 6))))
    return Axis(draw(st.integers(1, 30)), draw(st.integers(1, 12)), step, shifts)


@given(axes())
def test_every_shift_has_a_place(axis: Axis) -> None:
    """Place p of a phase holds position p·step + start of the input, with start from the axis's table."""
    table = axis.table()
    assert len(table) == 3 * len(axis.phases)
    for shift, j in product(axis.shifts, range(axis.outputs)):
        phase, advance = axis.place(shift)
        assert 0 <= advance <= axis.reach
        start, first, last = table[3 * phase : 3 * phase + 3]
        position = (j + advance) * axis.step + start
        assert position == j * axis.step + shift
        assert (first <= j + advance < last) == (0 <= position < axis.size)


@given(axes(), axes(), axes(), st.data())
def test_no_two_rows_of_data_meet(z: Axis, y: Axis, x: Axis, data: st.DataObject) -> None:
    """A row may share its zeros with the next one, never its data."""
    box = tuple(data.draw(st.integers(1, axis.outputs)) for axis in (z, y, x))
    window = Window((z, y, x), (box[0], box[1], x.outputs), lanes=8)
    assert window.pitch_y >= min(window.valid[2], max(x.table()[2::3]))
    assert window.pitch_z >= (window.rows - 1) * window.pitch_y + window.valid[2]
    assert window.pitch_phase >= window.images * window.planes * window.pitch_z
    phases = prod(len(axis.phases) for axis in window.axes)
    assert window.pitch_c >= phases * window.pitch_phase
    assert min(window.offsets()) >= 0
    assert max(window.offsets()) + (box[0] - 1) * window.pitch_z + window.flat <= window.pitch_c


@pytest.mark.parametrize("size", [62, 126, 30, 14, 254])
def test_channels_do_not_fall_into_one_set_of_the_cache(size: int) -> None:
    """4 KiB apart, all channels of a pixel would."""
    axis = Axis(size, size, 1, (-1, 0, 1))
    for box in range(1, size, 5):
        pitch = Window((Axis(1, 1), axis, axis), (1, box, size)).pitch_c
        assert 16 <= pitch % 1024 <= 1008


@cache
def fill(lanes: int, dtype: str):
    return native(fill_window_function(lanes, pointer_to(dtype)), lanes)


def check(part: Sum, box: tuple[int, int, int], x: np.ndarray, lanes: int, dtype: str = "float32") -> None:
    """Fill the window of every box of one image's channels, and look up what each output reads.

    dtype: how x is stored.
    """
    window = Window(part.axes, box, lanes=lanes)
    strides = tuple(s // 4 for s in x.strides)
    tables = Tables()
    addresses = [tables.add(axis.table()) for axis in part.axes]
    words = np.array(window.words(strides, tuple(addresses)), np.int64)  # type: ignore[arg-type]
    keep = tables.keep()
    offsets = window.offsets()
    channels, source = x.shape[0], x
    if dtype != "float32":
        source = np.empty_like(x, np.uint16)
        source[...] = narrow(x, dtype)
        assert [2 * step for step in source.strides] == [*x.strides]
    for origin in product(*(range(0, o, b) for o, b in zip(part.outputs, box, strict=True))):
        memory = np.full(GUARD + channels * window.pitch_c + GUARD, CANARY, np.uint32)
        scratch = memory.view(np.float32)[GUARD:]
        z, y, x_at = origin
        fill(lanes, dtype)(target=scratch, source=source, window=words, channels=channels, z=z, y=y, x=x_at)
        assert (memory[:GUARD] == CANARY).all(), "written before the window"
        assert (memory[-GUARD:] == CANARY).all(), "written behind the window"
        size = [min(b, o - at) for b, o, at in zip(box, part.outputs, origin, strict=True)]
        for (jz, jy, jx), c in product(np.ndindex(*size), range(channels)):
            at = c * window.pitch_c + jz * window.pitch_z + jy * window.pitch_y + jx
            read = [scratch[at + offset] for offset in offsets]
            expected = [_input(part, x[c], shifts, (jz + z, jy + y, jx + x_at)) for shifts in _shifts(part)]
            assert read == expected, f"output {origin} + {(jz, jy, jx)}, channel {c}"
    del keep


def _shifts(part: Sum) -> list[tuple[int, ...]]:
    """In the order of the kernel's elements."""
    return list(product(*(axis.shifts for axis in part.axes)))


def _input(part: Sum, x: np.ndarray, shifts: tuple[int, ...], j: tuple[int, ...]) -> float:
    at = tuple(a * axis.step + shift for a, axis, shift in zip(j, part.axes, shifts, strict=True))
    return float(x[at]) if all(0 <= i < n for i, n in zip(at, x.shape, strict=True)) else 0.0


def volume(part: Sum, channels: int, seed: int, layout: str) -> np.ndarray:
    """(channels, z, y, x) of small integers: what the windows of one image are filled from."""
    return integers((1, channels, *(axis.size for axis in part.axes)), seed, layout)[0]


@settings(max_examples=100)
@given(
    specs(kinds=["dense"], batches=[1], macs=400),
    st.sampled_from([Direction.FORWARD, Direction.INPUT_GRADIENT]),
    seeds(),
    layouts(),
    st.sampled_from(LANES),
    st.data(),
)
def test_every_output_finds_what_it_reads(
    spec: ConvSpec, direction: Direction, seed: int, layout: str, lanes: int, data: st.DataObject
) -> None:
    for part in sums(Problem(spec, direction)):
        if not part.tap_count:
            continue
        z, y, x = part.outputs
        # As plans cut: whole rows, or one row in pieces.
        box = (data.draw(st.integers(1, z)), data.draw(st.integers(1, y)), x)
        if z * y == 1:
            box = (1, 1, data.draw(st.integers(1, x)))
        # Four channels and more, side by side, are turned.
        check(part, box, volume(part, data.draw(st.sampled_from([1, 2, 5])), seed, layout), lanes)


HARD = [
    "n1c2o1i7x9k3x3s2p1",
    "n1c2o1i1x1k5x5s1p2",
    "n1c1o1i9x40k3x3s1p1",
    "n1c1o1i3x4x5k3x3x3s2x1x3p1",
    "n1c2o1i40k4s3p2d3",
    "n1c1o1i9x9k2x2s4p0",
    "n1c1o1i4x35k3x3s1p0x1d1x16",
    "n1c1o1i2x2k2x2s1p2",
]  # fmt: skip


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("text", HARD)
def test_hard_windows(text: str, lanes: int) -> None:
    for direction in (Direction.FORWARD, Direction.INPUT_GRADIENT):
        for part in sums(Problem(ConvSpec.parse(text), direction)):
            if part.tap_count:
                z, y, x = part.outputs
                for box in {(z, y, x), (1, max(1, y // 2), x), (1, 1, x)}:
                    for channels, layout in ((2, "contiguous"), (4, "channels_last"), (7, "channels_last")):
                        check(part, box, volume(part, channels, 0, layout), lanes)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_windows_of_16_bits(dtype: str, lanes: int) -> None:
    """Copied where pixels are side by side, turned where channels are."""
    for part in sums(Problem(ConvSpec.parse("n1c2o1i7x40k3x3s2p1"), Direction.INPUT_GRADIENT)):
        for channels, layout in ((2, "contiguous"), (4, "channels_last"), (7, "channels_last")):
            check(part, part.outputs, volume(part, channels, 0, layout), lanes, dtype)


# --- the sums that windows serve


@given(specs())
def test_input_gradients_write_every_pixel_once(spec: ConvSpec) -> None:
    written = np.zeros([1] * (3 - spec.ndim) + list(spec.input_size), int)
    for part in sums(Problem(spec, Direction.INPUT_GRADIENT)):
        places = tuple(
            slice(start, start + (n - 1) * step + 1, step)
            for start, step, n in zip(part.out_start, part.out_step, part.outputs, strict=True)
        )
        written[places] += 1
    assert (written == 1).all()


@given(specs())
def test_every_tap_takes_part_once(spec: ConvSpec) -> None:
    for direction in (Direction.FORWARD, Direction.INPUT_GRADIENT):
        met = np.zeros([1] * (3 - spec.ndim) + list(spec.kernel_size), int)
        for part in sums(Problem(spec, direction)):
            met[np.ix_(*part.taps)] += 1
        # Pixels fewer than the stride leave taps of an input gradient without a pixel to meet.
        whole = direction is Direction.FORWARD or all(i >= s for i, s in zip(spec.input_size, spec.stride, strict=True))
        assert (met == 1).all() if whole else (met <= 1).all()


def test_machine_lanes_are_tested() -> None:
    assert Machine.detect().lanes in LANES
