"""The trackers of a run. A tracker that fails is reported once and then ignored: it never stops a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prunetaylor.core import registry
from prunetaylor.core.errors import UsageError
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import one_line

_FAILURES = (Exception, SystemExit)
"""A service's client may try to exit the program. Signals still end it."""


class Tracker(Protocol):
    """The methods that a tracker's file provides for a run."""

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name, after ``step`` optimizer steps."""

    def close(self) -> None:
        """End the record of the run."""


@runtime_checkable
class Service(Protocol):
    """A tracker's module."""

    PACKAGE: str
    """The distribution that it needs."""

    def open(self, folder: Path, run: str, settings: Mapping[str, Any]) -> Tracker:
        """Return the tracker of a run; ImportError where the distribution is not installed."""


class Trackers:
    """All trackers of a run.

    Args:
        folder: the folder that they may write to.
        run: the name of the run.
        settings: the configuration by dotted key.
        note: called once with a line about each tracker that fails.

    Raises UsageError if the package of a tracker is not installed.
    """

    def __init__(
        self, names: list[str], folder: Path, run: str, settings: Mapping[str, Any], note: Callable[[str], None]
    ) -> None:
        self._note = note
        self._open: dict[str, Tracker] = {}
        for name in names:
            service = registry.load(registry.TRACKERS, Service, name)
            try:
                self._open[name] = service.open(folder, run, settings)
            except ImportError as error:
                raise UsageError(
                    f"track={name} needs a package that is not installed ({error.name})",
                    install_hint(service.PACKAGE),
                ) from error
            except _FAILURES as error:
                self._failed(name, error)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.measured(step, values)
            except _FAILURES as error:
                self._failed(name, error)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except _FAILURES as error:
                self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> None:
        self._open.pop(name, None)
        text = one_line(error)[:200]
        self._note(f"track {name}: {type(error).__name__}: {text}; the run continues without it")
