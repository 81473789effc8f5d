"""Packed weights, kept as long as they are provably those of the tensor they were packed from.

A kernel reads weights in an order of its own. Packing costs as much as a small convolution, so the packed form of a
weight is kept, under rules that prefer packing again to being wrong:

- only for Parameters and persistent buffers, and never for inference tensors, which have no version counter;
- by weak reference to the tensor object; a record ends with its tensor;
- valid while object, `data_ptr`, `_version`, the count of optimizer steps (fused optimizers do not bump `_version`)
  and a sample of the values (writes through `.data` or numpy bump nothing) are what they were;
- at most two packed forms a weight: forward and input gradient.

Every other weight is packed for its one call. What none of these can see: a write through `.data`, numpy or another
process that leaves every sampled value as it was. `repack` is for those.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from hubel.engine.invoke import Invocation

_FORMS = 2
# Up to so many numbers comparing all is as fast as picking some (0.3 µs for 16 KB that are in the cache). Of larger
# weights one number of every output channel is compared, up to so many channels.
_COMPARED_WHOLE, _MOST_ROWS = 4096, 512


class Packed:
    """One packed form: `address` is valid as long as this object is. The rest is what it was packed from."""

    __slots__ = ("address", "buffer", "found", "generation", "pointer", "sample", "values", "version")

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.found = False
        self.address = buffer.data_ptr()
        self.pointer = 0


class _Record:
    """The packed forms of one weight by packing key."""

    __slots__ = ("forms", "weight")

    def __init__(self, weight: weakref.ref[Tensor]) -> None:
        self.weight = weight
        self.forms: dict[Any, Packed] = {}


_keys: dict[Any, object] = {}
_records: dict[int, _Record] = {}
_buffers: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
_lock = threading.RLock()  # a weak reference may end while the lock is held
_generation = 0
_generations = itertools.count(1)
_told_of_steps: list[Callable[[int], object]] = []
_told_of_drops: list[Callable[[int], object]] = []


def packed(w: Tensor, invocation: Invocation, key: object, threads: int) -> Packed:
    """`w` in the order that `invocation` reads. Hold the result until the kernel has returned.

    key: the `one_of` the invocation's packing key.
    """
    record = _records.get(id(w))
    if record is not None and record.weight() is w:
        form = record.forms.get(key)
        if (
            form is not None
            and form.pointer == w.data_ptr()
            and form.version == w._version
            and form.generation == _generation
            # Last: the memory may be read only if it is still the weight's.
            and form.values.tobytes() == form.sample
        ):
            form.found = True
            return form
        form = None  # so that `_pack` can tell whether another thread holds it
    return _pack(w, invocation, key, threads)


def found(w: Tensor, key: object) -> Packed | None:
    """The packed form of `w` if it was found valid since it was packed; it has just been, if a call just used it."""
    record = _records.get(id(w))
    form = record.forms.get(key) if record is not None and record.weight() is w else None
    return form if form is not None and form.found else None


def generation() -> int:
    """The number of the optimizers' last step."""
    return _generation


def on_step(tell: Callable[[int], object]) -> None:
    """Have `tell` called with every new generation, and with the present one now."""
    _told_of_steps.append(tell)
    tell(_generation)


def on_drop(tell: Callable[[int], object]) -> None:
    """Have `tell` called with the id of every weight a packed form of which is given up."""
    _told_of_drops.append(tell)


def one_of(packing_key: Any) -> object:
    """The same object for equal keys. Looking it up is a pointer's comparison; hashing a key takes 0.3 µs a call."""
    return _keys.setdefault(packing_key, object())


def repack(net: nn.Module) -> nn.Module:
    """Forget the packed weights of `net`, and return it; they are packed again when they are next used.

    Needed only after writes that Hubel cannot see: through `.data`, numpy or another process, to a weight of more than
    4096 numbers, and to so few of them that the sampled ones (one of every output channel) are not among them.
    """
    with _lock:
        for tensor in itertools.chain(net.parameters(), net.buffers()):
            _records.pop(id(tensor), None)
            _dropped(id(tensor))
    learn_buffers(net)
    return net


def learn_buffers(net: nn.Module) -> None:
    """Have weights that are persistent buffers of `net` kept packed, those made before `import hubel` too."""
    for module in net.modules():
        for name, buffer in module.named_buffers(recurse=False):
            _buffer_registered(module, name, buffer)


