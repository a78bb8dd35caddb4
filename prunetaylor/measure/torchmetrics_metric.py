"""A metric of the package torchmetrics, which is an extra: ``torchmetrics:NAME``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from prunetaylor.core.errors import DataError, UsageError, close_match
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import first_line
from prunetaylor.measure.metric import Predictions, SetMetric
from prunetaylor.runtime.torchvision_import import repair_imports

PREFIX = "torchmetrics:"
_MODULES = ("classification", "regression", "segmentation", "text")
"""Folders of torchmetrics whose classes are named without them."""


class _Metric(Protocol):
    """The part of a metric of torchmetrics that is used."""

    higher_is_better: bool | None

    def update(self, predictions: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> Tensor: ...


class TorchmetricsMetric(SetMetric):
    """A class of torchmetrics with its own defaults; the kind and the number of classes follow from the samples.

    Outputs are logits of classes, probabilities of binary labels, or values.
    """

    def __init__(self, name: str, make: Callable[..., _Metric]) -> None:
        self.name = name
        self.title = name
        self._make = make
        try:
            parameters: Mapping[str, object] = inspect.signature(make).parameters
        except ValueError:
            parameters = {}
        self._parameters = parameters
        larger = self._build("multiclass", 2).higher_is_better
        if larger is None:
            raise UsageError(
                f"{name} does not say whether larger values are better",
                "write a function of (outputs, targets) that calls it: metric=FILE.py:FUNCTION",
            )
        self.goal = "max" if larger else "min"

    @classmethod
    def by_name(cls, name: str) -> TorchmetricsMetric:
        """Return the metric ``torchmetrics:NAME``. Raises UsageError: the package or the class is not there."""
        repair_imports()  # it imports torchvision
        try:
            package = importlib.import_module("torchmetrics")
        except ImportError as error:
            raise UsageError(f"metric={name} needs the package torchmetrics", install_hint("torchmetrics")) from error
        modules = [package, *(importlib.import_module(f"torchmetrics.{one}") for one in _MODULES)]
        known: dict[str, Any] = {key: value for module in modules for key, value in vars(module).items()}
        classes = {key: value for key, value in known.items() if hasattr(value, "higher_is_better")}
        short = name.removeprefix(PREFIX)
        if short not in classes:
            raise UsageError(
                f"torchmetrics has no metric {short!r}{close_match(short, classes)}",
                f"such as {PREFIX}MeanSquaredError",
            )
        return cls(name, classes[short])

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        outputs, targets = predictions.outputs, predictions.labels(self.title)
        if predictions.task == "classification" and targets.shape == outputs.shape:
            targets = targets.argmax(-1)
        if predictions.task == "binary":
            return outputs.sigmoid(), (targets.reshape(outputs.shape) > 0.5).long()
        if targets.is_floating_point() and "task" in self._parameters:
            raise UsageError(f"the targets are values, not classes, so there is no {self.name}", "set metric=r2")
        return outputs, targets.reshape(outputs.shape) if targets.numel() == outputs.numel() else targets

    def value(self, *records: Tensor) -> float:
        """Return the metric. Raises DataError: torchmetrics refuses these samples, or gives several numbers."""
        outputs, targets = (record.cpu() for record in records)
        kind, width = _kind(outputs, targets), outputs.shape[-1]
        if kind == "multiclass" and outputs.dim() > 2 and not self._is_of_text:
            outputs = outputs.movedim(-1, 1)
        if kind == "binary":
            outputs, targets = outputs.flatten(), targets.flatten()
        try:
            metric = self._build(kind, width)
            metric.update(outputs, targets)
            return float(metric.compute())
        except Exception as error:
            raise DataError(
                f"metric={self.name} failed: {type(error).__name__}: {first_line(error)}",
                "choose another class of torchmetrics, or write a function that calls it: metric=FILE.py:FUNCTION",
            ) from error

    @property
    def _is_of_text(self) -> bool:
        return self._make.__module__.startswith("torchmetrics.text")

    def _build(self, kind: str, width: int) -> _Metric:
        known = {"task": kind, "num_classes": width, "num_labels": width, "ignore_index": -100}
        if kind != "multiclass":
            del known["ignore_index"]
        return self._make(**{key: value for key, value in known.items() if key in self._parameters})


def _kind(outputs: Tensor, targets: Tensor) -> str:
    """Return what torchmetrics calls these targets: class ids, or one or several labels of zeros and ones."""
    if targets.shape != outputs.shape or targets.is_floating_point():
        return "multiclass"
    return "binary" if outputs.shape[-1] == 1 else "multilabel"
