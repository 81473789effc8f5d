"""What the engine will run for each convolution of a network, and why: `hubel.plan(net, x)`.

One forward pass is watched for the convolutions it makes, with the shapes they have; each is then put to the engine, on
this machine or on a named one. Milliseconds are predicted, from the cycles counted for the generated code and from the
machine's measured peak and bandwidth. On request each convolution is compiled and timed too, alone and warm, its
weights packed; against other engines `hubel bench` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hubel.engine import ConvSpec, Direction, Machine, Plan, Policy, Problem, choose, prepare
from hubel.engine.algorithms.geometry import layout_of, packed_strides
from hubel.engine.measure import Measured, measured
from hubel.engine.race import race
from hubel.errors import ModelError, SpecError, UnsupportedError
from hubel.inspect.fused import FusedPlan, plan_compiled, plan_session
from hubel.inspect.hooks import watch
from hubel.ops import accuracy
from hubel.ops.session import Session
from hubel.records import Column, Record

COLUMNS = [
    Column(name="macs", unit="", better="down"),
    Column(name="bytes", unit="B", better="down"),
    Column(name="ms", unit="ms, predicted", better="down"),
    Column(name="measured_ms", unit="ms", better="down"),
    Column(name="gflops", unit="GFLOP/s", better="up"),
    Column(name="roofline", unit="share", better="up"),
    Column(name="error_bound", unit="relative", better="down"),
]
HEAD = (
    "layer", "problem", "by", "kernel", "MMAC", "MB", "predicted ms", "measured ms", "GFLOP/s", "of roof", "error <=",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One convolution. plan: how Hubel does it, or None where torch does, for the `reason`.

    ms: predicted; None without a plan or for a machine that is not this one. measured_ms: the median of some rounds, if
    asked for. roof_ms: the least the machine could need. macs count the plain loops' multiply-adds where the weights
    are, padding included.
    """

    address: str
    problem: Problem
    plan: Plan | None
    reason: str
    ms: float | None = None
    roof_ms: float | None = None
    measured_ms: float | None = None

    @property
    def algorithm(self) -> str:
        return self.plan.algorithm if self.plan else "torch"

    @property
    def gflops(self) -> float | None:
        """The useful rate, by the measured time or else by the predicted one."""
        taken = self.measured_ms or self.ms
        return self.problem.spec.flops / taken * 1e-6 if taken else None

    @property
    def roofline(self) -> float | None:
        """The least time the machine could need, over the measured time or else the predicted one: 1 is the roof."""
        taken = self.measured_ms or self.ms
        return self.roof_ms / taken if taken and self.roof_ms else None


