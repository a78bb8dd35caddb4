"""The result of ``score``: how far a network can be pruned in one step. Units stand beside the fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunetaylor.core.results.outcome import Alert, FirstOrder, Memory, Skipped


@dataclass(frozen=True)
class ScoreLevel:
    """One step from the dense weights. Changes are of the mean error on held-out calibration samples."""

    sparsity: float
    removed: int
    predicted_change: float
    measured_change: float | None  # None: not finite
    gain_ratio: float | None  # measured / predicted
    changed_classes: float | None  # share of samples whose class differs from the dense network's; None without classes
    trusted: bool  # the gain ratio is within bounds here and at all lower sparsities


@dataclass(frozen=True)
class LayerScore:
    """One layer at each of the levels, in their order."""

    name: str
    shape: tuple[int, ...]
    sparsities: list[float]  # of this layer at each level
    predicted_changes: list[float | None]  # by this layer's part of the step alone; None: not computed


@dataclass(frozen=True)
class Scores:
    """The result of ``score``: how far a network can be pruned, judged by one step from the dense weights."""

    method: str
    repair: str  # how the step compensates for the removal
    error: str  # the error whose changes are given
    prunable: int
    levels: list[ScoreLevel]
    layers: list[LayerScore]
    trusted_to: float | None  # the largest trusted sparsity; None if the lowest is not
    held_out: int  # samples
    first_order: FirstOrder | None
    skipped: list[Skipped]
    choices: list[str]  # every automatic choice with its reason, one line each
    seconds: float
    seed: int
    device: str
    hashes: dict[str, str] = field(default_factory=dict)  # of checkpoint, data and code
    memory: Memory | None = None
    warnings: list[Alert] = field(default_factory=list)
