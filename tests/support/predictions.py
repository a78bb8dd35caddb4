"""Outputs of a network beside targets and the dense network's outputs, for metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.measure.metric import Predictions
from prunetaylor.measure.metrics import load_metric
from prunetaylor.taylor.objective import Task

SAMPLES, POSITIONS, CLASSES = 40, 5, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(task: Task, *, positions: bool = False, outputs: int = CLASSES) -> Predictions:
    """Outputs beside targets that they often predict; of class ids at positions, some do not count."""
    shape = (SAMPLES, POSITIONS, outputs) if positions else (SAMPLES, outputs)
    z, noise = random(*shape), random(*shape, seed=1)
    targets = {"classification": (z + noise).argmax(-1), "binary": (z + noise > 0).float()}.get(str(task), z + noise)
    if task == "classification" and positions:
        targets[random(SAMPLES, POSITIONS, seed=2) > 0.8] = -100
    return Predictions(z, targets, z + noise / 3, task)


def value(name: str, predictions: Predictions) -> float:
    metric = load_metric(name)
    return metric.value(*metric.records(predictions))
