"""The settings of a training run, with nothing left to choose."""

from __future__ import annotations

from typing import Literal

import torch

from prunetaylor.core.config.schema import DistillSection, FinetuneSection

Precision = Literal["float32", "bf16", "fp16"]


class DistillSettings(DistillSection):
    """Training towards the dense network's outputs; ``weight`` 0: off."""

    weight: float = 0.0


class TrainingSettings(FinetuneSection):
    """What the section ``finetune`` comes to. ``epochs`` is not read: training is told how many."""

    epochs: int = 0
    lr: float = 0.05
    precision: Precision = "float32"
    distill: DistillSettings = DistillSettings()

    @property
    def dtype(self) -> torch.dtype:
        """The type that convolutions and matrix products compute in."""
        return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
