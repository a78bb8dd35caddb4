"""A network's metrics on a set of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from prunetaylor.data.samples import Batches
from prunetaylor.errors import NumericsError
from prunetaylor.objective import Objective
from prunetaylor.risk import all_outputs


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: top1 in percent (classes only) and loss, a mean over samples.

    ``losses`` (N,), ``targets`` (N, ...) and ``correct`` (N,) boolean, None where the targets are no classes, are by
    sample.
    """

    metrics: dict[str, float]
    losses: Tensor
    correct: Tensor | None
    targets: Tensor


def evaluate(module: nn.Module, batches: Batches, kind: Literal["classes", "values"]) -> Evaluation:
    """Metrics by name. NumericsError where an output is not finite."""
    outputs, targets = all_outputs(module, batches)
    losses = Objective(kind, "task").values(outputs, targets)
    loss = float(losses.double().mean() if losses.device.type != "mps" else losses.mean())
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise NumericsError(
            f"the loss on {len(outputs)} samples is {loss}",
            "check that the samples are normalised as in training (data.normalize)",
        )
    if kind == "values":
        return Evaluation({"loss": loss}, losses, None, targets)
    correct = outputs.argmax(1) == targets
    return Evaluation({"top1": 100 * int(correct.sum()) / len(correct), "loss": loss}, losses, correct, targets)
