"""A run keeps its state in a store, so that it can be resumed after an interruption: one small protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class StateStore(Protocol):
    """A place for states, which are nested dictionaries and lists of tensors and plain values."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the state that an earlier run saved, or None if this run starts afresh."""

    def due(self) -> bool:
        """Return whether it is time to save a state; the run asks at every point where it could."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state in place of the previous one. A request to stop the run is raised from here."""


class NullStore:
    """A store that keeps nothing."""

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        pass
