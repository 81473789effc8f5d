"""The machine kernels are generated for: instruction set, registers, caches, cores. Detected, or taken from a table."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm

from hubel.errors import UnsupportedError, unknown

KIB = 2**10
MIB = 2**20

# Assumed where the system does not say: what almost every core of the last ten years has at least.
DEFAULT_CACHES = (32 * KIB, 256 * KIB, 4 * MIB)

LINUX_X86 = "x86_64-unknown-linux-gnu"
LINUX_ARM = "aarch64-unknown-linux-gnu"
MACOS_ARM = "arm64-apple-macosx11.0.0"

AVX2 = "+avx2,+fma,+f16c,+bmi,+bmi2"
AVX512 = AVX2 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
# Byte permutes of these LLVM may use in any shuffle, so that such code does not run on an older AVX-512 machine.
AVX512_ICELAKE = AVX512 + ",+avx512vbmi,+avx512vbmi2"


@dataclass(frozen=True)
class Machine:
    """What code generation needs to know of a processor.

    name: for people. arch: "x86_64" or "aarch64". cpu, features, triple: as LLVM spells them.
    lanes: float32 values in a vector register. registers: number of vector registers.
    l1, l2, l3: bytes of data cache (l1, l2 of one core). cores: physical cores this process may use.
    """

    name: str
    arch: str
    cpu: str
    features: str
    lanes: int
    registers: int
    l1: int
    l2: int
    l3: int
    cores: int
    triple: str

    @staticmethod
    def detect() -> Machine:
        """This machine, as far as the operating system (and `hold_to`) lets the process use it; looked at once."""
        return _held or _detected()

    @staticmethod
    def named(name: str) -> Machine:
        """A machine of the table ``MACHINES``. Raises UnknownNameError, naming near ones."""
        if name not in MACHINES:
            raise unknown("machine", name, MACHINES)
        return MACHINES[name]

    @property
    def target(self) -> str:
        """All that decides which instructions LLVM may emit, in one string."""
        return f"{self.triple} {self.cpu} {self.features}"

    @property
    def isa(self) -> str:
        """The instruction set in a word, for the names of kernels."""
        if self.arch == "x86_64":
            return {16: "avx512", 8: "avx2"}.get(self.lanes, "sse")
        return "neon"

    @property
    def supported(self) -> tuple[bool, str]:
        """Whether machines like this one are tested in CI, and if not, why."""
        if self.arch != "x86_64" or "linux" not in self.triple:
            return False, f"{self.triple} is best effort; tested is Linux on x86-64"
        if self.lanes < 8:
            return False, "no AVX2 with FMA; kernels run on SSE, slowly"
        return True, ""

    def runs_here(self) -> bool:
        """Whether this machine's code runs on the machine we are on: same system, no instruction it lacks."""
        here = Machine.detect()
        if self.target == here.target:
            return True
        same_system = self.arch == here.arch and ("linux" in self.triple) == ("linux" in here.triple)
        return same_system and _instructions(self.features) <= _instructions(here.features)


