"""First calls: what they are made of adds up, and two processes really start without and with compiled kernels."""

from __future__ import annotations

import json

import jsonschema
import pytest

from hubel.engine import compile, invoke
from hubel.errors import DataError, UnknownNameError
from hubel.lab import bench_text, cold, shapes
from hubel.records import json_schema

TIMES = {"plan": 1.0, "IR": 2.0, "LLVM": 50.0, "load": 1.0, "pack": 0.5, "other": 0.5, "call": 3.0, "cost": 55.0}


def test_the_record_has_a_row_a_layer_and_sums_up():
    cases = shapes.resolve(["c3o8i9x9k3", "c4o8i9x9k3", "c5o8i9x9k3"])
    slow = [TIMES | {"cost": cost} for cost in (50.0, 60.0, 100.0)]
    record = cold.record(cases, slow, [TIMES] * 3)
    assert [row["cold cost"] for row in record.rows] == [50, 60, 100]
    summary = record.method["params"]["summary"]
    assert summary["cold cost"] == {"median": 60, "p95": pytest.approx(96)}
    assert summary["warm LLVM"]["median"] == 50
    assert cold.record([], [], []).rows == []


def test_parts_are_counted_once_and_everything_is_put_back(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cold.time, "perf_counter", lambda: now[0])
    before = invoke.choose, invoke.compiled, compile.emit_object, vars(compile.Library)["load"]
    with cold._Parts() as parts:

        def inner() -> None:
            now[0] += 3

        def outer() -> None:
            now[0] += 1
            parts._watching("IR", inner)()

        parts._watching("plan", outer)()
        assert invoke.choose is not before[0]
    assert parts.seconds == {"plan": 1, "IR": 3}
    assert (invoke.choose, invoke.compiled, compile.emit_object, vars(compile.Library)["load"]) == before


def test_two_processes_compile_once():
    seen = []
    document = cold.run(["c3o8i9x9k3"], threads=1, progress=lambda *what: seen.append(what))
    (row,) = document.records[0].rows
    assert row["cold LLVM"] > 0 and row["cold IR"] > 0 and row["cold plan"] > 0
    assert row["warm LLVM"] == row["warm IR"] == 0
    assert row["warm load"] > 0
    assert row["cold cost"] == pytest.approx(sum(row[f"cold {part}"] for part in (*cold.PARTS, "other")))
    assert [done for done, _, _ in seen] == [0, 1, 2]
    jsonschema.validate(json.loads(document.to_json()), json_schema())
    assert "median" in bench_text.render_text(document)


def test_what_goes_wrong_in_the_process_is_said(monkeypatch):
    monkeypatch.setattr(cold.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="ended with 1: nothing"):
        cold.run(["c3o8i9x9k3"])
    with pytest.raises(UnknownNameError):
        cold.run(["lenet6"])
