"""A convolution ready to run: plan chosen, kernels compiled, arguments filled in, only the base pointers open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from hubel.engine import wisdom
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.algorithms.geometry import layout_of
from hubel.engine.choose import choose, equivalent
from hubel.engine.compile import Library, compiled, emit_assembly
from hubel.engine.machine import Machine, physical_memory
from hubel.engine.plan import Plan, PlannedJob
from hubel.engine.problem import Policy, Problem
from hubel.engine.race import race
from hubel.engine.threads import Block, Job, launch, prebound
from hubel.errors import UnsupportedError, unknown

Strides = tuple[int, ...]

# Below this much work one thread is done before a second has woken up (about 10 µs on one core): operations, and bytes
# from the caches. Two that are awake would take 0.8 to 1.1 of the time, two that sleep 150 µs more and up (Zen 3).
SERIAL_FLOPS, SERIAL_BYTES = 1_000_000, 400_000
# A plan that was measured to be faster than the estimate's choice must have taken at most this share of its time.
NOTICEABLE = 0.97


class Invocation:
    """Runs one problem on tensors with fixed strides. Holds no tensor; may be used by several threads at once.

    packed_bytes: size of the packed weights (0: the kernel reads them as they are). packing_key: equal keys mean the
    same packed layout of the same weight, whatever the image size. jobs, packing, shared_bytes, scratch_bytes: for
    whoever runs it as a part of a longer list; the jobs' words point into this object.
    """

    def __init__(self, plan: Plan, x: Strides, w: Strides, y: Strides) -> None:
        bound = ALGORITHMS[plan.algorithm].bind(plan, x, w, y)
        _check_workspace(plan, 4 * (bound.packed + bound.shared + plan.policy.threads * bound.scratch))
        libraries = kernels(plan)
        self.plan = plan
        self.packed_bytes = 4 * bound.packed
        self.packing_key = bound.packing_key
        self._serial = plan.estimate.computed < SERIAL_FLOPS and plan.estimate.bytes < SERIAL_BYTES
        self._flush = 0 if plan.policy.accuracy == "strict" else 1
        self.shared_bytes, self.scratch_bytes = 4 * bound.shared, 4 * bound.scratch
        self.jobs = _native(bound.jobs, libraries)
        self._jobs = Block(self.jobs, keep=(bound.tables, libraries))
        self.packing = _native(bound.packing, libraries)
        self._packing = Block(self.packing, keep=(bound.tables, libraries))

    def pack(self, weight: int, packed: int, threads: int = 1) -> None:
        """Write the packed form of the weights at address `weight` to address `packed`."""
        launch(self._packing.address, weight, packed, 0, 0, threads, 0, self.scratch_bytes, self._flush)

    def __call__(self, p0: int, p1: int, p2: int, p3: int, threads: int = 1) -> None:
        """Run on base addresses.

        forward: x, packed weights, bias or 0, y · input gradient: dy, packed weights, 0, dx · weight gradient: x, dy,
        db or 0, dw
        """
        if self._serial:
            threads = 1
        launch(self._jobs.address, p0, p1, p2, p3, threads, self.shared_bytes, self.scratch_bytes, self._flush)

    def prebound(self, threads: int = 1) -> Callable[[int, int, int, int], None]:
        """`__call__` with everything decided but the base addresses, for callers that count microseconds."""
        threads = 1 if self._serial else threads
        return prebound(self._jobs, threads, self.shared_bytes, self.scratch_bytes, self._flush)

    def launch_words(self, threads: int = 1) -> tuple[int, int, int, int, int]:
        """(address of the block, threads, bytes of shared scratch, of a thread's, whether denormals are flushed): what
        a native caller gives the launcher. Valid as long as this object is.
        """
        return self._jobs.address, 1 if self._serial else threads, self.shared_bytes, self.scratch_bytes, self._flush


def kernels(plan: Plan) -> dict[str, Library]:
    """The plan's kernels as loaded machine code, compiled or taken from the cache."""
    sources = ALGORITHMS[plan.algorithm].emit(plan)
    return {name: compiled(name, source, plan.machine) for name, source in sources.items()}


def _check_workspace(plan: Plan, size: int) -> None:
    """Raises UnsupportedError where packed weights and scratch need more bytes than this machine has memory."""
    if size > physical_memory():
        raise UnsupportedError(
            f"packed weights and scratch must fit into memory. Received: {plan.problem}, which needs "
            f"{size / 2**30:,.0f} GiB of {physical_memory() / 2**30:,.0f} on {plan.policy.threads} threads. "
            "Use fewer images, smaller ones, or fewer threads."
        )


def _native(jobs: tuple[PlannedJob, ...], libraries: dict[str, Library]) -> list[Job]:
    return [Job(libraries[job.kernel].address("kernel"), job.items, job.chunk, job.words) for job in jobs]


@lru_cache(maxsize=4096)
def prepare(problem: Problem, x: Strides, w: Strides, y: Strides, policy: Policy) -> Invocation:
    """The invocation for tensors with these element strides: x and y are input and output (or their gradients), w the
    weight.

    Raises UnsupportedError where the engine hands a problem back.
    """
    problem, machine = laid_out(problem, x, y), Machine.detect()
    if not policy.measured:
        return Invocation(choose(problem, machine, policy), x, w, y)
    plans = equivalent(problem, machine, policy)
    remembered = wisdom.recall(plans)
    if remembered is not None:
        return Invocation(remembered, x, w, y)
    contenders = [Invocation(plan, x, w, y) for plan in plans]
    seconds = race(contenders, x, w, y, policy.threads)
    fastest = contenders[seconds.index(min(seconds))]
    # Differences that small are the machine's: the estimate decides.
    winner = fastest if min(seconds) < NOTICEABLE * seconds[0] else contenders[0]
    wisdom.remember(winner.plan)
    return winner


def laid_out(problem: Problem, x: Strides, y: Strides) -> Problem:
    """The problem with the layout that tensors with these strides have. A plan for one layout fits no other."""
    return replace(problem, layout=layout_of(problem.spec, x, y))


def kernel_text(plan: Plan, form: str) -> str:
    """The plan's kernels as text: form "ir" (LLVM) or "asm" (for the plan's machine). Raises UnknownNameError for
    another form.
    """
    if form not in ("ir", "asm"):
        raise unknown("form", form, ("ir", "asm"))
    parts = []
    for name, source in ALGORITHMS[plan.algorithm].emit(plan).items():
        text = source()
        parts.append(f"; {name}\n{text if form == 'ir' else emit_assembly(text, plan.machine)}")
    return "\n".join(parts)
