"""The results of a sweep and of its trials as plain frozen values. Units stand beside the fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.results.outcome import Alert

COSTS = {
    "sparsity": "max",
    "nonzero": "min",
    "parameters": "min",
    "flops": "min",
    "flops_nonzero": "min",
    "bytes": "min",
    "seconds": "min",
}
"""The fields of a trial's result beside its metrics, each with its goal."""


def field_sign(name: str) -> int:
    """Return 1 if larger values of a field of a trial's result are better, else -1."""
    return describe_metric(name).sign if name not in COSTS else 1 if COSTS[name] == "max" else -1


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep, as its last attempt left it."""

    number: int  # from 1
    state: str  # "waiting", "running", "done", "stopped" (early) or "failed"
    parameters: dict[str, Any]  # by configuration key; empty until they are chosen
    metrics: dict[str, float] = field(default_factory=dict)  # top1 and loss on the ranking samples
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, of top1 and loss
    reported: dict[str, float] = field(default_factory=dict)  # top1 and loss on the reporting samples
    values: tuple[float, ...] = ()  # of the objectives, in their order
    progress: tuple[tuple[int, float], ...] = ()  # (epoch or stage, value), for early stopping
    cause: str | None = None  # of a failure
    worker: str | None = None
    threads: int | None = None  # that it computes with; None before it starts
    returns: int = 0  # times that it was returned, as its worker stopped or was lost
    returned: str | None = None  # the reason of the last return
    rank: int | None = None  # from 1, among finished trials
    front: bool = False  # on the Pareto front: no other is as good in every objective and better in one


@dataclass(frozen=True)
class SweepResult:
    """A sweep with its trials: the finished ones in the order of their ranks, then the others."""

    name: str
    folder: str
    method: str
    objectives: list[tuple[str, str]]  # name, and "maximize" or "minimize"
    trials: list[Trial]
    samples: str  # which samples rank and which report
    best: Trial | None
    warnings: list[Alert] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that trials were measured by."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.metrics if name not in COSTS))

    @property
    def failed(self) -> int:
        """The number of trials that failed."""
        return sum(trial.state == "failed" for trial in self.trials)

    @property
    def never_ran(self) -> int:
        """The number of trials that are still waiting."""
        return sum(trial.state == "waiting" for trial in self.trials)
