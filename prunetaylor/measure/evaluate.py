"""A network's metrics on a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunetaylor.core.errors import NumericsError
from prunetaylor.data.samples import Batches
from prunetaylor.measure.metric import Metric, Predictions, SampleMetric
from prunetaylor.measure.metrics.loss import MeanLoss
from prunetaylor.network.state import check_values
from prunetaylor.runtime.processes.group import gather_objects
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.objective import IGNORED, Task, labelled_positions, loss_of
from prunetaylor.taylor.output_check import check_outputs, finite_samples
from prunetaylor.taylor.passes import forward_one, forward_own
from prunetaylor.taylor.risk import STORED_BYTES


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network, and the sample values that they are computed from.

    Attributes:
        metrics: the metric that was asked for, and ``loss``.
        losses: (N,) the loss of each sample.
        correct: (N,) boolean, whether each prediction is right; None if it is not simply right or wrong.
        targets: (N, ...) as the task has them; class ids (N,) if ``correct`` is not None; zeros without labels.
        predictions: class ids (N,) or binary labels (N, K); None for values, or if they were not stored.
        records: what the metric that was asked for knows of the samples, (N, ...) each; empty if none was.
        largest_change: a bound on the change of one sample's value of that metric; None if none is known.
        accuracy: (N,) the share of each sample's positions whose class is right; None without positions.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor
    predictions: Tensor | None = None
    records: tuple[Tensor, ...] = ()
    largest_change: float | None = None
    accuracy: Tensor | None = None

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
        rows = (None if one is None else one[at] for one in (self.correct, self.predictions, self.accuracy))
        correct, predictions, accuracy = rows
        records = [one[at] for one in self.records]
        part = Evaluation.from_samples(self.losses[at], correct, self.targets[at], predictions, metric, records)
        return replace(part, accuracy=accuracy)


def evaluate(
    module: nn.Module, batches: Batches, task: Task, metric: Metric | None = None, dense: nn.Module | None = None
) -> Evaluation:
    """Evaluate a network on all samples, by its loss and a metric.

    Without labels the loss is the distance to the dense outputs. Outputs with positions, or of more than
    ``STORED_BYTES``, are evaluated part by part and not stored.

    ``dense`` is the dense network that ``module`` was pruned from; None if ``module`` itself is the dense one.

    Raises NumericsError: the loss is not finite; it names the cause.
    """
    labelled = batches.split.labelled
    compared = dense if not labelled or (metric is not None and metric.needs == "dense outputs") else None
    parts: list[Evaluation] = []
    rows: list[_Rows] = []
    finite: list[Tensor] = []
    for batch in forward_own(module, batches):
        assert batch.outputs is not None
        dense_outputs = None if compared is None else forward_one(compared, batch.x).float()
        fresh = _Rows(batch.outputs.float(), batch.targets if labelled else None, dense_outputs)
        finite.append(finite_samples(fresh.outputs))
        if rows and not _fits(rows, fresh):
            parts.append(_evaluate_rows(rows, task, metric))
            rows = []
        rows.append(fresh)
    if rows:
        parts.append(_evaluate_rows(rows, task, metric))
    parts = [part for some in gather_objects(parts) for part in some]
    losses = torch.cat([part.losses for part in parts])
    if not math.isfinite(_mean(losses)):
        check_values(module)
        check_outputs(module, batches, torch.cat([one for some in gather_objects(finite) for one in some]))
        raise NumericsError(
            f"the loss on {len(losses)} samples is {_mean(losses)}, and the network's outputs are finite",
            "check the targets, and that the samples are normalised as in training (data.normalize)",
        )
    return _combine(parts, metric)


def evaluate_outputs(
    outputs: Tensor,
    targets: Tensor | None,
    task: Task,
    metric: Metric | None = None,
    dense_outputs: Tensor | None = None,
) -> Evaluation:
    """Evaluate outputs (N, K), or (N, P, K), that were computed before.

    Without dense outputs they are the dense network's; without targets the loss is the distance to the dense outputs.
    """
    evaluation = _evaluate_part(outputs, targets, task, metric, dense_outputs)
    return _combine([evaluation], metric)


def _evaluate_part(
    outputs: Tensor, targets: Tensor | None, task: Task, metric: Metric | None, dense_outputs: Tensor | None
) -> Evaluation:
    """As :func:`evaluate_outputs`, but the metric of these samples is not computed from their records."""
    predictions = Predictions(outputs, targets, outputs if dense_outputs is None else dense_outputs, task)
    records = () if metric is None else metric.records(predictions)
    largest = metric.largest_change(predictions) if isinstance(metric, SampleMetric) else None
    losses = MeanLoss().values(predictions)
    if targets is None:
        zeros = torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
        return Evaluation({}, losses, None, zeros, None, records, largest)
    counted = None if isinstance(task, CustomLoss) else labelled_positions(outputs, targets)
    if counted is not None:
        right = (outputs.argmax(-1) == targets) & counted
        accuracy = right.sum(1) / counted.sum(1).clamp_min(1)
        return Evaluation({}, losses, None, targets, None, records, largest, accuracy)
    correct = loss_of(task).correct(outputs, targets) if outputs.dim() == 2 else None
    predicted = outputs > 0 if task == "binary" else None
    if correct is not None:  # the targets of a single logit may be any numbers, those of classes shares of each
        shares = targets.shape == outputs.shape and outputs.shape[1] > 1
        targets = targets.argmax(1) if shares else targets.flatten().long()
        predicted = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs > 0).flatten().long()
    return Evaluation({}, losses, correct, targets, predicted, records, largest)


@dataclass(frozen=True)
class _Rows:
    """The outputs of some samples, their targets, and the dense network's outputs where these are compared with."""

    outputs: Tensor
    targets: Tensor | None
    dense: Tensor | None


