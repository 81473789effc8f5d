"""Runs a list of kernels in one parallel region.

One generated native function, ``run``, takes a *block*: the jobs of a launch as 64-bit words. It copies the block to
its own stack, writes the base pointers into every job's arguments, opens one parallel region of torch's own OpenMP
pool (so that the process has one pool, and a core never two busy threads), and in it works through the jobs: the
items of a job fall into a range for each thread, which hands them out in chunks through an atomic counter; who has
finished its own range helps with the others', which stays fair when a core is taken away; between two jobs lies a
barrier. A thread so meets the same part of a tensor in every launch, in its own caches. With one thread there is no
region and no barrier. ``run_placed`` does the same with a block whose jobs have base pointers of their own.

    block:  number of jobs; then for each job  kernel address, items, chunk, number of words in args, args...
    args:   words 0..3 the base pointers p0..p3, word 4 the scratch shared by all threads, the kernel's own from word 5
    kernel: void kernel(ptr args, i64 begin, i64 end, ptr scratch), any split of 0..items, scratch its thread's own

After a fork the pool's threads do not exist in the child, and libgomp would wait for them forever: the child runs
single-threaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubel.engine.compile import Library, compiled
from hubel.engine.launcher import launcher_ir
from hubel.engine.machine import Machine

# Words at the head of a job's args that `run` fills in: p0, p1, p2, p3, shared scratch.
RESERVED_WORDS = 5

# Scratch of different threads never shares a cache line, and vectors in it are aligned.
ALIGNMENT = 64


@dataclass(frozen=True)
class Job:
    """One kernel over ``items`` work items, handed out ``chunk`` at a time.

    kernel: address of `void kernel(ptr args, i64 begin, i64 end, ptr scratch)`. args: the kernel's own words, which it
    finds from word 5 on, behind the base pointers and the shared scratch.
    """

    kernel: int
    items: int
    chunk: int
    args: Sequence[int] = ()


class Block:
    """The jobs of one launch as native words; ``address`` is what ``launch`` takes.

    keep: objects whose memory or code the words point to (tables, Libraries); they live as long as the block.
    pointers_at: for each job where in `words` its base pointers are, for whoever places them (`launch_placed`).
    """

    def __init__(self, jobs: Sequence[Job], keep: Sequence[object] = ()) -> None:
        words = [len(jobs)]
        self.pointers_at = []
        for job in jobs:
            if job.chunk < 1 or job.items < 0:
                raise ValueError(f"a job needs chunk >= 1 and items >= 0, got chunk={job.chunk}, items={job.items}")
            words += [job.kernel, job.items, job.chunk, RESERVED_WORDS + len(job.args)]
            self.pointers_at.append(len(words))
            words += [0] * RESERVED_WORDS + list(job.args)
        self.words = np.array(words, dtype=np.int64)
        self.address = self.words.ctypes.data
        self._keep = tuple(keep)


@dataclass(frozen=True)
class Pool:
    """Which threads run kernels. kind: "openmp", "own", "none". path: the OpenMP library. reason: why there is none."""

    kind: str
    path: str
    reason: str


def launch(
    block_address: int,
    p0: int,
    p1: int,
    p2: int,
    p3: int,
    threads: int,
    shared_bytes: int,
    scratch_stride: int,
    ftz: int,
) -> None:
    """Run the block at ``block_address`` on the pointers p0..p3 and return when all its jobs are done.

    threads: always 1 or the process's usual number: libgomp ends threads when a team shrinks, and starts them anew.
    shared_bytes, scratch_stride: scratch of all threads together and of each, in bytes; contents are undefined.
    ftz: 1 to flush denormals to zero while kernels run; the caller's floating-point state is restored.
    """
    if threads > _team_limit:
        threads = _team(threads)
    need = shared_bytes + threads * (scratch_stride + ALIGNMENT)
    if need > _arena.size:
        _arena.grow(need)
    _run(block_address, p0, p1, p2, p3, threads, shared_bytes, scratch_stride, ftz, _arena.address)


def prebound(
    block: Block, threads: int, shared_bytes: int, scratch_stride: int, ftz: int
) -> Callable[[int, int, int, int], None]:
    """`launch` with everything decided but the pointers p0..p3: a microsecond less on calls that take ten."""
    address = block.address
    if threads > 1:

        def run(p0: int, p1: int, p2: int, p3: int) -> None:
            launch(address, p0, p1, p2, p3, threads, shared_bytes, scratch_stride, ftz)

        return run
    need = shared_bytes + scratch_stride + ALIGNMENT

    def run_alone(p0: int, p1: int, p2: int, p3: int) -> None:
        if need > _arena.size:
            _arena.grow(need)
        _run(address, p0, p1, p2, p3, 1, shared_bytes, scratch_stride, ftz, _arena.address)

    return run_alone


def launch_placed(block_address: int, threads: int, shared_bytes: int, scratch_stride: int, ftz: int) -> None:
    """`launch` of a block in which every job has base pointers of its own: a whole network in one region.

    The block is written to: it may run once at a time.
    """
    if threads > _team_limit:
        threads = _team(threads)
    need = shared_bytes + threads * (scratch_stride + ALIGNMENT)
    if need > _arena.size:
        _arena.grow(need)
    _run_placed(block_address, threads, shared_bytes, scratch_stride, ftz, _arena.address)


def pool() -> Pool:
    """The threads that launches with more than one thread get in this process, now."""
    if _forked:
        return Pool("none", "", "this process was forked; its kernels run single-threaded")
    path = find_openmp()
    if path is not None:
        return Pool("openmp", path, "")
    if os.name != "posix":
        return Pool("none", "", f"no OpenMP library is loaded, and there are no POSIX threads on {sys.platform}")
    return Pool("own", "", "no OpenMP library is loaded; every launch makes its own threads, some 20 µs each")


def find_openmp() -> str | None:
    """The loaded library that offers GOMP_parallel: torch's own, if there are several; None if there is none."""
    if not sys.platform.startswith("linux"):
        return None
    # address, permissions, offset, device, inode, path; a path may hold spaces
    mapped = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    paths = {columns[5] for columns in mapped if len(columns) == 6 and columns[5].startswith("/")}
    libraries = sorted(path for path in paths if "omp" in Path(path).name and ".so" in Path(path).name)
    for path in sorted(libraries, key=lambda path: "/torch/lib/" not in path and "/torch.libs/" not in path):
        if hasattr(_loaded(path), "GOMP_parallel"):
            return path
    return None


