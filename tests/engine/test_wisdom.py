"""What was measured is remembered, and believed only where it is true."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubel.engine import Invocation, Machine, Policy, Problem, choose, prepare, wisdom
from hubel.engine.choose import equivalent
from hubel.engine.problem import Direction
from hubel.engine.race import FILL, SLACK, Operands
from hubel.engine.spec import ConvSpec
from hubel.errors import DataError
from tests.engine.guards import convolve, normal, same_bits

LAYER = Problem(ConvSpec.parse("n16c6o16i14x14k5x5s1p0"))
MEASURED = Policy(measured=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "cache"))
    prepare.cache_clear()
    yield tmp_path
    prepare.cache_clear()


def strides(problem: Problem) -> tuple[tuple[int, ...], ...]:
    shapes = problem.spec.input_shape, problem.spec.weight_shape, problem.spec.output_shape
    return tuple(tuple(n // 4 for n in np.empty(shape, np.float32).strides) for shape in shapes)


def racing(monkeypatch: pytest.MonkeyPatch, fastest: int) -> list[int]:
    """Measuring finds that plan number `fastest` is twice as fast as the others. Returns how many ran, a race each."""
    races: list[int] = []

    def race(invocations: list[Invocation], *_: object) -> list[float]:
        races.append(len(invocations))
        return [0.5 if i == fastest else 1.0 for i in range(len(invocations))]

    # The package's functions of these names hide the modules.
    monkeypatch.setattr(importlib.import_module("hubel.engine.invoke"), "race", race)
    return races


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("text", ["n2c16o24i9x20k3x3s2p1", "n1c40o20i30x30k1x1s1p0", "n16c6o16i14x14k5x5s1p0"])
def test_what_measuring_chooses_from_gives_the_same_bits(text: str, direction: Direction) -> None:
    problem = Problem(ConvSpec.parse(text), direction)
    x, w, _, dy = normal(problem.spec, 7)
    first, second = {Direction.FORWARD: (x, w), Direction.INPUT_GRADIENT: (dy, w)}.get(direction, (x, dy))
    plans = equivalent(problem, Machine.detect(), MEASURED)
    assert plans[0] == replace(choose(problem, Machine.detect(), MEASURED), refusals=())
    assert len(plans) > 1 or direction is Direction.WEIGHT_GRADIENT
    results = [convolve(problem, first, second, policy=plan)[0] for plan in plans]
    assert all(same_bits(results[0], other) for other in results[1:])


def test_the_fastest_is_kept_and_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = equivalent(LAYER, Machine.detect(), MEASURED)
    races = racing(monkeypatch, fastest=2)
    assert prepare(LAYER, *strides(LAYER), MEASURED).plan == plans[2]
    prepare.cache_clear()
    assert prepare(LAYER, *strides(LAYER), MEASURED).plan == plans[2]
    assert races == [len(plans)], "one race, then wisdom"
    assert prepare(LAYER, *strides(LAYER), Policy()).plan.box == plans[0].box, "who did not ask gets the estimate's"
    wisdom.forget()
    prepare.cache_clear()
    prepare(LAYER, *strides(LAYER), MEASURED)
    assert len(races) == 2


def test_small_differences_leave_the_estimate_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("hubel.engine.invoke")
    monkeypatch.setattr(module, "race", lambda invocations, *_: [1.0, *[0.98] * (len(invocations) - 1)])
    chosen = equivalent(LAYER, Machine.detect(), MEASURED)[0]
    assert prepare(LAYER, *strides(LAYER), MEASURED).plan == chosen


def test_it_travels_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = equivalent(LAYER, Machine.detect(), MEASURED)
    races = racing(monkeypatch, fastest=1)
    prepare(LAYER, *strides(LAYER), MEASURED)
    assert wisdom.export_wisdom(folder / "wisdom.json") == 1
    prepare.cache_clear()
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(folder / "another"))
    assert wisdom.recall(plans) is None
    assert wisdom.import_wisdom(folder / "wisdom.json") == 1
    assert wisdom.import_wisdom(folder / "wisdom.json") == 0, "nothing new"
    assert prepare(LAYER, *strides(LAYER), MEASURED).plan == plans[1]
    assert len(races) == 1


def _another_machine(document: dict) -> None:
    document["for"] = document["for"].replace("lanes=", "lanes=1")


def _another_format(document: dict) -> None:
    document["format"] = "hubel-wisdom-0"


def _another_answer(document: dict) -> None:
    document["entries"] = {question: answer + "0" for question, answer in document["entries"].items()}


@pytest.mark.parametrize(
    ("change", "sealed", "why"),
    [
        (_another_machine, True, "on another machine or by another version"),
        (_another_machine, False, "damaged"),
        (_another_format, True, "not of the format hubel-wisdom-1"),
        (_another_answer, False, "damaged"),
    ],
)
def test_what_is_not_true_here_is_ignored_and_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change, sealed: bool, why: str
) -> None:
    racing(monkeypatch, fastest=1)
    prepare(LAYER, *strides(LAYER), MEASURED)
    file = folder / "wisdom.json"
    wisdom.export_wisdom(file)
    wisdom.forget()
    document = json.loads(file.read_text())
    change(document)
    if sealed:
        del document["sha256"]
        document["sha256"] = wisdom._checksum(document)
    file.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING, "hubel"):
        assert wisdom.import_wisdom(file) == wisdom.import_wisdom(file) == 0
    (said,) = caplog.messages
    assert why in said and str(file) in said
    assert wisdom.recall(equivalent(LAYER, Machine.detect(), MEASURED)) is None


def test_half_a_file_is_damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    wisdom.export_wisdom(folder / "wisdom.json")
    (folder / "wisdom.json").write_bytes((folder / "wisdom.json").read_bytes()[:-9])
    with caplog.at_level(logging.WARNING, "hubel"):
        assert wisdom.import_wisdom(folder / "wisdom.json") == 0
    assert "it is damaged" in caplog.text


@pytest.mark.parametrize("change", [b"{", b'{"key": "another machine", "value": {}}', b'{"key": 1, "value": 2}'])
def test_what_the_cache_folder_holds_is_ignored_and_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: bytes
) -> None:
    racing(monkeypatch, fastest=1)
    prepare(LAYER, *strides(LAYER), MEASURED)
    (kept,) = folder.rglob("wisdom.json")
    kept.write_bytes(change)
    monkeypatch.setattr(wisdom, "_read_from", None)
    wisdom._entries.clear()
    with caplog.at_level(logging.WARNING, "hubel"):
        for _ in range(2):
            wisdom._read(again=True)
    (said,) = caplog.messages
    assert said == (
        f"wisdom in {kept} is ignored: it is damaged, or was written on another machine or by another version of Hubel"
    )
    assert wisdom.recall(equivalent(LAYER, Machine.detect(), MEASURED)) is None
    wisdom.remember(equivalent(LAYER, Machine.detect(), MEASURED)[1])
    assert wisdom.recall(equivalent(LAYER, Machine.detect(), MEASURED)) is not None


def test_a_missing_file_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"read from a file\. Received: .*none\.json \(No such file"):
        wisdom.import_wisdom(folder / "none.json")
    with pytest.raises(DataError, match=r"written to a file\. Received"):
        wisdom.export_wisdom(folder / "no folder" / "wisdom.json")


def test_an_answer_that_is_no_plan_of_this_engine_chooses_nothing(folder: Path) -> None:
    """Even where its checksum is right: a file names a plan, it does not make one."""
    plans = equivalent(LAYER, Machine.detect(), MEASURED)
    wisdom.remember(replace(plans[0], row_tiles=10**9))
    assert wisdom.recall(plans) is None


@pytest.mark.parametrize("text", ["n2c4o6i9x8k3x3s1p1/bias", "n2c4o6i9x8k3x3s1p1/bias/scale+residual+relu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operands_are_those_of_a_call(text: str, dtype: str) -> None:
    """What is timed runs on memory of its own, whatever the problem asks for."""
    problem = replace(Problem.parse(text), dtype=dtype)
    for direction in Direction:
        epilogue = None if direction is Direction.WEIGHT_GRADIENT else problem.epilogue
        asked = replace(problem, direction=direction, epilogue=epilogue, bias=direction is not Direction.INPUT_GRADIENT)
        invocation = prepare(asked, *strides(asked), Policy())
        given = Operands(invocation, *strides(asked))
        invocation(*given.addresses, 2)
        assert len({address for address in given.addresses if address}) == 3 + bool(asked.bias or epilogue)
        for memory in given._kept:
            if isinstance(memory, np.ndarray):
                assert (memory[-SLACK:] == FILL).all(), "written beyond a tensor's end"
