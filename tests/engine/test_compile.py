from __future__ import annotations

import ctypes
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hubel.engine import cache
from hubel.engine import compile as compile_module
from hubel.engine.compile import Library, compiled, emit_assembly, emit_object, engine_version
from hubel.engine.machine import Machine
from hubel.errors import HubelError, UnsupportedError
from tests.engine.native import add_ir, finish, start, vector_add_ir

HERE = Machine.detect()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on disk and nothing in memory, as in a new process."""
    path = tmp_path / "kernels"
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(path))
    monkeypatch.setattr(cache, "counters", cache.Counters())
    new_process(monkeypatch)
    return path


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "_libraries", {})
    cache._opened.cache_clear()


def call(library: Library, count: int = 5) -> list[float]:
    """What the `add` kernel of a library makes of zeros."""
    x = np.zeros(count, dtype=np.float32)
    args = np.array([x.ctypes.data], dtype=np.int64)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    prototype(library.address("add"))(args.ctypes.data, 0, count, 0)
    return x.tolist()


def never() -> str:
    raise AssertionError("this kernel should not have been compiled")


def test_code_runs_in_the_widest_vector() -> None:
    library = Library.load(emit_object(vector_add_ir(HERE.lanes), HERE))
    assert call(library, HERE.lanes) == [1.5] * HERE.lanes


@pytest.mark.parametrize("name", ["haswell", "zen3", "skylake-avx512"])
def test_code_for_a_lesser_machine_runs_here(name: str, folder: Path) -> None:
    machine = Machine.named(name)
    if not machine.runs_here():
        with pytest.raises(UnsupportedError, match=f"code for {name} does not run on"):
            compiled("lesser", never, machine)
    else:
        assert call(compiled("lesser", lambda: vector_add_ir(machine.lanes), machine), machine.lanes)[0] == 1.5


def test_code_for_another_processor_is_refused_before_it_is_built(folder: Path) -> None:
    other = Machine.named("neoverse-n1" if HERE.arch == "x86_64" else "haswell")
    with pytest.raises(UnsupportedError, match="does not run on"):
        compiled("foreign", never, other)


def test_constants_and_library_calls_are_resolved() -> None:
    """A table in .rodata, and calls out of the object: memset from libc, expf from libm."""
    text = """
    @table = private constant [2 x float] [float 3.0, float 0.0]
    declare float @expf(float)
    declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
    define void @add(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
      %x = load ptr, ptr %args
      %bytes = shl i64 %end, 2
      call void @llvm.memset.p0.i64(ptr %x, i8 0, i64 %bytes, i1 false)
      %at = getelementptr float, ptr @table, i64 %begin
      %three = load float, ptr %at
      %zero_at = getelementptr float, ptr @table, i64 1
      %zero = load float, ptr %zero_at
      %one = call float @expf(float %zero)
      %four = fadd float %three, %one
      store float %four, ptr %x
      ret void
    }"""
    assert call(Library.load(emit_object(text, HERE)), 300) == [4.0] + [0.0] * 299


def test_libraries_do_not_see_one_another_and_live_on_their_own() -> None:
    libraries = [Library.load(emit_object(add_ir(value), HERE)) for value in range(1, 20)]
    assert [call(library)[0] for library in libraries] == list(range(1, 20))
    address = libraries[1].address("add")
    del libraries[2:]
    gc.collect()
    assert libraries[1].address("add") == address
    assert [call(library)[0] for library in libraries] == [1.0, 2.0]


def test_wrong_ir_and_symbols_are_named() -> None:
    with pytest.raises(HubelError, match="LLVM refuses this IR"):
        emit_object("define void @add(", HERE)
    with pytest.raises(HubelError, match="LLVM refuses this IR"):
        emit_assembly("define i32 @f() {\n  ret void\n}", HERE)
    with pytest.raises(HubelError, match="no symbol 'subtract'"):
        Library.load(emit_object(add_ir(), HERE)).address("subtract")


def test_garbage_is_no_library() -> None:
    with pytest.raises(UnsupportedError, match="cannot load"):
        Library.load(b"no object code at all")


def test_a_failed_compilation_can_be_tried_again(folder: Path) -> None:
    with pytest.raises(HubelError):
        compiled("again", lambda: "nonsense", HERE)
    assert call(compiled("again", add_ir, HERE))[0] == 1.0


def test_memory_then_disk_then_llvm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled("key", add_ir, HERE)
    assert compiled("key", never, HERE) is first
    assert (cache.cache_info().compiled, cache.cache_info().loaded, cache.cache_info().entries) == (1, 0, 1)
    new_process(monkeypatch)
    assert call(compiled("key", never, HERE))[0] == 1.0
    assert (cache.cache_info().compiled, cache.cache_info().loaded) == (1, 1)
    assert call(compiled("other key", lambda: add_ir(2.0), HERE))[0] == 2.0
    assert cache.cache_info().entries == 2


@pytest.mark.parametrize("part", ["engine_version", "llvm_version"])
def test_code_of_another_version_is_not_used(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled("key", add_ir, HERE)
    new_process(monkeypatch)
    monkeypatch.setattr(compile_module, part, lambda: "another")
    assert call(compiled("key", lambda: add_ir(3.0), HERE))[0] == 3.0


def test_the_engine_version_follows_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_version()
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"#" * (path.name == "machine.py"))
    assert compile_module._source_hash() != before
    # The name of the code that was imported stays, whatever is written to its files afterwards.
    assert engine_version() == before


def truncated(data: bytes) -> Iterator[bytes]:
    for length in (0, 1, cache.HEADER.size - 1, cache.HEADER.size, len(data) // 2, len(data) - 1):
        yield data[:length]


def flipped(data: bytes) -> Iterator[bytes]:
    # Every byte of the header, then a sample.
    for index in itertools.chain(range(cache.HEADER.size), range(cache.HEADER.size, len(data), 97)):
        yield data[:index] + bytes([data[index] ^ 1 << index % 8]) + data[index + 1 :]


def foreign(data: bytes) -> Iterator[bytes]:
    yield cache._wrap(emit_object(add_ir(666.0), HERE), "another key")
    yield emit_object(add_ir(666.0), HERE)
    yield b"\x7fELF" + bytes(2000)
    yield data + data


@pytest.mark.parametrize("damage", [truncated, flipped, foreign])
def test_damaged_files_are_rebuilt_and_llvm_never_sees_them(
    damage: Callable[[bytes], Iterator[bytes]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled("key", add_ir, HERE)
    (file,) = folder.glob("*.kernel")
    sound = file.read_bytes()
    payload = emit_object(add_ir(), HERE)
    assert sound.endswith(payload)

    seen: list[bytes] = []
    monkeypatch.setattr(Library, "load", lambda data: seen.append(data))
    monkeypatch.setattr(compile_module, "emit_object", lambda text, machine: payload)
    variants = list(damage(sound))
    for variant in variants:
        file.write_bytes(variant)
        new_process(monkeypatch)
        compiled("key", add_ir, HERE)
        assert file.read_bytes() == sound
    assert seen == [payload] * len(variants)
    assert cache.cache_info().compiled == 1 + len(variants)
    assert cache.cache_info().loaded == 0


@pytest.mark.parametrize("mode", [0o755, 0o500])
def test_without_a_cache_kernels_still_run(
    folder: Path, mode: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(mode)
    for value in (1.0, 2.0):
        assert call(compiled(f"key{value}", lambda value=value: add_ir(value), HERE))[0] == value
    info = cache.cache_info()
    assert (info.compiled, info.loaded, info.enabled) == (2, 0, False)
    assert len([record for record in caplog.records if record.name == "hubel"]) == 1


def test_a_full_disk_costs_only_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.tempfile, "mkstemp", full)
    assert call(compiled("key", add_ir, HERE))[0] == 1.0
    assert call(compiled("key2", lambda: add_ir(2.0), HERE))[0] == 2.0
    assert [record.getMessage()[:35] for record in caplog.records if record.name == "hubel"] == [
        "kernel cache off: no space left for"
    ]


def test_threads_that_ask_at_once_compile_once(folder: Path) -> None:
    calls, results = [], []
    barrier = threading.Barrier(8)

    def slow() -> str:
        calls.append(1)
        time.sleep(0.1)
        return add_ir()

    def ask() -> None:
        barrier.wait()
        results.append(compiled("key", slow, HERE))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(results) == 8
    assert len(set(map(id, results))) == 1
    assert compile_module._in_flight == {}


def test_threads_that_ask_for_an_address_at_once_look_it_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second lookup would own the code, too, and whichever goes first would take it away."""
    library, jit = Library.load(emit_object(add_ir(), HERE)), compile_module._jit()
    looked_up: list[str] = []
    barrier = threading.Barrier(4)

    class Slow:
        def lookup(self, name: str, symbol: str) -> object:
            looked_up.append(symbol)
            time.sleep(0.1)
            return jit.lookup(name, symbol)

    def ask() -> None:
        barrier.wait()
        library.address("add")

    monkeypatch.setattr(compile_module, "_jit", Slow)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert looked_up == ["add"] and call(library) == [1.0] * 5


