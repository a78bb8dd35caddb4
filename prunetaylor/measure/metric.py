"""The interface of a metric: the number by which the dense and the pruned network are compared on samples.

A metric is a class derived from ``SampleMetric``, ``SumMetric`` or ``SetMetric``, alone in a file of ``metrics/`` and
found by that file's name, or in another package that has an entry point ``prunetaylor.metrics`` for it (see
``prunetaylor.core.registry``). Its class attributes are literals, as the configuration and reports read them without
importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.metric import MetricDescription
from prunetaylor.taylor.objective import Task, labelled_positions


@dataclass(frozen=True)
class Predictions:
    """A network's outputs for some samples, and everything that a metric may compare them with.

    Attributes:
        outputs: (B, K), or (B, P, K) where a sample has P predictions (tokens, pixels); (B, ...) as the network gives
            them for a loss of the user's.
        targets: those of the data: class ids (B,) or (B, P), where -100 does not count, or values or shares of classes
            in the shape of the outputs; None if the samples have no labels.
        dense_outputs: the dense network's outputs for the same samples.
        task: the meaning of the outputs, or the user's loss.
    """

    outputs: Tensor
    targets: Tensor | None
    dense_outputs: Tensor
    task: Task

    def labels(self, metric: str) -> Tensor:
        """Return the targets. Raises UsageError: there are none, although ``metric`` needs them."""
        if self.targets is None:
            raise UsageError(
                f"the test samples have no labels, and {metric} needs them", "set metric=agreement or metric=cosine"
            )
        return self.targets

    @property
    def counted(self) -> Tensor:
        """Return whether each prediction counts: (B, 1), or (B, P)."""
        ids = None if self.targets is None else labelled_positions(self.outputs, self.targets)
        if ids is not None:
            return ids
        positions = self.outputs.shape[1] if self.outputs.dim() > 2 else 1
        return torch.ones(len(self.outputs), positions, dtype=torch.bool, device=self.outputs.device)


class Metric(ABC):
    """A metric says how good outputs are.

    Attributes:
        name: its name in a configuration, which is that of its file.
        title: its name in reports.
        summary: the metric in half a sentence, for users.
        goal: whether larger or smaller values are better.
        unit: "%" for a share, whose changes are percentage points; empty for a plain number.
        needs: what outputs are compared with.
    """

    name: str
    title: str
    summary: str = ""
    goal: Literal["max", "min"] = "max"
    unit: Literal["%", ""] = ""
    needs: Literal["labels", "dense outputs"] = "labels"

    @abstractmethod
    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        """Return all that :meth:`value` needs to know of the samples: tensors (B, ...), a row for each sample.

        Raises UsageError: the outputs and targets are not of a kind that has this metric.
        """

    @abstractmethod
    def value(self, *records: Tensor) -> float:
        """Return the metric of samples with these records (N, ...), in percent if it is a share; NaN if it has none."""

    @property
    def description(self) -> MetricDescription:
        """Return the metric as results and reports have it."""
        return MetricDescription(self.name, self.goal, self.unit, self.title)

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.goal == "max" else -1

    @property
    def scale(self) -> int:
        """100 for a share, as it is stated in percent, else 1."""
        return 100 if self.unit == "%" else 1


class SampleMetric(Metric):
    """A metric that is the mean of a value of each sample."""

    @abstractmethod
    def values(self, predictions: Predictions) -> Tensor:
        """Return the value of each sample (B,): boolean if it is right or wrong, a share in [0, 1], or a number.

        Raises UsageError: the outputs and targets are not of a kind that has this metric.
        """

    def largest_change(self, predictions: Predictions) -> float | None:
        """Return a bound on the change of one sample's value by pruning; None if there is no useful one."""
        return None

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        return (self.values(predictions),)

    def value(self, *records: Tensor) -> float:
        (values,) = records
        if values.dtype == torch.bool:
            return self.scale * int(values.sum()) / len(values)
        return self.scale * float(widen(values).mean())


class SetMetric(Metric):
    """A metric that is no mean over samples, such as an F1 score: a statistic of all samples together."""

    def resampler(self, *records: Tensor) -> Callable[[Tensor], float]:
        """Return the metric as a function of the indices (M,) of samples, which may occur several times."""
        return lambda rows: self.value(*(record[rows] for record in records))


class SumMetric(SetMetric):
    """A statistic of sums over samples, such as a ratio of two; resampling it costs little."""

    @abstractmethod
    def terms(self, predictions: Predictions) -> Tensor:
        """Return what each sample adds to the sums, (B, ...).

        Raises UsageError: the outputs and targets are not of a kind that has this metric.
        """

    @abstractmethod
    def of_sums(self, sums: Tensor) -> float:
        """Return the metric from the sums (...) in float64, in percent if it is a share; NaN if it has none."""

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        return (self.terms(predictions),)

    def value(self, *records: Tensor) -> float:
        return self.resampler(*records)(torch.arange(len(records[0])))

    def resampler(self, *records: Tensor) -> Callable[[Tensor], float]:
        """Sum the terms of each sample as often as it occurs."""
        terms = records[0].cpu()

        def value(rows: Tensor) -> float:
            counts = torch.bincount(rows.cpu(), minlength=len(terms)).double()
            sums = torch.zeros(terms.shape[1:].numel(), dtype=torch.float64)
            for start in range(0, len(terms), _ROWS):
                some = slice(start, start + _ROWS)
                sums += counts[some] @ terms[some].flatten(1).double()
            return self.of_sums(sums.view(terms.shape[1:]))

        return value


_ROWS = 4096
"""Rows that are converted to float64 at a time."""


def widen(values: Tensor) -> Tensor:
    """Return the values in float64, or in float32 on a device that has no wider type."""
    return values.float() if values.device.type == "mps" else values.double()
