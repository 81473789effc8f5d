"""Numbers stored in 16 bits: loads widen every bit pattern, stores round as the definition says, all in vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hubel.engine.compile import emit_assembly
from hubel.engine.ir import F32, I64, PTR, Function, module_text, pointer_to, vector_of
from hubel.engine.machine import Machine
from tests.engine.calls import LANES, native
from tests.engine.stored import narrow, widen

NARROW = ("bfloat16", "float16")
EVERY = np.arange(65536, dtype=np.uint16)


def copy(source: str, target: str, lanes: int, masked: bool = False) -> Function:
    """copy(target, source, count): whole vectors and single numbers behind them, or the last vector under a mask."""
    f = Function("copy", [("target", pointer_to(target)), ("source", pointer_to(source)), ("count", I64)])
    count = f.arg("count")
    whole = count // lanes * lanes
    with f.loop("i", 0, whole, lanes) as i:
        f.store(f.load(f.arg("source") + i.index, vector_of(lanes)), f.arg("target") + i.index)
    if masked:
        mask = f.lanes_below(count - whole, lanes)
        f.store_masked(f.load_masked(f.arg("source") + whole, mask, lanes), f.arg("target") + whole, mask)
    else:
        with f.loop("i", whole, count) as i:
            f.store(f.load(f.arg("source") + i.index, F32), f.arg("target") + i.index)
    f.ret()
    return f


def interesting() -> np.ndarray:
    """float32 numbers: random bits, ties and their neighbours, limits, both zeros, infinities, NaN of all kinds."""
    bits = np.random.default_rng(0).integers(0, 2**32, 40_000, dtype=np.uint64).astype(np.uint32)
    near = (EVERY[::7].astype(np.uint32) << 16)[:, None] + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    special = np.array(
        [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x7F800000, 0, 0x80000000], np.uint32
    )
    return np.concatenate([bits, near.ravel(), ties.view(np.uint32), special]).view(np.float32)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_loads_widen_every_number(dtype: str, masked: bool, lanes: int) -> None:
    run = native(copy(dtype, "float32", lanes, masked), lanes)
    for count in (EVERY.size, lanes - 1, 1, 0):
        out = np.full(EVERY.size + 1, 7, np.float32)
        run(target=out, source=EVERY, count=count)
        np.testing.assert_array_equal(out[:count], widen(EVERY[:count], dtype))
        assert (out[count:] == 7).all()


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_stores_round_to_nearest_even(dtype: str, masked: bool, lanes: int) -> None:
    values = interesting()
    run = native(copy("float32", dtype, lanes, masked), lanes)
    for count in (values.size, lanes - 1, 1, 0):
        out = np.full(values.size + 1, 7, np.uint16)
        run(target=out, source=values, count=count)
        wanted = narrow(values[:count], dtype)
        nan = np.isnan(values[:count])
        np.testing.assert_array_equal(out[:count][~nan], wanted[~nan])
        assert np.isnan(widen(out[:count], dtype)[nan]).all()
        assert (out[count:] == 7).all()


def test_pointers_do_not_mix() -> None:
    """A pointer to one kind of number, given where another is expected, is found when the kernel is written."""
    callee = Function("callee", [("x", PTR)], private=True)
    f = Function("f", [("x", pointer_to("bfloat16")), ("y", PTR), ("n", I64)])
    with pytest.raises(ValueError, match="x of callee points to float32, but was given a pointer to bfloat16"):
        f.call(callee, f.arg("x") + 1)
    with pytest.raises(ValueError, match="points to"):
        f.select(f.arg("n") > 0, f.arg("x"), f.arg("y"))


@pytest.mark.parametrize("name", ["haswell", "zen3", "skylake-avx512", "zen4", "neoverse-n1", "apple-m1"])
@pytest.mark.parametrize("dtype", NARROW)
def test_conversions_are_vector_instructions(name: str, dtype: str) -> None:
    """No call of a library's function, and each vector in a few instructions."""
    machine = Machine.named(name)
    f = Function("change", [("target", pointer_to(dtype)), ("source", pointer_to(dtype))])
    f.store(f.load(f.arg("source"), vector_of(machine.lanes)) * 1.5, f.arg("target"))
    f.store(f.load(f.arg("source") + machine.lanes, F32) * 1.5, f.arg("target") + machine.lanes)
    f.ret()
    text = emit_assembly(module_text(f, machine.lanes), machine)
    lines = [line for line in text.splitlines() if re.match(r"\s+[a-z]", line) and not re.match(r"\s+\.", line)]
    assert not [line for line in lines if re.match(r"\s*(?:call|bl|jmp)\b", line)], text
    assert len(lines) <= (36 if dtype == "bfloat16" else 14), text