def _fits(rows: Sequence[_Rows], fresh: _Rows) -> bool:
    """Return whether more rows can be evaluated together with those before."""
    stored = sum(one.outputs.nbytes for one in rows) + fresh.outputs.nbytes
    return fresh.outputs.dim() == 2 and fresh.outputs.shape[1:] == rows[0].outputs.shape[1:] and stored <= STORED_BYTES


def _evaluate_rows(rows: Sequence[_Rows], task: Task, metric: Metric | None) -> Evaluation:
    outputs = torch.cat([one.outputs for one in rows])
    targets = [one.targets for one in rows if one.targets is not None]
    dense = [one.dense for one in rows if one.dense is not None]
    return _evaluate_part(
        outputs, torch.cat(targets) if targets else None, task, metric, torch.cat(dense) if dense else None
    )


def _combine(parts: Sequence[Evaluation], metric: Metric | None) -> Evaluation:
    """Return the evaluation of all parts together, with the metrics."""

    def combine(tensors: Sequence[Tensor | None]) -> Tensor | None:
        rows = [one for one in tensors if one is not None]
        if len(rows) < len(parts):
            return None
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    losses = combine([part.losses for part in parts])
    assert losses is not None
    records = [_stack(some) for some in zip(*(part.records for part in parts), strict=True)]
    changes = [part.largest_change for part in parts if part.largest_change is not None]
    joined = Evaluation.from_samples(
        losses,
        combine([part.correct for part in parts]),
        _stack_targets([part.targets for part in parts]),
        combine([part.predictions for part in parts]),
        metric,
        records,
    )
    largest = max(changes) if len(changes) == len(parts) else None
    return replace(joined, largest_change=largest, accuracy=combine([part.accuracy for part in parts]))


def _stack(records: Sequence[Tensor]) -> Tensor:
    """Return the records of all samples; where these differ in their positions, more are added that do not count."""
    if all(one.shape[1:] == records[0].shape[1:] for one in records):
        return records[0] if len(records) == 1 else torch.cat(list(records))
    most, rows = max(one.shape[1] for one in records), []
    for one in records:
        value = 0 if one.is_floating_point() else IGNORED
        rows.append(functional.pad(one, (*[0, 0] * (one.dim() - 2), 0, most - one.shape[1]), value=value))
    return torch.cat(rows)


def _stack_targets(targets: Sequence[Tensor]) -> Tensor:
    """Return the targets of all samples; where samples differ in their positions, more are added that do not count."""
    if all(one.shape[1:] == targets[0].shape[1:] for one in targets):
        return targets[0] if len(targets) == 1 else torch.cat(list(targets))
    most = max(one.flatten(1).shape[1] for one in targets)
    rows = [one.flatten(1) for one in targets]
    return torch.cat([functional.pad(one, (0, most - one.shape[1]), value=IGNORED) for one in rows])


def _mean(values: Tensor) -> float:
    return float(values.double().mean() if values.device.type != "mps" else values.mean())
