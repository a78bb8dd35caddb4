"""The result of a run as plain frozen values, filled by the pipeline and rendered by report/. Units stand beside the
fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prunetaylor.core.results.choice import Choice
from prunetaylor.core.results.metric import MetricDescription, describe_metric
from prunetaylor.core.text import duration

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkStats:
    """The metrics and the size of one network, dense or pruned."""

    metrics: dict[str, float]  # by name; top1 in percent, loss a mean; empty without data
    parameters: int  # all of them
    nonzero: int  # parameters that are not zero
    flops: int | None  # of one sample's forward pass, MAC = 2, zeros counted as work; None if unknown
    flops_nonzero: int | None  # without products by zero weights
    bytes: int  # of its file on the disk, or of the safetensors file that it would be


def removed_at(sparsity: float, prunable: int) -> int:
    """Return the number of ``prunable`` weights that a sparsity removes: the nearest one that leaves a weight."""
    return min(round(sparsity * prunable), prunable - 1)


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of a run: fractions of ``prunable`` weights; ``removed == removed_at(asked, prunable)``.

    ``prunable_share`` is the fraction of all parameters that are prunable.
    """

    asked: float
    obtained: float
    prunable: int
    removed: int
    prunable_share: float


@dataclass(frozen=True)
class Drop:
    """The change of a metric for the worse, in percentage points for a share, else in the metric's own unit, with its
    paired 95 % interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Flips:
    """The samples, of ``samples`` in all, on which the two networks differ; on the rest both are right or
    both wrong.
    """

    samples: int
    lost: int  # the dense network is right, the pruned one wrong
    won: int  # the other way round
    mcnemar_p: float  # exact, two-sided: the probability of so uneven a split if both are equally good


@dataclass(frozen=True)
class ClassDrop:
    """The drop on the samples of one class. Its 95 % interval holds for this class alone, not for all at once."""

    label: int
    samples: int
    lost: int
    won: int
    drop: Drop


@dataclass(frozen=True)
class Latency:
    """The latency of two networks timed in turns. ``low`` and ``high`` are one-sided 95 % limits of the ratio."""

    dense_ms: float  # medians of one forward pass, in milliseconds
    pruned_ms: float
    ratio: float  # pruned / dense
    low: float
    high: float
    noise: float  # half the interquartile range of a round's two dense times over each other
    steady: bool  # whether the noise is small enough for a judgement
    rounds: int
    batch: int  # samples in a forward pass
    device: str


@dataclass(frozen=True)
class Stage:
    """One round of fit, score, select and repair. Changes are of the mean error on held-out calibration samples.

    They follow from the displacement by masks and least squares, before batch norm and refinement; the cumulative ones
    include everything that moved since the dense network.
    """

    sparsity: float
    predicted_change: float | None
    measured_change: float | None  # None: not finite, or nothing to measure on
    gain_ratio: float | None  # measured / predicted
    seconds: float
    accepted: bool = True  # False: taken back and repeated with a smaller step
    noise: float | None = None  # standard error of the measured change
    damping: float | None = None  # of this stage's systems, relative to their mean diagonal
    cumulative_predicted: float | None = None
    cumulative_measured: float | None = None
    believed: bool | None = None  # the cumulative changes agree within a factor of two, or within noise
    cumulative_ratio: float | None = None
    metric: float | None = None  # the run's metric on the same samples after the whole stage; None: taken back


def believed_to(stages: list[Stage]) -> float | None:
    """Return the sparsity up to which measured and predicted change since the dense network agree within a factor of
    two.

    Only accepted stages count, in their order. None means that the first one already disagrees, or that nothing was
    predicted.
    """
    reached = None
    for stage in stages:
        if not stage.accepted or stage.believed is None:
            continue
        if not stage.believed:
            break
        reached = stage.sparsity
    return reached


@dataclass(frozen=True)
class FirstOrder:
    """The distance of the checkpoint from convergence, in the error with labels, whether or not the run uses that
    error.
    """

    share: float  # |g'd| / (|g'd| + d'Hd/2) of a probe: each weight's removal by itself, at the dense network
    gradient_norm: float
    noise_norm: float  # the norm that sampling alone gives a mean gradient over this many samples
    kept: bool  # whether its first-order term was kept
    labels: bool  # whether the run uses the error with labels

    @property
    def converged(self) -> str:
        """Return "yes", "not quite" (the gradient exceeds sampling noise) or "no" (it changes the ranking)."""
        if self.gradient_norm**2 <= 1.5 * self.noise_norm**2:
            return "yes"
        return "no" if self.share > 1 / 3 else "not quite"


@dataclass(frozen=True)
class Histogram:
    """The scores of the last accepted stage: counts of their log10 between ``edges``, one fewer than those."""

    edges: list[float]
    removed: list[int]
    kept: list[int]
    threshold: float | None  # log10 of the largest removed score; None if none was removed


@dataclass(frozen=True)
class LayerResult:
    """The weights removed from one layer."""

    name: str
    shape: tuple[int, ...]
    removed: int
    sparsity: float


@dataclass(frozen=True)
class Skipped:
    """A layer or tensor that was not pruned although a user might expect it to be."""

    name: str
    why: str


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning; ``validation`` is the metric on the samples that choose the epoch."""

    epoch: int
    loss: float
    validation: float
    seconds: float
    sparsity: float  # at its end
    lr: float  # of its last step


