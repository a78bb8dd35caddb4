"""The result of a gate as plain frozen values, filled by gate/ and rendered by report/. Units stand beside
the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prunetaylor.core.results.outcome import BROKEN, Alert, ClassDrop, Drop, Flips, Latency, LayerResult, NetworkStats

Status = Literal["pass", "fail", "inconclusive"]
Unit = Literal["pp", "metric", "fraction", "bytes", "ratio"]

PASSED, FAILED, INCONCLUSIVE = 0, 3, 4
"""Exit codes."""


@dataclass(frozen=True)
class Check:
    """One limit compared with a measurement.

    ``low`` and ``high`` are one-sided 95 % limits; None for a quantity that is counted, not estimated: then ``value``
    decides.
    """

    name: str  # the limit's key: max_drop, min_sparsity...
    label: str  # for people: drop, sparsity...
    limit: float
    unit: Unit
    value: float
    low: float | None
    high: float | None
    status: Status
    why: str  # one line
    samples_needed: int | None = None  # to decide it at the rates seen; None if decided, or if none would

    @property
    def bound(self) -> str:
        """Return "max" or "min"."""
        return self.name[:3]


@dataclass(frozen=True)
class Verdict:
    """All limits together: the gate fails if one fails, and else is inconclusive if one is, and else passes.

    Against a dense network at chance nothing can be judged: the gate is inconclusive, whatever ``on_inconclusive``
    says.
    """

    checks: list[Check]
    on_inconclusive: Literal["pass", "fail", "warn"] | None
    metric: str
    goal: str  # "max" or "min"
    unit: str  # of the metric: "%" for a share, whose drop is in percentage points
    dense: NetworkStats
    pruned: NetworkStats
    files: dict[str, str]  # "dense" and "pruned": the files that were judged
    drop: Drop | None  # with its two-sided 95 % interval; None without samples
    flips: Flips | None  # None without classes
    classes: list[ClassDrop]  # the largest drop first
    layers: list[LayerResult]
    latency: Latency | None
    samples: int
    data: str | None  # source of the samples
    seed: int
    device: str
    seconds: float
    notes: list[str]
    hashes: dict[str, str] = field(default_factory=dict)  # of both files and the data
    warnings: list[Alert] = field(default_factory=list)

    @property
    def baseless(self) -> bool:
        """Return whether the dense network cannot serve as a baseline."""
        return any(alert.key in BROKEN for alert in self.warnings)

    @property
    def status(self) -> Status:
        """Return the verdict over all limits."""
        if self.baseless:
            return "inconclusive"
        statuses = {check.status for check in self.checks}
        return "fail" if "fail" in statuses else "inconclusive" if "inconclusive" in statuses else "pass"

    @property
    def exit_code(self) -> int:
        """Return 0 for passed, 3 for failed, 4 for inconclusive, or the code that ``on_inconclusive`` selects."""
        if self.baseless:
            return INCONCLUSIVE
        codes = {"pass": PASSED, "fail": FAILED, "warn": PASSED, None: INCONCLUSIVE}
        return {"pass": PASSED, "fail": FAILED, "inconclusive": codes[self.on_inconclusive]}[self.status]