ASK = """
import os, time
from pathlib import Path
from hubel.engine import cache
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
from tests.engine.native import add_ir
from tests.engine.test_compile import call

def slow():
    time.sleep(0.3)
    return add_ir(7.0)

(Path({meet!r}) / str(os.getpid())).touch()
while len(list(Path({meet!r}).iterdir())) < {processes}:
    time.sleep(0.002)
library = compiled("key", slow, Machine.detect())
assert call(library) == [7.0] * 5
print(cache.counters.compiled, cache.counters.loaded)
"""


def test_processes_that_ask_at_once_compile_once_and_a_later_one_never(folder: Path, tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    meet.mkdir()
    processes = [start(ASK.format(meet=str(meet), processes=2), folder) for _ in range(2)]
    counts = sorted(finish(process) for process in processes)
    assert counts == ["0 1", "1 0"]
    assert finish(start(ASK.format(meet=str(meet), processes=2), folder)) == "0 1"


def test_a_process_that_dies_while_compiling_holds_nobody_up(folder: Path) -> None:
    code = """
import os
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
compiled("key", lambda: os._exit(0), Machine.detect())
"""
    finish(start(code, folder))
    assert call(compiled("key", add_ir, HERE))[0] == 1.0


def test_forbidden_executable_memory_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "executable_memory_allowed", lambda: False)
    with pytest.raises(UnsupportedError, match="executable memory, which this system forbids"):
        compiled("key", add_ir, HERE)


