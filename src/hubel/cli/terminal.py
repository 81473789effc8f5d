"""How the terminal looks: one console, plain tables, progress bars on a terminal and plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

# Where there is no terminal, a line of progress is printed at most this often.
LINE_SECONDS = 10.0


def console(*, stderr: bool = False) -> Console:
    """Made anew for each use, so that it follows a redirected stdout; rich honours NO_COLOR and the window's width."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frames, so that it can be copied and piped. Columns after the first are right-aligned."""
    table = Table(title=title, box=None, title_justify="left", padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


class Stages:
    """Progress of a long command on stderr: a bar with stage and time left on a terminal, plain lines otherwise.

    with Stages() as stages:
        work(progress=stages)       # calls stages(done, total, "what comes next")
    """

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed = ("", 0.0)

    def __enter__(self) -> Stages:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: float, total: float, stage: str) -> None:
        """`done` of `total` units of work; `stage` names what is being done, or comes next."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=stage)
            return
        before, when = self._printed
        word = stage.split(",")[0]
        if word != before or time.monotonic() - when > LINE_SECONDS:
            self._printed = (word, time.monotonic())
            share = f" ({done / total:.0%})" if total else ""
            self._console.print(f"{stage}{share}", soft_wrap=True)
