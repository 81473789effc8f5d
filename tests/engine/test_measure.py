from __future__ import annotations

import json
import math
import re
from dataclasses import astuple
from pathlib import Path

import pytest

from hubel.engine import cache, measure
from hubel.engine.compile import emit_assembly
from hubel.engine.machine import MACHINES, Machine
from hubel.engine.measure import Measured, fma_ir, measured, read_ir

HERE = Machine.detect()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "kernels"))
    measure._measured.cache_clear()
    return tmp_path / "kernels"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements that cost nothing; their names in the order they were made."""
    made: list[str] = []

    def fma(machine: Machine, threads: int, rounds: int = 1) -> float:
        made.append("fma")
        return 100.0 * threads

    def read(machine: Machine, threads: int, size: int, rounds: int) -> float:
        made.append("read")
        return 10.0

    monkeypatch.setattr(measure, "fma_gflops", fma)
    monkeypatch.setattr(measure, "read_gb_s", read)
    return made


def test_what_is_measured_is_a_rate() -> None:
    assert 0.1 < measure.fma_gflops(HERE, 1, rounds=2) < 1e5
    assert 0.1 < measure.read_gb_s(HERE, 1, 2**20, rounds=2) < 1e5
    assert 0.1 < measure.read_gb_s(HERE, 2, 2**22 + 4096, rounds=2) < 1e5


def test_it_is_measured_once_and_remembered(folder: Path, quick: list[str]) -> None:
    first = measured(HERE)
    count = len(quick)
    assert count >= 3
    assert measured(HERE) is first
    measure._measured.cache_clear()
    assert measured(HERE) == first
    assert len(quick) == count
    assert json.loads((folder / "measured.json").read_text())["value"]["fma_gflops_1"] == first.fma_gflops_1


@pytest.mark.parametrize(
    "stored", [None, [], {}, {"fma_gflops_1": 1.0}, "nan", "text", "zero", "more"], ids=lambda stored: str(stored)
)
def test_what_makes_no_sense_is_measured_again(folder: Path, quick: list[str], stored: object) -> None:
    good = measured(HERE)
    file = folder / "measured.json"
    document = json.loads(file.read_text())
    value = document["value"]
    match stored:
        case "nan":
            value["dram_gb_s"] = math.nan
        case "zero":
            value["fma_gflops_all"] = 0
        case "text":
            value["threads"] = "two"
        case "more":
            value["unknown"] = 1
        case _:
            document["value"] = stored
    file.write_text(json.dumps(document))
    measure._measured.cache_clear()
    count = len(quick)
    assert measured(HERE) == good
    assert len(quick) == 2 * count


def test_without_a_cache_it_is_measured_once_a_process(folder: Path, quick: list[str]) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    first = measured(HERE)
    assert measured(HERE) is first
    assert not cache.cache_info().enabled


def test_another_machine_is_another_measurement(folder: Path, quick: list[str]) -> None:
    assert isinstance(measured(HERE), Measured)
    count = len(quick)
    measured(Machine.named("haswell"))
    assert len(quick) > count


def test_all_cores_are_never_slower_than_one(folder: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    monkeypatch.setattr(measure, "fma_gflops", lambda machine, threads, rounds=1: 100.0 / threads)
    result = measure._measured(HERE, 2)
    assert astuple(result)[:2] == (100.0, 100.0)


@pytest.mark.parametrize("name", MACHINES)
def test_the_kernels_stay_in_registers(name: str) -> None:
    machine = MACHINES[name]
    for text, operation, count in (
        (fma_ir(machine), r"vfmadd\w+|fmla(\.4s)?", measure._accumulators(machine) * measure.FMA_REPEATS),
        (read_ir(machine), r"vaddps|fadd(\.4s)?", measure.READ_VECTORS),
    ):
        assembly = emit_assembly(text, machine)
        assert len(re.findall(rf"^\s+({operation})\s", assembly, re.MULTILINE)) >= count
        # A spill would be a vector on the stack.
        assert not re.search(r"(vmov[au]ps|str|stp|ldr|ldp).*[yzq]\w+.*\[?(%rsp|sp)", assembly), assembly
