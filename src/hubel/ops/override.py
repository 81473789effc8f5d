"""`enable()`: every convolution that torch dispatches to its CPU kernels runs on Hubel's; no model changes.

torch calls `aten::convolution` and `aten::convolution_backward` below autograd, autocast and vmap, so overriding these
two for the CPU keeps all of that as it is. Only dense CPU tensors arrive here: torch sends quantised, sparse, mkldnn,
meta and fake tensors to other kernels.

Switch it at rest: torch's dispatcher does not expect a kernel to be taken away while another thread is calling it.
Blocks of `enabled()` may overlap in any number of threads: the first to start installs, the last to end removes.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hubel.ops import native
from hubel.ops.calls import convolution, convolution_backward, prepare_in_background
from hubel.ops.fallback import why_not_this_torch
from hubel.ops.kept_memory import SHARED
from hubel.ops.log import Log

_lock = threading.Lock()
_switched_on = False
_blocks = 0
_library: torch.library.Library | None = None


def enable(background: bool = False) -> None:
    """Run every convolution of this process on Hubel's kernels, forward and backward, until `disable()`.

    background: no call waits for a compiler. torch's kernels serve each new layer and image size until Hubel's are
    ready, some 100 ms later; which of the two a call finds depends on the clock, and the last bits of results with it.

    The memory of results of 4 MB and more is kept for the next of their size, up to a sixteenth of the machine's; such
    a result cannot be made larger by `resize_`.

    Does nothing if the environment has HUBEL_DISABLE=1. On a torch whose operators are not those that Hubel was tested
    with, it warns and leaves torch as it is.
    """
    global _switched_on
    with _lock:
        _switched_on = True
        prepare_in_background(background)
        _update()


def disable() -> None:
    """Take back `enable()`, however often it was called. Blocks of `enabled()` that are running keep their hold.

    Memory that was kept for results of 4 MB and more goes back to the system.
    """
    global _switched_on
    with _lock:
        _switched_on = False
        prepare_in_background(False)
        _update()
    SHARED.clear()


@contextmanager
def enabled() -> Iterator[Log]:
    """`enable()` for a block; nests. Gives the `Log` of the calls made in the process meanwhile."""
    global _blocks
    log = Log()
    with _lock:
        _blocks += 1
        _update()
    log.open()
    try:
        yield log
    finally:
        log.close()
        with _lock:
            _blocks -= 1
            _update()


def is_enabled() -> bool:
    """Whether the override is installed now."""
    return _library is not None


def switched_off_by_environment() -> bool:
    """HUBEL_DISABLE=1: everything runs on torch, to find out whether a difference is ours."""
    return os.environ.get("HUBEL_DISABLE", "") not in ("", "0")


def _update() -> None:
    """Install or remove the override, as the switch and the blocks say. The caller holds the lock."""
    global _library
    wanted = (_switched_on or _blocks > 0) and not switched_off_by_environment()
    if wanted and _library is None:
        _library = _installed()
    elif not wanted and _library is not None:
        native.unregister()
        _library._destroy()
        _library = None


def _installed() -> torch.library.Library | None:
    reason = why_not_this_torch()
    if reason:
        warnings.warn(f"hubel.enable() leaves torch's kernels in place: {reason}.", RuntimeWarning, stacklevel=5)
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns whoever overrides one of its kernels; that is what was asked for.
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel")
        if not native.register(convolution):
            library.impl("convolution", convolution, "CPU")
        library.impl("convolution_backward", convolution_backward, "CPU")
    return library