def test_executable_memory_forbidden_by_the_kernel_raises_and_does_not_abort(folder: Path) -> None:
    code = """
import ctypes
from hubel.engine.compile import compiled
from hubel.engine.machine import Machine
from hubel.errors import UnsupportedError
from tests.engine.native import add_ir
# PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: Linux 6.3
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    print("not available")
else:
    try:
        compiled("key", add_ir, Machine.detect())
    except UnsupportedError as error:
        print(error)
"""
    said = finish(start(code, folder))
    if said == "not available":
        pytest.skip("this Linux has no PR_SET_MDWE")
    assert said.startswith("native kernels need executable memory, which this system forbids")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_kernel_is_compiled_can_compile(folder: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        leave.wait(20)
        return add_ir(1.0)

    thread = threading.Thread(target=lambda: compiled("in flight", slow, HERE))
    thread.start()
    inside.wait(20)
    child = os.fork()
    if child == 0:
        # The parent's thread does not exist here and will never finish its key.
        code = 1
        try:
            cache.LOCK_PATIENCE_S = 0.05
            other = call(compiled("other", lambda: add_ir(2.0), HERE))[0]
            same = call(compiled("in flight", lambda: add_ir(3.0), HERE))[0]
            code = 0 if (other, same) == (2.0, 3.0) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    leave.set()
    thread.join()
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended and os.waitstatus_to_exitcode(status) == 0