def _instructions(features: str) -> set[str]:
    return {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def _x86(name: str, cpu: str, features: str, l1: int, l2: int, l3: int, cores: int) -> Machine:
    lanes, registers = (16, 32) if "avx512f" in features else (8, 16)
    return Machine(name, "x86_64", cpu, features, lanes, registers, l1, l2, l3, cores, LINUX_X86)


def _arm(name: str, l1: int, l2: int, l3: int, cores: int, triple: str = LINUX_ARM) -> Machine:
    return Machine(name, "aarch64", name, "+neon", 4, 32, l1, l2, l3, cores, triple)


# Known machines, for golden texts, for cross-compiling and for asking what the engine would do elsewhere. Caches as the
# manufacturers state them for a common model; l2 where cores share one is a core's part.
MACHINES: dict[str, Machine] = {
    "haswell": _x86("haswell", "haswell", AVX2, 32 * KIB, 256 * KIB, 8 * MIB, 4),
    "skylake": _x86("skylake", "skylake", AVX2, 32 * KIB, 256 * KIB, 8 * MIB, 4),
    "alderlake": _x86("alderlake", "alderlake", AVX2, 48 * KIB, 1280 * KIB, 30 * MIB, 8),
    # AMD's own SSE4a shuffles are left out, so that this code runs on every AVX2 machine.
    "zen2": _x86("zen2", "znver2", AVX2 + ",-sse4a", 32 * KIB, 512 * KIB, 16 * MIB, 8),
    "zen3": _x86("zen3", "znver3", AVX2 + ",-sse4a", 32 * KIB, 512 * KIB, 32 * MIB, 8),
    "skylake-avx512": _x86("skylake-avx512", "skylake-avx512", AVX512, 32 * KIB, MIB, 25 * MIB, 18),
    "cascadelake": _x86("cascadelake", "cascadelake", AVX512, 32 * KIB, MIB, 36 * MIB, 24),
    "icelake-server": _x86("icelake-server", "icelake-server", AVX512_ICELAKE, 48 * KIB, 1280 * KIB, 48 * MIB, 32),
    "sapphirerapids": _x86("sapphirerapids", "sapphirerapids", AVX512_ICELAKE, 48 * KIB, 2 * MIB, 105 * MIB, 56),
    "zen4": _x86("zen4", "znver4", AVX512_ICELAKE + ",-sse4a", 32 * KIB, MIB, 32 * MIB, 8),
    "zen5": _x86("zen5", "znver5", AVX512_ICELAKE + ",-sse4a", 48 * KIB, MIB, 32 * MIB, 8),
    "neoverse-n1": _arm("neoverse-n1", 64 * KIB, MIB, 32 * MIB, 64),
    "neoverse-v1": _arm("neoverse-v1", 64 * KIB, MIB, 32 * MIB, 64),
    "neoverse-v2": _arm("neoverse-v2", 64 * KIB, 2 * MIB, 36 * MIB, 96),
    "cortex-a72": _arm("cortex-a72", 32 * KIB, 256 * KIB, MIB, 4),
    "cortex-a76": _arm("cortex-a76", 64 * KIB, 512 * KIB, 2 * MIB, 4),
    "apple-m1": _arm("apple-m1", 128 * KIB, 3 * MIB, 8 * MIB, 4, MACOS_ARM),
}


# Instruction sets that a process can be held to, and the oldest machine of the table that has each.
HELD_TO = {"avx2": "haswell", "avx512": "skylake-avx512"}
_held: Machine | None = None


def hold_to(isa: str | None) -> Machine:
    """Have this process generate code for an older instruction set than the machine's; returns what `detect` now says.

    Instructions, registers and LLVM's name of the processor are those of the oldest machine that has `isa`; caches and
    cores stay this machine's. None lifts it. For measurements: call it before anything is planned.
    Raises UnknownNameError for an unknown name, UnsupportedError if this machine does not have it.
    """
    global _held
    if isa is None:
        _held = None
        return _detected()
    if isa not in HELD_TO:
        raise unknown("instruction set", isa, HELD_TO)
    here, old = _detected(), MACHINES[HELD_TO[isa]]
    if here.triple != old.triple or not _instructions(old.features) <= _instructions(here.features):
        raise UnsupportedError(f"a machine can be held to instructions that it has. Received: {isa} on {here.name}.")
    _held = dataclasses.replace(
        old, name=f"{here.name}, held to {isa}", l1=here.l1, l2=here.l2, l3=here.l3, cores=here.cores
    )
    return _held


@functools.cache
def _detected() -> Machine:
    features = llvm.get_host_cpu_features()
    # Absent features are spelled out too: a hypervisor may mask what the processor's name promises.
    text = ",".join(("+" if features[name] else "-") + name for name in sorted(features))
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if features.get("avx512f") and features.get("avx512vl") and features.get("avx512dq"):
        lanes, registers = 16, 32
    elif features.get("avx2") and features.get("fma"):
        lanes, registers = 8, 16
    else:
        lanes, registers = 4, 16 if arch == "x86_64" else 32
    cpu = llvm.get_host_cpu_name()
    l1, l2, l3 = _caches()
    return Machine(
        name=_model_name() or cpu,
        arch=arch,
        cpu=cpu,
        features=text,
        lanes=lanes,
        registers=registers,
        l1=l1,
        l2=l2,
        l3=l3,
        cores=_physical_cores(),
        triple=llvm.get_process_triple(),
    )


def _model_name() -> str:
    """What the processor calls itself; empty where the system does not tell."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string").split(b"\0")[0].decode()
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return ""


def _caches() -> tuple[int, int, int]:
    """Bytes of L1 data, L2 and L3 cache of one core's point of view, with defaults for what is not told."""
    found: dict[int, int] = {}
    if sys.platform == "darwin":
        for level, key in ((1, "hw.perflevel0.l1dcachesize"), (2, "hw.perflevel0.l2cachesize")):
            found[level] = int.from_bytes(_sysctl(key), "little")
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _text(index / "type") != "Instruction":
            found[int(_text(index / "level") or 0)] = _bytes(_text(index / "size"))
    l1, l2, l3 = (found.get(level) or default for level, default in zip((1, 2, 3), DEFAULT_CACHES, strict=True))
    return l1, l2, l3


@functools.cache
def physical_memory() -> int:
    """Bytes of main memory; where the system does not tell, more than any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62


def give_back_memory() -> None:
    """Freed memory goes back to the system; glibc keeps it, and what it keeps only grows where sizes vary."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _physical_cores() -> int:
    """Cores this process may run on; two hardware threads of a core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    seen = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        core = _text(topology / "core_id")
        seen.add((_text(topology / "physical_package_id"), core) if core else cpu)
    return len(seen)


def _bytes(text: str) -> int:
    """ "32K" → 32768."""
    digits = text.rstrip("KMG")
    return int(digits or 0) * {"K": KIB, "M": MIB, "G": 2**30}.get(text[-1:], 1)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str) -> bytes:
    """A value of macOS's sysctl as raw bytes; empty when there is none of that name."""
    buffer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0)
    return b"" if failed else buffer.raw[: size.value]
