"""A pruned network is compared with its dense one: the gate measures both, and judges the limits.

Drops are measured on the test samples, on which nothing in this program is chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from torch import nn

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.schema import Config, GateSection
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import (
    BROKEN,
    Alert,
    Drop,
    Flips,
    Latency,
    LayerResult,
    NetworkStats,
    removed_at,
)
from prunetaylor.core.results.verdict import Check, Unit, Verdict
from prunetaylor.data.samples import Batches
from prunetaylor.gate import limits
from prunetaylor.gate.pair import Pair, open_pair
from prunetaylor.measure.comparison import Comparison, compare_networks, largest_change, metric_drops, metric_flips
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.latency import compare_latency
from prunetaylor.measure.metric import Metric, SetMetric
from prunetaylor.measure.metrics import load_metric
from prunetaylor.measure.resampling import RESAMPLES
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import dense_alerts
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.measurement import evaluate_on_test, network_stats
from prunetaylor.taylor.passes import first_batch

_LIMITS = ("max_drop", "max_class_drop", "min_sparsity", "max_size", "max_flops", "max_latency_ratio")
_NEEDS_SAMPLES = {"max_drop", "max_class_drop", "max_flops", "max_latency_ratio"}
_LEVELS = (0.95, 0.9)
"""Levels of two-sided intervals: the first is reported; the ends of the second are the one-sided 95 % limits."""


def limits_set(gate: GateSection) -> list[str]:
    """Return the names of the limits that are set."""
    return [name for name in _LIMITS if getattr(gate, name) is not None]


def require_limits(config: Config) -> None:
    """Raise UsageError where no limit is set, or one cannot be judged, before any work is done."""
    gate = config.gate
    if not limits_set(gate):
        raise UsageError(
            "no limit is set: nothing to judge",
            "set --max-drop 0.5pp, --min-sparsity 80%, or limits in a gate: block of the configuration",
        )
    without = sorted(_NEEDS_SAMPLES & set(limits_set(gate)))
    if config.data.source == "none" and without:
        raise UsageError(f"gate.{without[0]} cannot be judged without samples", "name them with --data")
    named = gate.metric or asked(config.metric)
    if named is not None:
        load_metric(named)


def require_reachable(job: Job) -> None:
    """Raise UsageError where the run cannot reach the gate's sparsity, before any work is done."""
    least, target, prunable = job.config.gate.min_sparsity, job.config.prune.sparsity, job.network.prunable
    if least is not None and max(removed_at(target, prunable), job.network.zeros) < removed_at(least, prunable):
        raise UsageError(
            f"gate.min_sparsity={least:.2%} cannot be met: prune.sparsity={target:.2%} removes less",
            f"use --sparsity {least:.2%}, or lower the limit",
        )


def check(config: Config, *, trust: Trust, progress: Progress) -> Verdict:
    """Judge the file or run in ``config.model.checkpoint`` by the limits of ``config.gate``.

    ``trust`` covers the code that may be imported although only a file names it. Raises UsageError (no limit, no
    baseline, limits that need samples), CheckpointRefused, DataError and NumericsError.
    """
    require_limits(config)
    start = time.perf_counter()
    progress.phase("open")
    pair = open_pair(config, trust=trust)
    if config.gate.metric is not None:
        pair = replace(
            pair, dense=pair.dense.with_metric(config.gate.metric), pruned=pair.pruned.with_metric(config.gate.metric)
        )
    measured = _measure(pair, progress)
    job = pair.pruned
    checks = _compare_with_limits(pair, measured)
    if any(alert.key in BROKEN for alert in measured.alerts):
        checks = [limits.baseless(check) for check in checks]
    return Verdict(
        checks=checks,
        on_inconclusive=config.gate.on_inconclusive,
        metric=job.metric.name,
        goal=job.metric.goal,
        unit=job.metric.unit,
        dense=measured.sides[0],
        pruned=measured.sides[1],
        files={"dense": _file(pair.dense).path.as_posix(), "pruned": _file(job).path.as_posix()},
        drop=measured.drop,
        flips=measured.comparison.flips,
        classes=measured.comparison.classes,
        layers=_layers(pair),
        latency=measured.latency,
        samples=measured.samples,
        data=None if job.samples is None else job.samples.source,
        seed=config.seed,
        device=str(job.device),
        seconds=time.perf_counter() - start,
        notes=pair.notes,
        hashes=_hashes(pair),
        warnings=list(measured.alerts),
    )


@dataclass(frozen=True)
class _Measured:
    """The measurements of both networks.

    ``drop`` has a two-sided 95 % interval, ``one_sided`` has one-sided limits. Where the metric says of each sample
    whether it is right, ``flips`` has the samples on which only one network is.
    """

    sides: tuple[NetworkStats, NetworkStats]
    samples: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    drop: Drop | None = None
    one_sided: Drop | None = None
    flips: Flips | None = None
    largest_change: float | None = None  # the most that one sample may add to the drop; None where that is unknown
    latency: Latency | None = None
    alerts: tuple[Alert, ...] = ()  # of the dense network


