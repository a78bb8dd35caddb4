"""What a gate found: plain frozen values, filled by gate/ and rendered by report/. Units stand at each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prunetaylor.core.results.outcome import BROKEN, Alert, ClassDrop, Drop, Flips, Latency, LayerOutcome, NetworkStats

Status = Literal["pass", "fail", "inconclusive"]
Unit = Literal["pp", "metric", "fraction", "bytes", "ratio"]

PASSED, FAILED, INCONCLUSIVE = 0, 3, 4
"""Exit codes."""


@dataclass(frozen=True)
class Check:
    """One limit held against what was measured.

    ``low`` and ``high`` are one-sided 95 % limits, None for what is counted and not estimated: then ``value`` decides.
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
    samples_needed: int | None = None  # that would settle it at the rates seen; None where settled, or none would

    @property
    def bound(self) -> str:
        """ "max" or "min"."""
        return self.name[:3]


@dataclass(frozen=True)
class Verdict:
    """All limits together: failed where one is, else inconclusive where one is, else passed.

    Against a dense network that is at chance nothing can be judged: inconclusive, whatever is to become of that.
    """

    checks: list[Check]
    on_inconclusive: Literal["pass", "fail", "warn"] | None
    metric: str
    goal: str  # "max" or "min"
    dense: NetworkStats
    pruned: NetworkStats
    files: dict[str, str]  # "dense" and "pruned": the files that were judged
    drop: Drop | None  # with its two-sided 95 % interval; None without samples
    flips: Flips | None  # None without classes
    classes: list[ClassDrop]  # the largest drop first
    layers: list[LayerOutcome]
    latency: Latency | None
    samples: int
    data: str | None  # where the samples are from
    seed: int
    device: str
    seconds: float
    notes: list[str]
    hashes: dict[str, str] = field(default_factory=dict)  # of both files and the data
    warnings: list[Alert] = field(default_factory=list)

    @property
    def baseless(self) -> bool:
        """Whether the dense network is no ground to judge on."""
        return any(alert.key in BROKEN for alert in self.warnings)

    @property
    def status(self) -> Status:
        if self.baseless:
            return "inconclusive"
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0 passed, 3 failed, 4 inconclusive, or what ``on_inconclusive`` makes of it."""
        if self.baseless:
            return INCONCLUSIVE
        settled = {"pass": PASSED, "fail": FAILED, "warn": PASSED, None: INCONCLUSIVE}
        return {"pass": PASSED, "fail": FAILED, "inconclusive": settled[self.on_inconclusive]}[self.status]
