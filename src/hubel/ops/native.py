"""Calls that came before, answered without Python.

A call from torch to a kernel written in Python takes some 5 µs before its first line, and the interpreter lock. So
`aten::convolution` is answered by a generated function, registered through torch's stable C interface. It describes the
call in words (the weight, its memory and version, the sizes, strides and dtypes of all tensors, the parameters, the
number of threads), looks for an *entry* with the same words, allocates the output and starts the engine's launcher.
Whatever it has no entry for it hands to Python (`calls.convolution`) with the same arguments.

Entries are offered by Python for weights that it found packed: an entry is what `weights` promises, checked again on
every call: object, memory, version, optimizer steps, and a sample of the values. It ends with its weight, when the
weight is packed anew, and with every change of a choice. The door may be reading an entry while it is taken away, for
it holds no lock: so an entry's memory is kept until no call is inside.

Scratch memory comes from a few places that calls take and give back; where none is free or large enough, Python's turn
brings its own, and enlarges one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubel.engine.compile import Library, compiled
from hubel.engine.invoke import Invocation
from hubel.engine.machine import Machine
from hubel.engine.threads import ALIGNMENT, launcher_address
from hubel.ops import native_ir as ir
from hubel.ops import weights
from hubel.ops.log import also_counted

# The stable C interface that the door was written for, as torch counts it.
ABI_VERSION = 2 << 56 | 13 << 48
# Beyond so many entries they are all forgotten.
_MOST_ENTRIES = 4096
# torch's numbers of the dtypes that Hubel stores.
_DTYPES = {torch.float32: 6, torch.float16: 5, torch.bfloat16: 15}
# Where the functions that the door calls are found in torch's library.
_SYMBOLS = {
    **{name: f"aoti_torch_{name}" for name in ("get_dim", "get_dtype", "get_sizes", "get_strides")},
    "get_data_ptr": "aoti_torch_get_data_ptr", "is_defined": "aoti_torch_is_defined",
    "delete_tensor": "aoti_torch_delete_tensor_object", "empty_strided": "aoti_torch_empty_strided",
    "list_size": "torch_list_size", "list_item": "torch_list_get_item", "delete_list": "torch_delete_list",
    "delete_ivalue": "torch_delete_stable_ivalue", "call_dispatcher": "torch_call_dispatcher",
    "version": "_ZNK2at10TensorBase8_versionEv",
    "num_threads": "_ZN2at15get_num_threadsEv", "context": "_ZN2at13globalContextEv",
    "mkldnn": "_ZNK2at7Context17userEnabledMkldnnEv", "profiling": "_ZN5torch8profiler4impl15profilerEnabledEv",
}  # fmt: skip
_FAIL = "_ZN3c106detail14torchCheckFailEPKcS2_jS2_"


@dataclass(frozen=True)
class Prepared:
    """What an entry needs to know of a prepared call. shape, strides, dtype: of the output; key: of the packed form."""

    invocation: Invocation
    key: object
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    threads: int


class _Entry:
    """The words of an entry, and what must live as long as they may be read."""

    def __init__(self, words: np.ndarray, weight: int, keep: tuple[object, ...]) -> None:
        self.words, self.weight, self._keep = words, weight, keep
        self.address = words.ctypes.data


_lock = threading.RLock()  # a weak reference may end while the lock is held
_entries: dict[bytes, _Entry] = {}
_chains: dict[int, list[_Entry]] = {}
_known: dict[int, tuple[weakref.ref[Tensor], set[bytes]]] = {}
_retired: list[_Entry] = []
_slots: dict[int, np.ndarray] = {}
_library: Library | None = None
_functions: dict[str, Callable[..., int]] = {}
_registration: Any = None
_raised = threading.local()
_forked = False


def register(python: Callable[..., Tensor]) -> bool:
    """Have the door answer `aten::convolution` on the CPU, and `python` what it cannot; False where this torch or
    machine has no place for it.
    """
    global _registration
    stable = _stable_interface()
    if stable is None or not _loaded(stable):
        return False
    handle, version = ctypes.c_void_p(), ctypes.c_uint64(ABI_VERSION)
    if stable.aoti_torch_library_init_impl(b"aten", b"CPU", b"hubel", 0, ctypes.byref(handle)):
        return False
    name, door = b"convolution", ctypes.c_void_p(_address("door"))
    library = torch.library.Library("_hubel", "FRAGMENT")
    schema = str(torch.ops.aten.convolution.default._schema).replace("aten::convolution", "convolution")
    library.define(schema)
    library.impl("convolution", _telling(python), "CPU")
    if stable.torch_library_impl(handle, name, door, version):
        library._destroy()
        stable.aoti_torch_delete_library_object(handle)
        return False
    _registration = stable, handle, library
    return True


def _telling(python: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`python`, which leaves its error's text where the door finds it: exceptions do not pass through the door, which
    raises another one with this text, a RuntimeError as torch's own kernels do.
    """

    def answer(*arguments: Any) -> Tensor:
        try:
            return python(*arguments)
        except RuntimeError as error:
            _raised.text = str(error).encode()
            raise
        except BaseException as error:
            _raised.text = f"{type(error).__name__}: {error}".encode()
            raise

    return answer


