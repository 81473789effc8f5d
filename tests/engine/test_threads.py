from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hubel.engine import threads as threads_module
from hubel.engine.compile import Library, compiled, emit_assembly, emit_object
from hubel.engine.launcher import launcher_ir
from hubel.engine.machine import MACHINES, Machine
from hubel.engine.threads import RESERVED_WORDS, Block, Job, find_openmp, launch, launch_placed, pool
from hubel.errors import UnsupportedError
from tests.engine.native import add_ir, finish, start

HERE = Machine.detect()
TEAM = 2
linux = pytest.mark.skipif(find_openmp() is None, reason="no OpenMP pool on this system")

# For each item i, four words at p0 + 32 i: end - begin of the call, own scratch, shared scratch, word 5 of args.
RECORD_IR = """
define void @record(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {
entry:
  %out = load ptr, ptr %args
  %shared_at = getelementptr i64, ptr %args, i64 4
  %shared = load i64, ptr %shared_at
  %own_at = getelementptr i64, ptr %args, i64 5
  %own = load i64, ptr %own_at
  %length = sub i64 %end, %begin
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %i_next, %loop ]
  %word = shl i64 %i, 2
  %at0 = getelementptr i64, ptr %out, i64 %word
  store i64 %length, ptr %at0
  %at1 = getelementptr i64, ptr %at0, i64 1
  store ptr %scratch, ptr %at1
  %at2 = getelementptr i64, ptr %at0, i64 2
  store i64 %shared, ptr %at2
  %at3 = getelementptr i64, ptr %at0, i64 3
  store i64 %own, ptr %at3
  %i_next = add i64 %i, 1
  %more = icmp slt i64 %i_next, %end
  br i1 %more, label %loop, label %out_
out_:
  ret void
}
attributes #0 = { nounwind }
"""

# p1[i] = p0[n - 1 - i] + p0[i], n in word 5: every item needs what other threads wrote in the job before.
MIRROR_IR = """
define void @mirror(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {
entry:
  %x = load ptr, ptr %args
  %y_at = getelementptr ptr, ptr %args, i64 1
  %y = load ptr, ptr %y_at
  %n_at = getelementptr i64, ptr %args, i64 5
  %n = load i64, ptr %n_at
  %last = sub i64 %n, 1
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %i_next, %loop ]
  %j = sub i64 %last, %i
  %a_at = getelementptr float, ptr %x, i64 %i
  %a = load float, ptr %a_at
  %b_at = getelementptr float, ptr %x, i64 %j
  %b = load float, ptr %b_at
  %sum = fadd float %a, %b
  %c_at = getelementptr float, ptr %y, i64 %i
  store float %sum, ptr %c_at
  %i_next = add i64 %i, 1
  %more = icmp slt i64 %i_next, %end
  br i1 %more, label %loop, label %out
out:
  ret void
}
attributes #0 = { nounwind }
"""

# p0[0] = MXCSR
CONTROL_IR = """
declare void @llvm.x86.sse.stmxcsr(ptr)
define void @control(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {
  %x = load ptr, ptr %args
  %at = getelementptr i32, ptr %x, i64 %begin
  call void @llvm.x86.sse.stmxcsr(ptr %at)
  ret void
}
attributes #0 = { nounwind }
"""
FTZ_DAZ = 0x8040


def kernel(name: str, text: str) -> tuple[int, Library]:
    library = compiled(f"test_{name}", lambda: text, HERE)
    return library.address(name), library


ADD, ADD_LIBRARY = kernel("add", add_ir())
RECORD, RECORD_LIBRARY = kernel("record", RECORD_IR)
MIRROR, MIRROR_LIBRARY = kernel("mirror", MIRROR_IR)


def record(items: int, chunk: int, threads: int, shared: int = 0, stride: int = 0) -> np.ndarray:
    """(items, 4): length of the call, own scratch, shared scratch, own word, for each item."""
    out = np.full((items, 4), -1, dtype=np.int64)
    block = Block([Job(RECORD, items, chunk, [42])])
    launch(block.address, out.ctypes.data, 0, 0, 0, threads, shared, stride, 0)
    return out


def add_everywhere(threads: int, items: int = 1000, jobs: int = 3) -> np.ndarray:
    x = np.zeros(items, dtype=np.float32)
    block = Block([Job(ADD, items, 7)] * jobs)
    launch(block.address, x.ctypes.data, 0, 0, 0, threads, 0, 0, 0)
    return x


