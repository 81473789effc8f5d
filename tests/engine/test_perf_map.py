"""Names of generated code, for Linux's perf."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from hubel.engine import Machine, Policy, Problem, choose, perf_map
from hubel.engine.algorithms import ALGORITHMS
from hubel.engine.compile import Library, emit_object


@pytest.fixture
def object_code() -> bytes:
    plan = choose(Problem.parse("n1c16o16i20x20k3x3s2p1"), Machine.detect(), Policy())
    return emit_object(ALGORITHMS[plan.algorithm].emit(plan)[plan.kernels[0]](), plan.machine)


def test_every_function_has_a_line(object_code: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = Library.load(object_code)
    file = tmp_path / "perf.map"
    monkeypatch.setattr(perf_map, "Path", lambda _: file)
    perf_map.add("some_kernel", object_code, library.address)
    lines = [line.split(" ") for line in file.read_text().splitlines()]
    names = {name: (int(start, 16), int(size, 16)) for start, size, name in lines}
    assert names["hubel:some_kernel:kernel"][0] == library.address("kernel")
    assert len(names) > 1 and all(size > 0 for _, size in names.values())
    places = sorted(names.values())
    assert all(start + size <= after for (start, size), (after, _) in pairwise(places))


def test_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUBEL_PERF_MAP", raising=False)
    assert not perf_map.wanted()
    monkeypatch.setenv("HUBEL_PERF_MAP", "1")
    assert perf_map.wanted()


def test_a_folder_that_cannot_be_written_only_warns(
    object_code: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(perf_map, "Path", lambda _: tmp_path / "none" / "perf.map")
    perf_map.add("some_kernel", object_code, Library.load(object_code).address)
    assert "HUBEL_PERF_MAP" in caplog.text


def test_other_formats_have_no_names(object_code: bytes) -> None:
    assert list(perf_map.functions(b"\xcf\xfa\xed\xfe" + object_code[4:])) == []
    assert list(perf_map.functions(b"")) == []
