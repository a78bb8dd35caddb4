"""Paths among the settings: a relative one is made absolute before it is stored for later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PATHS = ("model.checkpoint", "data.root", "data.tokenizer", "cache.dir", "gate.baseline")
_SPECS = ("model.arch", "data.source", "data.collate", "gate.metric", "loss", "metric")
PATH_SCHEMES = ("arrays", "csv", "folder", "hf", "hf-data", "lines")
"""What stands before the colon of specs whose rest is a path."""


def rooted(key: str, value: Any) -> Any:
    """Return the value of the setting ``key``, with a relative path in it made absolute."""
    if not isinstance(value, str) or not value:
        return value
    if key in _PATHS:
        return _full(value)
    if key in _SPECS:
        value = value.removeprefix("code:")  # the long form of a data source
        scheme, _, path = value.partition(":")
        if scheme in PATH_SCHEMES and path:
            return f"{scheme}:{_full(path)}"
        file, _, name = value.rpartition(":")
        if file.endswith(".py"):
            return f"{_full(file)}:{name}"
    return value


def _full(path: str) -> str:
    return path if path.startswith("~") else str(Path(path).resolve())  # ~ is another folder on another machine
