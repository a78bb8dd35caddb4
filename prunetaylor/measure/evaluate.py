"""A network's metrics on a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.data.samples import Batches
from prunetaylor.measure.metric import Metric, Predictions, SampleMetric
from prunetaylor.network.state import check_values
from prunetaylor.taylor.objective import Task, loss_of
from prunetaylor.taylor.output_check import check_outputs, finite_samples
from prunetaylor.taylor.passes import all_outputs


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network, and the sample values that they are computed from.

    Attributes:
        metrics: the metric that was asked for, and ``loss``.
        losses: (N,) the loss of each sample.
        correct: (N,) boolean, whether each prediction is right; None if it is not simply right or wrong.
        targets: (N, ...) as the data set has them; class ids (N,) if ``correct`` is not None.
        predictions: class ids (N,) or binary labels (N, K); None for values, or if they were not stored.
        records: what the metric that was asked for knows of the samples, (N, ...) each; empty if none was.
        largest_change: a bound on the change of one sample's value of that metric; None if none is known.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor
    predictions: Tensor | None = None
    records: tuple[Tensor, ...] = ()
    largest_change: float | None = None

    @classmethod
    def from_samples(
        cls,
        losses: Tensor,
        correct: Tensor | None,
        targets: Tensor,
        predictions: Tensor | None = None,
        metric: Metric | None = None,
        records: Sequence[Tensor] = (),
    ) -> Evaluation:
        """Return the evaluation of samples from these values of each; ``records`` are those of ``metric``."""
        metrics = {} if metric is None else {metric.name: metric.value(*records)}
        metrics["loss"] = _mean(losses)
        return cls(metrics, losses, correct, targets, predictions, tuple(records))

    def part(self, indices: Sequence[int], metric: Metric | None) -> Evaluation:
        """Return the evaluation of some of the samples, in this order, by the same metric."""
        at = torch.tensor(indices, dtype=torch.long, device=self.losses.device)
        correct, predictions = (None if one is None else one[at] for one in (self.correct, self.predictions))
        records = [one[at] for one in self.records]
        return Evaluation.from_samples(self.losses[at], correct, self.targets[at], predictions, metric, records)


def evaluate(
    module: nn.Module, batches: Batches, task: Task, metric: Metric | None = None, dense: nn.Module | None = None
) -> Evaluation:
    """Evaluate a network on all samples, by its loss and a metric.

    ``dense`` is the dense network that ``module`` was pruned from; None if ``module`` itself is the dense one.

    Raises NumericsError: the loss is not finite; it names the cause.
    """
    outputs, targets = all_outputs(module, batches)
    dense_outputs = None
    if dense is not None and metric is not None and metric.needs == "dense outputs":
        dense_outputs, _ = all_outputs(dense, batches)
    value = _mean(loss_of(task).values(outputs, targets))
    if not math.isfinite(value):
        check_values(module)
        check_outputs(module, batches, finite_samples(outputs))
        raise NumericsError(
            f"the loss on {len(outputs)} samples is {value}, and the network's outputs are finite",
            "check the targets, and that the samples are normalised as in training (data.normalize)",
        )
    return evaluate_outputs(outputs, targets, task, metric, dense_outputs)


def evaluate_outputs(
    outputs: Tensor, targets: Tensor, task: Task, metric: Metric | None = None, dense_outputs: Tensor | None = None
) -> Evaluation:
    """Evaluate outputs (N, K) that were computed before; without dense outputs they are the dense network's."""
    loss = loss_of(task)
    predictions = Predictions(outputs, targets, outputs if dense_outputs is None else dense_outputs, task)
    records = () if metric is None else metric.records(predictions)
    correct, predicted = loss.correct(outputs, targets), outputs > 0 if task == "binary" else None
    if correct is not None:  # the targets of a single logit may be any numbers
        targets = targets.flatten().long()
        predicted = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs > 0).flatten().long()
    evaluation = Evaluation.from_samples(loss.values(outputs, targets), correct, targets, predicted, metric, records)
    largest = metric.largest_change(predictions) if isinstance(metric, SampleMetric) else None
    return replace(evaluation, largest_change=largest)


def _mean(values: Tensor) -> float:
    return float(values.double().mean() if values.device.type != "mps" else values.mean())
