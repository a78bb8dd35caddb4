"""A pruned network held against its dense one: measure what the limits ask for, and judge.

Drops are measured on the test samples, on which nothing in this program is chosen: they report only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch

from prunetaylor.core.config.code import Trust
from prunetaylor.core.config.schema import Config, GateSection
from prunetaylor.core.errors import UsageError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import (
    BROKEN,
    ClassDrop,
    Drop,
    Flips,
    Latency,
    LayerResult,
    NetworkStats,
    removed_at,
)
from prunetaylor.core.results.verdict import Check, Verdict
from prunetaylor.data.samples import Batches
from prunetaylor.gate import limits
from prunetaylor.gate.metric import RESAMPLES, load_metric, resampled_drops
from prunetaylor.gate.pair import Pair, open_pair
from prunetaylor.measure.cost import count, flops
from prunetaylor.measure.disagreements import class_drops, flips
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.measure.latency import compare_latency
from prunetaylor.measure.paired import bootstrap_interval, drop_interval
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import say_doubts
from prunetaylor.pipeline.job import Job
from prunetaylor.taylor.passes import all_outputs, first_batch

_LIMITS = ("max_drop", "max_class_drop", "min_sparsity", "max_size", "max_flops", "max_latency_ratio")
_NEEDS_SAMPLES = {"max_drop", "max_class_drop", "max_flops", "max_latency_ratio"}
_LEVELS = (0.95, 0.9)
"""Of two-sided intervals: the first is reported, the limits of the second are one-sided at 95 % and judged."""


def asked(gate: GateSection) -> list[str]:
    """The limits that are set."""
    return [name for name in _LIMITS if getattr(gate, name) is not None]


def require_limits(config: Config) -> None:
    """UsageError where no limit is set, or one that could not be judged: before any work is done."""
    gate = config.gate
    if not asked(gate):
        raise UsageError(
            "no limit is set: nothing to judge",
            "set --max-drop 0.5pp, --min-sparsity 80%, or limits in a gate: block of the configuration",
        )
    without = sorted(_NEEDS_SAMPLES & set(asked(gate)))
    if config.data.source == "none" and without:
        raise UsageError(f"gate.{without[0]} cannot be judged without samples", "name them with --data")
    if gate.max_class_drop is not None and config.metric != "top1":
        raise UsageError("gate.max_class_drop is of the top-1 accuracy", "set metric=top1, or omit it")
    if gate.metric is not None:
        load_metric(gate.metric)


def require_reachable(job: Job) -> None:
    """UsageError for a sparsity that the gate asks for and the run will not come to: before any work is done."""
    least, asked_for, prunable = job.config.gate.min_sparsity, job.config.prune.sparsity, job.network.prunable
    already = sum(int((~mask).sum()) for mask in job.network.masks().values())
    if least is not None and max(removed_at(asked_for, prunable), already) < removed_at(least, prunable):
        raise UsageError(
            f"gate.min_sparsity={least:.2%} cannot be held: prune.sparsity={asked_for:.2%} removes less",
            f"use --sparsity {least:.2%}, or lower the limit",
        )


def check(config: Config, *, trust: Trust, progress: Progress) -> Verdict:
    """Judge the file or run in ``config.model.checkpoint`` by the limits of ``config.gate``.

    ``trust`` is the code that may be imported though only a file names it. Raises UsageError (no limit, no baseline,
    limits that need samples), CheckpointRefused, DataError and NumericsError.
    """
    require_limits(config)
    start = time.perf_counter()
    progress.phase("open")
    pair = open_pair(config, trust=trust)
    found = _measure(pair, progress)
    job = pair.pruned
    checks = _judge(pair, found)
    if any(alert.key in BROKEN for alert in pair.dense.warnings):
        checks = [limits.baseless(check) for check in checks]
    return Verdict(
        checks=checks,
        on_inconclusive=config.gate.on_inconclusive,
        metric=found.metric,
        goal="min" if found.metric == "loss" else "max",
        dense=found.sides[0],
        pruned=found.sides[1],
        files={"dense": _file(pair.dense).path.as_posix(), "pruned": _file(job).path.as_posix()},
        drop=found.drop,
        flips=found.flips,
        classes=found.classes,
        layers=_layers(pair),
        latency=found.latency,
        samples=found.samples,
        data=None if job.samples is None else job.samples.source,
        seed=config.seed,
        device=str(job.device),
        seconds=time.perf_counter() - start,
        notes=pair.notes,
        hashes=_hashes(pair),
        warnings=pair.dense.warnings,
    )


@dataclass(frozen=True)
class _Measured:
    """``drop`` has its two-sided 95 % interval, ``one_sided`` (of what is no share of samples) one-sided limits."""

    sides: tuple[NetworkStats, NetworkStats]
    metric: str
    samples: int = 0
    drop: Drop | None = None
    one_sided: Drop | None = None
    reach: float | None = None  # how much one sample may add to the drop; None where nobody knows
    flips: Flips | None = None
    classes: list[ClassDrop] = field(default_factory=list)
    latency: Latency | None = None


def _measure(pair: Pair, progress: Progress) -> _Measured:
    """Both networks on the test samples, and on the clock where a limit asks for it."""
    config = pair.pruned.config
    metric = config.gate.metric or config.metric
    if pair.pruned.samples is None:
        return _Measured((_side(pair.dense, None), _side(pair.pruned, None)), metric)
    progress.phase("measure the dense network")
    dense = _evaluated(pair.dense)
    say_doubts(pair.dense, dense, progress)
    progress.phase("measure the pruned network")
    pruned = _evaluated(pair.pruned)
    found = _Measured((_side(pair.dense, dense), _side(pair.pruned, pruned)), metric, samples=len(dense.losses))
    if dense.correct is not None and pruned.correct is not None:
        found = replace(
            found,
            drop=drop_interval(dense.correct, pruned.correct),
            flips=flips(dense.correct, pruned.correct),
            classes=class_drops(dense.correct, pruned.correct, dense.targets),
        )
    if metric != "top1":
        drop, one_sided = _resampled(pair, dense, pruned, progress)
        reach = _reach(dense, pruned) if config.gate.metric is None else None
        found = replace(found, drop=drop, one_sided=one_sided, reach=reach)
    if config.gate.max_latency_ratio is not None:
        x, _ = first_batch(_test(pair.pruned, config.gate.latency_batch))
        times = compare_latency(pair.dense.network.module, pair.pruned.network.module, x, progress)
        found = replace(found, latency=times)
    return found


def _judge(pair: Pair, found: _Measured) -> list[Check]:
    """Every limit that is set, drops first."""
    gate, checks = pair.pruned.config.gate, []
    if gate.max_drop is not None:
        if found.one_sided is not None:
            checks.append(limits.metric_drop(found.metric, found.one_sided, found.samples, gate.max_drop, found.reach))
        else:
            assert found.flips is not None  # opening a job refuses top1 where there are no classes
            checks.append(limits.accuracy_drop(found.flips, gate.max_drop))
    if gate.max_class_drop is not None:
        checks.append(limits.class_drop(found.classes, gate.max_class_drop))
    if gate.min_sparsity is not None:
        checks.append(limits.sparsity(*_removed(pair), gate.min_sparsity))
    if gate.max_size is not None:
        checks.append(limits.file_size(_file(pair.pruned).size, gate.max_size))
    if gate.max_flops is not None:
        before, after = ((side.flops or 0, side.flops_nonzero or 0) for side in found.sides)
        checks.append(limits.flops(before, after, gate.max_flops))
    if gate.max_latency_ratio is not None:
        assert found.latency is not None
        checks.append(limits.latency(found.latency, gate.max_latency_ratio))
    return checks


def _resampled(pair: Pair, dense: Evaluation, pruned: Evaluation, progress: Progress) -> tuple[Drop, Drop]:
    """The drop of a metric that is no share of samples: with its two-sided interval, and with one-sided limits."""
    config = pair.pruned.config
    if config.gate.metric is None:  # a loss is better small: its rise is the drop
        reach = _reach(dense, pruned)
        both, one = (bootstrap_interval(-dense.losses, -pruned.losses, _generator(config), x, reach) for x in _LEVELS)
        return both, one
    metric = load_metric(config.gate.metric)
    before, after = (all_outputs(job.network.module, _test(job))[0].cpu() for job in (pair.dense, pair.pruned))
    progress.phase(f"resample {config.gate.metric}", RESAMPLES)
    targets, generator = dense.targets.cpu(), _generator(config)
    both, one = resampled_drops(metric, before, after, targets, generator, _LEVELS, progress.step)
    return both, one


def _reach(dense: Evaluation, pruned: Evaluation) -> float:
    """How much the loss of a sample may rise or fall: by no more than either network could lose on these samples.

    Two networks that answer alike to the last bit have nothing that could rise.
    """
    if torch.equal(dense.losses, pruned.losses):
        return 0.0
    assert dense.worst is not None  # both were measured just now
    assert pruned.worst is not None
    return max(dense.worst, pruned.worst)


def _evaluated(job: Job) -> Evaluation:
    with use_memory_format(job, job.network.module):
        return evaluate(job.network.module, _test(job), job.task)


def _test(job: Job, batch: int | None = None) -> Batches:
    """The test samples: they report, and nothing is chosen on them."""
    assert job.samples is not None
    return job.batches(job.samples.test, **({} if batch is None else {"batch_size": batch}))


def _generator(config: Config) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed)


def _side(job: Job, found: Evaluation | None) -> NetworkStats:
    parameters, nonzero = count(job.network.module)
    work: tuple[int | None, int | None] = (None, None)
    if job.samples is not None:
        work = flops(job.network.module, first_batch(_test(job, 1))[0])
    return NetworkStats(found.metrics if found else {}, parameters, nonzero, *work, _file(job).size)


def _file(job: Job) -> Checkpoint:
    assert job.checkpoint is not None  # the jobs of a gate are opened from files
    return job.checkpoint


def _removed(pair: Pair) -> tuple[int, int]:
    """(removed, prunable) weights: those that the file says were prunable, else those of all layers.

    Counted are the dense network's weights, and of them what is not zero in the pruned one: a weight whose channel is
    gone is removed as one that is zero.
    """
    said = _file(pair.pruned).metadata
    names = list(said.masks) if said is not None and said.masks else None
    dense, pruned = (dict(job.network.module.named_parameters()) for job in (pair.dense, pair.pruned))
    if names is None or not all(name in dense and name in pruned for name in names):
        names = [layer.parameter for layer in pair.dense.network.layers]
    prunable = sum(dense[name].numel() for name in names)
    left = sum(int(pruned[name].count_nonzero()) for name in names if name in pruned)
    return prunable - left, prunable


def _layers(pair: Pair) -> list[LayerResult]:
    """By the dense network's layers: their shapes, and how many of their weights are zero or gone."""
    pruned = dict(pair.pruned.network.module.named_parameters())
    found = []
    for layer in pair.dense.network.layers:
        size = layer.weight.numel()
        removed = size - (int(pruned[layer.parameter].count_nonzero()) if layer.parameter in pruned else 0)
        found.append(LayerResult(layer.name, tuple(layer.weight.shape), removed, removed / size))
    return found


def _hashes(pair: Pair) -> dict[str, str]:
    found = {"dense": _file(pair.dense).sha256, "pruned": _file(pair.pruned).sha256}
    return found if pair.pruned.samples is None else {**found, "data": pair.pruned.samples.fingerprint}