def _measure(pair: Pair, progress: Progress) -> _Measured:
    """Measure both networks on the test samples, and their latency where it has a limit."""
    config, metric = pair.pruned.config, pair.pruned.metric
    if pair.pruned.samples is None:
        return _Measured((_stats(pair.dense, None), _stats(pair.pruned, None)))
    dense = _evaluate(pair.dense, progress, "measure the dense network")
    alerts = dense_alerts(pair.dense, dense)
    for alert in alerts:
        progress.warn(alert.text)
    pruned = _evaluate(pair.pruned, progress, "measure the pruned network", pair.dense.network.module)
    if isinstance(metric, SetMetric):
        progress.phase(f"resample {metric.title}", RESAMPLES)
    largest = largest_change(dense, pruned)
    drop, one_sided = metric_drops(metric, dense, pruned, config.seed, _LEVELS, largest=largest, step=progress.step)
    measured = _Measured(
        sides=(_stats(pair.dense, dense), _stats(pair.pruned, pruned)),
        samples=len(dense.losses),
        comparison=compare_networks(dense, pruned),
        drop=drop,
        one_sided=one_sided,
        flips=metric_flips(metric, dense, pruned),
        largest_change=largest,
        alerts=alerts,
    )
    if config.gate.max_latency_ratio is not None:
        x, _ = first_batch(_test(pair.pruned, config.gate.latency_batch))
        times = compare_latency(pair.dense.network.module, pair.pruned.network.module, x, progress)
        measured = replace(measured, latency=times)
    return measured


def _compare_with_limits(pair: Pair, measured: _Measured) -> list[Check]:
    """Return the check of every limit that is set, drops first."""
    gate, checks = pair.pruned.config.gate, []
    if gate.max_drop is not None:
        checks.append(_drop_check(pair.pruned.metric, measured, gate.max_drop))
    if gate.max_class_drop is not None:
        if not measured.comparison.classes:
            raise UsageError("gate.max_class_drop needs targets that are classes", "omit the limit")
        checks.append(limits.class_drop(measured.comparison.classes, gate.max_class_drop))
    if gate.min_sparsity is not None:
        checks.append(limits.sparsity(*_removed(pair), gate.min_sparsity))
    if gate.max_size is not None:
        checks.append(limits.file_size(_file(pair.pruned).size, gate.max_size))
    if gate.max_flops is not None:
        before, after = ((side.flops or 0, side.flops_nonzero or 0) for side in measured.sides)
        checks.append(limits.flops(before, after, gate.max_flops))
    if gate.max_latency_ratio is not None:
        assert measured.latency is not None
        checks.append(limits.latency(measured.latency, gate.max_latency_ratio))
    return checks


def _drop_check(metric: Metric, measured: _Measured, limit: float) -> Check:
    """Return the check of the drop: by the flips of a metric that is right or wrong, else by one-sided limits."""
    if measured.flips is not None:
        return limits.accuracy_drop(measured.flips, limit)
    assert measured.one_sided is not None  # a limit on the drop requires samples
    unit: Unit = "pp" if metric.unit == "%" else "metric"
    return limits.metric_drop(metric.title, measured.one_sided, measured.samples, limit, measured.largest_change, unit)


def _evaluate(job: Job, progress: Progress, phase: str, dense: nn.Module | None = None) -> Evaluation:
    with use_memory_format(job.facts, job.network.module):
        evaluation = evaluate_on_test(job, job.network.module, progress, phase, dense)
    assert evaluation is not None  # the caller has checked that there are samples
    return evaluation


def _test(job: Job, batch: int | None = None) -> Batches:
    """Return batches of the test samples, on which nothing is chosen."""
    assert job.samples is not None
    return job.batches(job.samples.test, **({} if batch is None else {"batch_size": batch}))


def _stats(job: Job, evaluation: Evaluation | None) -> NetworkStats:
    return network_stats(job, job.network.module, evaluation, _file(job))


def _file(job: Job) -> Checkpoint:
    assert job.checkpoint is not None  # the jobs of a gate are opened from files
    return job.checkpoint


def _removed(pair: Pair) -> tuple[int, int]:
    """Return (removed, prunable) weights: of the layers that the pruned file names as prunable, else of all layers.

    The dense network's weights are counted, and those that are not zero in the pruned network. A weight whose channel
    was removed physically counts as removed, like one that is zero.
    """
    metadata = _file(pair.pruned).metadata
    names = list(metadata.masks) if metadata is not None and metadata.masks else None
    dense, pruned = (dict(job.network.module.named_parameters()) for job in (pair.dense, pair.pruned))
    if names is None or not all(name in dense and name in pruned for name in names):
        names = [layer.parameter for layer in pair.dense.network.layers]
    prunable = sum(dense[name].numel() for name in names)
    remaining = sum(int(pruned[name].count_nonzero()) for name in names if name in pruned)
    return prunable - remaining, prunable


def _layers(pair: Pair) -> list[LayerResult]:
    """Return the removed weights of each layer of the dense network: those that are zero, or physically removed."""
    pruned = dict(pair.pruned.network.module.named_parameters())
    rows = []
    for layer in pair.dense.network.layers:
        size = layer.weight.numel()
        removed = size - (int(pruned[layer.parameter].count_nonzero()) if layer.parameter in pruned else 0)
        rows.append(LayerResult(layer.name, tuple(layer.weight.shape), removed, removed / size))
    return rows


def _hashes(pair: Pair) -> dict[str, str]:
    hashes = {"dense": _file(pair.dense).sha256, "pruned": _file(pair.pruned).sha256}
    return hashes if pair.pruned.samples is None else {**hashes, "data": pair.pruned.samples.fingerprint}
