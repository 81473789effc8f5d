"""What this machine reaches: FMA peak of one core and of all, read bandwidth of L2 and of main memory.

Generated kernels, run through the same launcher as every other. A number here is the best of many short rounds, that
is, what the machine can do when nobody disturbs it. Half a second in all, once; then remembered in the cache folder.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import asdict, dataclass, fields

import numpy as np

from hubel.engine import cache
from hubel.engine.compile import compiled, engine_version
from hubel.engine.machine import Machine
from hubel.engine.threads import Block, Job, launch, pool

# A loop round of the FMA kernel repeats its accumulators this often, so that loop overhead vanishes.
FMA_REPEATS = 8
# Loop rounds a work item: some 10 µs, far more than handing an item out costs.
FMA_ROUNDS = 500
# Items a launch: 1 ms on one core.
FMA_ITEMS = 100
# Vectors read a loop round, into accumulators of their own.
READ_VECTORS = 8
# Above this much memory a machine's DRAM bandwidth is asked with a buffer that may partly sit in a very large cache.
DRAM_BUFFER_CAP = 256 * 2**20
READ_ITEM_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Measured:
    """fma_gflops_1, fma_gflops_all: float32 GFLOP/s of one and of all cores (an FMA is two). dram_gb_s, l2_gb_s:
    10⁹ bytes read a second, from main memory by all cores, from L2 by one. threads: how many "all" were."""

    fma_gflops_1: float
    fma_gflops_all: float
    dram_gb_s: float
    l2_gb_s: float
    threads: int


def measured(machine: Machine) -> Measured:
    """Peak and bandwidth of ``machine``, which must be able to run here; measured once and remembered.

    Raises UnsupportedError where no generated code runs.
    """
    threads = machine.cores if pool().kind != "none" else 1
    return _measured(machine, threads)


@functools.cache
def _measured(machine: Machine, threads: int) -> Measured:
    key = f"{machine} {threads} {engine_version()}"
    remembered = _from_json(cache.disk().read_json("measured", key))
    if remembered is not None:
        return remembered
    one = fma_gflops(machine, 1, rounds=40)
    result = Measured(
        fma_gflops_1=one,
        # Never below one core's: then the other cores were busy with somebody else's work.
        fma_gflops_all=max(one, fma_gflops(machine, threads, rounds=40)) if threads > 1 else one,
        dram_gb_s=read_gb_s(machine, threads, min(4 * machine.l3, DRAM_BUFFER_CAP), rounds=8),
        l2_gb_s=read_gb_s(machine, 1, machine.l2 // 2, rounds=200),
        threads=threads,
    )
    cache.disk().write_json("measured", key, asdict(result))
    return result


def fma_gflops(machine: Machine, threads: int, rounds: int = 10) -> float:
    """Best rate of ``rounds`` rounds of about 1 ms of register-only FMAs a core; GFLOP/s of all threads together."""
    accumulators = _accumulators(machine)
    library = compiled(f"measure_fma_{machine.lanes}x{accumulators}", lambda: fma_ir(machine), machine)
    items = FMA_ITEMS * threads
    block = Block([Job(library.address("fma"), items, 1)], keep=[library])
    seconds = _best(block, 0, threads, rounds)
    return items * FMA_ROUNDS * FMA_REPEATS * accumulators * machine.lanes * 2 / seconds / 1e9


def read_gb_s(machine: Machine, threads: int, size: int, rounds: int) -> float:
    """Best rate of ``rounds`` passes over a buffer of about ``size`` bytes, read whole; 10⁹ bytes a second."""
    item_bytes = min(READ_ITEM_BYTES, size)
    item_bytes -= item_bytes % (READ_VECTORS * machine.lanes * 4)
    items = max(1, size // item_bytes)
    buffer = np.zeros(items * item_bytes // 4, dtype=np.float32)
    # Zeros from the system share one page until written to.
    buffer.fill(1.0)
    library = compiled(f"measure_read_{machine.lanes}", lambda: read_ir(machine), machine)
    # A small buffer is passed over several times a launch, which the launch's own microseconds would distort else.
    passes = max(1, 2 * 2**20 // size)
    job = Job(library.address("read"), items, max(1, items // (8 * threads)), [item_bytes])
    block = Block([job] * passes, keep=[library])
    return passes * items * item_bytes / _best(block, buffer.ctypes.data, threads, rounds) / 1e9


def fma_ir(machine: Machine) -> str:
    """A kernel of independent chains of FMAs, as many as keep every unit busy, all in registers."""
    vector = f"<{machine.lanes} x float>"
    count = _accumulators(machine)
    phis = [
        f"  %acc{i} = phi {vector} [ zeroinitializer, %item ], [ %acc{i}_{FMA_REPEATS}, %round ]" for i in range(count)
    ]
    # acc + factor·factor: the form in which every instruction set accumulates in place
    body = [
        f"  %acc{i}_{r + 1} = call {vector} @llvm.fma({vector} %factor, {vector} %factor, "
        f"{vector} %acc{i}{f'_{r}' if r else ''})"
        for r in range(FMA_REPEATS)
        for i in range(count)
    ]
    sums = [f"  %sum{i + 1} = fadd {vector} %sum{i}, %acc{i + 1}_{FMA_REPEATS}" for i in range(count - 1)]
    sums[0] = sums[0].replace("%sum0", f"%acc0_{FMA_REPEATS}")
    intrinsic = f"llvm.fma.v{machine.lanes}f32"
    text = f"""
