"""Progress, on a terminal and where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hubel.cli import terminal
from hubel.cli.terminal import Stages


def test_elsewhere_a_stage_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        for step in range(3):
            stages(step, 4, "training [bold]lenet5")
        stages(4, 4, "done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["  0%  training [bold]lenet5", "100%  done"]


def test_no_work_at_all_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        stages(0, 0, "nothing")
    assert capsys.readouterr().err == "100%  nothing\n"


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", lambda stderr=False: screen)
    with pytest.raises(KeyboardInterrupt), Stages() as stages:
        stages(1, 4, "training")
        bar = stages._bar
        assert bar is not None and bar.live.is_started
        raise KeyboardInterrupt
    assert bar is not None and not bar.live.is_started
