"""What an engine is told, and what every engine's workers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetaylor.config.code import Trust

Watch = Callable[[], None]
"""Called a few times a second while workers are at work."""


@dataclass(frozen=True)
class Crew:
    """Whose trials are run, by whom. ``options`` are those of the engine that were given; ``device`` is the base's.

    ``cwd`` is where relative paths of the sweep start.
    """

    folder: Path
    cwd: Path
    storage: str | None
    options: Mapping[str, Any]
    device: str
    trust: Trust
