"""Every engine held to an older instruction set than the machine's: what would its figures be without AVX-512?

    run_again("avx2")      the command line once more, in a process whose environment says so before torch is loaded
    hold("avx2") -> Held   in that process, before any other library is loaded

Three ways, each for those that no other reaches:

- Hubel generates code for that instruction set (`machine.hold_to`).
- oneDNN (in torch and OpenVINO), ATen, MKL and glibc have environment variables for it.
- Whatever asks the processor itself is told that it has nothing newer: Linux can make the CPUID instruction fault (on
  Intel since Ivy Bridge), and our handler answers in its place, with the newer instruction sets' bits cleared. It
  reaches the threads that ask from then on, that is, libraries loaded later.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hubel.engine import machine as machines
from hubel.engine.compile import Library, compiled
from hubel.engine.machine import Machine
from hubel.errors import unknown

# Set before the process starts: torch asks once, when it is loaded.
VARIABLES = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW",
    }
}

# Bits of CPUID leaf 7 that say AVX-512 and AMX (Intel's manual, volume 2A, table 3-8): subleaf 0 EBX, ECX and EDX,
# subleaf 1 EAX and EDX.
_F, _DQ, _IFMA, _PF, _ER, _CD, _BW, _VL = (1 << bit for bit in (16, 17, 21, 26, 27, 28, 30, 31))
HIDDEN = {
    "avx2": {
        (0, "ebx"): _F | _DQ | _IFMA | _PF | _ER | _CD | _BW | _VL,
        (0, "ecx"): sum(1 << bit for bit in (1, 6, 11, 12, 14)),
        (0, "edx"): sum(1 << bit for bit in (2, 3, 8, 22, 23, 24, 25)),
        (1, "eax"): sum(1 << bit for bit in (5, 21)),
        (1, "edx"): 1 << 19,
    }
}

# Linux on x86-64: the system call that turns CPUID's fault on and off, and its two requests.
_ARCH_PRCTL, _GET_CPUID, _SET_CPUID = 158, 0x1011, 0x1012
_SA_SIGINFO, _SA_NODEFER = 4, 0x40000000
# Where a signal's context keeps RBX, RDX, RAX, RCX and RIP (glibc's ucontext_t, in bytes).
_RBX, _RDX, _RAX, _RCX, _RIP = (40 + 8 * index for index in (11, 12, 13, 14, 16))


@dataclass(frozen=True)
class Held:
    """isa: what this process is held to. cpuid: whether libraries that ask the processor are held, too; if not, why."""

    isa: str
    cpuid: bool
    reason: str = ""

    def __str__(self) -> str:
        """For the table's heading."""
        if self.cpuid:
            return f"every engine held to {self.isa}: hubel by its plans, the others by their settings and by CPUID"
        return f"held to {self.isa}: hubel, torch, openvino; other engines are NOT held, because {self.reason}"


def is_prepared(isa: str) -> bool:
    """Whether this process was started with the variables that hold torch to `isa`."""
    if isa not in VARIABLES:
        raise unknown("instruction set", isa, VARIABLES)
    return all(os.environ.get(name) == value for name, value in VARIABLES[isa].items())


def run_again(isa: str, arguments: Sequence[str] | None = None) -> int:
    """The command line `hubel ARGUMENTS` (None: this process's) in a process prepared for `isa`; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = [sys.executable, "-c", "from hubel.cli import main; main()", *words]
    child = subprocess.Popen(command, env=os.environ | VARIABLES[isa])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the child as well, which ends in its own way and says so.
            continue


def hold(isa: str) -> Held:
    """Hold this process, which `is_prepared`, to `isa`.

    Raises UnsupportedError if the machine does not have it.
    """
    global current
    machines.hold_to(isa)
    reason = hide_from_cpuid(isa)
    current = Held(isa, not reason, reason)
    return current


# What this process is held to: None, all the machine has.
current: Held | None = None
_handler: Library | None = None


def hide_from_cpuid(isa: str) -> str:
    """Answer CPUID without what is newer than `isa` from now on; the reason why it cannot be done, or ""."""
    global _handler
    if sys.platform != "linux" or Machine.detect().arch != "x86_64":
        return "only Linux on x86-64 lets CPUID be answered for the processor"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _SET_CPUID, 1) != 0:
        return "this processor or system cannot make CPUID fault"
    _handler = compiled(f"cpuid_without_more_than_{isa}", lambda: handler_ir(isa), Machine.detect())
    # struct sigaction of glibc: handler, mask of 128 bytes, flags, restorer
    action = (ctypes.c_uint64 * 19)(_handler.address("handler"))
    action[17] = _SA_SIGINFO | _SA_NODEFER
    if libc.sigaction(int(signal.SIGSEGV), action, None) != 0 or libc.syscall(_ARCH_PRCTL, _SET_CPUID, 0) != 0:
        return "the system refuses it"
    return ""


def handler_ir(isa: str) -> str:
    """A handler of SIGSEGV that executes CPUID for the instruction that faulted; any other fault ends the process."""
    hidden = HIDDEN[isa]
    masks = []
    for index, register in enumerate(("eax", "ebx", "ecx", "edx")):
        kept = [~hidden.get((subleaf, register), 0) & 0xFFFFFFFF for subleaf in (0, 1)]
        masks.append(f"""
  %{register}_told = extractvalue {{ i32, i32, i32, i32 }} %told, {index}
  %{register}_mask_0 = select i1 %in_first, i32 {kept[0]}, i32 -1
  %{register}_mask = select i1 %in_second, i32 {kept[1]}, i32 %{register}_mask_0
  %{register}_kept = and i32 %{register}_told, %{register}_mask
  %{register}_wide = zext i32 %{register}_kept to i64
  %{register}_at = getelementptr i8, ptr %context, i64 {(_RAX, _RBX, _RCX, _RDX)[index]}
  store i64 %{register}_wide, ptr %{register}_at""")
    system_call = 'call i64 asm sideeffect "syscall", "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"'
    return f"""
declare ptr @signal(i32, ptr)

define void @handler(i32 %number, ptr %info, ptr %context) nounwind {{
entry:
  %rip_at = getelementptr i8, ptr %context, i64 {_RIP}
  %rip = load i64, ptr %rip_at
  %code_at = inttoptr i64 %rip to ptr
  %code = load i16, ptr %code_at, align 1
  %is_cpuid = icmp eq i16 %code, {0xA20F - 0x10000}
  br i1 %is_cpuid, label %answer, label %other
answer:
  %allowed = {system_call}(i64 {_ARCH_PRCTL}, i64 {_SET_CPUID}, i64 1)
  %leaf_at = getelementptr i8, ptr %context, i64 {_RAX}
  %leaf = load i32, ptr %leaf_at
  %subleaf_at = getelementptr i8, ptr %context, i64 {_RCX}
  %subleaf = load i32, ptr %subleaf_at
  %told = call {{ i32, i32, i32, i32 }} asm sideeffect "cpuid", "={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}}"(
    i32 %leaf, i32 %subleaf)
  %forbidden = {system_call}(i64 {_ARCH_PRCTL}, i64 {_SET_CPUID}, i64 0)
  %features = icmp eq i32 %leaf, 7
  %first = icmp eq i32 %subleaf, 0
  %second = icmp eq i32 %subleaf, 1
  %in_first = and i1 %features, %first
  %in_second = and i1 %features, %second{"".join(masks)}
  %after = add i64 %rip, 2
  store i64 %after, ptr %rip_at
  ret void
other:
  %ignored = call ptr @signal(i32 {int(signal.SIGSEGV)}, ptr null)
  ret void
}}
"""
