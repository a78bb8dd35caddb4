"""A clock that adds up the seconds of a run's phases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by phase. Phases may lie within each other."""

    seconds: dict[str, float] = field(default_factory=dict)
    _starts: dict[str, float] = field(default_factory=dict)  # of the phases that run

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes to ``phase``."""
        self._starts[phase] = time.perf_counter()
        try:
            yield
        finally:
            duration = time.perf_counter() - self._starts.pop(phase)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + duration

    def so_far(self) -> dict[str, float]:
        """Return the seconds with those of the running phases until now."""
        now, seconds = time.perf_counter(), dict(self.seconds)
        for phase, start in self._starts.items():
            seconds[phase] = seconds.get(phase, 0.0) + now - start
        return seconds
