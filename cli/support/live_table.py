"""How a sweep goes, on stderr: a live table on a terminal; on a pipe, or with CI set, one line a trial that ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from prunetaylor.core.results.sweep import Trial
from prunetaylor.report.terminal.sweep import ended, live
from prunetaylor.sweep.trial.files import alerts, phase

from . import console as screen

_ROWS = 24


class Board:
    """Shows trials while its context is open; ``verbosity`` below 0 shows failures only."""

    def __init__(self, folder: Path, objectives: Sequence[str], verbosity: int) -> None:
        self._folder, self._objectives, self._verbosity = folder, objectives, verbosity
        self._console = screen.console(stderr=True, soft_wrap=True)
        quiet = verbosity < 0 or bool(os.environ.get("CI")) or self._console.is_dumb_terminal
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._told: dict[int, str] | None = None
        self._returns: dict[int, int] = {}
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, trials: list[Trial]) -> None:
        """All trials as they are now; what ended since the last time is told once."""
        self._warn()
        now = {trial.number: trial.state for trial in trials}
        before, self._told = self._told, now
        if before is None:
            finished = sum(state == "done" for state in now.values())
            if finished:
                self.note(f"{finished} of {len(now)} trials are done already")
            before = now
            self._returns = {trial.number: trial.returns for trial in trials}
        for trial in trials:
            if trial.returns > self._returns.get(trial.number, 0) and trial.returned is not None:
                self.note(
                    f"trial {trial.number} was handed back and will continue from its last state: {trial.returned}"
                )
            self._returns[trial.number] = trial.returns
            if before[trial.number] != trial.state and trial.state in ("done", "failed", "stopped"):
                self._tell(trial)
        if self._live is not None:
            running = [trial.number for trial in trials if trial.state == "running"]
            phases = {number: phase(self._folder, number) for number in running}
            rows = max(4, min(_ROWS, self._console.height - 4))
            self._live.update(live(trials, phases, self._objectives, rows), refresh=True)

    def _warn(self) -> None:
        """Say what is doubtful of the dense network, as soon as a trial has found it."""
        for alert in alerts(self._folder):
            if alert.text not in self._warned:
                self._warned.add(alert.text)
                self._console.print(Text(f"warning: {screen.one_line(alert.text)}", style="bold red"))

    def note(self, text: str) -> None:
        if self._verbosity >= 0:
            self._console.print(Text(f"note: {screen.one_line(text)}"))

    def _tell(self, trial: Trial) -> None:
        if trial.state == "failed" or self._verbosity >= 0:
            self._console.print(
                Text(screen.one_line(ended(trial, self._objectives)), style="red" if trial.state == "failed" else "")
            )