def room(size: int) -> Tensor:
    """Memory for so many bytes of packed weights, at the start of a cache line.

    numpy asks for huge pages, which torch does not: every call streams through all of it (16 MB at 512 channels and
    7×7: 2.0 ms on one thread, with small pages 2.8; Zen 4).
    """
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return torch.from_numpy(memory)[start : start + size]


def _pack(w: Tensor, invocation: Invocation, key: object, threads: int) -> Packed:
    size = invocation.packed_bytes
    if not may_be_kept(w):
        form = Packed(room(size))
        invocation.pack(w.data_ptr(), form.address, threads)
        return form

    with _lock:
        record = _record_of(w)
        form = record.forms.pop(key, None)
        if form is not None:
            _dropped(id(w))
    # Whoever runs a kernel holds its form: if nobody holds this one (the variable and the argument of getrefcount
    # aside), nobody reads its buffer. A new buffer for every training step would fault its pages in anew.
    if form is None or sys.getrefcount(form) > 2 or form.buffer.numel() != size:
        form = Packed(room(size))
    if form.pointer != w.data_ptr():
        form.pointer, form.values = w.data_ptr(), _sampled(w)
    # Read before packing: a write in the meantime then shows as a difference.
    form.version, form.generation, form.found = w._version, _generation, False
    form.sample = form.values.tobytes()
    invocation.pack(form.pointer, form.address, threads)
    with _lock:
        while len(record.forms) >= _FORMS:
            del record.forms[next(iter(record.forms))]
            _dropped(id(w))
        record.forms[key] = form
    return form


def _record_of(w: Tensor) -> _Record:
    record = _records.get(id(w))
    if record is None or record.weight() is not w:
        name = id(w)

        def end(weight: weakref.ref[Tensor]) -> None:
            with _lock:
                if name in _records and _records[name].weight is weight:
                    del _records[name]

        record = _records[name] = _Record(weakref.ref(w, end))
    return record


def may_be_kept(w: Tensor) -> bool:
    """Whether `w` is a weight whose packed form may be kept from call to call."""
    if not (isinstance(w, nn.Parameter) or _is_persistent_buffer(w)) or w.is_inference():
        return False
    return is_dense(w)


def is_dense(w: Tensor) -> bool:
    """Whether all memory from the first element to the last is the weight's, in any order: what sampling needs."""
    if w.is_contiguous():
        return True
    last = sum((size - 1) * stride for size, stride in zip(w.shape, w.stride(), strict=True))
    return last + 1 == w.numel() and 0 not in w.stride()


def _is_persistent_buffer(w: Tensor) -> bool:
    module_reference, name = _buffers.get(id(w), (None, ""))
    module = module_reference() if module_reference is not None else None
    return module is not None and module._buffers.get(name) is w and name not in module._non_persistent_buffers_set


def _sampled(w: Tensor) -> memoryview | np.ndarray:
    """A view of the weight's values: of all where they are few, of some spread over all of its memory otherwise.

    As raw bits, so that NaN equals itself. It does not keep the memory alive: read it only while the weight's
    `data_ptr` is what it was.
    """
    numbers, rows = w.numel(), w.shape[0]
    memory: Any = (ctypes.c_char * (w.element_size() * numbers)).from_address(w.data_ptr())
    step = picked(numbers, rows)
    return memoryview(memory) if step == 1 else np.frombuffer(memory, dtype=f"i{w.element_size()}")[::step]


def picked(numbers: int, rows: int) -> int:
    """Every how many-th number of a weight is compared: each where they are few, some of every output channel else."""
    if numbers <= _COMPARED_WHOLE:
        return 1
    # One less than a row (or than the rows between two samples), so that it is not always the same tap of the kernel.
    return max(1, numbers // rows * -(-rows // _MOST_ROWS) - 1)


def _optimizer_stepped(*_: object) -> None:
    global _generation
    _generation = next(_generations)
    for tell in _told_of_steps:
        tell(_generation)


def _dropped(weight: int) -> None:
    for tell in _told_of_drops:
        tell(weight)


def _buffer_registered(module: nn.Module, name: str, buffer: Tensor | None) -> None:
    if buffer is None:
        return
    key = id(buffer)

    def end(reference: weakref.ref[nn.Module]) -> None:
        # The number may by then be another buffer's.
        if _buffers.get(key, (None,))[0] is reference:
            del _buffers[key]

    _buffers[key] = (weakref.ref(module, end), name)


register_optimizer_step_post_hook(_optimizer_stepped)
register_module_buffer_registration_hook(_buffer_registered)
