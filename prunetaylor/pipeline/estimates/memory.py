"""The memory plan of a run: its peak, and the chunk sizes under which it fits; a run that cannot fit is refused.

What each criterion, curvature and repair allocates is stated beside it; this module adds the rest of a run, phase by
phase. The largest phase is the plan. Chunks are halved one after another, each time where that helps most, until every
phase fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

from prunetaylor.core import registry
from prunetaylor.core.config.schema import Config
from prunetaylor.core.config.sizes import show_size
from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.core.results.outcome import Memory
from prunetaylor.pipeline.checks.settings import check_needs
from prunetaylor.pipeline.estimates.chunks import Phases, fit_chunks
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pipeline.planning.repair import one_step_repair
from prunetaylor.pipeline.sampling.calibration import chunk
from prunetaylor.pipeline.sampling.sampler import SAMPLE_HISTORY
from prunetaylor.pruning.activation_cache import settled_bytes
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.pruning.training import train
from prunetaylor.runtime.free_memory import free_bytes
from prunetaylor.runtime.processes.exchange import minimum
from prunetaylor.runtime.processes.group import local_world, world
from prunetaylor.runtime.processes.training import waits_within
from prunetaylor.taylor.curvature.gradients import norms_bytes
from prunetaylor.taylor.curvature.gram import grams_bytes
from prunetaylor.taylor.curvature.tape import chunk_elements
from prunetaylor.taylor.live_memory import alive_in_forward_mode, alive_without_gradients
from prunetaylor.taylor.memory import (
    FLOAT,
    LIBRARIES,
    ChunkDivisors,
    Phase,
    Sizes,
    current_chunks,
    forward,
    layer_sizes,
    measure,
    state_bytes,
    use_chunks,
)
from prunetaylor.taylor.model import prediction_bytes
from prunetaylor.taylor.passes import first_batch

# Share of the free memory that stays unused without a limit: plans were up to so much too low (benchmarks/README.md).
_MARGIN = 0.1
_RANKED = 48  # bytes a weight while all are ranked: scores, their order, the ranks and the masks
_FEWEST = 16  # the fewest calibration samples that are suggested
_SMALLEST_BATCH = 8  # the fewest samples in a batch of fine-tuning that are suggested
_SUGGESTED = 3  # other methods that are suggested, at most


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run needs, its ``limit``, and the memory that is ``free`` beside what it has allocated."""

    phase: Phase
    divisors: ChunkDivisors
    batch: int
    limit: int | None
    asked: bool  # whether the limit is the user's
    free: int | None

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
        network, device = job.network, job.device
        self.state = state_bytes(network.module)
        self.sizes = Sizes(
            layer_sizes(network),
            self.state,
            sum(p.numel() for p in network.module.parameters() if p.is_floating_point()),
            wide=4 if device.type == "mps" else 8,
            gradients=FLOAT * chunk_elements(device),
        )
        self.source = self.raw = self.targets = self.each = 0
        if job.samples is not None:
            self._look_at(job)
        self.there = self.state + self.source
        """Bytes that the run holds already."""
        free = free_bytes(device)
        if free is not None and device.type == "cpu":
            free //= local_world()
        self.free = minimum(free)
        self.asked = job.config.memory is not None
        usable = None if self.free is None else int((1 - _MARGIN) * self.free) + self.there
        self.limit = job.config.memory if self.asked else usable

    def plan_probe(self) -> ChunkDivisors:
        """Return the chunks in which the network is probed. UsageError where that does not fit in memory."""
        return self._require(lambda: self._probe(self.job.config), None)[0]

    def plan_run(self, plan: PruningPlan, facts: Facts) -> MemoryPlan:
        """Return the memory of the whole run.

        Raises UsageError if it does not fit even in the smallest chunks; the error names the largest part and settings
        that fit.
        """
        self.facts = facts
        chosen, worst = self._require(lambda: self.phases(plan, self.job.config), plan)
        with use_chunks(chosen):
            return MemoryPlan(worst, chosen, self.batch(self.job.config), self.limit, self.asked, self.free)

    def _require(self, phases: Phases, plan: PruningPlan | None) -> tuple[ChunkDivisors, Phase]:
        """Return the chunks and the largest phase. UsageError where they do not fit."""
        chosen, worst = fit_chunks(phases, self.limit)
        if self.limit is not None and worst.total > self.limit:
            raise self.refusal(worst, self.limit, plan)
        return chosen, worst

    def _look_at(self, job: Job) -> None:
        samples, network = job.samples, job.network
        assert samples is not None
        # A test sample, for its shape: the training samples that a run sees are those that it calibrates with.
        raw, _ = samples.test.fetch([0])
        self.raw, self.each = raw.nbytes, raw[0].numel()
        if job.device.type == "cpu":
            splits = {id(split): split for split in samples.splits}
            self.source = sum(s.nbytes() or 0 for s in splits.values() if not s.lazy)
        x, _ = first_batch(job.batches(samples.test.subset([0]), batch_size=1))
        measured = measure(network, x, lambda outputs: settled_bytes(network.module, network.layers, outputs))
        trial = network.copy()  # hooks may leave in it what a pass has made
        activations = replace(
            measured.activations,
            passing=alive_without_gradients(trial.module, x),
            moving=alive_in_forward_mode(trial.module, x, trial.layers),
        )
        self.sizes = replace(
            self.sizes, layers=measured.layers, activations=activations, outputs=measured.outputs, cached=True
        )

    def batch(self, config: Config) -> int:
        """Return the calibration samples in a batch."""
        return chunk(self.each, config.data.batch_size)

    def sized(self, config: Config) -> Sizes:
        """Return the sizes under a configuration and the current chunks."""
        if self.job.samples is None:
            return self.sizes
        samples = min(config.calibration.samples, len(self.job.samples.train))
        held_out = max(1, round(config.calibration.holdout * samples))
        return replace(
            self.sizes,
            samples=max(1, samples - held_out),
            held_out=held_out,
            batch=min(self.batch(config), samples),
            cached=config.cache.enabled,
        )

    def phases(self, plan: PruningPlan, config: Config) -> Iterator[Phase]:
        """Yield every phase that may be the largest."""
        job = self.job
        sizes, criterion, always = self.sized(config), load_criterion(plan.method), self._always(config)
        scored = [Phase(f"{one.name} ({plan.method})", one.parts, one.layer) for one in criterion.memory(sizes)]
        ranked = Phase("ranking", {"scores": _RANKED * sizes.weights})
        if job.samples is None:
            yield from (phase.plus(always) for phase in (*scored, ranked))
            return
        yield Phase("measuring", {"activations": forward(self._measuring(config, sizes))}).plus(always)
        yield from self._probe(config)
        trains = plan.epochs > 0 and self.command == "prune"
        # The states that a stage and its two Taylor models start from; in a gradual schedule, while training waits.
        models = {"weights": 3 * sizes.state}
        if trains and plan.gradual:
            models["optimizer"] = train.held_bytes(sizes, plan.training)
        yield from (phase.plus(always, models) for phase in scored)
        yield from (phase.plus(always, models) for phase in self._after(plan, sizes, scored))
        if trains:
            yield train.memory(replace(sizes, batch=self._training_batch(config)), plan.training).plus(always)

    def _always(self, config: Config) -> dict[str, int]:
        """Return the bytes that every phase needs: the network, its dense copy, that one's state, masks and samples."""
        sizes = self.sized(config)
        weights, samples = 3 * sizes.state + 2 * sizes.weights, self._samples(config, sizes)
        return {"weights": weights, "samples": samples, "libraries": LIBRARIES}

    def _probe(self, config: Config) -> Iterator[Phase]:
        """Yield the largest phase of the probe, which comes before the plan."""
        sizes = self.sized(config)
        activations = 0 if self.job.samples is None else max(norms_bytes(sizes), prediction_bytes(sizes))
        yield Phase("the convergence check", {"activations": activations}).plus(self._always(config))

    def _after(self, plan: PruningPlan, sizes: Sizes, scored: Sequence[Phase]) -> Iterator[Phase]:
        """Yield the phases that follow the scores in each stage."""
        predicted = Phase("prediction", {"activations": prediction_bytes(sizes)})
        fit = {"curvature": max((phase.parts.get("curvature", 0) for phase in scored), default=0)}
        if self.command == "score":
            # The fit stays while steps are tried.
            step = [] if (repair := one_step_repair(plan.repair)) is None else repair.memory(sizes)
            if step and not any(phase.name.startswith("layer Grams") for phase in scored):
                grams, fitting = grams_bytes(sizes)
                yield Phase("layer Grams", {"curvature": grams, "activations": fitting}).plus(fit)
                fit = {"curvature": fit["curvature"] + grams}
                # A solver is asked at every sparsity, beside them.
                yield from (phase.plus({"curvature": grams}) for phase in scored)
            yield from (phase.plus(fit) for phase in (predicted, *step))
            return
        yield Phase("ranking", {"scores": _RANKED * sizes.weights})
        yield predicted
        if (repair := plan.removal_repair) is not None:
            phases = repair.memory(sizes)
            if repair.needs_moments:
                grams, fitting = grams_bytes(sizes)
                yield Phase("layer Grams", {"curvature": grams, "activations": fitting}).plus(fit)
                phases = [phase.plus({"curvature": grams}, fit) for phase in phases]
            yield from phases
        if plan.refinement.when != "none":
            # Towards labels from where the network stood: one more copy.
            yield plan.refinement.refiner.memory(sizes).plus({"weights": sizes.state})

    def _samples(self, config: Config, sizes: Sizes) -> int:
        """Return the bytes of the source's samples, the calibration samples and the dense network's outputs."""
        remembered = SAMPLE_HISTORY if config.calibration.resample else 1
        outputs = 2 * FLOAT * sizes.outputs
        return self.source + remembered * (sizes.samples + sizes.held_out) * (self.raw + outputs)

    def _training_batch(self, config: Config) -> int:
        """Return the samples of a training batch whose gradients a process computes at once.

        Several processes that wait for one another in the middle of a batch do not split theirs.
        """
        assert self.job.samples is not None
        own = -(-min(config.data.batch_size, len(self.job.samples.train)) // world())
        # No batch norm trains on a single sample.
        if world() > 1 and waits_within(self.job.network.module):
            return own
        return min(own, max(2, -(-own // current_chunks().training)))

    def _measuring(self, config: Config, sizes: Sizes) -> Sizes:
        assert self.job.samples is not None
        most = max(1, config.data.batch_size // current_chunks().batch)
        return replace(sizes, batch=min(most, len(self.job.samples.test)))

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
        return fit_chunks(lambda: self.phases(plan, config), limit)[1].total

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
