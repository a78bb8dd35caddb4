"""load -> fit the Taylor model -> score -> select -> repair -> measure (in stages) -> fine-tune."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError
from prunetaylor.core.pass_progress import listen
from prunetaylor.core.progress import Detail, Progress, ProgressMonitor, expect, no_monitor, part_listener
from prunetaylor.core.results.judgement import assess
from prunetaylor.core.results.outcome import (
    ClassDrop,
    Drop,
    Epoch,
    Flips,
    LayerResult,
    NetworkStats,
    PruneResult,
    Sparsity,
)
from prunetaylor.core.state_store import NullStore, StateStore
from prunetaylor.data.samples import Split, draw
from prunetaylor.measure.chance import constant_answer
from prunetaylor.measure.cost import count, flops
from prunetaylor.measure.disagreements import class_drops, flips
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.evaluate import evaluate as evaluate_on
from prunetaylor.measure.paired import bootstrap_interval, drop_interval
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.network.checkpoint.write import model_bytes
from prunetaylor.network.network import Network
from prunetaylor.network.state import copied, fixed_order
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import glance, pruned_doubts, say_doubts, set_aside
from prunetaylor.pipeline.files.resume import restoring
from prunetaylor.pipeline.finetuning.loop import Finetuning, gradual_levels
from prunetaylor.pipeline.job import Job, open_job
from prunetaylor.pipeline.memory_plan import Plan, make_plan
from prunetaylor.pipeline.stages.loop import Stages
from prunetaylor.pipeline.time_estimate import estimate
from prunetaylor.pruning.repair.masks import check_masks
from prunetaylor.runtime.user_code import source_hash
from prunetaylor.taylor.memory import ChunkDivisors, current_chunks, use_chunks
from prunetaylor.taylor.passes import first_batch

__all__ = ["Job", "evaluate", "open_job", "run"]

ENOUGH = 2000
"""Samples to choose between epochs by, at most: where two epochs differ in a twentieth of the answers, the standard
error of the difference of their accuracies is half a point. The rest is left to train on."""


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        self._running[phase] = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - self._running.pop(phase)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + taken

    def so_far(self) -> dict[str, float]:
        """With what the phases at work have taken until now."""
        now = time.perf_counter()
        found = dict(self.seconds)
        for phase, start in self._running.items():
            found[phase] = found.get(phase, 0.0) + now - start
        return found


def run(
    job: Job,
    progress: Progress,
    store: StateStore | None = None,
    *,
    dense_found: Evaluation | None = None,
    watch: ProgressMonitor = no_monitor,
) -> PruneResult:
    """Prune, repair, fine-tune and measure. ``job.network`` is pruned in place; nothing but ``store`` is written to.

    It goes on from what the keeper was left with. ``dense_found`` is the dense network's evaluation on the test
    samples, where somebody has it already; ``watch`` is told what each stage and epoch came to, and may end the run by
    an exception of its own.

    UsageError, before anything is done, where it does not fit in memory.
    """
    return _Run(job, progress, store or NullStore(), dense_found, watch).outcome()


def rehearse(job: Job, progress: Progress) -> Plan:
    """What ``run`` finds out before it begins: the memory plan, doubts about the network, and the errors of settings
    that do not fit the data."""
    set_aside(job, progress)
    plan = make_plan(job)
    training, _ = training_split(job)
    if job.epochs and training is not None:
        gradual_levels(job, job.batches(training, drop_last=True))
    with use_chunks(plan.chunks):
        glance(job, progress)
    return plan


class _Run:
    """One run, from its job to its outcome; what it has done so far can be kept, and gone on from."""

    def __init__(
        self, job: Job, progress: Progress, store: StateStore, dense_found: Evaluation | None, watch: ProgressMonitor
    ) -> None:
        self.job, self.progress, self.store, self.watch = job, progress, store, watch
        self.dense_found = dense_found
        self.left = store.load() or {}
        set_aside(job, progress)
        self.plan = make_plan(job)
        self.time = estimate(job)
        if self.left:
            # Other chunks would round otherwise.
            with restoring():
                self.plan = replace(self.plan, chunks=ChunkDivisors(**self.left["chunks"]))
        with restoring():
            self.clock = Clock(dict(self.left.get("seconds", {})))
        self.dense = Network.from_module(copied(job.network.module), job.config.prune.include, job.config.prune.exclude)
        self.training, self.validation = training_split(job)
        self.stages = Stages(job, self.dense, self.training, progress, self.checkpoint_point, watch)
        self.finetuning = self._finetuning()

    def outcome(self) -> PruneResult:
        job, progress, clock, stages, module = self.job, self.progress, self.clock, self.stages, self.job.network.module
        together, fixed = (
            use_memory_format(job, module, self.dense.module),
            fixed_order(job.device, self.left.get("threads")),
        )
        hears = listen(part_listener(progress))
        with clock.time("total"), use_chunks(self.plan.chunks), fixed, hears, together as said:
            job.choices += [*said, job.epochs_reason]
            for choice in (*job.choices, self.plan.describe(), Detail(self.plan.details()), self.time.describe()):
                progress.note(choice)
            expect(progress, self.time.estimate_seconds)
            with clock.time("measure"):
                self.dense_found = self._measure_dense()
                say_doubts(job, self.dense_found, progress)
                dense_side = _side(job, self.dense.module, self.dense_found, job.checkpoint)
            with clock.time("prune"):
                self._prune()
            epochs: list[Epoch] = []
            if self.finetuning is not None:
                with clock.time("fine-tune"):
                    epochs = self.finetuning.run(self.left.get("finetuning"))
            check_masks(module, stages.state.masks)
            with clock.time("measure"):
                pruned_found = _measure(job, module, progress, "measure the pruned network")
                pruned_side = _side(job, module, pruned_found)
            sides = {"dense": dense_side, "pruned": pruned_side}
            told = {f"test/{side}/{name}": value for side in sides for name, value in sides[side].metrics.items()}
            if told:
                progress.measured(stages.state.train_steps, told)
        found = PruneResult(
            module=module,
            masks=stages.state.masks,
            method=job.method,
            metric=job.config.metric,
            goal="min" if job.config.metric == "loss" else "max",
            dense=dense_side,
            pruned=pruned_side,
            sparsity=_sparsity(job, stages.state.masks),
            drop=_drop(job, self.dense_found, pruned_found),
            loss_rise=_loss_rise(job, self.dense_found, pruned_found),
            stages=stages.state.history,
            first_order=stages.first_order,
            layers=_layers(job, stages.state.masks),
            skipped=job.network.skipped,
            epochs=epochs,
            choices=[*job.choices, *stages.state.choices.lines, *(self.finetuning.choices if self.finetuning else [])],
            seconds=clock.seconds,
            seed=job.config.seed,
            device=str(job.device),
            hashes=hashes(job),
            memory=self.plan.report,
            time=self.time,
            flips=_flips(self.dense_found, pruned_found),
            classes=_classes(self.dense_found, pruned_found),
            histogram=stages.state.histogram,
            unfinished=None if self.finetuning is None else self.finetuning.unfinished,
            warnings=[*job.warnings, *pruned_doubts(job, pruned_found)],
            constant={} if self.dense_found is None else constant_answer(self.dense_found, job.task).metrics,
        )
        training = 0 if job.samples is None else len(job.samples.train)
        return replace(found, verdict=assess(found, job.config, training))

    def _measure_dense(self) -> Evaluation | None:
        if "dense" in self.left:
            found = self.left["dense"]
            with restoring():
                return None if found is None else Evaluation(**found)
        return self.dense_found or _measure(self.job, self.dense.module, self.progress, "measure the dense network")

    def _prune(self) -> None:
        """All that is pruned before any training."""
        left = self.left.get("stages")
        if self.job.config.prune.schedule == "one-shot" and self.left.get("finetuning") is None:
            self.stages.run(left)
            return
        self.stages.prepare()
        if left is not None:
            self.stages.load_state_dict(left)
        else:
            self.checkpoint_point()

    def _finetuning(self) -> Finetuning | None:
        if not self.job.epochs or self.training is None or self.validation is None:
            return None
        return Finetuning(
            self.job,
            self.stages,
            self.dense.module,
            self.training,
            self.validation,
            self.progress,
            self.checkpoint_point,
            self.watch,
        )

    def checkpoint_point(self) -> None:
        """The state is whole: keep it, where it is time."""
        if self.store.due():
            self.store.save(self._state())

    def _state(self) -> dict[str, Any]:
        dense = self.dense_found
        return {
            "chunks": asdict(self.plan.chunks),
            "threads": torch.get_num_threads(),
            "seconds": self.clock.so_far(),
            "dense": None if dense is None else vars(dense),
            "stages": self.stages.state_dict(),
            "finetuning": None if self.finetuning is None else self.finetuning.state_dict(),
        }


def evaluate(job: Job, progress: Progress) -> NetworkStats:
    """Measure the job's network as it is."""
    module = job.network.module
    with use_memory_format(job, module):
        found = _measure(job, module, progress, "measure")
        say_doubts(job, found, progress)
    return _side(job, module, found, job.checkpoint)


