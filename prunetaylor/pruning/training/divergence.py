"""When a training comes to nothing: a loss that is not finite, or as bad as no network's that still learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.state import nonfinite_tensors

LOOK_EVERY = 25
"""Steps between looks at the loss: reading it waits for the GPU, and one that is not finite stays so in the sum."""
SMALLEST_SCALE = 2.0**-24
"""Of fp16's gradients: its smallest number. It starts at 2^16 and is halved with each step left out, as they overflow.

A loss of a million needs less than 1.
"""
EXPLODED = 10.0
"""Times the loss of an answer that is the same for all samples: no network that still learns is as bad as that."""


class Diverged(NumericsError):
    """The training loss or a weight is not finite, or the loss has exploded."""


class Guard:
    """Finds losses that are not finite, or as bad as no network's that still learns, without waiting at every step."""

    def __init__(self, device: torch.device) -> None:
        self.worst: float | None = None  # the loss of an answer that is the same for all samples
        self._sum, self._count, self._device = torch.zeros((), device=device), 0, device

    def wants(self, value: Tensor) -> bool:
        """Whether it is time to look, after this step's loss."""
        self._sum, self._count = self._sum + value, self._count + 1
        return self._count >= LOOK_EVERY or (self._device.type == "cpu" and not math.isfinite(float(value)))

    def look(self, value: Tensor, lr: float, step: int, steps: int) -> None:
        """Diverged where the losses since the last look say so."""
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
    """Diverged where a parameter or a batch norm's statistics are not finite."""
    if bad := nonfinite_tensors(module):
        raise Diverged(
            f"fine-tuning left values in {bad[0]} that are not finite",
            "lower finetune.lr, lengthen finetune.warmup, or set finetune.precision=float32",
        )


def check_scale(scaler: torch.amp.GradScaler, step: int, steps: int) -> None:
    """Diverged where fp16's gradients overflow however little they are scaled: no step is taken any more."""
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        raise Diverged(
            f"no gradient has been finite in fp16 for a while, by step {step} of {steps}",
            "set finetune.precision=bf16 or float32, or lower finetune.lr",
        )
