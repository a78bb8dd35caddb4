"""What a stage of pruning started from and what it has found so far: a run that goes on need not find it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunetaylor.core.results.outcome import Histogram
from prunetaylor.network.state import snapshot
from prunetaylor.pruning.selection.selector import Selection


@dataclass
class StageState:
    """``masks``: True = keep, by parameter name; ``histogram``: of the stage before."""

    before: dict[str, Tensor]  # the network's state
    masks: dict[str, Tensor]
    histogram: Histogram | None
    scored: dict[str, Tensor] = field(default_factory=dict)  # by parameter; empty again once all are
    removed: Selection | None = None
    repaired: list[str] = field(default_factory=list)  # layers by name
    moved: Mapping[str, Tensor] | None = None  # of a run that goes on: the state that the network had come to
    since: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """What it has taken so far, in all processes that went on with it."""
        return time.perf_counter() - self.since

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """What there is besides what it started from; ``module`` as it is now."""
        found = {"scored": self.scored, "removed": None, "seconds": self.seconds}
        if self.removed is None:
            return found
        return {**found, "removed": self.removed.state_dict(), "repaired": self.repaired, "moved": snapshot(module)}

    def load_state_dict(
        self, found: Mapping[str, Any], place: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> None:
        """Go on from what was ``state_dict``; ``place`` puts tensors by parameter name on their devices."""
        self.scored, self.since = place(found["scored"]), time.perf_counter() - found["seconds"]
        if found["removed"] is not None:
            self.removed = Selection.from_state({**found["removed"], "masks": place(found["removed"]["masks"])})
            self.repaired, self.moved = list(found["repaired"]), found["moved"]
