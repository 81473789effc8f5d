"""hubel doctor: what it says of machines that are not as well set up as this one."""

from __future__ import annotations

import pytest
import torch

from hubel import doctor
from hubel.cli import main
from hubel.engine import cache, compile, threads
from hubel.engine.cache import CacheInfo
from hubel.engine.machine import Machine
from hubel.engine.threads import Pool


def line(name: str) -> doctor.Line:
    (found,) = [line for line in doctor.examine(measure=False) if line.name == name]
    return found


def test_every_line_has_a_value_and_trouble_has_a_remedy() -> None:
    lines = doctor.examine(measure=False)
    assert all(line.value for line in lines)
    assert all(bool(line.remedy) == (line.verdict != "ok") for line in lines)
    assert len({line.name for line in lines}) == len(lines)


def test_forbidden_executable_memory_is_a_fault_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile, "executable_memory_allowed", lambda: False)
    assert line("executable memory").verdict == "fault"
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--no-measure"])
    assert caught.value.code == 2
    assert "torch's kernels run" in " ".join(capsys.readouterr().out.split())


def test_an_untested_torch_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TESTED_TORCH", ("1.13", "2.1"))
    assert line("torch").verdict == "note" and "1.13 and 2.1" in line("torch").remedy


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Machine.detect().cores
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores + 1)
    assert f"set_num_threads({cores})" in line("threads").remedy
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert line("threads").verdict == "ok"


def test_a_missing_pool_and_a_cache_that_is_off_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "pool", lambda: Pool("none", "", "this process was forked"))
    monkeypatch.setattr(cache, "cache_info", lambda: CacheInfo(0, 0, 0, 0, "there", False, "there is read-only"))
    assert "this process was forked" in line("thread pool").remedy
    assert "there is read-only" in line("kernel cache").remedy


def test_a_switch_that_is_on_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBEL_DISABLE", "1")
    assert line("HUBEL_DISABLE").verdict == "note"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (32 * 1024, "32 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**31, "2,048 MiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert doctor.size(count) == text
