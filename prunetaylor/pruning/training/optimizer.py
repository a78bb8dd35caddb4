"""The parts of a training step: learning rate, optimiser and the average of the weights."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import UsageError
from prunetaylor.network.state import restore, snapshot
from prunetaylor.pruning.training.settings import TrainingSettings

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def learning_rate(step: int, steps: int, peak: float, warmup: float, shape: str = "cosine") -> float:
    """Return the rate of ``step``, counted from 0.

    It warms up linearly over a share of the steps, then follows a cosine or a line towards zero, or is constant.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if shape == "constant":
        return peak
    progress = (step - rising) / (steps - rising)
    return peak * (1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Rates:
    """The learning rate of each of ``steps``; it starts anew at each of the steps ``starts``, the first of them 0.

    Starting anew after each pruning step is learning-rate rewinding (Renda, Frankle & Carbin 2020, section 3).
    """

    options: TrainingSettings
    steps: int
    starts: Sequence[int] = (0,)

    def __call__(self, step: int) -> float:
        """Return the rate of ``step``, counted from 0."""
        index = bisect_right(self.starts, step) - 1
        first, end = self.starts[index], [*self.starts[1:], self.steps][index]
        return learning_rate(step - first, end - first, self.options.lr, self.options.warmup, self.options.lr_schedule)


def make_optimizer(module: nn.Module, options: TrainingSettings, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser, without decay on norms, vectors and scalars; UsageError if nothing is to be trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("no parameter of the network requires a gradient", "call requires_grad_() on what is to train")
    norms = {id(p) for m in module.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    decaying = [p.dim() > 1 and id(p) not in norms for p in trained]
    groups = [
        {"params": list(compress(trained, decaying)), "weight_decay": options.weight_decay},
        {"params": [p for p, decays in zip(trained, decaying, strict=True) if not decays], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type == "cuda" and can_fuse(trained, options.dtype)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, fused=fused)
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0, fused=fused)


def can_fuse(parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> bool:
    """Return whether torch's fused steps are right for these parameters.

    For a parameter with holes (a slice of something larger) they update other memory, and SGD's leaves its momentum
    unset when a gradient scaler skips the first step; both silently.
    """
    return dtype is not torch.float16 and all(torch.empty_like(p).stride() == p.stride() for p in parameters)


class Average:
    """The exponential moving average of all floating-point parameters and buffers, but for those that hold infinities.

        a <- a + (1 - min(decay, (1 + t) / (10 + t))) (w - a)        after step t

    The average of the first steps is short, so that it does not remember where they started.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._steps = module, decay, 0
        # An infinity has no average: masks of attention stay as they are.
        self._values = {n: t for n, t in snapshot(module).items() if t.is_floating_point() and bool(t.isfinite().all())}

    @torch.no_grad()
    def update(self) -> None:
        """Add the module's current weights to the average."""
        self._steps += 1
        weight = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
        now = self._module.state_dict()
        for group in _by_type(self._values):
            torch._foreach_lerp_([self._values[n] for n in group], [now[n] for n in group], weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the module the averaged values inside, and its own again afterwards."""
        own = snapshot(self._module)
        restore(self._module, self._values)
        try:
            yield
        finally:
            restore(self._module, own)

    def state_dict(self) -> dict[str, object]:
        return {"steps": self._steps, "values": self._values}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        steps, values = state["steps"], state["values"]
        assert isinstance(steps, int)
        assert isinstance(values, dict)
        self._steps = steps
        for name, value in values.items():
            self._values[name].copy_(value)


def _by_type(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the tensors' names by device and type, as torch's fused operations need them."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    return list(groups.values())
