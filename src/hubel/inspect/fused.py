"""What a Session or a compiled network runs: every step, what was fused into it, what of torch's remains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hubel.errors import ModelError
from hubel.graph import Network, Node
from hubel.ops import compiled
from hubel.ops.session import Session

HEAD = ("step", "does", "by", "and ends in")


@dataclass(frozen=True)
class Step:
    """One step of a network. does: its operator; by: the problem and the algorithm, the kernel, or torch's operator;
    ends: what was fused into its end. foreign: whether torch runs it.
    """

    name: str
    does: str
    by: str
    ends: str
    foreign: bool


@dataclass(frozen=True)
class FusedPlan:
    """The steps in the order in which they run; prints as a table. gone: how many nodes of each kind were fused away or
    are views. regions: parallel regions a call opens. arena_bytes: of a call's memory.
    """

    steps: tuple[Step, ...]
    gone: dict[str, int]
    regions: int
    arena_bytes: int

    @property
    def foreign(self) -> list[str]:
        """The names of torch's operators that remain, in order."""
        return [step.by for step in self.steps if step.foreign]

    def __str__(self) -> str:
        rows = [HEAD, *((step.name, step.does, step.by, step.ends) for step in self.steps)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        fused = ", ".join(f"{count} {kind}" for kind, count in self.gone.items()) or "nothing"
        lines.append(
            f"fused or free: {fused}; {self.regions} parallel regions, {self.arena_bytes / 2**20:.1f} MB of memory"
        )
        remain = Counter(self.foreign)
        if remain:
            lines.append("torch's: " + ", ".join(f"{count} {name}" for name, count in remain.items()))
        return "\n".join(lines)


def plan_session(session: Session, x: Tensor | None = None) -> FusedPlan:
    """What a Session runs on `x`, or without it on what it ran on last."""
    calls = session._calls
    if x is not None:
        session(x)
        return _plan(calls.network, [tuple(x.shape)])
    if not calls.known:
        raise ModelError(
            "the plan of a Session is one for sizes. Received: a Session that never ran, and no x. Pass one."
        )
    *shapes, _ = list(calls.known)[-1]
    return _plan(calls.network, [tuple(shape) for shape in shapes])


def plan_compiled(net: nn.Module, x: Tensor) -> FusedPlan:
    """What a network compiled by the backend "hubel" runs on `x`: the steps of all its graphs."""
    ran: list[tuple[compiled.Compiled, list[Tensor]]] = []

    def note(network: compiled.Compiled, tensors: list[Tensor]) -> None:
        ran.append((network, tensors))

    with torch.no_grad():
        net(x)
        compiled.listeners.append(note)
        try:
            net(x)
        finally:
            compiled.listeners.remove(note)
    if not ran:
        raise ModelError(
            "a compiled network of ours runs graphs for inference. Received: one that ran none (another backend, "
            "fuse=False, or a network without convolutions). Compile it with backend='hubel', or plan the net itself."
        )
    plans = [_plan(network.network, [tuple(t.shape) for t in tensors]) for network, tensors in ran]
    gone: Counter[str] = Counter()
    for plan in plans:
        gone.update(plan.gone)
    steps = tuple(step for plan in plans for step in plan.steps)
    return FusedPlan(steps, dict(gone), sum(p.regions for p in plans), max(p.arena_bytes for p in plans))


def _plan(network: Network, shapes: Sequence[tuple[int, ...]]) -> FusedPlan:
    program = network.program(shapes, torch.get_num_threads())
    steps = []
    for entry in program.entries:
        node = entry.node
        foreign = not entry.jobs
        steps.append(Step(node.name, "torch" if foreign else node.op, entry.how, _ends(node), foreign))
    ran = {step.name for step in steps}
    before = Counter(node.op for node in network.given.nodes if node.op not in ("size", "whole", "item"))
    after = Counter(node.op for node in network.graph.nodes if node.name in ran)
    gone = {kind: count - after.get(kind, 0) for kind, count in before.items() if count > after.get(kind, 0)}
    regions = sum(1 for step in program.steps if not hasattr(step, "node"))
    return FusedPlan(tuple(steps), gone, regions, program.arena_bytes)


def _ends(node: Node) -> str:
    if node.op not in ("conv", "linear", "binary", "affine"):
        return ""
    parts = ["bias"] * bool(node.op in ("conv", "linear") and node.operand(2))
    parts += ["sum"] * bool(node.op in ("conv", "linear") and node.operand(3))
    activation = node.get("activation", "")
    return ", ".join([*parts, *([activation] if activation else [])])
