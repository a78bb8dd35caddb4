"""Weights & Biases: a run of the project that WANDB_PROJECT names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "wandb"


class _Run:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(name=name, dir=str(folder), config=dict(settings), reinit="finish_previous")

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open(folder: Path, run: str, settings: Mapping[str, Any]) -> _Run:
    """Start a run of this name, with the settings as its configuration."""
    return _Run(folder, run, settings)
