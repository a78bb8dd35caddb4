"""The facts that every engine gets, and the protocol by which it reports back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunetaylor.core.config.code import Trust
from prunetaylor.core.errors import PruneTaylorError


class EngineFailed(PruneTaylorError):
    """The engine cannot continue. Finished trials are kept, and the same command runs the rest."""


class EngineMonitor(Protocol):
    """Follows an engine while its workers run."""

    def __call__(self) -> None:
        """Refresh; the engine calls this a few times a second."""

    def note(self, text: str) -> None:
        """Tell the user in one line what happened to the engine."""


@dataclass(frozen=True)
class EngineContext:
    """One sweep, as its engine sees it.

    Relative paths of the sweep start from ``cwd``. ``options`` are the engine's own, as far as they were set;
    ``device`` is the base configuration's. ``trust`` and ``cache_dir`` come from the user, never from the sweep's
    folder. ``job`` names the job of a cluster that this context belongs to; it is None on the machine that leads the
    sweep or joins it.
    """

    folder: Path
    cwd: Path
    storage: str | None
    options: Mapping[str, Any]
    device: str
    trust: Trust
    cache_dir: str | None = None
    job: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the context as values that JSON can hold, for another process."""
        paths = {"folder": str(self.folder), "cwd": str(self.cwd)}
        return {**vars(self), **paths, "options": dict(self.options), "trust": self.trust.plain()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> EngineContext:
        """Return the context that ``plain`` gave ``values`` for."""
        paths = {"folder": Path(values["folder"]), "cwd": Path(values["cwd"])}
        return cls(**{**values, **paths, "trust": Trust.from_plain(values["trust"])})
