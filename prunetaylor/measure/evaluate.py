"""A network's metrics on a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches
from prunetaylor.errors import NumericsError
from prunetaylor.network.state import check_values
from prunetaylor.objective import Kind, loss_of
from prunetaylor.risk import all_outputs, check_outputs


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: top1 in percent (classes only) and loss, a mean over samples.

    ``losses`` (N,), ``targets`` (N, ...) and ``correct`` (N,) boolean, None where answers are not simply right or
    wrong, are by sample.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor

    @classmethod
    def of(cls, losses: Tensor, correct: Tensor | None, targets: Tensor) -> Evaluation:
        """Metrics from what was found of each sample."""
        loss = float(losses.double().mean() if losses.device.type != "mps" else losses.mean())
        if correct is None:
            return cls({"loss": loss}, losses, None, targets)
        return cls({"top1": 100 * int(correct.sum()) / len(correct), "loss": loss}, losses, correct, targets)

    def part(self, indices: Sequence[int]) -> Evaluation:
        """The same of some of the samples, in this order."""
        at = torch.tensor(indices, dtype=torch.long, device=self.losses.device)
        return Evaluation.of(self.losses[at], None if self.correct is None else self.correct[at], self.targets[at])


def evaluate(module: nn.Module, batches: Batches, kind: Kind) -> Evaluation:
    """Metrics by name. NumericsError where the loss is not finite; it says what is to blame."""
    outputs, targets = all_outputs(module, batches)
    loss = loss_of(kind)
    correct = loss.correct(outputs, targets)
    if correct is not None:  # of one logit the targets may be any numbers
        targets = targets.flatten().long()
    found = Evaluation.of(loss.values(outputs, targets), correct, targets)
    value = found.metrics["loss"]
    if not math.isfinite(value):
        check_values(module)
        check_outputs(module, batches, outputs)
        raise NumericsError(
            f"the loss on {len(outputs)} samples is {value}, and the network's outputs are finite",
            "check the targets, and that the samples are normalised as in training (data.normalize)",
        )
    return found
