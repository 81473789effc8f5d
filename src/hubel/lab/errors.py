"""`hubel bench --errors`: how far every kernel's answer lies from float64, for each direction and accuracy level.

On N(0, 1) data, out against ref computed in float64:

    rms      ‖out − ref‖ ∕ ‖ref‖                      what the levels and the plans state their bounds for
    largest  max|out − ref| ∕ √(mean ref²)            the worst single number, on the same scale

Both also in units of u = 3e-7 · max(1, √(K ∕ 2304)) for sums of K terms: strict promises 2 u, default 6 u, fast 20 u of
the rms error. Kernels are called as they are, on tensors in NCHW; nothing is timed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch

from hubel.engine.choose import choose
from hubel.engine.invoke import Invocation
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan, error_unit, terms_of
from hubel.engine.problem import Accuracy, Direction, Policy
from hubel.errors import UnsupportedError
from hubel.lab import bench_record, conditions, engines, shapes
from hubel.lab.engines import Tensors
from hubel.lab.engines.check import UNITS
from hubel.lab.shapes import Case
from hubel.records import Document, Method, Record, Uncovered

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Error:
    """Of one kernel on one problem: rms and largest, as above; u: the unit; plan: what ran."""

    case: Case
    level: str
    plan: Plan
    rms: float
    largest: float
    u: float


def run(
    targets: Sequence[str] = (),
    *,
    threads: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Document:
    """The errors of the layers that `targets` name (`shapes.resolve`): forward, both gradients, every level.

    Raises SpecError, DataError or UnknownNameError for targets that name nothing.
    """
    cases = [one for case in shapes.resolve(targets, batch=batch) for one in directions(case)]
    threads = threads or torch.get_num_threads()
    watch, start = conditions.Watch(), time.perf_counter()
    found: list[Error] = []
    uncovered: list[Uncovered] = []
    for done, case in enumerate(cases):
        if progress:
            progress(done, len(cases), f"{case.name} ({case.work})")
        try:
            found += errors(case, threads=threads, seed=seed)
        except UnsupportedError as error:
            uncovered.append(Uncovered(target=case.target, reason=str(error)))
    if progress:
        progress(len(cases), len(cases), "done")
    result = record(found, time.perf_counter() - start)
    result.uncovered = uncovered
    return watch.document(
        "errors", f"errors of {conditions.named(targets)}", [result],
        threads=threads, seed=seed, engine="hubel", params=conditions.parameters(cases), level="all",
    )  # fmt: skip


def directions(case: Case) -> Iterator[Case]:
    """A layer's three directions; a case that is not the forward pass stands for itself."""
    if case.problem.direction is not Direction.FORWARD:
        yield case
        return
    bare = dataclasses.replace(case.problem, bias=False)
    for direction in Direction:
        yield Case(dataclasses.replace(bare, direction=direction), case.name)


def errors(case: Case, *, threads: int = 1, seed: int = 0) -> Iterator[Error]:
    """The errors of one problem at every level; a kernel that two levels share runs once.

    Raises UnsupportedError where the engine hands the problem back.
    """
    tensors = Tensors.of(case, seed)
    with torch.no_grad():
        (reference,) = engines.float64(case, tensors)
    terms = terms_of(case.problem)
    known: dict[tuple[object, ...], tuple[float, float]] = {}
    for level in get_args(Accuracy):
        plan = choose(case.problem, Machine.detect(), Policy(level, threads=threads))
        key = (plan.algorithm, plan.kernels, plan.channel_block, plan.partial_sums)
        if key not in known:
            known[key] = _distances(computed(plan, case, tensors, threads), reference)
        yield Error(case, level, plan, *known[key], error_unit(terms))


def computed(plan: Plan, case: Case, tensors: Tensors, threads: int) -> torch.Tensor:
    """What the plan's kernels make of the tensors."""
    x, w, dy = tensors.x, tensors.w.detach(), tensors.dy
    if case.transposed:
        x, dy = dy, x
    direction = case.problem.direction
    outputs = {Direction.FORWARD: dy, Direction.INPUT_GRADIENT: x, Direction.WEIGHT_GRADIENT: w}
    result = torch.full_like(outputs[direction], math.nan)
    read = {Direction.FORWARD: x, Direction.INPUT_GRADIENT: dy, Direction.WEIGHT_GRADIENT: x}[direction]
    invocation = Invocation(plan, x.stride(), w.stride(), dy.stride())
    other = dy if direction is Direction.WEIGHT_GRADIENT else w
    if invocation.packed_bytes:
        other = torch.empty(invocation.packed_bytes, dtype=torch.uint8)
        invocation.pack(w.data_ptr(), other.data_ptr(), threads)
    invocation(read.data_ptr(), other.data_ptr(), 0, result.data_ptr(), threads)
    return result


def _distances(result: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """rms and largest error, infinite for NaN."""
    difference = result.double() - reference
    scale = float(reference.square().mean().sqrt()) or 1.0
    rms, largest = float(difference.square().mean().sqrt()) / scale, float(difference.abs().max()) / scale
    return (rms, largest) if math.isfinite(rms) and math.isfinite(largest) else (math.inf, math.inf)


def record(found: Sequence[Error], seconds: float = 0.0) -> Record:
    """The record "errors": a row a problem and level."""
    rows: list[dict[str, Any]] = []
    labels: dict[str, dict[str, Any]] = {}
    for one in found:
        target = f"{one.case.target} {one.level}"
        rows.append(
            {
                "target": target,
                "rms": one.rms,
                "largest": one.largest,
                "rms in u": one.rms / one.u,
                "largest in u": one.largest / one.u,
                "promised in u": UNITS[one.level],
                "plan's bound in u": one.plan.error_bound / one.u,
                "kept": int(one.rms <= min(one.plan.error_bound, UNITS[one.level] * one.u)),
            }
        )
        labels[target] = {
            "name": one.case.name,
            "kind": one.case.kind,
            "work": "transposed" if one.case.transposed else one.case.work,
            "level": one.level,
            "algorithm": one.plan.algorithm,
        }
    units = {"rms": "1", "largest": "1", "kept": "1"}
    titles = [title for title in (rows[0] if rows else {}) if title != "target"]
    return Record(
        id="errors",
        kind="bench",
        level="layer",
        columns=[bench_record.column(title, units.get(title, "u"), None) for title in titles],
        rows=rows,
        seconds=seconds,
        method=Method(name="against float64 on N(0, 1) data", params={"layers": labels}, source="DESIGN 3.2"),
    )
