"""What a run found: plain frozen values, filled by the pipeline and rendered by report/. Units stand at each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
from prunetaylor.core.text import duration


@dataclass(frozen=True)
class NetworkStats:
    """One network, dense or pruned."""

    metrics: dict[str, float]  # by name; top1 in percent, loss a mean; empty without data
    parameters: int  # all of them
    nonzero: int  # parameters that are not zero
    flops: int | None  # a sample's forward pass, MAC = 2, zeros counted as work; None where no input is known
    flops_nonzero: int | None  # the same without the products by zero weights
    bytes: int  # of the network's file on the disk; where there is none, of the safetensors file that it would be


def removed_at(sparsity: float, prunable: int) -> int:
    """How many of ``prunable`` weights a sparsity in [0, 1) removes: the nearest number, though one always stays."""
    return min(round(sparsity * prunable), prunable - 1)


@dataclass(frozen=True)
class Sparsity:
    """``asked`` and ``obtained`` are fractions of ``prunable``; ``removed == removed_at(asked, prunable)``."""

    asked: float
    obtained: float
    prunable: int
    removed: int


@dataclass(frozen=True)
class Drop:
    """Dense metric minus pruned metric in percentage points, with its paired 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Flips:
    """The samples on which the two networks differ, of ``samples`` in all. The rest both get right, or both wrong."""

    samples: int
    lost: int  # the dense network is right, the pruned one wrong
    won: int  # the other way round
    mcnemar_p: float  # exact, two-sided: how likely so uneven a split is where both networks are equally good


@dataclass(frozen=True)
class ClassDrop:
    """One class, by the samples whose label it is. ``drop`` has the class's own 95 % interval, not simultaneous."""

    label: int
    samples: int
    lost: int
    won: int
    drop: Drop


@dataclass(frozen=True)
class Latency:
    """Two networks timed in turns. ``low`` and ``high`` are one-sided 95 % limits of the ratio."""

    dense_ms: float  # medians of one forward pass, in milliseconds
    pruned_ms: float
    ratio: float  # pruned / dense
    low: float
    high: float
    noise: float  # half the interquartile range of a round's two dense times over each other
    steady: bool  # whether that is small enough for a judgement
    rounds: int
    batch: int  # samples in a forward pass
    device: str


@dataclass(frozen=True)
class Stage:
    """One round of fit, score, select, repair. Changes are of the mean error on held-out calibration samples.

    They are of the displacement by masks and least squares, before batch norm and refinement; the cumulative ones are
    of everything that moved since the dense network.
    """

    sparsity: float
    predicted_change: float | None
    measured_change: float | None  # None: not finite, or nothing to measure by
    gain_ratio: float | None  # measured / predicted
    seconds: float
    accepted: bool = True  # False: taken back, and tried again with a smaller step
    noise: float | None = None  # standard error of the measured change
    damping: float | None = None  # of this stage's systems, relative to their mean diagonal
    cumulative_predicted: float | None = None
    cumulative_measured: float | None = None
    believed: bool | None = None  # the cumulative ones agree within a factor of two, or as far as anybody can tell
    cumulative_ratio: float | None = None
    metric: float | None = None  # the run's, on the same held-out samples after all the stage did; None: taken back


def believed_to(stages: list[Stage]) -> float | None:
    """The sparsity up to which measured and predicted change since the dense network agree within a factor of two.

    Taken over accepted stages in turn; None where the first one already differs by more, or nothing was predicted.
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
    """How far from convergence the checkpoint is: of the error with labels, whether or not that is what is gone by."""

    share: float  # |g'd| / (|g'd| + d'Hd/2) of a probe: each weight's removal by itself, at the dense network
    gradient_norm: float
    noise_norm: float  # the norm that sampling alone gives a mean gradient over this many samples
    kept: bool  # whether its first-order term was kept
    labels: bool  # whether it is what was gone by

    @property
    def converged(self) -> str:
        """Return "yes", "not quite" (a gradient beyond sampling noise) or "no" (one that changes the ranking)."""
        if self.gradient_norm**2 <= 1.5 * self.noise_norm**2:
            return "yes"
        return "no" if self.share > 1 / 3 else "not quite"


@dataclass(frozen=True)
class Histogram:
    """The scores of the last stage that stands: counts of their log10 between ``edges``, one fewer than those."""

    edges: list[float]
    removed: list[int]
    kept: list[int]
    threshold: float | None  # log10 of the largest score that went; None where none did


@dataclass(frozen=True)
class LayerOutcome:
    name: str
    shape: tuple[int, ...]
    removed: int
    sparsity: float


@dataclass(frozen=True)
class Skipped:
    """A layer or tensor that was left alone though a user might expect otherwise."""

    name: str
    why: str


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning; ``validation`` is the metric on the samples that choose."""

    epoch: int
    loss: float
    validation: float
    seconds: float
    sparsity: float  # at its end
    lr: float  # of its last step


@dataclass(frozen=True)
class Memory:
    """What a run was planned to hold at most, in bytes, Python and its libraries aside."""

    planned: int
    limit: int | None  # what it might take; None where nobody knows what is free
    parts: dict[str, int]  # of ``planned``, by what they are for
    phase: str  # the one that needs the most
    batch: int  # calibration samples in a batch


