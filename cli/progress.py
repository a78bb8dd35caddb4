"""Progress on stderr: bars on a terminal; on a pipe, or with CI set, one plain line a phase."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from prunetaylor.progress import Detail
from prunetaylor.progress import Logged as Logged

from . import screen
from .options import State


class Reporter(Protocol):
    """Progress that is shown while its context is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def phase(self, name: str, total: int | None = None) -> None: ...

    def step(self, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def measured(self, step: int, values: Mapping[str, float]) -> None: ...


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


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        pass

    def phase(self, name: str, total: int | None = None) -> None:
        pass

    def step(self, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def measured(self, step: int, values: Mapping[str, float]) -> None:
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
    """One line when a phase starts, with the seconds since the beginning; one line a note."""

    def __init__(self) -> None:
        super().__init__()
        self._console = screen.console(stderr=True, soft_wrap=True, no_color=True)
        self._start = time.monotonic()

    def phase(self, name: str, total: int | None = None) -> None:
        self._line(name)

    def note(self, text: str) -> None:
        if self.details or not isinstance(text, Detail):
            self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._start:7.1f} s] {screen.one_line(text)}")


class Bars(Warnings):
    """A bar a phase; a finished phase leaves its line behind."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if err is None:
            self._finish()
        self._bars.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        self._finish()
        self._task = self._bars.add_task(f"{name:<24}", total=total, detail="")

    def step(self, detail: str = "") -> None:
        if self._task is None:
            return
        if detail:
            self._bars.update(self._task, detail=detail)
        self._bars.advance(self._task)

    def note(self, text: str) -> None:
        if self.details or not isinstance(text, Detail):
            self._console.print(Text(f"note: {screen.one_line(text)}"))

    def _finish(self) -> None:
        """A phase without a count is done with its one step; a bar that is full stops its clock."""
        if self._task is None:
            return
        task = next(one for one in self._bars.tasks if one.id == self._task)
        total = task.total or max(task.completed, 1)
        self._bars.update(self._task, total=total, completed=total, detail="")
        self._bars.stop_task(self._task)
        self._task = None
