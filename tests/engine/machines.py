"""The machines whose kernels a test can run: the one at hand, and one of each other instruction set that it has."""

from __future__ import annotations

from hubel.engine.machine import Machine

HERE = Machine.detect()
OTHERS = [
    machine
    for machine in map(Machine.named, ("haswell", "skylake-avx512"))
    if HERE.arch == "x86_64" and machine.runs_here() and machine.isa != HERE.isa
]
MACHINES = [HERE, *OTHERS]
