"""Measurements of a network on the test samples. They are reported, and nothing is chosen by them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from prunetaylor.core.errors import DataError
from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert, NetworkStats
from prunetaylor.measure.cost import count_flops, count_parameters
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.network.checkpoint.read import Checkpoint
from prunetaylor.network.checkpoint.write import model_bytes
from prunetaylor.network.precision import stored_as
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.checks.sanity import dense_alerts
from prunetaylor.pipeline.job import Job
from prunetaylor.taylor.memory import current_chunks
from prunetaylor.taylor.passes import first_batch


@dataclass(frozen=True)
class Measurement:
    """A network's evaluation on the test samples, None without data, its sizes, and the alerts that follow."""

    evaluation: Evaluation | None
    stats: NetworkStats
    alerts: tuple[Alert, ...] = ()


def measure(job: Job, progress: Progress) -> Measurement:
    """Measure the job's network as it is, and warn where it is no better than guessing."""
    with use_memory_format(job.facts, job.network.module):
        evaluation = evaluate_on_test(job, job.network.module, progress, "measure")
    return measure_dense(job, job.network.module, evaluation, progress)


def measure_dense(job: Job, module: nn.Module, evaluation: Evaluation | None, progress: Progress) -> Measurement:
    """Add its sizes to the dense network's evaluation, and warn where it is no better than guessing."""
    alerts = dense_alerts(job, evaluation)
    for alert in alerts:
        progress.warn(alert.text)
    return Measurement(evaluation, network_stats(job, module, evaluation, job.checkpoint), alerts)


def evaluate_on_test(
    job: Job, module: nn.Module, progress: Progress, phase: str, dense: nn.Module | None = None
) -> Evaluation | None:
    """Evaluate a network on all test samples, by the job's metric; None without data.

    ``dense`` is the dense network that it was pruned from; None if it is the dense one itself.

    Raises DataError: the samples do not define the metric, as those of a single class do not define AUC.
    """
    if job.samples is None:
        return None
    progress.phase(phase)
    batch = max(1, job.config.data.batch_size // current_chunks().batch)
    evaluation = evaluate(module, job.batches(job.samples.test, batch_size=batch), job.task, job.metric, dense)
    if math.isnan(evaluation.metrics[job.metric.name]):
        raise DataError(
            f"{job.metric.title} is not defined on these {len(job.samples.test):,} test samples",
            "give test samples of several classes, or set another metric",
        )
    return evaluation


def network_stats(
    job: Job, module: nn.Module, evaluation: Evaluation | None, file: Checkpoint | None = None
) -> NetworkStats:
    """Return a network's metrics and sizes; ``file`` is the checkpoint that it was read from, if any."""
    work: tuple[int | None, int | None] = (None, None)
    if job.samples is not None:
        example, _ = first_batch(job.batches(job.samples.test.subset([0])))
        work = count_flops(module, example)
    with stored_as(module, job.types):
        size = model_bytes(module) if file is None else file.size
    return NetworkStats(evaluation.metrics if evaluation else {}, *count_parameters(module), *work, size)
