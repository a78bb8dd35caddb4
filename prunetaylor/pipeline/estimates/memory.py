"""The memory plan of a run: its peak, and the chunk sizes under which it fits; a run that cannot fit is refused.

The largest phase (``phases.py``) is the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from prunetaylor.core import registry
from prunetaylor.core.config.schema import Config
from prunetaylor.core.config.sizes import show_size
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.core.results.outcome import Memory
from prunetaylor.pipeline.checks.settings import check_needs
from prunetaylor.pipeline.estimates.chunk_fit import Phases, fit_chunks
from prunetaylor.pipeline.estimates.phases import Estimator
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.runtime.free_memory import free_bytes
from prunetaylor.runtime.processes.exchange import minimum
from prunetaylor.runtime.processes.group import local_world
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks
from prunetaylor.taylor.sizes import Phase

# Share of the free memory that stays unused without a limit: plans were up to so much too low (benchmarks/README.md).
_MARGIN = 0.1
_FEWEST = 16  # the fewest calibration samples that are suggested
_SMALLEST_BATCH = 8  # the fewest samples in a batch of fine-tuning that are suggested
_SUGGESTED = 3  # other methods that are suggested, at most


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run needs, its ``limit``, and the memory that is ``free`` beside what it has allocated.

    Attributes:
        phases: all phases that may be the largest, under ``divisors``.
    """

    phases: tuple[Phase, ...]
    divisors: ChunkDivisors
    batch: int
    limit: int | None
    asked: bool  # whether the limit is the user's
    free: int | None

    @property
    def phase(self) -> Phase:
        """Return the phase that needs the most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def report(self) -> Memory:
        """Return the plan as a part of the run's result."""
        return Memory(self.phase.total, self.limit, dict(self.phase.parts), self.phase.name, self.batch)

    def describe(self) -> str:
        """Return the total and the free memory in one line."""
        there = "free memory unknown, no limit" if self.free is None else f"{show_size(self.free)} free"
        if self.asked and self.limit is not None:
            there = f"limit {show_size(self.limit)}"
        smaller = [field.name for field in fields(self.divisors) if getattr(self.divisors, field.name) > 1]
        note = f"; smaller chunks to fit: {', '.join(smaller)}" if smaller else ""
        return f"memory: needs up to {show_size(self.phase.total)} ({there}){note}"

    def details(self) -> str:
        """Return the largest phase and its parts in one line."""
        parts = sorted(self.phase.parts.items(), key=lambda part: -part[1])
        largest = ", ".join(f"{show_size(size)} {name}" for name, size in parts if size >= 0.01 * self.phase.total)
        return f"memory peak: {self.phase.name} ({largest})"


class MemoryPlanner:
    """Plans the memory of ``prune`` or ``score`` (``command``), first of the probe of the network, then of all.

    One test sample is measured, once. The memory is that of a process, the one with the least of several.
    """

    def __init__(self, job: Job, command: str = "prune") -> None:
        self.job, self.command, self.facts = job, command, job.facts
        self.estimator = Estimator.measured(job, command)
        free = free_bytes(job.device)
        if free is not None and job.device.type == "cpu":
            free //= local_world()
        self.free = minimum(free)
        self.asked = job.config.memory is not None
        allocated = self.estimator.sizes.state + self.estimator.source
        usable = None if self.free is None else int((1 - _MARGIN) * self.free) + allocated
        self.limit = job.config.memory if self.asked else usable

    def plan_probe(self) -> ChunkDivisors:
        """Return the chunks in which the network is probed. UsageError where that does not fit in memory."""
        return self._require(lambda: [self.estimator.probe(self.job.config)], None)[0]

    def plan_run(self, plan: PruningPlan, facts: Facts) -> MemoryPlan:
        """Return the memory of the whole run.

        Raises UsageError if it does not fit even in the smallest chunks; the error names the largest part and settings
        that fit.
        """
        self.facts = facts
        chosen, _ = self._require(lambda: self.estimator.phases(plan, self.job.config), plan)
        with use_chunks(chosen):
            phases = tuple(self.estimator.phases(plan, self.job.config))
            batch = self.estimator.batch(self.job.config)
        return MemoryPlan(phases, chosen, batch, self.limit, self.asked, self.free)

    def _require(self, phases: Phases, plan: PruningPlan | None) -> tuple[ChunkDivisors, Phase]:
        """Return the chunks and the largest phase. UsageError where they do not fit."""
        chosen, worst = fit_chunks(phases, self.limit)
        if self.limit is not None and worst.total > self.limit:
            raise self.refusal(worst, self.limit, plan)
        return chosen, worst

    def refusal(self, worst: Phase, limit: int, plan: PruningPlan | None) -> UsageError:
        """Return the error that names what does not fit, and what would."""
        # The libraries' share is nobody's to change.
        part, size = max(((p, s) for p, s in worst.parts.items() if p != "libraries"), key=lambda one: one[1])
        layer = f" (most for {worst.layer})" if worst.layer and part in ("curvature", "systems") else ""
        there = "the limit is" if self.asked else "available are"
        cause = (
            f"{worst.name} needs {show_size(worst.total)} of memory even in the smallest chunks, "
            f"{show_size(size)} of it {part}{layer}; {there} {show_size(limit)}"
        )
        fitting = [*self._fitting(limit, plan), *([f"--memory {-(-worst.total // 2**20)}MiB"] if self.asked else [])]
        return UsageError(cause, f"what would fit: {', '.join(fitting)}" if fitting else "nothing smaller fits")

    def _fitting(self, limit: int, plan: PruningPlan | None) -> Iterator[str]:
        """Yield settings that fit: the smallest changes first, then other methods, the largest first."""
        methods = []
        for text, smaller in self._smaller(plan):
            if self._need(smaller, limit) <= limit:
                yield text
                break
        for name in registry.names(registry.CRITERIA):
            if name in (self.job.method, "random"):
                continue
            need = self._need(_with(self.job.config, "prune", method=name), limit)
            if need <= limit:
                methods.append((need, name))
        yield from (
            f"prune.method={name} ({show_size(need)})" for need, name in sorted(methods, reverse=True)[:_SUGGESTED]
        )

    def _need(self, config: Config, limit: int) -> float:
        """Return the bytes of a run by another configuration; infinite if it cannot run."""
        try:
            check_needs(config, self.facts)
            plan = make_plan(config, self.facts, one_step=self.command == "score")
        except PruneTaylorError:
            return inf
        return fit_chunks(lambda: self.estimator.phases(plan, config), limit)[1].total

    def _smaller(self, plan: PruningPlan | None) -> Iterator[tuple[str, Config]]:
        """Yield settings that need less with the same method."""
        config = self.job.config
        if plan is not None and plan.refinement.when != "none":
            if config.prune.refine_by != "features":
                yield "prune.refine_by=features", _with(config, "prune", refine_by="features")
            yield "prune.refine=none", _with(config, "prune", refine="none")
        if plan is not None and plan.epochs:
            size = config.data.batch_size // 2
            while size >= _SMALLEST_BATCH:
                yield f"data.batch_size={size}", _with(config, "data", batch_size=size)
                size //= 2
            yield "--epochs 0", _with(config, "finetune", epochs=0)
        if self.job.samples is not None:
            samples = min(config.calibration.samples, len(self.job.samples.train)) // 2
            while samples >= _FEWEST:
                yield f"calibration.samples={samples}", _with(config, "calibration", samples=samples)
                samples //= 2


def _with(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
