"""Engines held to an older instruction set: what they are told, and that the command line starts again for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hubel.cli import work
from hubel.engine import machine as machines
from hubel.engine.compile import emit_assembly
from hubel.engine.machine import MACHINES, Machine
from hubel.errors import UnknownNameError, UnsupportedError
from hubel.lab import held


@pytest.fixture
def big(monkeypatch):
    """A machine with AVX-512, whatever the tests run on, and nothing held afterwards."""
    monkeypatch.setattr(machines, "_detected", lambda: MACHINES["cascadelake"])
    yield MACHINES["cascadelake"]
    machines.hold_to(None)


def test_a_held_machine_has_old_instructions_and_its_own_caches(big):
    machine = machines.hold_to("avx2")
    assert machine is Machine.detect()
    assert (machine.lanes, machine.registers, machine.isa) == (8, 16, "avx2")
    assert machine.target == MACHINES["haswell"].target
    assert (machine.l1, machine.l2, machine.l3, machine.cores) == (big.l1, big.l2, big.l3, big.cores)
    assert machine.name == "cascadelake, held to avx2"
    assert machine.runs_here() and not big.runs_here()
    assert machines.hold_to(None) is Machine.detect() is big


def test_only_what_a_machine_has_can_be_held_to(monkeypatch):
    monkeypatch.setattr(machines, "_detected", lambda: MACHINES["haswell"])
    with pytest.raises(UnsupportedError, match="instructions that it has.*avx512 on haswell"):
        machines.hold_to("avx512")
    with pytest.raises(UnknownNameError, match='"avx22".*"avx2"'):
        machines.hold_to("avx22")
    monkeypatch.setattr(machines, "_detected", lambda: MACHINES["neoverse-n1"])
    with pytest.raises(UnsupportedError):
        machines.hold_to("avx2")
    assert Machine.detect() is MACHINES["neoverse-n1"]


def test_the_variables_are_needed_before_the_process_starts(monkeypatch):
    for name, value in held.VARIABLES["avx2"].items():
        assert not held.is_prepared("avx2")
        monkeypatch.setenv(name, value)
    assert held.is_prepared("avx2")
    with pytest.raises(UnknownNameError, match='unknown instruction set "sse9"'):
        held.is_prepared("sse9")


def test_the_command_line_starts_again_and_passes_on_how_it_ended(monkeypatch):
    for name in held.VARIABLES["avx2"]:
        monkeypatch.delenv(name, raising=False)
    asked = []
    monkeypatch.setattr(held, "run_again", lambda isa: asked.append(isa) or 7)
    assert work.bench(isa="avx2") == 7
    assert asked == ["avx2"]


def test_the_process_that_is_started_has_variables_and_arguments(capfd):
    assert held.run_again("avx2", ["--version"]) == 0
    assert capfd.readouterr().out.startswith("hubel ")
    assert held.run_again("avx2", ["bench", "n1c3", "--isa", "sse9"]) == 2


def test_the_heading_says_who_is_not_held():
    assert "every engine" in str(held.Held("avx2", True))
    assert "other engines are NOT held, because no such fault" in str(held.Held("avx2", False, "no such fault"))


def test_the_answer_to_cpuid_hides_bits_of_leaf_7_only():
    text = emit_assembly(held.handler_ir("avx2"), MACHINES["haswell"])
    assert "cpuid" in text and "syscall" in text
    assert held.HIDDEN["avx2"][0, "ebx"] & 1 << 5 == 0, "AVX2 itself stays"


CHILD = """
import faulthandler, sys
from hubel.lab import held
from hubel.engine.machine import Machine
import llvmlite.binding as llvm
reason = held.hold("avx2").reason
print(Machine.detect().lanes, reason or llvm.get_host_cpu_features().get("avx512f", False))
sys.stdout.flush()
import ctypes
ctypes.string_at(8)
"""


@pytest.mark.skipif(Machine.detect().arch != "x86_64" or Machine.detect().lanes < 8, reason="needs AVX2")
def test_libraries_that_ask_the_processor_are_told_nothing_newer():
    """In a process of its own, which a fault that is no CPUID still ends."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, env=os.environ | held.VARIABLES["avx2"]
    )
    lanes, _, told = done.stdout.strip().partition(" ")
    assert lanes == "8"
    assert told == "False" or "CPUID" in told
    assert done.returncode == -11
