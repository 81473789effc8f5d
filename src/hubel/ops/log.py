"""What ran on Hubel's kernels, what torch was handed, and why.

Counting is on the path of every convolution, so native calls share one process-wide counter, and a `Log` is the
difference of two readings. Calls handed to torch are rarer, and are written down one by one.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("hubel")

# A run over endless shapes in float64 must not grow the log for ever.
_MOST_REASONS = 1000


class _Ticks:
    """A counter that needs no lock to count: `next` of an `itertools.count` cannot be interrupted."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.tick = self._count.__next__
        self._lock = threading.Lock()
        self._readings = 0

    def add(self, calls: int) -> None:
        deque(itertools.islice(self._count, calls), maxlen=0)

    def read(self) -> int:
        with self._lock:
            # Reading counts too; take the readings so far off again.
            value = self.tick() - self._readings
            self._readings += 1
            return value + sum(count() for count in _elsewhere)


# Counters of native calls that Python does not see.
_elsewhere: list[Callable[[], int]] = []
_native = _Ticks()
_open: list[Log] = []
_lock = threading.Lock()
_said = threading.local()

# One more call ran wholly on Hubel's kernels.
count_native = _native.tick
# So many more did.
count_native_calls = _native.add


def also_counted(count: Callable[[], int]) -> None:
    """Have `count()`, which never falls, count among the native calls."""
    _elsewhere.append(count)


class Log:
    """Calls in the whole process from when the log was opened until it was closed (or now).

    native: calls of `convolution` and `convolution_backward` that ran wholly on Hubel's kernels.
    fallback: calls that torch was handed. reasons: {(the call, why): how often} for those.
    """

    def __init__(self) -> None:
        self.fallback = 0
        self.reasons: Counter[tuple[str, str]] = Counter()
        self._start = _native.read()
        self._end: int | None = None

    @property
    def native(self) -> int:
        return (_native.read() if self._end is None else self._end) - self._start

    def open(self) -> None:
        with _lock:
            _open.append(self)

    def close(self) -> None:
        with _lock:
            # Two logs may be equal, so that `remove` could take the wrong one.
            _open[:] = [log for log in _open if log is not self]
            self._end = _native.read()

    def __repr__(self) -> str:
        return f"Log(native={self.native}, fallback={self.fallback}, reasons={dict(self.reasons)})"


def count_fallback(call: str, reason: str) -> None:
    """Write down that torch was handed `call`, and why."""
    with _lock:
        for log in _open:
            log.fallback += 1
            if len(log.reasons) < _MOST_REASONS or (call, reason) in log.reasons:
                log.reasons[call, reason] += 1


def announce(call: str, how: str) -> None:
    """Say once for each prepared call what will run it (HUBEL_LOG, or the logger "hubel" at level INFO)."""
    logger.info("%s: %s", call, how)
    said = getattr(_said, "list", None)
    if said is not None:
        said.append(f"{how} {call}")


@contextmanager
def announced() -> Iterator[list[str]]:
    """What is announced on this thread within the block."""
    _said.list = []
    try:
        yield _said.list
    finally:
        _said.list = None


def _listen(target: str) -> None:
    """HUBEL_LOG: "1" prints prepared calls to stderr, anything else is a file they are appended to."""
    handler = logging.StreamHandler() if target == "1" else logging.FileHandler(target)
    handler.setFormatter(logging.Formatter("hubel: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if os.environ.get("HUBEL_LOG"):
    _listen(os.environ["HUBEL_LOG"])
