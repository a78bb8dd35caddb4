"""Divergence of a training: a loss that is not finite, or far worse than that of a constant answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.state import nonfinite_tensors

CHECK_EVERY = 25
"""Steps between checks of the loss: reading it waits for the GPU, and a loss that is not finite stays so in the sum."""
SMALLEST_SCALE = 2.0**-24
"""The smallest scale of fp16's gradients. It starts at 2^16 and is halved with each step that overflows.

A loss of a million needs less than 1.
"""
EXPLODED = 10.0
"""A loss of this many times that of a constant answer has exploded: no network that still learns is as bad."""


class Diverged(NumericsError):
    """The training loss or a weight is not finite, or the loss has exploded."""


class Guard:
    """A guard that finds a diverged loss without waiting for the device at every step."""

    def __init__(self, device: torch.device) -> None:
        self.worst: float | None = None  # the loss of an answer that is the same for all samples
        self._sum, self._count, self._device = torch.zeros((), device=device), 0, device

    def is_due(self, value: Tensor) -> bool:
        """Count this step's loss, and return whether the losses are to be checked now."""
        self._sum, self._count = self._sum + value, self._count + 1
        return self._count >= CHECK_EVERY or (self._device.type == "cpu" and not math.isfinite(float(value)))

    def check(self, value: Tensor, lr: float, step: int, steps: int) -> None:
        """Raise Diverged if the losses since the last check are not finite or too large."""
        mean, worst = float(self._sum) / self._count, math.nan if self.worst is None else self.worst
        self._sum, self._count = torch.zeros_like(self._sum), 0
        if math.isfinite(mean) and not mean > EXPLODED * worst > 0:
            return
        shown = mean if math.isfinite(mean) or math.isfinite(float(value)) else float(value)
        raise Diverged(
            f"the training loss is {shown:.4g} by step {step} of {steps} (learning rate {lr:.3g})",
            "lower finetune.lr, lengthen finetune.warmup, set finetune.clip_norm=1 or finetune.precision=float32",
        )

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.worst = state["worst"]
        self._sum, self._count = state["sum"].to(self._device), state["count"]


def check_finite(module: nn.Module) -> None:
    """Raise Diverged if a parameter or a batch norm's statistics are not finite."""
    if bad := nonfinite_tensors(module):
        raise Diverged(
            f"fine-tuning left values in {bad[0]} that are not finite",
            "lower finetune.lr, lengthen finetune.warmup, or set finetune.precision=float32",
        )


def check_scale(scaler: torch.amp.GradScaler, step: int, steps: int) -> None:
    """Raise Diverged if fp16's gradients overflow at the smallest scale, so that no step is taken any more."""
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        raise Diverged(
            f"no gradient has been finite in fp16 for a while, by step {step} of {steps}",
            "set finetune.precision=bf16 or float32, or lower finetune.lr",
        )
