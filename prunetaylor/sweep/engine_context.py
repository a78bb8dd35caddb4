"""What an engine is told, and what every engine's workers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunetaylor.core.config.code import Trust
from prunetaylor.core.errors import PruneTaylorError


class EngineFailed(PruneTaylorError):
    """The engine cannot go on. All that was done is kept, and the same command goes on with the rest."""


class Watch(Protocol):
    """Whoever looks on while workers are at work."""

    def __call__(self) -> None:
        """Called a few times a second."""

    def note(self, text: str) -> None:
        """Tell the user what happened to an engine, in one line."""


@dataclass(frozen=True)
class EngineContext:
    """Whose trials are run, by whom. ``options`` are those of the engine that were given; ``device`` is the base's.

    ``cwd`` is where relative paths of the sweep start. ``post`` names the task or job of a cluster that this is for;
    None on the machine that leads or joins.
    """

    folder: Path
    cwd: Path
    storage: str | None
    options: Mapping[str, Any]
    device: str
    trust: Trust
    post: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON says it, for another process."""
        paths = {"folder": str(self.folder), "cwd": str(self.cwd)}
        return {**vars(self), **paths, "options": dict(self.options), "trust": self.trust.plain()}

    @classmethod
    def from_plain(cls, said: Mapping[str, Any]) -> EngineContext:
        """Return what ``plain`` made a mapping of."""
        paths = {"folder": Path(said["folder"]), "cwd": Path(said["cwd"])}
        return cls(**{**said, **paths, "trust": Trust.from_plain(said["trust"])})
