"""What an algorithm answers when it is asked to do a problem: a Plan, or a Refusal.

A Plan says everything about *how*, and nothing about where: no address, no stride of a tensor. It can be printed,
compared and kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt

from hubel.engine.machine import Machine
from hubel.engine.problem import Direction, Policy, Problem


@dataclass(frozen=True)
class Tile:
    """What stays in registers: `rows` × `vectors` accumulators of `lanes` numbers."""

    rows: int
    vectors: int
    lanes: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors * self.lanes}"


@dataclass(frozen=True)
class Estimate:
    """Work counted from the plan: `flops` that are useful, `computed` with the tiles' waste, `bytes` moved at least;
    `cycles` until all threads of the policy are done, of a core that does two multiply-adds of a vector in each.
    """

    flops: int
    computed: int
    bytes: int
    cycles: float


@dataclass(frozen=True)
class Refusal:
    """Why an algorithm does not do a problem."""

    algorithm: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a problem is done on a machine.

    kernels: names of the compiled kernels, a sentence each. channel_block: channels summed in registers before a
    partial sum is added to memory; with it the order of summation is fixed. box: outputs (z, y, x) a work item
    covers; row_tiles: tiles of output channels a work item covers. images: images that a work item of a weight
    gradient reads at a time; partial_sums: how many are added at its end. error_bound: ‖out − ref‖ ∕ ‖ref‖ on N(0,1)
    data. least_gain: how many times faster than another's its estimate must be before it is chosen. sums_like: the
    algorithm whose order of summation it has, if another's: the two give the same bits.
    """

    problem: Problem
    machine: Machine
    policy: Policy
    algorithm: str
    tile: Tile
    kernels: tuple[str, ...]
    channel_block: int
    box: tuple[int, int, int]
    row_tiles: int
    estimate: Estimate
    error_bound: float
    reason: str
    images: int = 1
    partial_sums: int = 1
    least_gain: float = 1.0
    sums_like: str = ""
    refusals: tuple[Refusal, ...] = field(default=())

    def with_refusals(self, refusals: tuple[Refusal, ...]) -> Plan:
        return replace(self, refusals=refusals)

    @property
    def order(self) -> str:
        """The order of summation: plans of one problem that agree in it give the same bits."""
        return self.sums_like or self.algorithm

    @property
    def cost(self) -> float:
        """What `choose` compares: cycles, and what the plan must gain."""
        return self.estimate.cycles * self.least_gain

    def predicted_ms(self, gflops: float, gb_per_s: float) -> float:
        """Milliseconds on cores with this FMA peak each, beside a memory with this bandwidth: the slower of the two."""
        hertz = gflops * 1e9 / (4 * self.machine.lanes)
        return 1e3 * max(self.estimate.cycles / hertz, self._moved / (gb_per_s * 1e9))

    def roof_ms(self, gflops: float, gb_per_s: float) -> float:
        """The least time the machine could need: for the useful work, or for what is left of it where the algorithm
        does with fewer multiplications; or for the traffic. gflops: of all threads together.
        """
        flops = min(self.estimate.flops, self.estimate.computed)
        return 1e3 * max(flops / (gflops * 1e9), self._moved / (gb_per_s * 1e9))

    @property
    def _moved(self) -> int:
        """Bytes that come from memory. What fits into half of the last cache is taken to be there already."""
        return self.estimate.bytes if self.estimate.bytes > self.machine.l3 / 2 else 0

    @property
    def kernel_key(self) -> str:
        """The name of the kernel that does the work; it names the cached object too."""
        return self.kernels[0]


@dataclass(frozen=True)
class PlannedJob:
    """One kernel, by name, over a range of work items; `words` are its arguments after the base pointers."""

    kernel: str
    items: int
    words: tuple[int, ...]
    chunk: int = 1


@dataclass(frozen=True)
class Bound:
    """A plan bound to the strides of its tensors: jobs that lack only base pointers.

    jobs run in order with a barrier between them; packing prepares the weights. scratch: float32 numbers for each
    thread, in jobs and in packing, shared: for all threads together, packed: for the packed weights, whose layout
    `packing_key` names. `tables` are kept alive with the jobs, which hold their addresses.
    """

    jobs: tuple[PlannedJob, ...]
    packing: tuple[PlannedJob, ...]
    packed: int
    packing_key: tuple[object, ...]
    scratch: int
    shared: int
    tables: tuple[object, ...]


def error_unit(terms: int) -> float:
    """u = 3e-7 · max(1, √(K ∕ 2304)): the unit of the accuracy levels, for sums of K terms."""
    return 3e-7 * max(1.0, sqrt(terms / 2304))


def terms_of(problem: Problem) -> int:
    """K: how many products an element of the result is the sum of."""
    spec = problem.spec
    if problem.direction is Direction.FORWARD:
        return spec.in_channels // spec.groups * spec.taps
    if problem.direction is Direction.INPUT_GRADIENT:
        return spec.out_channels // spec.groups * spec.taps
    outputs = spec.batch
    for size in spec.output_size:
        outputs *= size
    return outputs
