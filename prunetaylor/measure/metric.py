"""The interface of a metric: the number by which the dense and the pruned network are compared on samples.

A metric is a class derived from ``SampleMetric`` or ``SetMetric``, alone in a file of ``metrics/`` and found by that
file's name, or in another package that has an entry point ``prunetaylor.metrics`` for it (see
``prunetaylor.core.registry``). Its class attributes are literals, as the configuration and reports read them without
importing the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunetaylor.taylor.losses.interface import Loss


@dataclass(frozen=True)
class Predictions:
    """A network's outputs for some samples, and everything that a metric may compare them with.

    Attributes:
        outputs: (B, K), or (B, P, K) where a sample has P predictions (tokens, pixels).
        targets: those of the data: (B,) or (B, P) class ids, where -100 does not count, or values as the outputs.
        dense_outputs: the dense network's outputs for the same samples.
        loss: the loss that the network was trained with.
    """

    outputs: Tensor
    targets: Tensor
    dense_outputs: Tensor
    loss: Loss


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
        """Return the metric of samples with these records (N, ...), in percent if it is a share."""

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
        return self.scale * float(values.mean() if values.device.type == "mps" else values.double().mean())


class SetMetric(Metric):
    """A metric that is no mean over samples, such as an F1 score: a statistic of all samples together."""
