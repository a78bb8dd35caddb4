"""A metric of the user's own: FILE.py:FUNCTION of (outputs, targets) that gives a number.

Larger is better, unless the function has an attribute ``goal`` that is "min".
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.measure.metric import Predictions, SetMetric


class CustomMetric(SetMetric):
    """A user's function of the outputs (N, K) and the targets (N, ...) of all samples."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], float | Tensor]) -> None:
        self.name = self.title = name
        self.goal = "min" if getattr(function, "goal", "max") == "min" else "max"
        self._function = function

    @classmethod
    def from_function(cls, name: str, function: object) -> CustomMetric:
        """Return the metric that calls ``function``. Raises UsageError: it is not callable."""
        if not callable(function):
            raise UsageError(
                f"metric: {name} is a {type(function).__name__}, not a function",
                "name a function of (outputs, targets) that returns a number",
            )
        return cls(name, function)

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        return predictions.outputs, predictions.labels(self.title)

    def value(self, *records: Tensor) -> float:
        """Return the function's number. Raises DataError: it failed. Raises NumericsError: the number is not finite."""
        outputs, targets = records
        try:
            value = float(self._function(outputs, targets))
        except Exception as error:
            raise DataError(
                f"metric: {self.name} failed: {type(error).__name__}: {error}",
                "it is called with outputs (N, K) and targets (N, ...) and returns a number",
            ) from error
        if not math.isfinite(value):
            raise NumericsError(f"metric: {self.name} gave {value}", "a metric must be finite on any set of samples")
        return value
