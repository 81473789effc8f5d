"""LLVM IR text becomes machine code: text → object code → addresses.

Objects are position-independent and linked by JITLink, which lays an object's code and constants into one allocation:
the small code model is therefore safe wherever the process's memory lies. No IR passes run. The kernels arrive
unrolled and vectorised, and passes changed neither their speed nor (much) their size; codegen runs at level 3.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm

from hubel.engine import cache, perf_map
from hubel.engine.machine import Machine
from hubel.errors import HubelError, UnsupportedError

# LLVM's objects are not thread-safe. Held across fork, so that a child never inherits it locked by a lost thread.
_llvm_lock = threading.RLock()
_guard = threading.Lock()
_names = itertools.count()
_libraries: dict[tuple[str, Machine], Library] = {}
_in_flight: dict[tuple[str, Machine], threading.Lock] = {}


class Library:
    """Machine code in executable memory. Addresses are valid while the Library lives."""

    def __init__(self, tracker: llvm.orcjit.ResourceTracker, name: str) -> None:
        self._name = name
        # Code is unloaded when the last tracker goes, and the one that materialises a symbol counts as its own.
        self._code = tracker
        self._symbols: dict[str, llvm.orcjit.ResourceTracker] = {}

    @classmethod
    def load(cls, object_code: bytes) -> Library:
        """Link object code made by ``emit_object`` for this machine.

        Raises UnsupportedError where the system forbids executable memory.
        """
        # JITLink aborts the process when it may not map executable memory, so ask first.
        if not executable_memory_allowed():
            raise UnsupportedError(
                "native kernels need executable memory, which this system forbids (SELinux execmem, PR_SET_MDWE or "
                "a hardened container); run without Hubel's kernels or allow it"
            )
        with _llvm_lock:
            jit = _jit()
            name = f"kernel_{next(_names)}"
            try:
                builder = llvm.JITLibraryBuilder().add_object_img(object_code).add_current_process()
                return cls(builder.link(jit, name), name)
            except RuntimeError as error:
                raise UnsupportedError(f"LLVM cannot load this object code: {error}") from error

    def address(self, symbol: str) -> int:
        """Where ``symbol`` starts. Raises HubelError when the object does not define it."""
        if symbol not in self._symbols:
            with _llvm_lock:
                # Once only: what a lookup returns owns the code, and takes it away when it goes.
                if symbol not in self._symbols:
                    try:
                        self._symbols[symbol] = _jit().lookup(self._name, symbol)
                    except RuntimeError as error:
                        raise HubelError(f"no symbol {symbol!r} in this object: {error}") from error
        return self._symbols[symbol][symbol]


def compiled(key: str, ir: Callable[[], str], machine: Machine) -> Library:
    """The kernel library of ``key``: from memory, else from disk, else compiled from ``ir()``.

    Threads and processes that ask for the same key at once compile it once. ``key`` must determine the IR; engine
    version, LLVM version, triple and CPU features are added here. Raises UnsupportedError when ``machine``'s code
    cannot run here, and HubelError when LLVM refuses the IR.
    """
    known = (key, machine)
    library = _libraries.get(known)
    if library is not None:
        return library
    if not machine.runs_here():
        raise UnsupportedError(f"code for {machine.name} does not run on {Machine.detect().name}; use Machine.detect()")
    with _guard:
        flight = _in_flight.setdefault(known, threading.Lock())
    try:
        with flight:
            library = _libraries.get(known)
            if library is None:
                library = _libraries[known] = _obtain(key, ir, machine)
    finally:
        with _guard:
            _in_flight.pop(known, None)
    return library


def _obtain(key: str, ir: Callable[[], str], machine: Machine) -> Library:
    store = cache.disk()
    full_key = "\n".join((key, f"engine {engine_version()}", f"llvm {llvm_version()}", machine.target))
    library = _load_cached(store, full_key, key)
    if library is not None:
        return library
    with store.locked(full_key):
        # Another process may have finished it while we waited.
        library = _load_cached(store, full_key, key)
        if library is None:
            object_code = emit_object(ir(), machine)
            library = _loaded(object_code, key)
            cache.counters.compiled += 1
            store.write(full_key, object_code)
    return library


def _load_cached(store: cache.DiskCache, full_key: str, key: str) -> Library | None:
    object_code = store.read(full_key)
    if object_code is None:
        return None
    library = _loaded(object_code, key)
    cache.counters.loaded += 1
    return library


def _loaded(object_code: bytes, key: str) -> Library:
    library = Library.load(object_code)
    if perf_map.wanted():
        perf_map.add(key, object_code, library.address)
    return library


def emit_object(ir_text: str, machine: Machine) -> bytes:
    """Object code of one IR module for ``machine``, which need not be this one."""
    with _llvm_lock:
        return _target_machine(machine).emit_object(_parsed(ir_text, machine))


def emit_assembly(ir_text: str, machine: Machine) -> str:
    """Assembly text of one IR module for ``machine``, which need not be this one."""
    with _llvm_lock:
        return _target_machine(machine).emit_assembly(_parsed(ir_text, machine))


def _parsed(ir_text: str, machine: Machine) -> llvm.ModuleRef:
    target_machine = _target_machine(machine)
    try:
        # A context of its own: LLVM never frees what the global one has interned.
        module = llvm.parse_assembly(ir_text, llvm.create_context())
        module.triple = target_machine.triple
        module.data_layout = str(target_machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise HubelError(f"LLVM refuses this IR: {error}") from error
    return module


@functools.cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    # Inline assembly (register barriers, MXCSR) aborts the process without a parser.
    llvm.initialize_native_asmparser()


@functools.cache
def _target_machine(machine: Machine) -> llvm.TargetMachine:
    _initialize()
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="small"
    )


@functools.cache
def _jit() -> llvm.orcjit.LLJIT:
    return llvm.create_lljit_compiler(_target_machine(Machine.detect()), use_jit_link=True, suppress_errors=True)


@functools.cache
def executable_memory_allowed() -> bool:
    """Whether a page may be written and then made executable, as every JIT must."""
    if os.name != "posix":
        return True
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        view = ctypes.c_char.from_buffer(page)
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        allowed = libc.mprotect(ctypes.addressof(view), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) == 0
        del view
        return allowed


def llvm_version() -> str:
    return ".".join(str(part) for part in llvm.llvm_version_info)


def engine_version() -> str:
    """Hash of the engine's own source: code that was generated by other code is never taken from the cache."""
    return _ENGINE_VERSION


def _source_hash() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# Taken when the source is imported: a file edited later would give old code's kernels the new code's name.
_ENGINE_VERSION = _source_hash()


def _before_fork() -> None:
    _llvm_lock.acquire()
    _guard.acquire()


def _after_fork_in_parent() -> None:
    _guard.release()
    _llvm_lock.release()


def _after_fork_in_child() -> None:
    # Compilations under way in other threads of the parent will never finish here.
    _in_flight.clear()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