@dataclass(frozen=True)
class Time:
    """How long a run was thought to take before it began, in seconds, by what they are for."""

    estimate_seconds: float
    parts: dict[str, float]

    def describe(self) -> str:
        """One line; a run may end sooner, where refinement has nothing to gain."""
        most = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        said = ", ".join(f"{duration(seconds)} {name}" for name, seconds in most if seconds >= 1)
        return f"time: about {duration(self.estimate_seconds)}{f' ({said})' if said else ''}"


@dataclass(frozen=True)
class Alert:
    """A doubt about the run that its user should know of; ``key`` names its kind for programs."""

    key: str
    text: str


DENSE_AT_CHANCE, CLASSES_RENAMED = "dense_at_chance", "classes_renamed"
PRUNED_AT_CHANCE = "pruned_at_chance"
BROKEN = (DENSE_AT_CHANCE, CLASSES_RENAMED)
"""Keys of alerts under which no comparison with the dense network means anything."""

LEVELS = ("ok", "caution", "bad")
"""Of a judgement: nothing to worry about, look before relying on it, do not use it as it is."""


@dataclass(frozen=True)
class Judgement:
    """A result in words: ``level`` is one of LEVELS, ``text`` one or two sentences."""

    level: str
    text: str


@dataclass(frozen=True)
class Unfinished:
    """Why a run ended before the sparsity asked for, and what to try; what it came to is a network all the same."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class PruneResult:
    """A finished run. ``module`` is the pruned network, ``masks`` (True = keep) are by parameter name."""

    module: nn.Module
    masks: dict[str, Tensor]
    metric: str
    goal: str  # "max" or "min"
    dense: NetworkStats
    pruned: NetworkStats
    sparsity: Sparsity
    drop: Drop | None
    stages: list[Stage]
    first_order: FirstOrder | None
    layers: list[LayerOutcome]
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
    histogram: Histogram | None = None  # None where nothing was ranked by a score
    loss_rise: Drop | None = None  # pruned - dense, in its own unit; None without samples
    unfinished: Unfinished | None = None  # where the sparsity asked for was not reached
    warnings: list[Alert] = field(default_factory=list)
    constant: dict[str, float] = field(default_factory=dict)  # metrics of the best answer that never changes
    method: str = ""  # the criterion that ranked the weights, ``auto`` settled
    verdict: Judgement | None = None  # of the whole run; the pipeline gives one to every run


@dataclass(frozen=True)
class ScoreLevel:
    """One step from the dense weights. Changes are of the mean error on held-out calibration samples."""

    sparsity: float
    removed: int
    predicted_change: float
    measured_change: float | None  # None: not finite
    gain_ratio: float | None  # measured / predicted
    changed_classes: float | None  # share of the samples whose class is not the dense network's; None without classes
    trusted: bool  # the gain ratio is within reach here and at all lower sparsities


@dataclass(frozen=True)
class LayerScore:
    """One layer at each of the levels, in their order."""

    name: str
    shape: tuple[int, ...]
    sparsities: list[float]  # what the level takes from this layer
    predicted_changes: list[float | None]  # by this layer's part of the step alone; None where not looked at


@dataclass(frozen=True)
class Scores:
    """How far a network can be pruned, as far as one step from the dense weights can tell."""

    method: str
    repair: str  # how the step makes up for what it removes
    error: str  # which error the changes are of
    prunable: int
    levels: list[ScoreLevel]
    layers: list[LayerScore]
    trusted_to: float | None  # the largest sparsity that is trusted; None where the lowest is not
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


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as its last attempt left it."""

    number: int  # from 1
    state: str  # "waiting", "running", "done", "stopped" (early) or "failed"
    parameters: dict[str, Any]  # by configuration key; empty where they are not chosen yet
    metrics: dict[str, float] = field(default_factory=dict)  # top1 and loss are of the samples that rank
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, of top1 and loss
    reported: dict[str, float] = field(default_factory=dict)  # top1 and loss of the samples that report
    values: tuple[float, ...] = ()  # of the objectives, in their order
    progress: tuple[tuple[int, float], ...] = ()  # (epoch or stage, value) that early stopping went by
    cause: str | None = None  # of a failure
    worker: str | None = None
    threads: int | None = None  # that it computes with; None where it has not begun
    returns: int = 0  # times that it was given back, as its worker had to stop or was lost
    returned: str | None = None  # why it was given back, the last time
    rank: int | None = None  # from 1, of those that are done
    front: bool = False  # no other is as good in every objective and better in one


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep, its trials in the order of their ranks, then those that are not done."""

    name: str
    folder: str
    method: str
    objectives: list[tuple[str, str]]  # name, and "maximize" or "minimize"
    trials: list[Trial]
    samples: str  # which samples rank and which report
    best: Trial | None
    warnings: list[Alert] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(trial.state == "failed" for trial in self.trials)

    @property
    def never_ran(self) -> int:
        """The number of trials that still wait: nobody has run them to their end."""
        return sum(trial.state == "waiting" for trial in self.trials)
