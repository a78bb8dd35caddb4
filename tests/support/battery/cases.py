"""What a case is, and the registry of all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

THEMES = ("layers", "batches", "outputs", "tasks", "operators", "families")
"""The modules that hold cases."""


@dataclass(frozen=True)
class Case:
    """A network with samples, as a user would pass them to ``prunetaylor.prune``.

    ``samples`` are pairs (inputs, target); inputs may be a tensor, a tuple (positional arguments) or a dict (keyword
    arguments). With ``loader`` they are passed in a DataLoader, with ``collate``. A ``trained`` module is not trained
    again. ``loss`` takes what the network returns for a batch and the batch's targets. ``refused`` is a word of
    the cause where refusing is right.
    """

    name: str
    module: nn.Module
    samples: list[tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] = default_collate
    refused: str | None = None
    loader: bool = False
    trained: bool = False


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a factory under its theme and name: ``layers/conv1d``."""
    theme = make.__module__.rsplit(".", 1)[1]
    CASES[f"{theme}/{make.__name__}"] = make
    return make


def load_cases() -> dict[str, Callable[[], Case]]:
    """Return all factories by name; those whose packages are not installed raise ImportError when they are called."""
    for theme in THEMES:
        importlib.import_module(f"{__package__}.{theme}")
    return CASES


def call(module: nn.Module, inputs: Any) -> Any:
    """Call ``module`` with a batch of inputs as its author would."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, tuple | list):
        return module(*inputs)
    return module(inputs)


def train(made: Case, steps: int = 200, size: int = 64) -> nn.Module:
    """Train the case's network for a moment, so that its gradient is small, and return it in evaluation mode."""
    module, samples = made.module, made.samples
    if made.trained:
        return module.eval()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    module.train()
    for _ in range(steps):
        chosen = torch.randint(len(samples), (size,), generator=generator).tolist()
        inputs, targets = made.collate([samples[i] for i in chosen])
        optimizer.zero_grad()
        made.loss(call(module, inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(x: Tensor, classes: int = 3) -> list[tuple[Tensor, int]]:
    """Samples with class ids drawn from the softmax of a random linear map: noisy, so that a network can converge."""
    flat = x.float().flatten(1)
    logits = 3 * flat @ rand(flat.shape[1], classes, seed=5) / flat.shape[1] ** 0.5
    noise = -(-torch.rand(logits.shape, generator=torch.Generator().manual_seed(6)).log()).log()
    y = (logits + noise).argmax(1)
    return [(one, int(label)) for one, label in zip(x, y, strict=True)]
