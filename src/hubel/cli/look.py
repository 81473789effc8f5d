"""hubel plan: what will run for each convolution, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubel.cli.models import (
    Arch,
    InputSize,
    Weights,
    image_shape,
    load,
)
from hubel.cli.terminal import console
from hubel.cli.work import Threads, set_threads
from hubel.convert.frozen import Frozen
from hubel.engine import Machine, Problem, kernel_text
from hubel.errors import ModelError

if TYPE_CHECKING:
    from hubel.inspect.plan import Row


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|SPEC", help="A network, or a problem: n1c64o128i56x56k3x3s1p1")
    ],
    ir: Annotated[bool, typer.Option("--ir", help="The kernels as LLVM IR.")] = False,
    asm: Annotated[bool, typer.Option("--asm", help="The kernels as assembly.")] = False,
    machine: Annotated[str | None, typer.Option(help="Another machine than this: haswell, zen3, apple-m1, ...")] = None,
    accuracy: Annotated[str, typer.Option(help="strict, default or fast")] = "default",
    backward: Annotated[bool, typer.Option("--backward", help="The gradients, too.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Compile and time what is predicted.")] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at a time, for a network; 1 by default.")] = None,
    arch: Arch = None,
    weights: Weights = None,
    input_size: InputSize = None,
    threads: Threads = None,
) -> None:
    """Say what the engine will run for each convolution, and why; print the kernels with --ir or --asm."""
    from hubel.ops.accuracy import set_accuracy

    set_threads(threads)
    set_accuracy(accuracy)  # type: ignore[arg-type]  (the function checks it and names the choices)
    target = Machine.named(machine) if machine else Machine.detect()
    form = "ir" if ir else "asm" if asm else None
    if _is_problem(model):
        _plan_problem(Problem.parse(model), target, form, measure)
    else:
        _plan_network(model, target, form, batch, backward, measure, arch, weights, input_size)


def _is_problem(text: str) -> bool:
    """Problems are the only words with a digit after the first letter and no dot or colon."""
    return text[:1] in "ncoikspdg" and text[1:2].isdigit() and not set(text) & set(".:")


def _plan_problem(problem: Problem, machine: Machine, form: str | None, measure: bool) -> None:
    from hubel.inspect.plan import plan_problem

    row = plan_problem(problem, machine=machine, measure=measure)
    if form and row.plan:
        console().print(kernel_text(row.plan, form), soft_wrap=True)
        return
    for name, value in _facts(row):
        console().print(f"{name:12} {value}", soft_wrap=True)


def _facts(row: Row) -> list[tuple[str, str]]:
    chosen, spec = row.plan, row.problem.spec
    assert chosen is not None
    estimate = chosen.estimate
    shapes = f"{list(spec.input_shape)} * {list(spec.weight_shape)} -> {list(spec.output_shape)}"
    waste = estimate.computed / estimate.flops - 1 if estimate.flops else 0.0
    facts = [
        ("problem", str(row.problem)),
        ("shapes", shapes),
        ("machine", f"{chosen.machine.name} ({chosen.machine.cpu}, {chosen.machine.lanes} lanes)"),
        ("algorithm", f"{chosen.algorithm}: {chosen.reason}"),
        ("kernels", ", ".join(chosen.kernels)),
        ("tile", f"{chosen.tile} numbers in registers"),
        ("work", f"{spec.macs:,} multiply-adds, {waste:+.1%} computed, {estimate.bytes:,} bytes moved at least"),
    ]
    if row.ms:
        timed = f", measured {row.measured_ms:.3g} ms" if row.measured_ms else ""
        facts.append(("time", f"predicted {row.ms:.3g} ms{timed} on {chosen.policy.threads} threads"))
        facts.append(("rate", f"{row.gflops:.0f} GFLOP/s, {row.roofline:.0%} of the roof"))
    facts.append(("error", f"at most {chosen.error_bound:.1e}, relative, on N(0,1) data ({chosen.policy.accuracy})"))
    return facts + [(f"not {refusal.algorithm}", refusal.reason) for refusal in chosen.refusals]


def _plan_network(
    model: str,
    machine: Machine,
    form: str | None,
    batch: int | None,
    backward: bool,
    measure: bool,
    arch: str | None,
    weights: Path | None,
    input_size: str | None,
) -> None:
    import torch

    from hubel.inspect.plan import plan as plan_network

    loaded = load(model, arch, weights, frozen=True)
    x = torch.zeros(batch or loaded.batch or 1, *image_shape(loaded, input_size))
    if isinstance(loaded.network, Frozen):
        if form or backward or measure or machine != Machine.detect():
            raise ModelError(
                "A frozen network is planned as it runs here. Received: --ir, --asm, --backward, --measure or "
                "--machine. Leave it out, or pass the network that the file was made of."
            )
        console().print(str(plan_network(loaded.network.session, x)), soft_wrap=True)
        return
    planned = plan_network(loaded.network, x, machine=machine, backward=backward, measure=measure)
    if not form:
        console().print(str(planned), soft_wrap=True)
        return
    seen: set[tuple[str, ...]] = set()
    for row in planned.rows:
        if row.plan is not None and row.plan.kernels not in seen:
            seen.add(row.plan.kernels)
            console().print(f"; {row.address}: {row.problem}\n{kernel_text(row.plan, form)}", soft_wrap=True)
