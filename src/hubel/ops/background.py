"""Compiling in the background: torch's kernels serve a call until Hubel's are ready for it.

Asked for by `hubel.enable(background=True)`: no call waits for a compiler. Which engine a call finds then depends on
the clock, and so do the last bits of its result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

REASON = "its kernels are being compiled"

_executor: ThreadPoolExecutor | None = None


def serve(calls: dict, key: tuple, prepare: Callable[[], Any], meanwhile: Callable[..., Any]) -> Any:
    """What to do for the call `key` from now on: `meanwhile`, until `prepare` is done on another thread; then what it
    prepared, which from there on stands in `calls` itself.
    """
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hubel-compile")
    prepared = _executor.submit(prepare)

    def run(*tensors: Any) -> Any:
        if not prepared.done():
            return meanwhile(*tensors)
        if calls.get(key) is run:
            calls[key] = prepared.result()
        return prepared.result()(*tensors)

    return run


def wait() -> None:
    """Return when everything asked for so far has been prepared."""
    if _executor is not None:
        _executor.submit(lambda: None).result()


def _after_fork_in_child() -> None:
    global _executor
    # Its thread is in the parent.
    _executor = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
