"""The outcome of a run is put together from its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from prunetaylor.core.results.judgement import assess
from prunetaylor.core.results.outcome import (
    Drop,
    LayerResult,
    PruneResult,
    Sparsity,
    Time,
)
from prunetaylor.measure.chance import best_constant_answer
from prunetaylor.measure.comparison import compare_networks, loss_rise, metric_drop
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.network.precision import convert
from prunetaylor.pipeline.checks.sanity import pruned_alerts
from prunetaylor.pipeline.files.input_hashes import input_hashes
from prunetaylor.pipeline.finetuning.loop import FinetuningResult
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.measurement import Measurement
from prunetaylor.pipeline.preparation import Preparation
from prunetaylor.pipeline.stages.state import PruningState


def make_outcome(
    prepared: Preparation,
    state: PruningState,
    finetuning: FinetuningResult,
    dense: Measurement,
    pruned: Measurement,
    time: Time,
    seconds: dict[str, float],
) -> PruneResult:
    """Put the outcome together, and assess it."""
    job, plan = prepared.job, prepared.plan
    convert(job.network.module, job.types)
    comparison, metric = compare_networks(dense.evaluation, pruned.evaluation), job.metric
    ruined = pruned_alerts(job, pruned.evaluation, dense.alerts)
    outcome = PruneResult(
        module=job.network.module,
        masks=state.masks,
        method=plan.method,
        metric=metric.name,
        goal=metric.goal,
        unit=metric.unit,
        dense=dense.stats,
        pruned=pruned.stats,
        sparsity=_sparsity(job, state.removed),
        drop=metric_drop(metric, dense.evaluation, pruned.evaluation, job.config.seed),
        loss_rise=_loss_rise(job, dense.evaluation, pruned.evaluation),
        stages=state.history,
        first_order=plan.first_order,
        layers=_layers(job, state.masks),
        skipped=job.network.skipped,
        epochs=finetuning.epochs,
        choices=[*job.notes, *state.choices.lines, *finetuning.choices],
        seconds=seconds,
        plan=list(plan.choices),
        seed=job.config.seed,
        device=str(job.device),
        hashes=input_hashes(job),
        memory=prepared.memory.report,
        time=time,
        flips=comparison.flips,
        classes=comparison.classes,
        histogram=state.histogram,
        unfinished=finetuning.unfinished,
        warnings=[*prepared.alerts, *dense.alerts, *finetuning.alerts, *ruined],
        constant=_best_constant_metrics(job, dense),
    )
    training_samples = 0 if job.samples is None else len(job.samples.train)
    return replace(outcome, verdict=assess(outcome, job.config, training_samples))


def _best_constant_metrics(job: Job, dense: Measurement) -> dict[str, float]:
    """Return the metrics of the best constant answer, of those that the dense network was measured by."""
    if dense.evaluation is None or not job.facts.test_labelled:
        return {}
    metrics = best_constant_answer(dense.evaluation, job.task).metrics
    return {name: value for name, value in metrics.items() if name in dense.stats.metrics}


def _sparsity(job: Job, removed: int) -> Sparsity:
    prunable = job.network.prunable
    share = job.network.prunable_share
    return Sparsity(job.config.prune.sparsity, removed / prunable, prunable, removed, share)


def _loss_rise(job: Job, dense: Evaluation | None, pruned: Evaluation | None) -> Drop | None:
    if dense is None or pruned is None or len(dense.losses) < 2:
        return None
    return loss_rise(dense, pruned, job.config.seed)


def _layers(job: Job, masks: Mapping[str, Tensor]) -> list[LayerResult]:
    layers = []
    for layer in job.network.layers:
        removed, weight = int((~masks[layer.parameter]).sum()), layer.weight
        layers.append(LayerResult(layer.name, tuple(weight.shape), removed, removed / weight.numel()))
    return layers
