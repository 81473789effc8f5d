"""How the terminal looks: one console, plain tables, progress bars on a terminal and plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

# Where there is no terminal, the same stage is printed again at most this often.
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
    """Progress of a long command, on stderr, so that what it prints can be piped.

    with Stages() as stages:
        work(progress=stages)       # calls stages(done, total, "what is being done")

    On a terminal a bar with the stage and the time left; elsewhere a line when the stage changes, and now and then.
    """

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._printed, self._when = "", 0.0

    def __enter__(self) -> Stages:
        return self

    def __call__(self, done: float, total: float, stage: str) -> None:
        if self._console.is_terminal:
            if self._bar is None:
                columns = (
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    TaskProgressColumn(),
                    TimeRemainingColumn(),
                )
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._task = self._bar.add_task(stage, total=total)
                self._bar.start()
            self._bar.update(self._task, completed=done, total=total, description=stage)
        elif stage != self._printed or time.monotonic() - self._when > LINE_SECONDS:
            self._printed, self._when = stage, time.monotonic()
            self._console.print(f"{done / total if total else 1:4.0%}  {stage}", soft_wrap=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