@pytest.fixture
def no_openmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a system whose torch brings no OpenMP library."""
    monkeypatch.setattr(threads_module, "_team_limit", 1)
    monkeypatch.setattr(threads_module, "_runtime_set", False)
    monkeypatch.setattr(threads_module, "find_openmp", lambda: None)
    yield
    monkeypatch.undo()
    # The launcher's own table goes back to OpenMP, too.
    threads_module._team_limit = 1
    threads_module._runtime_set = False
    add_everywhere(TEAM)


def test_alone_a_job_is_one_call() -> None:
    out = record(items=10, chunk=3, threads=1)
    assert out[:, 0].tolist() == [10] * 10
    assert out[:, 3].tolist() == [42] * 10


@linux
@pytest.mark.parametrize(("items", "chunk"), [(10, 3), (9, 3), (2, 1), (1000, 1), (1000, 999)])
def test_a_team_hands_out_chunks_and_every_item_once(items: int, chunk: int) -> None:
    assert add_everywhere(TEAM, items).tolist() == [3.0] * items
    lengths = record(items, chunk, TEAM)[:, 0]
    expected = [min(chunk, items - i // chunk * chunk) for i in range(items)]
    assert lengths.tolist() == expected


@linux
@pytest.mark.parametrize("threads", [TEAM, 3, 8, 11])
def test_a_thread_does_its_own_range_first_and_then_what_others_left(threads: int) -> None:
    """Items fall into a range a thread, eight at most. Here of a team number 1 alone comes, and does all of them."""
    calls: list[tuple[int, int]] = []
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    seen = kernel(lambda args, begin, end, scratch: calls.append((begin, end)))
    member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
        lambda function, region, size, flags: member(function)(region)
    )
    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    block = Block([Job(ctypes.cast(seen, ctypes.c_void_p).value or 0, 50, 3)])
    add_everywhere(TEAM)
    try:
        threads_module._set_runtime(parallel, None, None, None, None, number)
        launch(block.address, 0, 0, 0, 0, threads, 0, 0, 0)
    finally:
        threads_module._runtime_set = False
        threads_module._team_limit = 1
        add_everywhere(TEAM)
    ranges, chunks = min(threads, 8), -(-50 // 3)
    starts = [number * chunks // ranges for number in range(ranges + 1)]
    order = [chunk for r in (*range(1, ranges), 0) for chunk in range(starts[r], starts[r + 1])]
    assert calls == [(3 * chunk, min(3 * chunk + 3, 50)) for chunk in order]


def test_a_job_that_cannot_be_split_opens_no_region() -> None:
    assert record(items=3, chunk=3, threads=TEAM)[:, 0].tolist() == [3, 3, 3]


@pytest.mark.parametrize("threads", [1, TEAM])
def test_no_jobs_and_no_items(threads: int) -> None:
    launch(Block([]).address, 0, 0, 0, 0, threads, 0, 0, 1)
    x = np.zeros(4, dtype=np.float32)
    block = Block([Job(ADD, 0, 1), Job(ADD, 4, 1), Job(ADD, 0, 1)])
    launch(block.address, x.ctypes.data, 0, 0, 0, threads, 0, 0, 1)
    assert x.tolist() == [1.0] * 4


@pytest.mark.parametrize(("items", "chunk"), [(5, 0), (5, -1), (-1, 1)])
def test_jobs_that_would_never_end_are_refused(items: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="chunk >= 1 and items >= 0"):
        Block([Job(ADD, items, chunk)])


@pytest.mark.parametrize("threads", [1, TEAM])
def test_a_job_sees_what_all_threads_wrote_before(threads: int) -> None:
    count = 64
    x, y = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    # x += 1 everywhere, then y = x + mirrored x; 10 times over in one launch
    block = Block([Job(ADD, count, 1), Job(MIRROR, count, 1, [count])] * 10)
    for times in range(1, 20):
        launch(block.address, x.ctypes.data, y.ctypes.data, 0, 0, threads, 0, 0, 0)
        assert np.all(y == 20.0 * times)


@pytest.mark.parametrize("threads", [1, TEAM])
def test_the_block_is_read_only(threads: int) -> None:
    block = Block([Job(ADD, 100, 1, [1, 2, 3]), Job(ADD, 100, 1)])
    before = block.words.copy()
    x = np.zeros(100, dtype=np.float32)
    launch(block.address, x.ctypes.data, 1, 2, 3, threads, 64, 64, 0)
    assert np.array_equal(block.words, before)
    assert before.tolist() == [
        2,
        ADD,
        100,
        1,
        RESERVED_WORDS + 3,
        0,
        0,
        0,
        0,
        0,
        1,
        2,
        3,
        ADD,
        100,
        1,
        5,
        0,
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("threads", [1, TEAM])
@pytest.mark.parametrize(("shared", "stride"), [(0, 0), (1, 1), (100, 1000), (64, 128), (10**6, 10**6)])
def test_scratch_is_aligned_apart_and_inside_the_arena(threads: int, shared: int, stride: int) -> None:
    out = record(2000, 1, threads, shared, stride)
    arena = threads_module._arena
    start = arena.memory.ctypes.data
    (shared_at,) = set(out[:, 2].tolist())
    assert shared_at % 64 == 0
    assert start <= shared_at
    own = sorted(set(out[:, 1].tolist()))
    assert 1 <= len(own) <= threads
    for begin, end in zip(own, [*own[1:], start + arena.memory.nbytes], strict=True):
        assert begin % 64 == 0
        assert begin >= shared_at + shared
        assert begin + stride <= end


def test_the_arena_grows_only_when_asked() -> None:
    record(1, 1, 1, shared=10**5)
    size, address = threads_module._arena.size, threads_module._arena.address
    record(1, 1, 1, shared=10**5 - 1)
    record(1, 1, 1)
    assert (threads_module._arena.size, threads_module._arena.address) == (size, address)


@linux
@pytest.mark.parametrize("threads", [1, TEAM])
def test_placed_jobs_have_pointers_of_their_own(threads: int) -> None:
    x, y, z = (np.arange(500, dtype=np.float32) + i for i in range(3))
    block = Block([Job(ADD, 500, 7), Job(MIRROR, 500, 7, [500]), Job(ADD, 500, 600)])
    for at, pointers in zip(block.pointers_at, ((x, x), (x, y), (z, z)), strict=True):
        block.words[at : at + 2] = [p.ctypes.data for p in pointers]
    mirrored = x + 1 + (x + 1)[::-1]
    launch_placed(block.address, threads, 64, 64, 0)
    np.testing.assert_array_equal(x, np.arange(500) + 1)
    np.testing.assert_array_equal(y, mirrored)
    np.testing.assert_array_equal(z, np.arange(500) + 3)
    # Again, in the same block.
    launch_placed(block.address, threads, 0, 0, 0)
    np.testing.assert_array_equal(z, np.arange(500) + 4)


def test_one_and_two_threads_agree() -> None:
    assert np.array_equal(add_everywhere(1), add_everywhere(TEAM))


@pytest.mark.parametrize("threads", [1, TEAM])
def test_several_python_threads_launch_the_same_block_at_once(threads: int) -> None:
    count = 4000
    block = Block([Job(ADD, count, 11)] * 4)
    failures: list[object] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        x = np.zeros(count, dtype=np.float32)
        barrier.wait()
        for times in range(1, 60):
            launch(block.address, x.ctypes.data, 0, 0, 0, threads, 100 * times, 100, 1)
            if not np.all(x == 4.0 * times):
                failures.append(x.copy())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@linux
def test_the_pool_is_torchs() -> None:
    assert pool().kind == "openmp"
    assert "torch" in pool().path


@linux
def test_torch_and_launches_share_the_pool() -> None:
    """The same libgomp keeps its threads between torch's regions and ours: no more threads than one pool has."""
    before_torch = torch.get_num_threads()
    torch.set_num_threads(TEAM)
    try:
        a = torch.randn(400, 400)
        for _ in range(3):
            torch.relu(a + a)
            add_everywhere(TEAM)
        tasks = len(list(Path("/proc/self/task").iterdir()))
        for _ in range(20):
            torch.relu(a + a)
            add_everywhere(TEAM)
        assert len(list(Path("/proc/self/task").iterdir())) <= tasks
    finally:
        torch.set_num_threads(before_torch)


