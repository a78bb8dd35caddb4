"""One run: open -> fit the Taylor model -> score -> select -> repair -> measure (in stages) -> fine-tune."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from prunetaylor.core.clock import Clock
from prunetaylor.core.pass_progress import listen
from prunetaylor.core.progress import Detail, Progress, ProgressMonitor, expect, no_monitor, part_listener
from prunetaylor.core.results.outcome import Alert, PruneResult, Time
from prunetaylor.core.state_store import NullStore, StateStore
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.network.network import Network
from prunetaylor.network.state import copy_module, fixed_order
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import check_quickly, leave_out_outliers
from prunetaylor.pipeline.estimates.memory import MemoryPlan, plan_memory
from prunetaylor.pipeline.estimates.time import estimate
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.finetuning.loop import Finetuning, FinetuningResult
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.measurement import Measurement, evaluate_on_test, measure_dense, network_stats
from prunetaylor.pipeline.outcome import make_outcome
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pipeline.sampling.validation_split import training_split
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pruning.masks import check_masks
from prunetaylor.taylor.memory import ChunkDivisors, use_chunks


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
        UsageError: the run does not fit in memory; raised before any work.
    """
    return _Run(job, progress, store or NullStore(), dense_evaluation, monitor).run()


@dataclass(frozen=True)
class Rehearsal:
    """A run's plan, the memory and the time that it needs, and the warnings before its first stage."""

    plan: PruningPlan
    memory: MemoryPlan
    time: Time
    alerts: tuple[Alert, ...]


def rehearse(job: Job, progress: Progress) -> Rehearsal:
    """Do what a run does before its first stage."""
    job = leave_out_outliers(job, progress)
    plan = make_plan(job.config, job.facts, job.choices)
    memory = plan_memory(job, plan)
    dense = _copy(job)
    training, _ = training_split(job, plan.validation)
    memory_format = use_memory_format(job.facts, job.network.module, dense.module)
    with use_chunks(memory.divisors), fixed_order(job.device), memory_format:
        alerts = [*job.warnings, *check_quickly(job, progress)]
        if training is not None:
            stages = Stages(job, plan, dense, training, progress)
            stages.prepare()
            plan = stages.setup.plan
            alerts += stages.alerts
        return Rehearsal(plan, memory, estimate(job, plan), tuple(alerts))


def _copy(job: Job) -> Network:
    """Return a copy of the job's network, which stays as it is."""
    return Network.from_module(copy_module(job.network.module), job.config.prune.include, job.config.prune.exclude)


class _Run:
    """One run, from its job to its outcome, which can be saved and resumed on the way."""

    def __init__(
        self,
        job: Job,
        progress: Progress,
        store: StateStore,
        dense_evaluation: Evaluation | None,
        monitor: ProgressMonitor,
    ) -> None:
        self.progress, self.store, self.monitor, self.saved = progress, store, monitor, store.load() or {}
        self.job = job = leave_out_outliers(job, progress)
        self.plan = make_plan(job.config, job.facts, job.choices)
        self.memory, self.time = plan_memory(job, self.plan), estimate(job, self.plan)
        with restoring():
            if self.saved:  # other chunks would round differently
                self.memory = replace(self.memory, divisors=ChunkDivisors(**self.saved["chunks"]))
            self.clock = Clock(dict(self.saved.get("seconds", {})))
            known = self.saved.get("dense")
            self.dense_evaluation = dense_evaluation if known is None else Evaluation(**known)
        self.dense = _copy(job)
        training, validation = training_split(job, self.plan.validation)
        self.stages = Stages(job, self.plan, self.dense, training, progress, self.checkpoint_point, monitor)
        self.finetuning: Finetuning | None = None
        if self.plan.epochs and training is not None and validation is not None:
            self.finetuning = Finetuning(
                job,
                self.plan,
                self.stages,
                self.dense.module,
                training,
                validation,
                progress,
                self.checkpoint_point,
                monitor,
            )

    def run(self) -> PruneResult:
        job, clock = self.job, self.clock
        memory_format = use_memory_format(job.facts, job.network.module, self.dense.module)
        fixed, listening = fixed_order(job.device, self.saved.get("threads")), listen(part_listener(self.progress))
        with clock.time("total"), use_chunks(self.memory.divisors), fixed, listening, memory_format:
            self._announce()
            with clock.time("measure"):
                dense = self._measure_dense()
            with clock.time("prune"):
                self._prune()
            finetuning = self._finetune()
            check_masks(job.network.module, self.stages.state.masks)
            with clock.time("measure"):
                pruned = self._measure_pruned()
            self._report(dense, pruned)
        return make_outcome(
            job,
            self.stages,
            finetuning,
            dense,
            pruned,
            seconds=clock.seconds,
            memory=self.memory.report,
            time=self.time,
        )

    def _announce(self) -> None:
        """Tell the user of the run's opening and its needs."""
        memory, time = self.memory, self.time
        for note in (*self.job.notes, memory.describe(), Detail(memory.details()), time.describe()):
            self.progress.note(note)
        expect(self.progress, time.estimate_seconds)

    def _measure_dense(self) -> Measurement:
        job, module = self.job, self.dense.module
        if self.dense_evaluation is None:
            self.dense_evaluation = evaluate_on_test(job, module, self.progress, "measure the dense network")
        return measure_dense(job, module, self.dense_evaluation, self.progress)

    def _prune(self) -> None:
        """Do all the pruning that comes before training: everything, unless the schedule is gradual."""
        saved = self.saved.get("stages")
        if self.job.config.prune.schedule == "one-shot" and self.saved.get("finetuning") is None:
            self.stages.run(saved)
            return
        self.stages.prepare()
        if saved is not None:
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
        evaluation = evaluate_on_test(job, module, self.progress, "measure the pruned network")
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
        dense = self.dense_evaluation
        return {
            "chunks": asdict(self.memory.divisors),
            "threads": torch.get_num_threads(),
            "seconds": self.clock.so_far(),
            "dense": None if dense is None else vars(dense),
            "stages": self.stages.state_dict(),
            "finetuning": None if self.finetuning is None else self.finetuning.state_dict(),
        }
