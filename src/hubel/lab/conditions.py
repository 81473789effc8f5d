"""The conditions under which something was timed: the machine and how quiet it was, its peak, what Hubel would run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubel.engine import measure
from hubel.engine.choose import choose
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
from hubel.engine.spec import Accuracy, Direction, Policy
from hubel.engine.threads import Block, Job, launch
from hubel.errors import CacheError, UnsupportedError
from hubel.lab import held
from hubel.lab.shapes import Case


@dataclass(frozen=True)
class Peak:
    """A kernel of fused multiply-adds on registers only: `call` runs it once on all threads, `flops` of it."""

    call: Callable[[], object]
    flops: float


def peak(threads: int) -> Peak | None:
    """The machine's peak as something that can be timed among others; None where no generated code runs."""
    machine = Machine.detect()
    accumulators = measure._accumulators(machine)
    try:
        library = compiled(f"measure_fma_{machine.lanes}x{accumulators}", lambda: measure.fma_ir(machine), machine)
    except (UnsupportedError, CacheError):
        return None
    # A millisecond a core, like the samples of small layers.
    items = measure.FMA_ITEMS * threads
    block = Block([Job(library.address("fma"), items, 1)], keep=[library])
    flops = 2.0 * items * measure.FMA_ROUNDS * measure.FMA_REPEATS * accumulators * machine.lanes
    return Peak(lambda: launch(block.address, 0, 0, 0, 0, threads, 0, 64, 0), flops)


def accuracy() -> Accuracy:
    """The level that is set: hubel.set_accuracy."""
    from hubel.ops.accuracy import policy

    return policy(1).accuracy


def algorithm(case: Case, threads: int) -> str:
    """What Hubel's plan chose for a case, for the table; "-" where it hands back to torch."""
    directions = [Direction.INPUT_GRADIENT, Direction.WEIGHT_GRADIENT] if case.both else [case.problem.direction]
    names = []
    for direction in directions:
        problem = dataclasses.replace(case.problem, direction=direction)
        try:
            names.append(choose(problem, Machine.detect(), Policy(accuracy(), threads=threads)).algorithm)
        except UnsupportedError:
            names.append("-")
    return ", ".join(dict.fromkeys(names))


class Watch:
    """Notes, from its making on, how much of the machine others took."""

    def __init__(self) -> None:
        self.before = _cpu_ticks()

    def machine(self, threads: int) -> dict[str, Any]:
        """The machine of a document: named, with what else ran on it meanwhile."""
        return describe_machine() | {
            "threads": threads,
            "load": [round(load, 2) for load in os.getloadavg()],
            "stolen": _stolen(self.before, _cpu_ticks()),
            "held": str(held.current) if held.current else None,
        }


def describe_machine() -> dict[str, Any]:
    """The fields of `Machine`, and the operating system."""
    machine = Machine.detect()
    return dataclasses.asdict(machine) | {"system": " ".join(os.uname()[:3:2])}


def _cpu_ticks() -> list[int]:
    """Ticks of all cores by use (user, nice, system, idle, iowait, irq, softirq, steal, ...); empty if not Linux."""
    try:
        return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return []


def _stolen(before: list[int], after: list[int]) -> float | None:
    """The share of time that a hypervisor gave to other guests; it shows in no run queue of ours."""
    spent = [b - a for a, b in zip(before[:8], after[:8], strict=False)]
    if len(spent) < 8 or sum(spent) <= 0:
        return None
    return round(spent[7] / sum(spent), 4)