@dataclass(frozen=True)
class NetworkPlan:
    """The rows in the order in which the network runs them; prints as a table. record(): for a Document."""

    rows: tuple[Row, ...]
    machine: Machine
    policy: Policy

    def __str__(self) -> str:
        body = [_cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in [HEAD, *body]) for i in range(len(HEAD))]
        lines = [
            "  ".join(_set(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in [HEAD, *body]
        ]
        total = sum(row.measured_ms or row.ms or 0.0 for row in self.rows)
        how = "measured" if any(row.measured_ms for row in self.rows) else "predicted"
        ours = sum(row.plan is not None for row in self.rows)
        lines.append(
            f"{ours} of {len(self.rows)} convolutions on Hubel's kernels" + (f", {total:.3g} ms {how}" if total else "")
        )
        return "\n".join(lines)

    def record(self) -> Record:
        """The same as a Record; what is not a number (problem, algorithm, reasons) is in `method.params["layers"]`."""
        labels: dict[str, Any] = {}
        rows = []
        for row in self.rows:
            spec, plan = row.problem.spec, row.plan
            labels[row.address] = {
                "problem": str(row.problem),
                "algorithm": row.algorithm,
                "kernel": plan.kernel_key if plan else None,
                "reason": row.reason,
                "refusals": {refusal.algorithm: refusal.reason for refusal in plan.refusals} if plan else {},
            }
            rows.append(
                {
                    "target": row.address,
                    "macs": spec.macs,
                    "bytes": spec.bytes(),
                    "ms": row.ms,
                    "measured_ms": row.measured_ms,
                    "gflops": row.gflops,
                    "roofline": row.roofline,
                    "error_bound": plan.error_bound if plan else None,
                }
            )
        params = {"layers": labels, "machine": self.machine.name, "accuracy": self.policy.accuracy}
        method = {"name": "the engine's plan", "params": params, "source": ""}
        return Record("plan", "plan", list(COLUMNS), rows, level="layer", method=method)  # type: ignore[arg-type]


@overload
def plan(net: Session, x: Tensor | None = None) -> FusedPlan: ...
@overload
def plan(
    net: nn.Module, x: Tensor, *, machine: Machine | None = None, backward: bool = False, measure: bool = False
) -> NetworkPlan: ...
def plan(
    net: nn.Module | Session,
    x: Tensor | None = None,
    *,
    machine: Machine | None = None,
    backward: bool = False,
    measure: bool = False,
) -> NetworkPlan | FusedPlan:
    """A row for each convolution that `net` makes on `x`, in order. Of a Session, and of a network compiled with
    backend="hubel", every step that runs: what was fused, and which of torch's operators remain (`FusedPlan`).

    machine: another than this one, by `Machine.named`; then nothing is said of time. backward: a row more for each of
    the gradients of input and weight. measure: compile and time each convolution, on this machine.

    Raises ModelError if the network cannot run on `x`.
    """
    if isinstance(net, Session):
        return plan_session(net, x)
    if x is None:
        raise ModelError("a network is planned on an input. Received: none. Pass an example of its images.")
    if hasattr(net, "_orig_mod"):
        return plan_compiled(net, x)
    here = Machine.detect()
    machine = machine or here
    policy = accuracy.policy(torch.get_num_threads())
    speed = measured(machine) if machine == here else None
    rows = [_row(address, problem, machine, policy, speed) for address, problem in _problems(net, x, backward)]
    if measure and machine == here:
        rows = [replace(row, measured_ms=measured_ms(row.problem, policy)) if row.plan else row for row in rows]
    return NetworkPlan(tuple(rows), machine, policy)


def plan_problem(problem: Problem, *, machine: Machine | None = None, measure: bool = False) -> Row:
    """The row of one problem, as `plan` makes it. Raises UnsupportedError, with every reason, if there is no plan."""
    here = Machine.detect()
    machine, policy = machine or here, accuracy.policy(torch.get_num_threads())
    choose(problem, machine, policy)
    row = _row(str(problem), problem, machine, policy, measured(machine) if machine == here else None)
    return replace(row, measured_ms=measured_ms(problem, policy)) if measure and machine == here else row


def measured_ms(problem: Problem, policy: Policy) -> float:
    """Milliseconds of the prepared call on tensors that are contiguous in the problem's layout, the median of some
    rounds.
    """
    spec = problem.spec
    x, w, y = (packed_strides(s, problem.layout) for s in (spec.input_shape, spec.weight_shape, spec.output_shape))
    return 1e3 * race([prepare(problem, x, w, y, policy)], x, w, y, policy.threads)[0]


class _Convolutions(TorchDispatchMode):
    """Notes the arguments of every convolution that reaches torch's operators, whatever Python called it by."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[ConvSpec, bool, bool, str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, w, b, stride, padding, dilation, transposed, output_padding, groups = args
            outputs = w.shape[1] * groups if transposed else w.shape[0]
            sizes = (x.shape[0], x.shape[1], outputs, tuple(x.shape[2:]), tuple(w.shape[2:]))
            with suppress(SpecError):  # what torch allows and Hubel does not
                if transposed:
                    spec = ConvSpec.for_transposed(*sizes, stride, padding, output_padding, dilation, groups)
                    layout = layout_of(spec, y.stride(), x.stride())
                else:
                    spec = ConvSpec(*sizes, stride, padding, dilation, groups)
                    layout = layout_of(spec, x.stride(), y.stride())
                self.found.append((spec, transposed, b is not None, str(x.dtype).removeprefix("torch."), layout))
        return y


def _problems(net: nn.Module, x: Tensor, backward: bool) -> list[tuple[str, Problem]]:
    with watch(net, keep=False) as calls, _Convolutions() as seen:
        try:
            net(x)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelError(
                f"The network must run on the given input. Received: {list(x.shape)} of {x.dtype}, on which it stopped "
                f"({why}). Pass images of its size."
            ) from error
    # Convolutions that no module and no torch.nn.functional made (torch.convolution, say) have no address of their own.
    named = [call.address for call in calls] if len(calls) == len(seen.found) else None
    problems: list[tuple[str, Problem]] = []
    for i, (spec, transposed, bias, dtype, layout) in enumerate(seen.found):
        address = named[i] if named else f"convolution#{i + 1}"
        forward, gradient = Direction.FORWARD, Direction.INPUT_GRADIENT
        if transposed:
            # A transposed convolution is the input gradient of the one that leads back.
            forward, gradient = gradient, forward
        problems.append((address, Problem(spec, forward, bias and forward is Direction.FORWARD, dtype, layout)))
        if backward:
            problems.append((f"{address}/input_gradient", Problem(spec, gradient, False, dtype, layout)))
            weight = Problem(spec, Direction.WEIGHT_GRADIENT, bias and not transposed, dtype, layout)
            problems.append((f"{address}/weight_gradient", weight))
    return problems


def _row(address: str, problem: Problem, machine: Machine, policy: Policy, speed: Measured | None) -> Row:
    try:
        chosen = choose(problem, machine, policy)
    except UnsupportedError as error:
        return Row(address, problem, None, str(error))
    if speed is None:
        return Row(address, problem, chosen, chosen.reason)
    gflops = speed.fma_gflops_1 if policy.threads == 1 else speed.fma_gflops_all
    ms = chosen.predicted_ms(gflops / min(policy.threads, speed.threads), speed.dram_gb_s)
    return Row(address, problem, chosen, chosen.reason, ms, chosen.roof_ms(gflops, speed.dram_gb_s))


def _cells(row: Row) -> Sequence[str]:
    spec = row.problem.spec
    kernel = row.plan.kernel_key if row.plan else row.reason
    bound = f"{row.plan.error_bound:.1e}" if row.plan else "-"
    numbers = [f"{spec.macs * 1e-6:.3g}", f"{spec.bytes() * 1e-6:.3g}"]
    numbers += [f"{ms:.3g}" if ms else "-" for ms in (row.ms, row.measured_ms)]
    numbers += [f"{row.gflops:.0f}" if row.gflops else "-"]
    numbers += [f"{row.roofline:.0%}" if row.roofline else "-", bound]
    return (row.address, str(row.problem), row.algorithm, kernel, *numbers)


def _set(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 4 else cell.rjust(width)
