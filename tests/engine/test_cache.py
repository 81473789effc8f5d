from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubel.engine import cache
from hubel.engine.cache import DiskCache

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_written_is_read_by_another_instance(folder: Path) -> None:
    DiskCache(folder).write("key", b"code")
    again = DiskCache(folder)
    assert again.read("key") == b"code"
    assert again.read("other") is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for _, _, path in again.entries()] == [0o600]


def test_a_later_write_replaces_an_earlier(folder: Path) -> None:
    store = DiskCache(folder)
    store.write("key", b"old")
    store.write("key", b"new, and longer")
    assert store.read("key") == b"new, and longer"
    assert len(store.entries()) == 1


@given(st.binary(max_size=200), st.text(max_size=30), st.data())
def test_no_damaged_file_is_believed(payload: bytes, key: str, data: st.DataObject) -> None:
    whole = cache._wrap(payload, key)
    assert cache._unwrap(whole, key) == payload
    length = data.draw(st.integers(0, len(whole) - 1), label="truncated to")
    assert cache._unwrap(whole[:length], key) is None
    assert cache._unwrap(whole + b"\0", key) is None
    bit = data.draw(st.integers(0, 8 * len(whole) - 1), label="flipped bit")
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    assert cache._unwrap(bytes(flipped), key) is None


def test_a_sound_file_of_another_key_is_foreign(folder: Path) -> None:
    store = DiskCache(folder)
    store.write("mine", b"mine")
    store.write("theirs", b"theirs")
    store._file("theirs").replace(store._file("mine"))
    assert store.read("mine") is None


@posix
def test_links_and_other_users_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskCache(folder)
    store.write("key", b"code")
    elsewhere = folder.parent / "elsewhere"
    store._file("key").rename(elsewhere)
    store._file("key").symlink_to(elsewhere)
    assert store.read("key") is None
    store._file("key").unlink()
    elsewhere.rename(store._file("key"))
    assert store.read("key") == b"code"
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert store.read("key") is None


@posix
def test_a_pipe_in_place_of_an_entry_does_not_hang(folder: Path) -> None:
    store = DiskCache(folder)
    os.mkfifo(store._file("key"))
    assert store.read("key") is None


