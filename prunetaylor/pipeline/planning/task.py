"""The choice of the task: the meaning of the network's outputs, and the loss that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunetaylor.core.config.asked import AS_ASKED, asked
from prunetaylor.core.config.schema import Config
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.core.results.choice import Choice
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.taylor.objective import Task


@dataclass(frozen=True)
class TargetFacts:
    """One sample's outputs and targets, and the values of some of the other targets."""

    outputs: int  # values that the network puts out
    shape: tuple[int, ...]  # of one target
    dtype: str
    floating: bool
    class_ids: bool  # one integer a sample
    same_size: bool  # as many values as outputs
    zeros_and_ones: bool  # nothing else among the first targets


def with_recorded_loss(config: Config, checkpoints: Sequence[Checkpoint]) -> Config:
    """The configuration with the loss that a checkpoint says it was trained with, where none was asked for."""
    recorded = [one.metadata.extra.get("loss") for one in checkpoints if one.metadata is not None]
    known = [one for one in recorded if one in ("cross-entropy", "bce", "mse")]
    return config.model_copy(update={"loss": known[0]}) if known and asked(config.loss) is None else config


def choose_task(config: Config, targets: TargetFacts) -> Task:
    """The task that a loss by name, or without one the targets, stand for.

    UsageError where two are possible, DataError where none is.
    """
    loss = asked(config.loss)
    if loss == "cross-entropy" or (loss is None and targets.class_ids and targets.outputs > 1):
        if targets.class_ids:
            return "classification"
    elif targets.same_size:
        if loss is not None:
            return "binary" if loss == "bce" else "regression"
        if targets.class_ids or targets.zeros_and_ones:
            raise UsageError(
                "targets of zeros and ones may be binary labels or values",
                "set loss=bce if the outputs are logits, loss=mse if the network was trained with squared errors",
            )
        if targets.floating:
            return "regression"
    raise DataError(
        f"targets of shape {targets.shape} and type {targets.dtype} do not fit outputs of {targets.outputs} values"
        + ("" if loss is None else f" and loss={loss}"),
        "give one class id a sample, or floating-point targets of the outputs' size; or set loss=FILE.py:FUNCTION",
    )


def explain_task(config: Config, task: Task) -> Choice[str]:
    """Return the loss that goes with ``task``, and why it is taken."""
    if not isinstance(task, str):
        return Choice("loss", task.name, AS_ASKED)
    loss, outputs = {
        "classification": ("cross-entropy", "the targets are class ids"),
        "binary": ("bce", "the targets are zeros and ones"),
        "regression": ("mse", "the targets are floating-point values"),
    }[task]
    return Choice("loss", loss, outputs if asked(config.loss) is None else AS_ASKED)
