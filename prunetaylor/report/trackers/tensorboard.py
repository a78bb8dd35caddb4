"""TensorBoard: event files in the run's folder, ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "tensorboard"


class _Writer:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open(folder: Path, run: str, settings: Mapping[str, Any]) -> _Writer:
    """Open event files in ``folder``/tensorboard."""
    return _Writer(folder)
