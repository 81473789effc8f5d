"""A part of a list of jobs: a kernel between convolutions with everything but its base pointers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubel.engine.compile import compiled
from hubel.engine.ir import I64, PTR, Function, module_text
from hubel.engine.machine import Machine
from hubel.engine.threads import Job

# Below so many numbers a chunk of work costs less than handing it out.
CHUNK = 8192


@dataclass(frozen=True)
class Work:
    """Jobs that run one after the other, all on the same four base pointers.

    keep: what their words point to. scratch_bytes: of each thread.
    """

    jobs: tuple[Job, ...]
    keep: tuple[object, ...] = ()
    scratch_bytes: int = 0
    shared_bytes: int = 0


def kernel_function() -> Function:
    """A kernel, still without a body: `kernel(args, begin, end, scratch)`."""
    return Function("kernel", [("args", PTR), ("begin", I64), ("end", I64), ("scratch", PTR)])


def work(
    name: str, write: Callable[[], Function], items: int, words: Sequence[int], numbers: int,
    keep: Sequence[object] = (), scratch: int = 0,
) -> Work:  # fmt: skip
    """One job of the kernel called `name`, which `write` writes. numbers: how many an item goes through. scratch: of
    a thread, in numbers.
    """
    machine = Machine.detect()
    library = compiled(f"{name}_{machine.isa}", lambda: module_text(write(), machine.lanes), machine)
    job = Job(library.address("kernel"), items, max(1, CHUNK // max(1, numbers)), tuple(words))
    return Work((job,), (library, *keep), 4 * scratch)
