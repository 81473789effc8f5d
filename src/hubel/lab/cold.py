"""`hubel bench --cold`: what the first call of a new layer costs, and what that is made of.

Two processes, one after the other, run the same layers through `enable()`:

    cold    each layer with an empty cache folder of its own: planned, generated, compiled, loaded, packed, run
    warm    each layer with the folder that the first process filled: planned, loaded, packed, run

Before its layers a process makes one call of another layer, so that torch's threads, LLVM and Hubel's launcher are up:
what is timed is a new layer, not a new process. Each layer runs in torch first, so that malloc has pages for its
output. The cost is the first call minus the median of the calls after it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubel.engine import compile, invoke
from hubel.errors import DataError, HubelError
from hubel.lab import bench_record, conditions, engines, held, shapes
from hubel.lab.engines import Tensors
from hubel.lab.shapes import Case
from hubel.records import Document, Method, Record

# Large enough for a team of threads, and like no layer of a list.
BEFORE = "n1c24o24i30x30k3x3s1p1"
# Calls after the first whose median is "the call itself".
LATER = 7
PARTS = ("plan", "IR", "LLVM", "load", "pack")

Progress = Callable[[int, int, str], None]


def run(
    targets: Sequence[str] = (),
    *,
    backward: bool = False,
    threads: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """The cost of first calls of the layers that `targets` name (`shapes.resolve`), cold and warm.

    Raises SpecError, DataError or UnknownNameError for targets that name nothing.
    """
    cases = shapes.resolve(targets, batch=batch, backward=backward)
    threads = threads or torch.get_num_threads()
    watch, start = conditions.Watch(), time.perf_counter()
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for done, kind in enumerate(("cold", "warm")):
            if progress:
                progress(done, 2, f"{len(cases)} layers, {kind}")
            found[kind] = _in_a_process([case.target for case in cases], Path(folder), threads, seed)
    if progress:
        progress(2, 2, "done")
    return watch.document(
        "cold", f"first calls of {conditions.named(targets)}",
        [record(cases, found["cold"], found["warm"], time.perf_counter() - start)],
        threads=threads, seed=seed, engine="hubel", params=conditions.parameters(cases),
    )  # fmt: skip


def record(
    cases: Sequence[Case], cold: list[dict[str, float]], warm: list[dict[str, float]], seconds: float = 0.0
) -> Record:
    """A row a layer, in milliseconds; medians and 95th percentiles over the layers stand in the parameters."""
    rows: list[dict[str, Any]] = []
    for case, first, again in zip(cases, cold, warm, strict=True):
        row: dict[str, Any] = {"target": case.target}
        for kind, times in (("cold", first), ("warm", again)):
            row |= {f"{kind} {part}": times[part] for part in (*PARTS, "other", "call", "cost")}
        rows.append(row)
    titles = [column for column in (rows[0] if rows else {}) if column != "target"]
    summary = {
        title: {
            "median": statistics.median(row[title] for row in rows),
            "p95": float(np.percentile([row[title] for row in rows], 95)),
        }
        for title in titles
    }
    return Record(
        id="cold",
        kind="bench",
        level="layer",
        columns=[bench_record.column(title, "ms", "down") for title in titles],
        rows=rows,
        seconds=seconds,
        method=Method(
            name="first call minus the median of later ones",
            params={"names": {case.target: case.name for case in cases}, "summary": summary, "parts": list(PARTS)},
            source="",
        ),
    )


def _in_a_process(targets: list[str], folder: Path, threads: int, seed: int) -> list[dict[str, float]]:
    asked = {"targets": targets, "folder": str(folder), "threads": threads, "seed": seed}
    asked |= {"isa": held.current.isa if held.current else None, "accuracy": conditions.accuracy()}
    done = subprocess.run(
        [sys.executable, "-c", "from hubel.lab.cold import child; child()"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.splitlines() or ["nothing"])[-1]
        raise DataError(f"the process that times first calls ended with {done.returncode}: {last}") from None


def child() -> None:
    """The process: layers as JSON on stdin, a list of their times in milliseconds as JSON on stdout."""
    asked = json.loads(sys.stdin.read())
    if asked["isa"]:
        held.hold(asked["isa"])
    from hubel.ops.accuracy import set_accuracy

    set_accuracy(asked["accuracy"])
    torch.set_num_threads(asked["threads"])
    times = []
    with torch.no_grad():
        _first_call(shapes.case_of(BEFORE), Path(asked["folder"]) / "before", asked["seed"])
        kept = set(compile._libraries)
        for number, target in enumerate(asked["targets"]):
            times.append(_first_call(shapes.case_of(target), Path(asked["folder"]) / str(number), asked["seed"]))
            # A layer that has a kernel of one before it would not be new.
            for known in set(compile._libraries) - kept:
                del compile._libraries[known]
    print(json.dumps(times))


def _first_call(case: Case, cache: Path, seed: int) -> dict[str, float]:
    """Milliseconds of the first call by part, and of a later one."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["HUBEL_CACHE_DIR"] = str(cache)
    tensors = Tensors.of(case, seed)
    call = engines.torch_call(case, tensors)
    call()
    with engines.enabled() as log:
        with _Parts() as parts:
            start = time.perf_counter()
            call()
            first = time.perf_counter() - start
        if log.fallback:
            raise HubelError(f"{case.target} is handed back to torch")
        later = statistics.median(_timed(call) for _ in range(LATER))
    spent = {part: 1e3 * parts.seconds[part] for part in PARTS}
    cost = 1e3 * (first - later)
    return spent | {"call": 1e3 * later, "other": cost - sum(spent.values()), "cost": cost}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _Parts:
    """Adds up the seconds spent in the engine's steps while it is entered, and nothing twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def _watching(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return watched

    def __enter__(self) -> _Parts:
        emit, library, invocation = compile.compiled, compile.Library, invoke.Invocation

        def compiled(key: str, ir: Callable[[], str], machine: Any) -> Any:
            return emit(key, self._watching("IR", ir), machine)

        self._replace(invoke, "choose", self._watching("plan", invoke.choose))
        self._replace(invoke, "compiled", compiled)
        self._replace(compile, "emit_object", self._watching("LLVM", compile.emit_object))
        self._replace(library, "load", self._watching("load", library.load))
        self._replace(library, "address", self._watching("load", library.address))
        self._replace(invocation, "pack", self._watching("pack", invocation.pack))
        return self

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self._replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, function)

    def __exit__(self, *failure: object) -> None:
        while self._replaced:
            setattr(*self._replaced.pop())