class _Arena(threading.local):
    """Scratch of one calling thread. Grows to the largest launch it has seen, ends with the thread."""

    def __init__(self) -> None:
        self.size = 0
        self.grow(4096)

    def grow(self, size: int) -> None:
        self.memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
        self.address = -(-self.memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.size = size


_arena = _Arena()
_forked = False
# Launches with more threads than this ask `_team` first.
_team_limit = 1
_runtime_set = False
_searched_with_torch = False
_launcher: Library | None = None


def _team(threads: int) -> int:
    """The number of threads for a launch that wants several; finds them, as long as torch's may still come."""
    global _team_limit, _searched_with_torch
    if _forked:
        return 1
    torch_loaded = "torch" in sys.modules
    if not _runtime_set or (torch_loaded and not _searched_with_torch):
        path = find_openmp()
        if path is not None:
            library = _loaded(path)
            _set_runtime(library.GOMP_parallel, library.GOMP_barrier, None, None, None, library.omp_get_thread_num)
            _team_limit = sys.maxsize
        elif os.name == "posix":
            libc = ctypes.CDLL(None)
            own = _library().address("own_parallel")
            _set_runtime(own, None, libc.pthread_create, libc.pthread_join, libc.sched_yield)
        _searched_with_torch = torch_loaded
    return threads if _runtime_set else 1


def _set_runtime(*functions: Any) -> None:
    """Tell the launcher who makes teams: parallel, GOMP_barrier, pthread_create, pthread_join, sched_yield,
    omp_get_thread_num.
    """
    global _runtime_set
    table = (ctypes.c_void_p * 6).from_address(_library().address("runtime"))
    # Backwards: the first entry decides whether the others are used, perhaps by a launch on another thread right now.
    for index, function in reversed(list(enumerate(functions))):
        if function is not None:
            table[index] = function if isinstance(function, int) else ctypes.cast(function, ctypes.c_void_p).value
    _runtime_set = True


def _loaded(path: str) -> ctypes.CDLL:
    """A handle on a library that is loaded already."""
    return ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def _library() -> Library:
    global _launcher
    if _launcher is None:
        machine = Machine.detect()
        _launcher = compiled("launcher", lambda: launcher_ir(machine), machine)
    return _launcher


def launcher_address() -> int:
    """Where `run` starts, for native callers: void run(block, p0, p1, p2, p3, threads, shared_bytes, scratch_stride,
    ftz, scratch). Teams must have been found before: by a launch with several threads.
    """
    return _library().address("run")


def _first_run(*arguments: int) -> None:
    global _run
    # ctypes lets go of the interpreter lock while the function runs. It converts a c_void_p in half the time it takes
    # for a c_ssize_t (1.2 against 2.3 µs a call, Cascade Lake, Python 3.11), so the numbers travel as pointers too.
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 10)
    _run = prototype(_library().address("run"))
    _run(*arguments)


_run: Callable[..., None] = _first_run


def _first_run_placed(*arguments: int) -> None:
    global _run_placed
    _run_placed = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6)(_library().address("run_placed"))
    _run_placed(*arguments)


_run_placed: Callable[..., None] = _first_run_placed


def _after_fork_in_child() -> None:
    global _forked, _team_limit
    _forked, _team_limit = True, 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
