"""torch and Hubel once more in a process that keeps its memory, for layers whose output is above 32 MB.

glibc maps and unmaps such blocks on every call, and each page is faulted in anew: that can be most of a call's time.
A process that is told to (as servers may be) keeps them. Only a process of its own shows it: blocks that one engine
left free would serve the next one here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence

from hubel.lab import held, shapes
from hubel.lab.shapes import Case
from hubel.lab.timing import Rounds, Sample

# glibc's malloc maps what is larger than this, however it adjusts itself: 32 MiB on 64 bits.
LARGEST_KEPT = 32 * 2**20
# Its variables: so many maps at most, and give memory back above (as much as can be said).
VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def matters(case: Case) -> bool:
    """Whether the layer's output is so large that it matters, on a system where it does."""
    itemsize = 4 if case.problem.dtype == "float32" else 2
    return sys.platform == "linux" and case.is_forward and itemsize * math.prod(case.output_shape) > LARGEST_KEPT


def measure(case: Case, libraries: Sequence[str], *, threads: int, rounds: int, seed: int) -> Rounds | None:
    """The rounds of these libraries in a process that keeps its memory; None if that process failed."""
    asked = {"target": case.target, "libraries": list(libraries), "threads": threads, "rounds": rounds, "seed": seed}
    asked["isa"] = held.current.isa if held.current else None
    done = subprocess.run(
        [sys.executable, "-c", "from hubel.lab.kept import child; child()"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ | VARIABLES,
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    samples = {name: [Sample(*numbers) for numbers in rows] for name, rows in found["samples"].items()}
    return Rounds(samples, found["order"])


def child() -> None:
    """The process: a case as JSON on stdin, its samples as JSON on stdout."""
    import torch

    from hubel.lab import bench

    asked = json.loads(sys.stdin.read())
    if asked["isa"]:
        held.hold(asked["isa"])
    torch.set_num_threads(asked["threads"])
    case = shapes.case_of(asked["target"])
    layer = bench.measure_case(
        case, asked["libraries"], threads=asked["threads"], rounds=asked["rounds"], seed=asked["seed"], keep=False
    )
    samples = {
        name: [[sample.seconds, sample.waited, sample.faults] for sample in row]
        for name, row in layer.taken.samples.items()
    }
    print(json.dumps({"samples": samples, "order": layer.taken.order}))
