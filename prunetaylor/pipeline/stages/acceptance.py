"""The acceptance of a stage by its control, from the step's outcome, and the stage's record for the report."""

from __future__ import annotations

from math import isfinite

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.results.outcome import Stage
from prunetaylor.pipeline.stages.state import StepControl
from prunetaylor.pipeline.stages.step import Change, StepOutcome
from prunetaylor.pruning.selection.schedule import StageChange
from prunetaylor.pruning.selection.trust_region import agrees

EXPLODED = 100.0
"""A stage is taken back if its held-out error is so many times that of a constant answer."""

STRONGEST_REPAIR = "least-squares"
"""The advice for a network that is ruined: by measurement the best of the repairs."""


def describe_ruin(outcome: StepOutcome, constant_error: float) -> str:
    """Say how a step ruined the network; empty where it did not.

    ``constant_error`` is the error of answering all samples alike.
    """
    change = outcome.change.measured
    if not isfinite(change):
        return "its outputs are out of range"
    scale = max(outcome.error, constant_error)
    if change > EXPLODED * scale > 0:
        return f"its held-out error is {change / scale:.2g} times that of a constant answer"
    return ""


def decide_acceptance(
    control: StepControl, outcome: StepOutcome, constant_error: float, *, damped: bool, moves_weights: bool, repair: str
) -> bool:
    """Let ``control`` accept or reject the stage, and learn from its outcome.

    Args:
        damped: the step depends on the damping.
        moves_weights: kept weights move too, so that nobody knew the change when the step was proposed.
        repair: the repair in use, for the remedy.

    Raises:
        NumericsError: the network is ruined, and no smaller or more damped step is left.
    """
    ruin, change = describe_ruin(outcome, constant_error), outcome.change
    accepted = control.update(
        StageChange(
            start=outcome.start,
            end=outcome.selection.sparsity,
            predicted=change.predicted,
            measured=float("inf") if ruin else change.measured,
            noise=change.noise,
            predictable=not moves_weights,
            damped=damped,
            smallest=outcome.removed == 1,
        )
    )
    if accepted and ruin:
        other = "" if repair == STRONGEST_REPAIR else f"prune.repair={STRONGEST_REPAIR}, or "
        raise NumericsError(
            f"pruned from {outcome.start:.2%} to {outcome.sparsity:.2%} the network is ruined ({ruin}), and no smaller "
            "or more damped stage is left",
            f"try {other}a sparsity nearer to {outcome.start:.2%}, or more calibration.samples",
        )
    return accepted


def describe_rejection(outcome: StepOutcome, constant_error: float) -> str:
    """Say that a stage was taken back, and why."""
    change, ruin = outcome.change, describe_ruin(outcome, constant_error)
    reason = ", too far for one stage" if agrees(change.predicted, change.measured, change.noise, 0.0) else ""
    return (
        f"taken back: {outcome.sparsity:.2%} cost {change.measured:.4g} where {change.predicted:.4g} was predicted"
        + (f": {ruin}" if ruin else reason)
    )


def make_record(
    outcome: StepOutcome, since_dense: Change, constant_error: float, *, accepted: bool, seconds: float
) -> Stage:
    """Put the record of a stage together; numbers that are not finite become None."""
    change, total = outcome.change, since_dense
    return Stage(
        sparsity=outcome.sparsity,
        predicted_change=change.predicted,
        measured_change=_finite(change.measured),
        gain_ratio=_ratio(change),
        seconds=seconds,
        accepted=accepted,
        noise=change.noise,
        damping=outcome.damping,
        cumulative_predicted=total.predicted,
        cumulative_measured=_finite(total.measured),
        believed=agrees(total.predicted, total.measured, total.noise, constant_error),
        cumulative_ratio=_ratio(total),
    )


def _ratio(change: Change) -> float | None:
    return _finite(change.measured / change.predicted) if change.predicted != 0 else None


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
