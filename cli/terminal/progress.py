"""Progress on stderr: bars on a terminal; on a pipe, or with CI set, one plain line a phase."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from prunetaylor.core import progress
from prunetaylor.core.progress import Detail, PhaseProgress
from prunetaylor.core.progress import Logged as Logged
from prunetaylor.core.text import duration

from ..support.options import State
from . import console as screen

EVERY = 10.0
"""Seconds between two lines of one phase, where nothing moves in place."""


class Reporter(progress.Progress, Protocol):
    """Progress that is shown while its context is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None: ...


def reporter(state: State) -> Reporter:
    """What fits stderr and the verbosity (negative: nothing); of several processes one shows it."""
    if not state.main:
        return Quiet()
    if state.verbosity < 0:
        return Warnings()
    console = screen.console(stderr=True)
    bars = console.is_terminal and not os.environ.get("CI") and not console.is_dumb_terminal
    shown = Bars(console) if bars else Lines()
    shown.details = state.verbosity > 0
    return shown


class Quiet(progress.Silent):
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        pass


class Warnings(Quiet):
    """Shows warnings only: each once, and in red where there are colours. ``details``: notes for close looks too."""

    details = False

    def __init__(self, console: Console | None = None) -> None:
        self._warnings = console or screen.console(stderr=True, soft_wrap=True)
        self._warned: set[str] = set()

    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warnings.print(Text(f"warning: {screen.one_line(text)}", style="bold red"))


class Lines(Warnings):
    """One line when a phase starts, with the seconds since the beginning; one line a note; one every ten seconds while
    a phase with a count goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._console = screen.console(stderr=True, soft_wrap=True, no_color=True)
        self._start = self._told = time.monotonic()
        self._phase = PhaseProgress()

    def phase(self, name: str, total: int | None = None) -> None:
        self._phase = PhaseProgress(name, total)
        self._line(name)

    def step(self, detail: str = "") -> None:
        self._phase.step()
        self._while()

    def part(self, done: int, total: int) -> None:
        self._phase.part(done, total)
        self._while()

    def note(self, text: str) -> None:
        if self.details or not isinstance(text, Detail):
            self._line(f"note: {text}")

    def _while(self) -> None:
        if self._phase.total and time.monotonic() - self._told >= EVERY:
            left = self._phase.remaining()
            said = f", about {duration(left)} left" if left is not None else ""
            self._line(f"{self._phase.name}: {self._phase.share:.0%}{said}")

    def _line(self, text: str) -> None:
        self._told = time.monotonic()
        self._console.print(f"[{self._told - self._start:7.1f} s] {screen.one_line(text)}")


class Bars(Warnings):
    """A bar a phase; a finished phase leaves its line behind. Nothing is wider than the terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            _Count(table_column=Column(no_wrap=True, min_width=7)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn(
                "{task.fields[detail]}",
                style="dim",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._phase = PhaseProgress()
        self._detail = ""
        self._ends: float | None = None  # when the run is expected to

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if err is None:
            self._finish()
        elif self._task is not None:
            self._bars.stop_task(self._task)
        self._bars.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        self._finish()
        self._phase, self._detail = PhaseProgress(name, total), ""
        self._task = self._bars.add_task(f"{screen.one_line(name):<26.26}", total=total, detail="")

    def step(self, detail: str = "") -> None:
        self._phase.step()
        self._detail = screen.one_line(detail) or self._detail
        self._show()

    def part(self, done: int, total: int) -> None:
        self._phase.part(done, total)
        if self._phase.total:
            self._show()

    def expect(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def note(self, text: str) -> None:
        if self.details or not isinstance(text, Detail):
            self._console.print(Text(f"note: {screen.one_line(text)}"))

    def _show(self) -> None:
        if self._task is None:
            return
        left, said = self._phase.remaining(), []
        if left is not None:
            said.append(f"{duration(left)} left")
        if self._ends is not None:
            run = max(self._ends - time.monotonic(), left or 0.0)
            if run > 1.5 * (left or 0.0) + 1:
                said.append(f"run {duration(run)}")
        text = ", ".join([*said, *([self._detail] if self._detail else [])])
        self._bars.update(self._task, completed=self._phase.completed, detail=text)

    def _finish(self) -> None:
        """A phase without a count is done with its one step; a bar that is full stops its clock."""
        if self._task is None:
            return
        task = next(one for one in self._bars.tasks if one.id == self._task)
        total = task.total or max(task.completed, 1)
        self._bars.update(self._task, total=total, completed=total, detail="")
        self._bars.stop_task(self._task)
        self._task = None


class _Count(ProgressColumn):
    """Steps done of all; nothing where nobody knows how many there are."""

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total)}" if task.total else "", style="progress.download")
