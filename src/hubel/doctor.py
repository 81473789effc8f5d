"""What Hubel sees of this machine, what it supports of it, and whether it is set up well.

Reads and reports; changes nothing but the remembered measurement of peak and bandwidth.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hubel.engine import cache, compile
from hubel.engine.machine import KIB, MIB, Machine
from hubel.engine.measure import measured

# The releases of torch whose operator schemas and threads the tests run against: see constraints.txt.
TESTED_TORCH = ("2.13",)


@dataclass(frozen=True)
class Line:
    """One thing looked at. verdict: "ok", "note" (works, could be better) or "fault" (Hubel's kernels cannot run)."""

    name: str
    value: str
    verdict: str = "ok"
    remedy: str = ""


def examine(*, measure: bool = True) -> list[Line]:
    """All lines, in the order of the walk: software, machine, threads, executable memory, cache, speed.

    measure: also the FMA peak and the memory bandwidth (under a second the first time, then remembered).
    """
    lines = [*_software(), *_machine(Machine.detect()), *_threads(), *_memory(), *_cache(), *_environment()]
    return lines + (list(_speed(Machine.detect())) if measure else [])


def _software() -> Iterator[Line]:
    yield Line("hubel", f"{metadata.version('hubel')}, Python {platform.python_version()}, {platform.system()}")
    version = metadata.version("torch")
    tested = version.startswith(tuple(f"{release}." for release in TESTED_TORCH))
    remedy = (
        "" if tested else f"tested with torch {' and '.join(TESTED_TORCH)}; enable() checks the operators it replaces"
    )
    yield Line("torch", version, "ok" if tested else "note", remedy)
    yield Line("llvmlite", f"{metadata.version('llvmlite')}, LLVM {compile.llvm_version()}")


def _machine(machine: Machine) -> Iterator[Line]:
    supported, reason = machine.supported
    yield Line("machine", machine.name, "ok" if supported else "note", reason)
    vectors = f"{machine.lanes} floats a vector, {machine.registers} vector registers"
    yield Line("instructions", f"{machine.arch}, {machine.cpu}: {_features(machine)}; {vectors}")
    yield Line("data caches", f"L1 {size(machine.l1)}, L2 {size(machine.l2)}, L3 {size(machine.l3)}")
    yield Line("cores", f"{machine.cores} physical, this process may use {_usable()} logical")


def _threads() -> Iterator[Line]:
    import torch

    threads, cores = torch.get_num_threads(), Machine.detect().cores
    crowded = threads > cores
    yield Line(
        "threads",
        f"{threads} (torch.get_num_threads)",
        "note" if crowded else "ok",
        f"more threads than physical cores: torch.set_num_threads({cores}) is usually faster" if crowded else "",
    )
    yield from _team()


def _team() -> Iterator[Line]:
    """Whose thread pool runs the kernels."""
    from hubel.engine import threads

    pool = threads.pool()
    if pool.kind == "none":
        yield Line("thread pool", "none", "note", f"kernels run on one thread: {pool.reason}")
    else:
        yield Line("thread pool", f"{pool.kind}, {Path(pool.path).name}")


def _memory() -> Iterator[Line]:
    if compile.executable_memory_allowed():
        yield Line("executable memory", "allowed")
    else:
        remedy = "this system forbids it (SELinux or a sandbox), so torch's kernels run instead of ours"
        yield Line("executable memory", "forbidden", "fault", remedy)


def _cache() -> Iterator[Line]:
    info = cache.cache_info()
    if info.enabled:
        yield Line("kernel cache", f"{info.entries} kernels, {size(info.bytes)} in {info.path}")
    else:
        yield Line("kernel cache", "off", "note", f"{info.reason}; HUBEL_CACHE_DIR names another folder")


def _environment() -> Iterator[Line]:
    if os.environ.get("HUBEL_DISABLE"):
        yield Line("HUBEL_DISABLE", os.environ["HUBEL_DISABLE"], "note", "Hubel is switched off: unset it")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * _usable():
        yield Line("load", f"{load:.1f} processes run besides", "note", "timings taken now will be noisy")


def _speed(machine: Machine) -> Iterator[Line]:
    found = measured(machine)
    cores = f", {found.fma_gflops_all:.0f} on all cores" if machine.cores > 1 else ""
    yield Line("FMA peak", f"{found.fma_gflops_1:.0f} GFLOP/s on one core{cores} (measured)")
    yield Line("bandwidth", f"memory {found.dram_gb_s:.1f} GB/s, L2 {found.l2_gb_s:.0f} GB/s (measured)")


def _features(machine: Machine) -> str:
    """The instruction sets that matter to float32 kernels, of those the machine has."""
    have = {feature[1:] for feature in machine.features.split(",") if feature.startswith("+")}
    matter = ("avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bf16", "amx-bf16", "neon", "sve", "bf16")
    return ", ".join(name for name in matter if name in have) or "none of AVX2, FMA, AVX-512, NEON"


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def size(count: int) -> str:
    """Bytes for people: 512 B, 32 KiB, 1.5 MiB."""
    if count < KIB:
        return f"{count} B"
    unit, name = (KIB, "KiB") if count < MIB else (MIB, "MiB")
    return f"{count / unit:.3g} {name}" if count / unit < 1000 else f"{count / unit:,.0f} {name}"