def training_split(job: Job) -> tuple[Split | None, Split | None]:
    """What calibrates and fine-tunes, and what chooses between epochs (None where nothing is chosen)."""
    if job.samples is None:
        return None, None
    train = job.samples.train
    if not job.epochs or job.samples.validation is not None:
        return train, job.samples.validation
    share = job.config.data.validation
    held = min(round(len(train) / 10), ENOUGH) if share == "auto" else round(share * len(train))
    if held < 1 or len(train) - held < 2:
        raise DataError(
            f"{len(train)} training samples are too few to hold some out for validation",
            "use --epochs 0, or more samples",
        )
    # A generator of its own: the split must not depend on how many numbers anything else draws.
    order = draw(train, len(train), torch.Generator().manual_seed(job.config.seed))
    job.choices.append(
        f"validation: {held} of the {len(train)} training samples, held out of calibration and fine-tuning"
    )
    return train.subset(sorted(order[held:])), train.subset(sorted(order[:held]))


def _measure(job: Job, module: nn.Module, progress: Progress, phase: str) -> Evaluation | None:
    if job.samples is None:
        return None
    progress.phase(phase)
    batch = max(1, job.config.data.batch_size // current_chunks().batch)
    return evaluate_on(module, job.batches(job.samples.test, batch_size=batch), job.task)


def _side(job: Job, module: nn.Module, found: Evaluation | None, file: Checkpoint | None = None) -> NetworkStats:
    """The numbers of a network; ``file`` is the checkpoint that it was read from."""
    parameters, nonzero = count(module)
    work: tuple[int | None, int | None] = (None, None)
    if job.samples is not None:
        example, _ = first_batch(job.batches(job.samples.test.subset([0])))
        work = flops(module, example)
    return NetworkStats(
        found.metrics if found else {}, parameters, nonzero, *work, model_bytes(module) if file is None else file.size
    )


def _sparsity(job: Job, masks: Mapping[str, Tensor]) -> Sparsity:
    prunable = job.network.prunable
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return Sparsity(job.config.prune.sparsity, removed / prunable, prunable, removed)


def _drop(job: Job, dense: Evaluation | None, pruned: Evaluation | None) -> Drop | None:
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return None
    return drop_interval(dense.correct, pruned.correct)


def _loss_rise(job: Job, dense: Evaluation | None, pruned: Evaluation | None) -> Drop | None:
    if dense is None or pruned is None or len(dense.losses) < 2:
        return None
    return bootstrap_interval(-dense.losses, -pruned.losses, torch.Generator().manual_seed(job.config.seed))


def _flips(dense: Evaluation | None, pruned: Evaluation | None) -> Flips | None:
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return None
    return flips(dense.correct, pruned.correct)


def _classes(dense: Evaluation | None, pruned: Evaluation | None) -> list[ClassDrop]:
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return []
    return class_drops(dense.correct, pruned.correct, dense.targets)


def _layers(job: Job, masks: Mapping[str, Tensor]) -> list[LayerResult]:
    found = []
    for layer in job.network.layers:
        removed = int((~masks[layer.parameter]).sum())
        shape = tuple(layer.weight.shape)
        found.append(LayerResult(layer.name, shape, removed, removed / layer.weight.numel()))
    return found


def hashes(job: Job) -> dict[str, str]:
    """sha256 of the checkpoint and of each file of code that is named, and the data's fingerprint: what there is."""
    found = {}
    if job.checkpoint is not None:
        found["checkpoint"] = job.checkpoint.sha256
    if job.samples is not None:
        found["data"] = job.samples.fingerprint
    code = {"code of the network": job.config.model.arch, "code of the data": job.config.data.source}
    code |= {"code of the loss": job.config.loss}
    return found | {name: digest for name, spec in code.items() if (digest := source_hash(spec or "")) is not None}