declare {vector} @{intrinsic}({vector}, {vector}, {vector})

define void @fma(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{
entry:
  ; sums start at zero in every item: neither denormal nor near overflow
  %one = insertelement {vector} poison, float 0.5, i32 0
  %factor = shufflevector {vector} %one, {vector} poison, <{machine.lanes} x i32> zeroinitializer
  br label %item
item:
  %index = phi i64 [ %begin, %entry ], [ %index_next, %item_done ]
  br label %round
round:
  %rounds = phi i64 [ 0, %item ], [ %rounds_next, %round ]
{chr(10).join(phis)}
{chr(10).join(body)}
  %rounds_next = add i64 %rounds, 1
  %again = icmp ult i64 %rounds_next, {FMA_ROUNDS}
  br i1 %again, label %round, label %item_done
item_done:
{chr(10).join(sums)}
  store {vector} %sum{count - 1}, ptr %scratch, align 4
  %index_next = add i64 %index, 1
  %more = icmp slt i64 %index_next, %end
  br i1 %more, label %item, label %out
out:
  ret void
}}
{_attributes(machine)}
"""
    return text.replace("@llvm.fma(", f"@{intrinsic}(")


def read_ir(machine: Machine) -> str:
    """A kernel that sums its items of the buffer p0; the own argument is the bytes of an item."""
    vector = f"<{machine.lanes} x float>"
    last = READ_VECTORS - 1
    phis = [f"  %acc{i} = phi {vector} [ zeroinitializer, %entry ], [ %acc{i}_next, %read ]" for i in range(last + 1)]
    loads = [
        f"""  %at{i} = getelementptr i8, ptr %base, i64 {i * machine.lanes * 4}
  %value{i} = load {vector}, ptr %at{i}, align 4
  %acc{i}_next = fadd {vector} %acc{i}, %value{i}"""
        for i in range(last + 1)
    ]
    sums = [f"  %sum{i + 1} = fadd {vector} %sum{i}, %acc{i + 1}_next" for i in range(last)]
    sums[0] = sums[0].replace("%sum0", "%acc0_next")
    return f"""
define void @read(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{
entry:
  %buffer = load ptr, ptr %args
  %item_at = getelementptr i64, ptr %args, i64 5
  %item_bytes = load i64, ptr %item_at
  %first = mul i64 %begin, %item_bytes
  %stop = mul i64 %end, %item_bytes
  br label %read
read:
  %offset = phi i64 [ %first, %entry ], [ %offset_next, %read ]
{chr(10).join(phis)}
  %base = getelementptr i8, ptr %buffer, i64 %offset
{chr(10).join(loads)}
  %offset_next = add i64 %offset, {READ_VECTORS * machine.lanes * 4}
  %more = icmp slt i64 %offset_next, %stop
  br i1 %more, label %read, label %out
out:
{chr(10).join(sums)}
  store {vector} %sum{last}, ptr %scratch, align 4
  ret void
}}
{_attributes(machine)}
"""


def _accumulators(machine: Machine) -> int:
    # Latency times units is 8 to 10 on every core known here; 12 leaves margin and fits 16 registers.
    return 12 if machine.registers == 16 else 24


def _attributes(machine: Machine) -> str:
    bits = 32 * machine.lanes
    return f'attributes #0 = {{ nounwind "min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}" }}'


def _best(block: Block, buffer: int, threads: int, rounds: int) -> float:
    """Seconds of the fastest of ``rounds`` launches, after one that warms up."""
    best = math.inf
    for index in range(rounds + 1):
        start = time.perf_counter()
        launch(block.address, buffer, 0, 0, 0, threads, 0, 64, 0)
        if index > 0:
            best = min(best, time.perf_counter() - start)
    return best


def _from_json(stored: object) -> Measured | None:
    """What an earlier process measured; None when the file is missing or not what was written."""
    if not isinstance(stored, dict) or set(stored) != {field.name for field in fields(Measured)}:
        return None
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value > 0 for value in stored.values()):
        return None
    return Measured(**stored)
