"""Progress of a run from Python: one line on stderr that is overwritten, with the standard library only."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from prunetaylor.core.progress import PhaseProgress
from prunetaylor.core.text import duration, neutral

_WIDE, _TEXT = 20, 76
_EVERY = 0.2
"""Seconds between two updates of the line; a notebook keeps each of them."""


def in_notebook() -> bool:
    """Return whether this is a Jupyter kernel, whose users watch what a cell prints while it runs."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Bar:
    """A progress bar for the current phase; the lines of finished phases stay."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._phase = PhaseProgress()
        self._shown = 0.0
        self._open = False

    def phase(self, name: str, total: int | None = None) -> None:
        self.close()
        self._phase = PhaseProgress(neutral(name), total)
        self._show("")

    def step(self, detail: str = "") -> None:
        self._phase.step()
        self._show(detail)

    def part(self, completed: int, total: int) -> None:
        self._phase.part(completed, total)
        self._show("")

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.close()
        self._stream.write(f"warning: {neutral(text)}\n")

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        """End the line, if one is open."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def _show(self, detail: str) -> None:
        now, whole = time.monotonic(), self._phase.total is not None and self._phase.steps >= self._phase.total
        if self._open and now - self._shown < _EVERY and not whole:
            return
        self._shown, phase, remaining = now, self._phase, self._phase.remaining()
        full = int(_WIDE * phase.share)
        bar = f"[{'#' * full}{'.' * (_WIDE - full)}]" if phase.total else ""
        count = f"{int(phase.completed)}/{phase.total}" if phase.total else ""
        ends = f"{duration(remaining)} left" if remaining is not None and not whole else ""
        words = [phase.name.ljust(24)[:24], bar, count, ends, neutral(detail)]
        line = " ".join(word for word in words if word)[:_TEXT]
        self._stream.write(f"\r{line.ljust(_TEXT)}")
        self._stream.flush()
        self._open = True
