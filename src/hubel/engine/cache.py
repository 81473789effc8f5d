"""Object code on disk, so that a second process compiles nothing.

One file an object: magic, SHA-256, lengths, key text, object code. The hash covers key and code and is checked
before anybody else sees a byte; a file that is truncated, altered, or was written for another key counts as absent and
is overwritten. The hash guards against damage, not against an attacker: that is what the folder's owner and mode 0700
are for, and a folder without them switches the cache off.

The cache never raises. Whatever goes wrong (foreign owner, wrong mode, read-only, full disk) switches it off for
this process, is logged once to the logger ``hubel``, and stays readable in ``cache_info().reason``.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two processes may compile the same kernel, which is only slower
    fcntl = None

logger = logging.getLogger("hubel")

MAGIC = b"HUBELOBJ"
# magic, SHA-256 of everything behind it, bytes of key text, bytes of object code
HEADER = struct.Struct("<8s32sQQ")
SUFFIX = ".kernel"
SIZE_CAP = 256 * 2**20
# A kernel compiles in well under a second; a lock held longer belongs to a stopped or hanging process.
LOCK_PATIENCE_S = 20.0
# A writer that died leaves its temporary file; younger ones may still be in use.
ABANDONED_S = 3600.0


@dataclass(frozen=True)
class CacheInfo:
    """What the kernel cache did in this process, and what lies on disk.

    compiled, loaded: kernels compiled by LLVM and kernels read from disk, in this process.
    entries, bytes: objects on disk and their size. reason: why the cache is off, empty when it is on.
    """

    compiled: int
    loaded: int
    entries: int
    bytes: int
    path: str
    enabled: bool
    reason: str


@dataclass
class Counters:
    """Process-wide counts behind ``cache_info``."""

    compiled: int = 0
    loaded: int = 0


counters = Counters()


class DiskCache:
    """Objects by key in one private folder. All methods are safe in several threads and processes at once."""

    def __init__(self, path: Path, size_cap: int = SIZE_CAP) -> None:
        self.path = path
        self.size_cap = size_cap
        self.reason = ""
        self._off_lock = threading.Lock()
        self._open()

    @property
    def enabled(self) -> bool:
        return not self.reason

    def read(self, key: str) -> bytes | None:
        """The object code stored for ``key``; None when there is none or the file is not exactly what was written."""
        if not self.enabled:
            return None
        try:
            data = _read_own_file(self._file(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            # Unreadable is as good as absent; writing will tell whether the folder as a whole is unusable.
            logger.debug("cache: cannot read %s: %s", self._file(key), error)
            return None
        payload = _unwrap(data, key)
        if payload is None:
            logger.debug("cache: %s is damaged or foreign and will be rebuilt", self._file(key))
        return payload

    def write(self, key: str, payload: bytes) -> None:
        """Store ``payload`` for ``key``: whole or not at all, then drop the oldest entries above the size cap."""
        if self.enabled and self._put(self._file(key), _wrap(payload, key)):
            self._shrink()

    def read_json(self, name: str, key: str) -> object:
        """What ``write_json`` stored under ``name`` for ``key``, or None. The caller checks that it makes sense."""
        if not self.enabled:
            return None
        try:
            stored = json.loads(_read_own_file(self.path / f"{name}.json"))
        except (OSError, ValueError):
            return None
        return stored.get("value") if isinstance(stored, dict) and stored.get("key") == key else None

    def write_json(self, name: str, key: str, value: object) -> None:
        """Store something small and readable. One value a name: another key replaces it."""
        if self.enabled:
            self._put(self.path / f"{name}.json", json.dumps({"key": key, "value": value}, indent=1).encode())

    def _put(self, path: Path, data: bytes) -> bool:
        """Write a file so that readers see all of it or nothing; on failure switch off and say False."""
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix="writing-", suffix=".tmp", dir=self.path)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except OSError as error:
            if temporary is not None:
                _remove(Path(temporary))
            self._switch_off(_why(error, self.path))
            return False
        return True

    def forget(self, key: str) -> None:
        """Remove the entry of ``key``, if there is one."""
        _remove(self._file(key))

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold off other processes that want to compile ``key``; gives up waiting after ``LOCK_PATIENCE_S``."""
        handle = self._lock(key) if self.enabled else None
        try:
            yield
        finally:
            if handle is not None and fcntl is not None:
                # Unlocked by name, not only closed: a child forked meanwhile shares this open file.
                fcntl.flock(handle, fcntl.LOCK_UN)
                os.close(handle)

    def entries(self) -> list[tuple[float, int, Path]]:
        """(time of last write, bytes, path) of every entry, oldest first."""
        found = []
        try:
            with os.scandir(self.path) as folder:
                for entry in folder:
                    if entry.name.endswith(SUFFIX):
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        found.append((status.st_mtime, status.st_size, Path(entry.path)))
        except OSError:
            return []
        return sorted(found)

    def clear(self) -> int:
        """Remove every entry; the number removed. Kernels already in memory stay usable."""
        if not self.enabled:
            return 0
        removed = self.entries()
        for path in [path for _, _, path in removed] + list(self.path.glob("*.json")):
            _remove(path)
        return len(removed)

    def _file(self, key: str) -> Path:
        return self.path / (hashlib.sha256(key.encode()).hexdigest()[:40] + SUFFIX)

    def _open(self) -> None:
        if not self.path.is_absolute():
            # "~/.cache" of a user without a home: taken literally, a folder wherever the process happens to be.
            self._switch_off(f"{self.path} is no absolute path (is HOME set?)")
            return
        try:
            if not self.path.is_dir():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.mkdir(mode=0o700, exist_ok=True)
            status = self.path.stat()
        except OSError as error:
            self._switch_off(_why(error, self.path))
            return
        if os.name != "posix":
            return
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.getuid():
            self._switch_off(f"{self.path} belongs to user {status.st_uid}, not to this one ({os.getuid()})")
        elif mode & 0o077:
            self._switch_off(f"{self.path} is open to others (mode {mode:04o}); run: chmod 700 {self.path}")
        elif not mode & stat.S_IWUSR or not os.access(self.path, os.W_OK):
            self._switch_off(f"{self.path} is read-only (mode {mode:04o})")

    def _switch_off(self, reason: str) -> None:
        with self._off_lock:
            if self.reason:
                return
            self.reason = reason
        logger.warning(
            "kernel cache off: %s. Kernels are compiled anew in every process; HUBEL_CACHE_DIR names another folder.",
            reason,
        )

    def _lock(self, key: str) -> int | None:
        if fcntl is None:
            return None
        # One of 256 fixed files, never deleted: deleting a lock file that somebody waits on would admit two holders.
        path = self.path / f"lock-{hashlib.sha256(key.encode()).hexdigest()[:2]}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._switch_off(_why(error, self.path))
            return None
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except OSError as error:
                # EWOULDBLOCK: somebody else compiles. Anything else: a file system without locks; go without.
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                    os.close(handle)
                    return None
            time.sleep(0.005)

    def _shrink(self) -> None:
        entries = self.entries()
        excess = sum(size for _, size, _ in entries) - self.size_cap
        for _, size, path in entries[:-1]:
            if excess <= 0:
                break
            _remove(path)
            excess -= size
        for leftover in self.path.glob("writing-*.tmp"):
            try:
                if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                    _remove(leftover)
            except OSError:
                continue


