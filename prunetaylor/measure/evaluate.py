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
from prunetaylor.taylor.output_check import check_outputs
from prunetaylor.taylor.passes import all_outputs


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: top1 in percent (classes only) and loss, a mean over samples.

    ``losses`` (N,), ``targets`` (N, ...) and ``correct`` (N,) boolean, None where answers are not simply right or
    wrong, are by sample. So are ``answers``: class ids (N,), or of yes or no (N, K); None where they are neither, or
    nobody kept them. ``worst`` is the largest loss that these outputs could have cost; None where nobody looked.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor
    answers: Tensor | None = None
    worst: float | None = None

    @classmethod
    def from_losses(
        cls, losses: Tensor, correct: Tensor | None, targets: Tensor, answers: Tensor | None = None
    ) -> Evaluation:
        """Metrics from what was found of each sample."""
        loss = float(losses.double().mean() if losses.device.type != "mps" else losses.mean())
        if correct is None:
            return cls({"loss": loss}, losses, None, targets, answers)
        top1 = 100 * int(correct.sum()) / len(correct)
        return cls({"top1": top1, "loss": loss}, losses, correct, targets, answers)

    def part(self, indices: Sequence[int]) -> Evaluation:
        """The same of some of the samples, in this order."""
        at = torch.tensor(indices, dtype=torch.long, device=self.losses.device)
        correct, answers = (None if one is None else one[at] for one in (self.correct, self.answers))
        return Evaluation.from_losses(self.losses[at], correct, self.targets[at], answers)


def evaluate(module: nn.Module, batches: Batches, task: Task) -> Evaluation:
    """Metrics by name. NumericsError where the loss is not finite; it says what is to blame."""
    outputs, targets = all_outputs(module, batches)
    found = answered(outputs, targets, task)
    value = found.metrics["loss"]
    if not math.isfinite(value):
        check_values(module)
        check_outputs(module, batches, outputs)
        raise NumericsError(
            f"the loss on {len(outputs)} samples is {value}, and the network's outputs are finite",
            "check the targets, and that the samples are normalised as in training (data.normalize)",
        )
    return found


def answered(outputs: Tensor, targets: Tensor, task: Task) -> Evaluation:
    """What outputs (N, K) come to for their targets."""
    loss = loss_of(task)
    correct, answers = loss.correct(outputs, targets), outputs > 0 if task == "binary" else None
    if correct is not None:  # of one logit the targets may be any numbers
        targets = targets.flatten().long()
        answers = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs > 0).flatten().long()
    found = Evaluation.from_losses(loss.values(outputs, targets), correct, targets, answers)
    return replace(found, worst=loss.worst(outputs, targets))