@pytest.mark.usefixtures("no_openmp")
def test_without_openmp_a_team_of_our_own_does_the_same() -> None:
    assert pool().kind == "own"
    for threads in (1, 2, 5):
        for _ in range(20):
            assert add_everywhere(threads).tolist() == [3.0] * 1000
    assert record(10, 3, TEAM)[:, 0].tolist() == [3] * 9 + [1]
    test_a_job_sees_what_all_threads_wrote_before(TEAM)
    test_scratch_is_aligned_apart_and_inside_the_arena(3, 100, 1000)
    test_several_python_threads_launch_the_same_block_at_once(TEAM)
    test_denormals_are_flushed_only_when_asked(TEAM)
    # Nothing stays behind, and nothing is inherited.
    assert in_child(lambda: record(10, 3, TEAM)[:, 0].tolist() == [10] * 10) == "right"


@pytest.mark.usefixtures("no_openmp")
def test_when_no_more_threads_can_be_had_the_team_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
    real = prototype(("pthread_create", ctypes.CDLL(None)))
    calls: list[int] = []

    def create(*arguments: int) -> int:
        calls.append(1)
        return real(*arguments) if len(calls) % 2 else errno.EAGAIN

    scarce = prototype(create)
    add_everywhere(TEAM)
    table = (ctypes.c_void_p * 5).from_address(threads_module._library().address("runtime"))
    table[2] = ctypes.cast(scarce, ctypes.c_void_p).value
    for _ in range(10):
        assert add_everywhere(4).tolist() == [3.0] * 1000
    assert len(calls) == 20
    # The table's address of `scarce` ends with this test.
    table[2] = ctypes.cast(ctypes.CDLL(None).pthread_create, ctypes.c_void_p).value