@posix
@pytest.mark.parametrize(
    ("mode", "words"), [(0o755, "open to others"), (0o777, "chmod 700"), (0o500, "read-only"), (0o710, "0710")]
)
def test_wrong_modes_switch_the_cache_off_once(
    folder: Path, mode: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(mode)
    store = DiskCache(folder)
    store.write("key", b"code")
    with store.locked("key"):
        assert store.read("key") is None
    store.write_json("numbers", "key", 1)
    assert store.read_json("numbers", "key") is None
    assert not store.enabled
    assert words in store.reason
    assert list(folder.iterdir()) == []
    assert len(warnings_of(caplog)) == 1
    folder.chmod(0o700)


@posix
def test_a_foreign_folder_switches_the_cache_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    store = DiskCache(folder)
    assert f"belongs to user {user}, not to this one ({user + 1})" in store.reason
    store.write("key", b"code")
    assert list(folder.iterdir()) == []
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_switches_the_cache_off_and_leaves_nothing(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskCache(folder)
    store.write("before", b"code")

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *exc: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            raise OSError(number, os.strerror(number))

    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(real(handle, mode)))
    store.write("key", b"code")
    store.write("another", b"code")
    monkeypatch.undo()
    assert not store.enabled
    assert ("no space left" if number == errno.ENOSPC else os.strerror(number)) in store.reason
    assert len(warnings_of(caplog)) == 1
    assert [path.suffix for path in folder.iterdir()] == [".kernel"]
    assert DiskCache(folder).read("before") == b"code"
    assert DiskCache(folder).read("key") is None


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    store = DiskCache(tmp_path / "file" / "kernels")
    assert not store.enabled
    assert store.reason.startswith("cannot write to")
    assert store.entries() == []
    assert store.clear() == 0
    assert len(warnings_of(caplog)) == 1


def test_the_oldest_go_first_and_the_newest_always_stays(folder: Path) -> None:
    store = DiskCache(folder, size_cap=3000)
    for index in range(5):
        store.write(f"key{index}", bytes(1000))
        for age, (_, _, path) in enumerate(reversed(store.entries())):
            os.utime(path, (time.time() - 100 * age, time.time() - 100 * age))
    assert [index for index in range(5) if store.read(f"key{index}")] == [3, 4]
    store.write("huge", bytes(5000))
    assert store.read("huge") == bytes(5000)
    assert len(store.entries()) == 1


def test_leftovers_of_dead_writers_go(folder: Path) -> None:
    store = DiskCache(folder)
    for name, age in (("writing-old.tmp", 2 * cache.ABANDONED_S), ("writing-new.tmp", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    store.write("key", b"code")
    assert sorted(path.name for path in folder.glob("*.tmp")) == ["writing-new.tmp"]


def test_clear_removes_what_is_ours_only(folder: Path) -> None:
    store = DiskCache(folder)
    store.write("a", b"code")
    store.write("b", b"code")
    store.write_json("numbers", "key", [1, 2])
    (folder / "notes.txt").write_text("somebody's")
    assert store.clear() == 2
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    store.write("a", b"new")
    assert store.read("a") == b"new"


def test_json_is_for_one_key(folder: Path) -> None:
    store = DiskCache(folder)
    store.write_json("numbers", "this machine", {"a": 1.5})
    assert store.read_json("numbers", "this machine") == {"a": 1.5}
    assert store.read_json("numbers", "that machine") is None
    assert store.read_json("letters", "this machine") is None
    for damaged in (b"", b"{", b"[1]", b"\xff\xfe", b'"text"'):
        (folder / "numbers.json").write_bytes(damaged)
        assert store.read_json("numbers", "this machine") is None


@posix
def test_a_lock_that_is_never_released_is_not_waited_for_forever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_PATIENCE_S", 0.05)
    store, other = DiskCache(folder), DiskCache(folder)
    with store.locked("key"), other.locked("key"):
        other.write("key", b"code")
    assert store.read("key") == b"code"


@posix
def test_locks_end_with_their_holder(folder: Path) -> None:
    store = DiskCache(folder)
    with store.locked("key"):
        pass
    (lock,) = folder.glob("lock-*")
    code = f"import fcntl, os; fcntl.flock(os.open({str(lock)!r}, os.O_RDWR), fcntl.LOCK_EX); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    handle = store._lock("key")
    assert handle is not None
    os.close(handle)


def test_the_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(folder))
    assert cache.disk().path == folder
    assert cache.disk() is cache.disk()
    cache.disk().write("key", b"code")
    info = cache.cache_info()
    assert (info.entries, info.path, info.enabled, info.reason) == (1, str(folder), True, "")
    assert info.bytes == cache.HEADER.size + len("key") + len(b"code")
    assert cache.clear() == 1
    assert cache.cache_info().entries == 0
    monkeypatch.delenv("HUBEL_CACHE_DIR")
    assert cache.folder() != folder


def test_info_says_why_it_is_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(folder))
    info = cache.cache_info()
    assert not info.enabled
    assert "chmod 700" in info.reason


def test_a_folder_that_vanishes_is_survived(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskCache(folder)
    folder.rmdir()
    assert store.read("key") is None
    with store.locked("key"):
        store.write("key", b"code")
    assert not store.enabled
    assert len(warnings_of(caplog)) == 1


def test_no_temporary_file_outlives_a_write(folder: Path) -> None:
    store = DiskCache(folder)
    for index in range(20):
        store.write(str(index), b"code")
    assert not list(folder.glob("*.tmp"))


def test_a_user_without_a_home_gets_no_folder_named_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is HOME set?" in DiskCache(Path("~/.cache/hubel")).reason
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HUBEL_CACHE_DIR", "named")
    assert cache.folder() == tmp_path / "named"