@dataclass(frozen=True)
class Memory:
    """The planned peak memory of a run in bytes, without Python and its libraries."""

    planned: int
    limit: int | None  # memory that the run may use; None if the free memory is unknown
    parts: dict[str, int]  # of ``planned``, by purpose
    phase: str  # the phase that needs the most
    batch: int  # calibration samples in a batch


@dataclass(frozen=True)
class Time:
    """The estimated duration of a run in seconds, in total and by purpose, made before it started."""

    estimate_seconds: float
    parts: dict[str, float]

    def describe(self) -> str:
        """Return the estimate in one line; a run may end sooner if refinement gains nothing."""
        most = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        longest = ", ".join(f"{duration(seconds)} {name}" for name, seconds in most if seconds >= 1)
        return f"time: about {duration(self.estimate_seconds)}{f' ({longest})' if longest else ''}"


@dataclass(frozen=True)
class Alert:
    """A doubt about the run that its user should know; ``key`` names its kind for programs."""

    key: str
    text: str


DENSE_AT_CHANCE, CLASSES_RENAMED = "dense_at_chance", "classes_renamed"
PRUNED_AT_CHANCE = "pruned_at_chance"
BROKEN = (DENSE_AT_CHANCE, CLASSES_RENAMED)
"""Keys of alerts that make every comparison with the dense network meaningless."""

LEVELS = ("ok", "caution", "bad")
"""The levels of a judgement: fine, check it before relying on it, do not use it as it is."""


@dataclass(frozen=True)
class Judgement:
    """A result in words: ``level`` is one of LEVELS, ``text`` has one or two sentences."""

    level: str
    text: str


@dataclass(frozen=True)
class Unfinished:
    """The reason why a run ended before the requested sparsity, and a remedy; its network is usable all the same."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class PruneResult:
    """A finished run. ``module`` is the pruned network; ``masks`` (True = keep) are keyed by parameter name."""

    module: nn.Module
    masks: dict[str, Tensor]
    metric: str
    goal: str  # "max" or "min"
    unit: str  # of the metric: "%" for a share, whose drop is in percentage points
    dense: NetworkStats
    pruned: NetworkStats
    sparsity: Sparsity
    drop: Drop | None
    stages: list[Stage]
    first_order: FirstOrder | None
    layers: list[LayerResult]
    skipped: list[Skipped]
    epochs: list[Epoch]
    choices: list[str]  # every automatic choice with its reason, one line each
    seconds: dict[str, float]  # by phase, and "total"
    seed: int
    device: str
    hashes: dict[str, str] = field(default_factory=dict)  # of checkpoint, data and code
    memory: Memory | None = None
    time: Time | None = None
    flips: Flips | None = None  # on the test samples; None without classes
    classes: list[ClassDrop] = field(default_factory=list)  # the largest drop first
    histogram: Histogram | None = None  # None if no score ranked the weights
    loss_rise: Drop | None = None  # pruned - dense, in its own unit; None without samples
    unfinished: Unfinished | None = None  # set if the requested sparsity was not reached
    warnings: list[Alert] = field(default_factory=list)
    constant: dict[str, float] = field(default_factory=dict)  # metrics of the best constant answer
    method: str = ""  # the criterion that ranked the weights, ``auto`` settled
    verdict: Judgement | None = None  # on the whole run; the pipeline gives every run one
    plan: list[Choice[object]] = field(default_factory=list)  # every settled setting with its reason

    @property
    def metric_description(self) -> MetricDescription:
        """Return the metric with its title, goal and unit."""
        return replace(describe_metric(self.metric), goal=self.goal, unit=self.unit)
