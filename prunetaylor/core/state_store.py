"""Where a run keeps what it has done, so that one that is killed can go on: one small protocol, like progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class StateStore(Protocol):
    """States are nested dictionaries and lists of tensors and plain values."""

    def load(self) -> Mapping[str, Any] | None:
        """The state that an earlier run left; None where this one starts afresh."""

    def due(self) -> bool:
        """Whether it is time to keep a state; asked at every moment at which one is there."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state in the place of the one before. What ends the run at such a moment is raised from here."""


class NullStore:
    """Keeps nothing."""

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        pass
