"""The conditions under which something was timed: the machine and how quiet it was, its peak, what Hubel would run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hubel.engine import measure
from hubel.engine.choose import choose
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
from hubel.engine.problem import Accuracy, Direction, Policy
from hubel.engine.threads import Block, Job, launch
from hubel.errors import CacheError, UnsupportedError
from hubel.lab import held
from hubel.lab.shapes import Case
from hubel.records import Document, Record

# Bytes: of smaller layers memory is not the limit; and what a launch of the reading kernel reads at least.
SMALLEST_TRAFFIC, LEAST_READ = 2**16, 2**21


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


@dataclass(frozen=True)
class Planned:
    """What Hubel's plan says of a case: the algorithm, "-" where it hands back to torch; the flops it needs, after the
    algorithm's own reduction and without the waste of tiles."""

    algorithm: str
    flops: int


def planned(case: Case, threads: int) -> Planned:
    """The plan of a case, of both its directions if it has two."""
    directions = [Direction.INPUT_GRADIENT, Direction.WEIGHT_GRADIENT] if case.both else [case.problem.direction]
    names, flops = [], 0
    for direction in directions:
        bias = case.problem.bias and direction is not Direction.INPUT_GRADIENT
        problem = dataclasses.replace(case.problem, direction=direction, bias=bias)
        try:
            plan = choose(problem, Machine.detect(), Policy(accuracy(), threads=threads))
        except UnsupportedError:
            names.append("-")
            flops += case.spec.flops
        else:
            names.append(plan.algorithm)
            flops += min(plan.estimate.flops, plan.estimate.computed)
    return Planned(", ".join(dict.fromkeys(names)), flops)


def traffic(threads: int, size: int) -> Peak | None:
    """Reading `size` bytes once, on all threads, as something that can be timed among others: what memory allows.

    From whichever cache so many bytes lie in. `flops` holds the bytes that a call really reads.
    """
    machine = Machine.detect()
    size = max(size, SMALLEST_TRAFFIC)
    # So many passes a launch that the launch's own microseconds count for nothing.
    passes = max(1, LEAST_READ // size)
    grain = measure.READ_VECTORS * machine.lanes * 4
    item = min(measure.READ_ITEM_BYTES, size // (4 * threads)) // grain * grain
    items = size // item
    try:
        library = compiled(f"measure_read_{machine.lanes}", lambda: measure.read_ir(machine), machine)
    except (UnsupportedError, CacheError):
        return None
    buffer = np.ones(items * item // 4, dtype=np.float32)
    job = Job(library.address("read"), items, max(1, items // (8 * threads)), [item])
    block = Block([job] * passes, keep=[library, buffer])
    call = partial(launch, block.address, buffer.ctypes.data, 0, 0, 0, threads, 0, 64, 0)
    return Peak(lambda: (block, call())[1], float(passes * items * item))


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

    def document(
        self,
        profile: str,
        name: str,
        records: list[Record],
        *,
        threads: int,
        seed: int,
        engine: str,
        params: int,
        shape: Sequence[int] = (),
        level: str = "",
        status: Literal["complete", "interrupted"] = "complete",
    ) -> Document:
        """What was timed under these conditions: `profile` is the kind of measurement, `name` what it is of.

        engine: names of those that took part. params, shape: parameters and input, of all layers or of the network.
        level: of accuracy; the one that is set, if none is given.
        """
        return Document(
            model={
                "name": f"bench: {name}",
                "sha256": None,
                "weights": "random",
                "params": params,
                "input": {"shape": list(shape), "dtype": "float32"},
                "preprocess": None,
                "classes": None,
                "output": None,
            },
            data=None,
            machine=self.machine(threads),
            settings={
                "profile": profile,
                "seed": seed,
                "accuracy": level or accuracy(),
                "threads": threads,
                "engine": engine,
            },
            records=records,
            status=status,
        )


def parameters(cases: Iterable[Case]) -> int:
    """Parameters of all layers; one that stands there twice is counted once."""
    return sum({case.spec: case.spec.parameters for case in cases}.values())


def named(targets: Sequence[str]) -> str:
    """What was asked for, in a title: files without their folders."""
    return ", ".join(Path(name).stem if name.endswith(".txt") else name for name in targets) or "quick"


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
