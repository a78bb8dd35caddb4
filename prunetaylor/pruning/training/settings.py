"""The settings of a training, in which every choice is made."""

from __future__ import annotations

from typing import Literal

import torch

from prunetaylor.core.config.schema import DistillSection, FinetuneSection

Precision = Literal["float32", "bf16", "fp16"]


class DistillSettings(DistillSection):
    """Distillation from the dense network's outputs; with ``weight`` 0 there is none."""

    weight: float = 0.0


class TrainingSettings(FinetuneSection):
    """The section ``finetune`` with every choice made. ``epochs`` is not read: a training is told how many."""

    epochs: int = 0
    lr: float = 0.05
    precision: Precision = "float32"
    distill: DistillSettings = DistillSettings()

    @property
    def dtype(self) -> torch.dtype:
        """Return the type that convolutions and matrix products compute in."""
        return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
