from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hubel.engine import machine as machine_module
from hubel.engine.compile import emit_assembly
from hubel.engine.machine import MACHINES, Machine
from hubel.errors import UnknownNameError
from tests.engine.native import vector_add_ir

VECTOR = {16: r"%zmm\d+", 8: r"%ymm\d+", 4: r"v\d+\.4s|\.4s\s+v\d+"}
WIDER = {16: r"(?!)", 8: r"zmm", 4: r"ymm|zmm"}


@pytest.mark.parametrize("name", MACHINES)
def test_every_named_machine_adds_in_its_widest_vector(name: str) -> None:
    machine = Machine.named(name)
    assembly = emit_assembly(vector_add_ir(machine.lanes), machine)
    assert re.search(VECTOR[machine.lanes], assembly), assembly
    assert not re.search(WIDER[machine.lanes], assembly), assembly


@pytest.mark.parametrize("name", MACHINES)
def test_the_table_is_consistent(name: str) -> None:
    machine = MACHINES[name]
    assert machine.name == name
    assert machine.registers == (16 if machine.lanes == 8 else 32)
    assert machine.l1 < machine.l2 < machine.l3
    assert machine.arch == ("aarch64" if machine.lanes == 4 else "x86_64")
    assert machine.supported[0] == (machine.arch == "x86_64")


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(UnknownNameError, match='unknown machine "hasswell".*"haswell"'):
        Machine.named("hasswell")


def test_detect_agrees_with_the_kernel() -> None:
    machine = Machine.detect()
    assert machine is Machine.detect()
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags is None:
        pytest.skip("no x86 flags in /proc/cpuinfo")
    lanes = 16 if " avx512f" in flags[1] else 8 if " avx2 " in flags[1] else 4
    assert machine.lanes == lanes
    assert machine.arch == "x86_64"
    assert 4 * 2**10 <= machine.l1 <= machine.l2 <= machine.l3
    assert machine.cores >= 1
    assert machine.supported == ((True, "") if lanes >= 8 else (False, machine.supported[1]))


def test_masked_instructions_are_not_used() -> None:
    """A hypervisor may hide what the processor's name promises."""
    masked = dataclasses.replace(Machine.named("skylake-avx512"), features="-avx512f,-avx512vl,+avx2,+fma")
    assert "zmm" not in emit_assembly(vector_add_ir(16), masked)


def test_code_runs_only_where_every_instruction_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, runs in {
        "haswell": True,
        "zen3": True,
        "skylake-avx512": True,
        "cascadelake": True,
        "icelake-server": False,
        "zen4": False,
        "neoverse-n1": False,
        "apple-m1": False,
    }.items():
        monkeypatch.setattr(machine_module, "_detected", lambda: MACHINES["cascadelake"])
        assert Machine.named(name).runs_here() is runs, name
    monkeypatch.setattr(machine_module, "_detected", lambda: MACHINES["haswell"])
    assert not MACHINES["skylake-avx512"].runs_here()


@pytest.mark.parametrize(("text", "count"), [("32K", 32768), ("1024K", 2**20), ("36M", 36 * 2**20), ("", 0)])
def test_cache_sizes(text: str, count: int) -> None:
    assert machine_module._bytes(text) == count


def test_caches_fall_back_to_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_text", lambda path: "")
    assert machine_module._caches() == machine_module.DEFAULT_CACHES
    assert machine_module._model_name() == ""
    assert machine_module._physical_cores() >= 1