@ctypes.CFUNCTYPE(ctypes.c_void_p)
def _what() -> int:
    """The address of the text of this thread's last error, which lives until the next one."""
    _raised.kept = ctypes.create_string_buffer(getattr(_raised, "text", b"a convolution failed"))
    return ctypes.addressof(_raised.kept)


def unregister() -> None:
    """Take the door away."""
    global _registration
    if _registration is not None:
        stable, handle, library = _registration
        _registration = None
        stable.aoti_torch_delete_library_object(handle)
        library._destroy()
    forget()


def offer(prepared: Prepared, x: Tensor, w: Tensor, b: Tensor | None, lists: Sequence[Sequence[int]], transposed: bool,
          groups: int) -> None:  # fmt: skip
    """Have the door answer calls like this one from now on, if its weight was found packed.

    lists: stride, padding, dilation and output padding as the call has them.
    """
    if _registration is None or (_forked and prepared.threads > 1):
        return
    invocation, form = prepared.invocation, None
    if invocation.packed_bytes:
        form = weights.found(w, prepared.key)
        if form is None:
            return
    elif not weights.may_be_kept(w):
        return
    words = _description(prepared, x, w, b, lists, transposed, groups)
    if words is None:
        return
    with _lock:
        name = words.tobytes()
        block, threads, shared, scratch, flush = invocation.launch_words(prepared.threads)
        need = shared + threads * (scratch + ALIGNMENT)
        if name in _entries:
            _enlarge(need)
            return
        if len(_entries) >= _MOST_ENTRIES:
            forget()
        size, sample = prepared.dtype.itemsize, np.zeros(0, np.uint8)
        count = step = packed = 0
        if form is not None:
            packed, sample = form.address, np.frombuffer(form.sample, np.uint8)
            whole = isinstance(form.values, memoryview)
            count, step = (len(sample), 0) if whole else (len(form.values), form.values.strides[0] // size)
        dimensions = len(prepared.shape)
        padded = [(*t, *(0,) * (ir.MOST_DIMENSIONS - dimensions)) for t in (prepared.shape, prepared.strides)]
        head = [0, block, packed, shared, scratch, flush, threads, need, count, step, size, sample.ctypes.data]
        head += [dimensions, _DTYPES[prepared.dtype], *padded[0], *padded[1]]
        entry = _Entry(np.array([*head, *words], dtype=np.int64), id(w), (invocation, form, sample))
        _insert(entry, w, name)
        _enlarge(need, first=True)


def drop(weight: int) -> None:
    """End the entries of the weight with this id."""
    with _lock:
        _, names = _known.pop(weight, (None, ()))
        for name in names:
            entry = _entries.pop(name)
            chain = _chains[bucket := _bucket(entry)]
            at = chain.index(entry)
            before = chain[at - 1].address if at else _address("buckets") + 8 * bucket
            readers = _functions["exchange"](before, int(entry.words[0]))
            chain.remove(entry)
            _retired.append(entry)
            if not readers:
                _retired.clear()


def forget() -> None:
    """End all entries."""
    with _lock:
        for weight in list(_known):
            drop(weight)


def answered() -> int:
    """Calls that the door has answered so far."""
    return _word("count").value if _library is not None else 0


def _insert(entry: _Entry, w: Tensor, name: bytes) -> None:
    """Hang an entry up where the door finds it."""
    key = id(w)
    if key not in _known or _known[key][0]() is not w:
        drop(key)

        def end(weight: weakref.ref[Tensor]) -> None:
            with _lock:
                if key in _known and _known[key][0] is weight:
                    drop(key)

        _known[key] = weakref.ref(w, end), set()
    _known[key][1].add(name)
    _entries[name] = entry
    bucket = _bucket(entry)
    chain = _chains.setdefault(bucket, [])
    entry.words[0] = chain[0].address if chain else 0
    chain.insert(0, entry)
    if not _functions["exchange"](_address("buckets") + 8 * bucket, entry.address):
        _retired.clear()


def _bucket(entry: _Entry) -> int:
    return ir.bucket_of(int(entry.words[len(ir.ENTRY)]))


def _enlarge(need: int, first: bool = False) -> None:
    """Make the first place of scratch memory that is too small large enough. first: no other than the first of all."""
    for slot in range(1 if first else ir.SLOTS):
        words = (ctypes.c_int64 * 8).from_address(_address("slots") + 64 * slot)
        if words[2] < need and _functions["take"](slot):
            _slots[slot] = np.empty(need + ALIGNMENT, dtype=np.uint8)
            words[1], words[2] = -(-_slots[slot].ctypes.data // ALIGNMENT) * ALIGNMENT, need
            _functions["give_back"](slot)
            return


def _description(
    prepared: Prepared, x: Tensor, w: Tensor, b: Tensor | None, lists: Sequence[Sequence[int]], transposed: bool,
    groups: int,
) -> np.ndarray | None:  # fmt: skip
    """The words by which the door knows the call, in the order of `native_ir`; None if there is no room for them."""
    if max(map(len, lists)) > ir.MOST_NUMBERS or x.dim() > ir.MOST_DIMENSIONS:
        return None
    head = [w._cdata, w.data_ptr(), w._version, weights.generation(), prepared.threads]
    words = [*head, int(torch._C._get_mkldnn_enabled()), int(transposed), groups]
    for t in (x, w, b):
        rest = ir.MOST_DIMENSIONS - (t.dim() if t is not None else 0)
        tensor = (0,) * ir.TENSOR if t is None else (
            t.dim(), _DTYPES[t.dtype], *t.shape, *(0,) * rest, *t.stride(), *(0,) * rest
        )  # fmt: skip
        words += tensor
    for numbers in lists:
        words += [len(numbers), *numbers, *(0,) * (ir.MOST_NUMBERS - len(numbers))]
    return np.array(words, dtype=np.uint64).astype(np.int64)


def _stable_interface() -> ctypes.CDLL | None:
    """torch's library, loaded already, if it is one that the door was written for."""
    if not torch.__version__.startswith("2.13."):
        return None
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):
        return None
    return library if all(hasattr(library, symbol) for symbol in (*_SYMBOLS.values(), _FAIL)) else None


def _loaded(stable: ctypes.CDLL) -> bool:
    """Compile the door and tell it where the functions are that it calls; once."""
    global _library
    if _library is not None:
        return True
    machine = Machine.detect()
    if machine.arch not in ("x86_64", "aarch64"):
        return False
    text = ir.door_ir(ABI_VERSION)
    # The engine's version says nothing of this text, which is not the engine's.
    library = compiled(f"door_{hashlib.sha256(text.encode()).hexdigest()[:16]}", lambda: text, machine)
    symbols, own = {**_SYMBOLS, "fail": _FAIL}, {"what": _what, "memcmp": ctypes.CDLL(None).memcmp}
    table = (ctypes.c_void_p * len(ir.FUNCTIONS)).from_address(library.address("functions"))
    for index, name in enumerate(ir.FUNCTIONS):
        if name == "run":
            table[index] = launcher_address()
        else:
            function = own[name] if name in own else getattr(stable, symbols[name])
            table[index] = ctypes.cast(function, ctypes.c_void_p).value
    # These keep the interpreter lock: nothing but the door runs beside them.
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    _functions["take"] = ctypes.PYFUNCTYPE(number, number)(library.address("take"))
    _functions["give_back"] = ctypes.PYFUNCTYPE(None, number)(library.address("give_back"))  # type: ignore[assignment]
    _functions["exchange"] = ctypes.PYFUNCTYPE(number, pointer, pointer)(library.address("exchange"))
    _library = library
    weights.on_step(_set_generation)
    weights.on_drop(drop)
    also_counted(answered)
    return True


def _set_generation(generation: int) -> None:
    _word("generation").value = generation


def _address(symbol: str) -> int:
    assert _library is not None
    return _library.address(symbol)


def _word(symbol: str) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(_address(symbol))


def _after_fork_in_child() -> None:
    global _forked
    _forked = True
    if _library is None:
        return
    # Whoever was inside in the parent is not here, and the team of threads is not either: what runs on one thread
    # may be offered anew.
    _word("readers").value = 0
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