def folder() -> Path:
    """Where objects are kept: ``$HUBEL_CACHE_DIR``, else the user's cache folder."""
    named = os.environ.get("HUBEL_CACHE_DIR")
    return Path(named).expanduser().absolute() if named else platformdirs.user_cache_path("hubel")


def disk() -> DiskCache:
    """The cache of the current folder; opened, judged and (if need be) switched off once a process."""
    return _opened(folder())


@functools.cache
def _opened(path: Path) -> DiskCache:
    return DiskCache(path)


def cache_info() -> CacheInfo:
    """Counts of this process and the state of the folder."""
    store = disk()
    entries = store.entries() if store.enabled else []
    return CacheInfo(
        compiled=counters.compiled,
        loaded=counters.loaded,
        entries=len(entries),
        bytes=sum(size for _, size, _ in entries),
        path=str(store.path),
        enabled=store.enabled,
        reason=store.reason,
    )


def clear() -> int:
    """Remove every object on disk; the number removed."""
    return disk().clear()


def _wrap(payload: bytes, key: str) -> bytes:
    text = key.encode()
    digest = hashlib.sha256(text + payload).digest()
    return HEADER.pack(MAGIC, digest, len(text), len(payload)) + text + payload


def _unwrap(data: bytes, key: str) -> bytes | None:
    """The payload of a file made by ``_wrap`` for ``key``, or None."""
    if len(data) < HEADER.size:
        return None
    magic, digest, key_size, payload_size = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    text = key.encode()
    if magic != MAGIC or key_size != len(text) or len(body) != key_size + payload_size:
        return None
    if body[:key_size] != text or hashlib.sha256(body).digest() != digest:
        return None
    return body[key_size:]


def _read_own_file(path: Path) -> bytes:
    """The bytes of a regular file of this user. Raises OSError for links, other owners, and what cannot be read."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if os.name == "posix" and status.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "owned by another user", str(path))
        return file.read()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _why(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"no space left for {path}"
    return f"cannot write to {path} ({error.strerror or error})"
