"""One run: probe -> plan -> fit the Taylor model -> score -> select -> repair -> measure (in stages) -> fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prunetaylor.core.clock import Clock
from prunetaylor.core.pass_progress import listen
from prunetaylor.core.progress import Detail, Progress, ProgressMonitor, expect, no_monitor, part_listener
from prunetaylor.core.results.outcome import Alert, PruneResult, Time
from prunetaylor.core.state_store import NullStore, StateStore
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.network.state import fixed_order
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import check_quickly, leave_out_outliers
from prunetaylor.pipeline.estimates.memory import MemoryPlanner
from prunetaylor.pipeline.estimates.time import estimate
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.finetuning.loop import Finetuning, FinetuningResult
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.measurement import Measurement, evaluate_on_test, measure_dense, network_stats
from prunetaylor.pipeline.outcome import make_outcome
from prunetaylor.pipeline.preparation import Preparation, RunDivisors, copy_network, prepare
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.masks import check_masks
from prunetaylor.taylor.memory import use_chunks


def run(
    job: Job,
    progress: Progress,
    store: StateStore | None = None,
    *,
    dense_evaluation: Evaluation | None = None,
    monitor: ProgressMonitor = no_monitor,
) -> PruneResult:
    """Prune, repair, fine-tune and measure ``job.network`` in place, or go on from the state in ``store``.

    Args:
        store: keeps the run's state; nothing else is written to.
        dense_evaluation: the dense network's evaluation on the test samples, if it is known already.
        monitor: told the result of each stage and epoch; it may end the run by an exception of its own.

    Raises:
        UsageError: the run does not fit in memory; raised before any stage.
    """
    store = store or NullStore()
    saved = store.load() or {}
    with restoring():
        clock = Clock(dict(saved.get("seconds", {})))
        divisors = RunDivisors.from_state(saved["chunks"]) if saved else None
        known = saved.get("dense")
        dense_evaluation = dense_evaluation if known is None else Evaluation(**known)
    for note in job.notes:
        progress.note(note)
    job = leave_out_outliers(job, progress)
    dense = copy_network(job)
    memory_format = use_memory_format(job.facts, job.network.module, dense.module)
    fixed, listening = fixed_order(job.device, saved.get("threads")), listen(part_listener(progress))
    with clock.time("total"), fixed, listening, memory_format:
        planner = MemoryPlanner(job)
        with use_chunks(planner.plan_probe() if divisors is None else divisors.probe):
            with clock.time("measure"):
                if dense_evaluation is None:
                    dense_evaluation = evaluate_on_test(job, dense.module, progress, "measure the dense network")
                measured = measure_dense(job, dense.module, dense_evaluation, progress)
            with clock.time("prune"):
                prepared = prepare(job, dense, planner, progress, resumed=divisors)
        with use_chunks(prepared.divisors.run):
            return _Run(prepared, measured, progress, store, saved, clock, monitor).run()


@dataclass(frozen=True)
class Rehearsal:
    """The preparation of a run, the time that it will take, and the warnings before its first stage."""

    prepared: Preparation
    time: Time
    alerts: tuple[Alert, ...]


def rehearse(job: Job, progress: Progress) -> Rehearsal:
    """Prepare the run as :func:`run` does, with the dense network checked on some of the test samples."""
    job = leave_out_outliers(job, progress)
    dense = copy_network(job)
    memory_format = use_memory_format(job.facts, job.network.module, dense.module)
    with fixed_order(job.device), memory_format:
        planner = MemoryPlanner(job)
        with use_chunks(planner.plan_probe()):
            alerts = check_quickly(job, progress)
            prepared = prepare(job, dense, planner, progress)
        with use_chunks(prepared.divisors.run):
            return Rehearsal(prepared, estimate(job, prepared.plan), (*prepared.alerts, *alerts))


class _Run:
    """One run, from its preparation to its outcome, which can be saved and resumed on the way."""

    def __init__(
        self,
        prepared: Preparation,
        dense: Measurement,
        progress: Progress,
        store: StateStore,
        saved: Mapping[str, Any],
        clock: Clock,
        monitor: ProgressMonitor,
    ) -> None:
        self.prepared, self.job, self.dense = prepared, prepared.job, dense
        self.progress, self.store, self.saved, self.clock = progress, store, saved, clock
        self.time = estimate(self.job, prepared.plan)
        self.stages = Stages(prepared, progress, self.checkpoint_point, monitor)
        self.finetuning: Finetuning | None = None
        if prepared.plan.epochs and prepared.training is not None and prepared.validation is not None:
            self.finetuning = Finetuning(
                prepared,
                self.stages,
                prepared.training,
                prepared.validation,
                progress,
                self.checkpoint_point,
                monitor,
            )

    def run(self) -> PruneResult:
        """Prune, fine-tune and measure."""
        clock, state = self.clock, self.stages.state
        self._announce()
        with clock.time("prune"):
            self._prune()
        finetuning = self._finetune()
        check_masks(self.job.network.module, state.masks)
        with clock.time("measure"):
            pruned = self._measure_pruned()
        self._report(self.dense, pruned)
        return make_outcome(self.prepared, state, finetuning, self.dense, pruned, self.time, clock.so_far())

    def _announce(self) -> None:
        """Tell the user of the run's needs."""
        memory, time = self.prepared.memory, self.time
        for note in (memory.describe(), Detail(memory.details()), time.describe()):
            self.progress.note(note)
        expect(self.progress, time.estimate_seconds)

    def _prune(self) -> None:
        """Do all the pruning that comes before training: everything, unless the schedule is gradual."""
        saved = self.saved.get("stages")
        if self.job.config.prune.schedule == "one-shot" and self.saved.get("finetuning") is None:
            self.stages.run(saved)
        elif saved is not None:
            self.stages.load_state_dict(saved)
        else:
            self.checkpoint_point()

    def _finetune(self) -> FinetuningResult:
        if self.finetuning is None:
            return FinetuningResult()
        with self.clock.time("fine-tune"):
            return self.finetuning.run(self.saved.get("finetuning"))

    def _measure_pruned(self) -> Measurement:
        job, module = self.job, self.job.network.module
        evaluation = evaluate_on_test(
            job, module, self.progress, "measure the pruned network", self.prepared.dense.module
        )
        return Measurement(evaluation, network_stats(job, module, evaluation))

    def _report(self, dense: Measurement, pruned: Measurement) -> None:
        """Give the metrics to trackers."""
        sides = {"dense": dense.stats.metrics, "pruned": pruned.stats.metrics}
        numbers = {f"test/{side}/{name}": value for side, metrics in sides.items() for name, value in metrics.items()}
        if numbers:
            self.progress.measured(self.stages.state.train_steps, numbers)

    def checkpoint_point(self) -> None:
        """Save the state, if that is due. It is complete here."""
        if self.store.due():
            self.store.save(self._state_dict())

    def _state_dict(self) -> dict[str, Any]:
        dense = self.dense.evaluation
        return {
            "chunks": self.prepared.divisors.state_dict(),
            "threads": torch.get_num_threads(),
            "seconds": self.clock.so_far(),
            "dense": None if dense is None else vars(dense),
            "stages": self.stages.state_dict(),
            "finetuning": None if self.finetuning is None else self.finetuning.state_dict(),
        }
