"""A network's metrics on a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.data.samples import Batches
from prunetaylor.network.state import check_values
from prunetaylor.taylor.objective import Task, loss_of
from prunetaylor.taylor.output_check import check_outputs, finite_samples
from prunetaylor.taylor.passes import all_outputs


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network, and the sample values that they are means of.

    Attributes:
        metrics: ``loss``, and ``top1`` in percent if predictions are right or wrong.
        losses: (N,) the loss of each sample.
        correct: (N,) boolean, whether each prediction is right; None if it is not simply right or wrong.
        targets: (N, ...) as the data set has them; class ids (N,) if ``correct`` is not None.
        predictions: class ids (N,) or binary labels (N, K); None for values, or if they were not stored.
        worst: the largest loss that these outputs could have had; None if it was not computed.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor
    predictions: Tensor | None = None
    worst: float | None = None

    @classmethod
    def from_losses(
        cls, losses: Tensor, correct: Tensor | None, targets: Tensor, predictions: Tensor | None = None
    ) -> Evaluation:
        """Return the evaluation whose metrics are the means of these sample values."""
        loss = float(losses.double().mean() if losses.device.type != "mps" else losses.mean())
        if correct is None:
            return cls({"loss": loss}, losses, None, targets, predictions)
        top1 = 100 * int(correct.sum()) / len(correct)
        return cls({"top1": top1, "loss": loss}, losses, correct, targets, predictions)

    def part(self, indices: Sequence[int]) -> Evaluation:
        """Return the evaluation of some of the samples, in this order."""
        at = torch.tensor(indices, dtype=torch.long, device=self.losses.device)
        correct, predictions = (None if one is None else one[at] for one in (self.correct, self.predictions))
        return Evaluation.from_losses(self.losses[at], correct, self.targets[at], predictions)


def evaluate(module: nn.Module, batches: Batches, task: Task) -> Evaluation:
    """Evaluate a network on all samples. Raises NumericsError: the loss is not finite; it names the cause."""
    outputs, targets = all_outputs(module, batches)
    evaluation = evaluate_outputs(outputs, targets, task)
    value = evaluation.metrics["loss"]
    if not math.isfinite(value):
        check_values(module)
        check_outputs(module, batches, finite_samples(outputs))
        raise NumericsError(
            f"the loss on {len(outputs)} samples is {value}, and the network's outputs are finite",
            "check the targets, and that the samples are normalised as in training (data.normalize)",
        )
    return evaluation


def evaluate_outputs(outputs: Tensor, targets: Tensor, task: Task) -> Evaluation:
    """Evaluate outputs (N, K) that were computed before."""
    loss = loss_of(task)
    correct, predictions = loss.correct(outputs, targets), outputs > 0 if task == "binary" else None
    if correct is not None:  # the targets of a single logit may be any numbers
        targets = targets.flatten().long()
        predictions = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs > 0).flatten().long()
    evaluation = Evaluation.from_losses(loss.values(outputs, targets), correct, targets, predictions)
    return replace(evaluation, worst=loss.worst(outputs, targets))