def test_without_any_threads_launches_are_the_callers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "_team_limit", 1)
    monkeypatch.setattr(threads_module, "_runtime_set", False)
    monkeypatch.setattr(threads_module, "find_openmp", lambda: None)
    monkeypatch.setattr(threads_module.os, "name", "nt")
    assert record(10, 3, TEAM)[:, 0].tolist() == [10] * 10
    assert pool().kind == "none"


@linux
@pytest.mark.usefixtures("no_openmp")
def test_torch_imported_later_brings_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    add_everywhere(TEAM)
    assert pool().kind == "own"
    assert threads_module._team_limit == 1
    monkeypatch.undo()
    monkeypatch.setattr(threads_module, "_team_limit", 1)
    assert add_everywhere(TEAM).tolist() == [3.0] * 1000
    assert threads_module._team_limit == sys.maxsize


def test_the_engine_alone_runs_without_torch(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
from hubel.engine.threads import Block, Job, launch, launch_placed, pool
from tests.engine.native import add_ir
without_torch = "torch" not in sys.modules
library = compiled("add", add_ir, Machine.detect())
x = np.zeros(100, dtype=np.float32)
launch(Block([Job(library.address("add"), 100, 1)]).address, x.ctypes.data, 0, 0, 0, 2, 0, 0, 1)
print(without_torch, x.min(), x.max())
"""
    assert finish(start(code, tmp_path / "kernels")) == "True 1.0 1.0"


# ------------------------------------------------------------------------------------------------ denormals


@pytest.mark.parametrize("threads", [1, TEAM])
def test_denormals_are_flushed_only_when_asked(threads: int) -> None:
    tiny = np.float32(1e-40)
    library = compiled("test_mirror", lambda: MIRROR_IR, HERE)
    for flush, expected in ((1, 0.0), (0, float(tiny + tiny))):
        x, y = np.full(64, tiny), np.full(64, np.nan, dtype=np.float32)
        block = Block([Job(library.address("mirror"), 64, 1, [64])])
        launch(block.address, x.ctypes.data, y.ctypes.data, 0, 0, threads, 0, 0, flush)
        assert set(y.tolist()) == {expected}


@pytest.mark.skipif(HERE.arch != "x86_64", reason="reads MXCSR")
@pytest.mark.parametrize("threads", [1, TEAM])
@pytest.mark.parametrize("callers", [False, True])
def test_the_floating_point_state_of_every_thread_is_restored(threads: int, callers: bool) -> None:
    address, _ = kernel("control", CONTROL_IR)

    def control(flush: int) -> np.ndarray:
        out = np.zeros(500, dtype=np.uint32)
        block = Block([Job(ADD, 0, 1), Job(address, 500, 1)])
        launch(block.address, out.ctypes.data, 0, 0, 0, threads, 0, 0, flush)
        # Alone, the kernel is called once and writes one item.
        return out if threads > 1 else out[:1]

    assert torch.set_flush_denormal(callers)
    try:
        # Every thread works in the caller's state, and adds the flushing when asked.
        assert np.all(control(0) & FTZ_DAZ == (FTZ_DAZ if callers else 0))
        assert np.all(control(1) & FTZ_DAZ == FTZ_DAZ)
        assert (np.float32(1e-40) * np.float32(1.0) == 0.0) == callers
    finally:
        torch.set_flush_denormal(False)
    # The other thread is as torch left it, too.
    assert np.all(torch.full((100_000,), 1e-40).mul(1.0).numpy() != 0.0)
    assert np.all(control(0) & FTZ_DAZ == 0)


@pytest.mark.parametrize("name", MACHINES)
def test_the_launcher_compiles_for_every_machine(name: str) -> None:
    assembly = emit_assembly(launcher_ir(MACHINES[name]), MACHINES[name])
    assert ("ldmxcsr" if MACHINES[name].arch == "x86_64" else "FPCR") in assembly
    assert emit_object(launcher_ir(MACHINES[name]), MACHINES[name])


def test_an_architecture_without_launcher_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no launcher for riscv64"):
        launcher_ir(dataclasses.replace(HERE, arch="riscv64"))


# ------------------------------------------------------------------------------------------------ fork


def in_child(work: Callable[[], bool]) -> str:
    """Fork, run ``work`` in the child: "right", "wrong", "raised" or "hangs"."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {0: "right", 2: "wrong"}.get(os.waitstatus_to_exitcode(status), "raised")
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


@linux
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_process_with_a_pool_runs_single_threaded_and_right() -> None:
    add_everywhere(TEAM)

    def work() -> bool:
        alone = record(10, 3, TEAM)[:, 0].tolist() == [10] * 10
        return alone and add_everywhere(TEAM).tolist() == [3.0] * 1000 and pool().kind == "none"

    assert in_child(work) == "right"
    # A grandchild too, and the parent keeps its pool.
    assert in_child(lambda: in_child(work) == "right") == "right"
    assert record(10, 3, TEAM)[:, 0].tolist() == [3] * 9 + [1]


@linux
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_during_launches_of_other_threads() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            add_everywhere(TEAM)

    others = [threading.Thread(target=busy) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(5):
            assert in_child(lambda: add_everywhere(TEAM).tolist() == [3.0] * 1000) == "right"
    finally:
        stop.set()
        for other in others:
            other.join()


# ------------------------------------------------------------------------------------------------ which library


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """Pretends that these libraries are mapped, and that each offers GOMP_parallel unless its name says otherwise."""
    real = Path.read_text

    class Fake:
        def __init__(self, path: str) -> None:
            if "mkl" not in path:
                self.GOMP_parallel = None

    def pretend(paths: list[str]) -> None:
        text = "".join(f"7f00-7f01 r-xp 00000000 fe:00 123  {path}\n" for path in paths) + "7f02-7f03 rw-p 0 00:00 0\n"
        monkeypatch.setattr(
            Path, "read_text", lambda path, *rest: text if str(path) == "/proc/self/maps" else real(path, *rest)
        )

    monkeypatch.setattr(threads_module, "_loaded", Fake)
    yield pretend


@linux
@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        ([], None),
        (["/usr/lib/libm.so.6", "/home/computer/libc.so"], None),
        (["/usr/lib/libgomp.so.1"], "/usr/lib/libgomp.so.1"),
        (["/a/sklearn.libs/libgomp-1.so", "/z/torch/lib/libgomp.so.1"], "/z/torch/lib/libgomp.so.1"),
        (["/a/sklearn.libs/libgomp-1.so", "/z/torch.libs/libgomp-2.so"], "/z/torch.libs/libgomp-2.so"),
        (["/my place/torch/lib/libgomp.so.1"], "/my place/torch/lib/libgomp.so.1"),
        (["/a/torch/lib/libiomp_mkl.so", "/b/libgomp.so.1"], "/b/libgomp.so.1"),
    ],
)
def test_torchs_library_is_preferred(maps: Callable[[list[str]], None], paths: list[str], chosen: str | None) -> None:
    maps(paths)
    assert find_openmp() == chosen
