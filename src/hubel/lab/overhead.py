"""What `enable()` costs a call: a convolution so small that nearly all of its time is the way to the kernel.

Three contenders make the same call, F.conv2d on a tiny layer without gradients:

    torch     torch's own kernel
    empty     the same two operators overridden in the same way by a function that returns torch.empty
    hubel     hubel.enabled()

The overhead is hubel minus empty, taken within rounds: looking the call up, the weights' packed form, the kernel and
its threads. What Python and torch's dispatcher cost any override is in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hubel.engine.problem import Direction
from hubel.errors import DataError, SpecError
from hubel.lab import conditions, engines, shapes, timing
from hubel.lab.timing import Contender, Meter, Rounds
from hubel.records import Column, Document, Record, Value

# A kernel of well under a microsecond: 4,608 multiply-adds.
TINY = "n1c8o8i3x3k3x3s1p1"


def run(
    target: str = TINY,
    *,
    rounds: int = 4 * timing.CLEAN_ROUNDS,
    threads: int | None = None,
    seed: int = 0,
    meter: Meter | None = None,
) -> Document:
    """Microseconds a call of a forward problem costs under hubel, torch, and an override that does nothing.

    Raises SpecError for a text that is no problem, DataError for another direction.
    """
    cases = shapes.resolve([target])
    if len(cases) != 1 or cases[0].problem.direction is not Direction.FORWARD:
        raise DataError(
            f"The overhead is measured on one forward problem. Received: {target!r}. {TINY} is the default."
        )
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    watch = conditions.Watch()
    try:
        taken = _measure(cases[0], rounds, seed, meter)
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)
    spec = cases[0].spec
    return watch.document(
        "overhead", f"overhead of {spec}", [record(taken)],
        threads=threads, seed=seed, engine="hubel, torch", params=spec.parameters, shape=spec.input_shape,
    )  # fmt: skip


def record(taken: Rounds) -> Record:
    """A row a contender; the overhead stands in Hubel's and torch's."""
    rows: list[dict[str, Any]] = []
    for name in taken.samples:
        rows.append({"target": name, "us": timing.scaled(taken.seconds(name), 1e6)})
        if name != "empty":
            rows[-1]["overhead"] = overhead(taken, name)
    return Record(
        id="overhead",
        kind="bench",
        columns=[Column(name="us", unit="us", better="down"), Column(name="overhead", unit="us", better="down")],
        rows=rows,
        method={
            "name": "median over rounds of the time above an override that returns torch.empty",
            "params": {"rounds": len(taken.order), "clean rounds": len(taken.clean_rounds())},
            "source": "",
        },
    )


def overhead(taken: Rounds, name: str = "hubel") -> Value:
    """Microseconds a call above the override that returns torch.empty, within rounds in which both were clean."""
    rounds = taken.clean_rounds((name, "empty")) or range(len(taken.order))
    above = [taken.samples[name][r].seconds - taken.samples["empty"][r].seconds for r in rounds]
    return timing.median([1e6 * seconds for seconds in above])


@contextmanager
def returning_empty(shape: tuple[int, ...]) -> Iterator[None]:
    """torch's convolution on the CPU replaced, as `enable()` does it, by a function that allocates and does nothing."""

    def empty(*arguments: object) -> torch.Tensor:
        return torch.empty(shape)

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel")
            library.impl("convolution", empty, "CPU")
        yield
    finally:
        library._destroy()


def _measure(case: shapes.Case, rounds: int, seed: int, meter: Meter | None) -> Rounds:
    tensors = engines.Tensors.of(case, seed)
    call = engines.torch_call(case, tensors)
    shape = case.spec.output_shape
    with torch.no_grad():
        reference = engines.float64(case, tensors)
        contenders = [
            Contender("torch", call),
            Contender("empty", call, lambda: returning_empty(shape)),
            Contender("hubel", call, engines.enabled),
        ]
        found = engines.check(contenders[2], case, reference, engines.error_bound(case, conditions.accuracy(), "hubel"))
        if found.reason or not found.native:
            reason = found.reason or "the call is handed back to torch"
            raise SpecError(f"The overhead is that of Hubel's own kernel. Received: {case.spec}, where {reason}.")
        return timing.measure(contenders, rounds=rounds, seed=seed, meter=meter)
