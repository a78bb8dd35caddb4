"""Checks of the dense network and the training samples before any work.

A network that is no better than guessing is not worth pruning or scoring, and a sample that outweighs all others ruins
every fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import BROKEN, PRUNED_AT_CHANCE, Alert
from prunetaylor.data.samples import draw
from prunetaylor.measure.chance import check_chance, is_above_chance, is_at_chance
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.outliers import Outliers, find_stored_outliers
from prunetaylor.taylor.memory import current_chunks

SAMPLE_SIZES = 256, 2048
"""Test samples of a quick check: the first number is enough for a network that is plainly better than guessing."""


def dense_alerts(job: Job, evaluation: Evaluation | None) -> tuple[Alert, ...]:
    """Return the alert of a dense network that is no better than guessing on the test samples, if it is none."""
    if evaluation is None or not job.facts.test_labelled:
        return ()
    metadata = job.checkpoint.metadata if job.checkpoint is not None else None
    alert = check_chance(evaluation, job.task, pruned=metadata is not None and bool(metadata.masks))
    return () if alert is None else (alert,)


def leave_out_outliers(job: Job, progress: Progress) -> Job:
    """Return the job without the training samples that are stored far larger than all others; a warning names them."""
    if job.samples is None or not len(job.samples.train):
        return job
    train = job.samples.train
    rows, size = find_stored_outliers(train)
    if rows:
        outliers = set(rows)
        others = train.subset([row for row in range(len(train)) if row not in outliers])
        named = tuple(sorted(train.origin(row) for row in rows))
        alert = Outliers(named, size).alert("calibration and fine-tuning")
        progress.warn(alert.text)
        return replace(job.with_samples(replace(job.samples, train=others)), warnings=(*job.warnings, alert))
    return job


def pruned_alerts(job: Job, evaluation: Evaluation | None, dense: Iterable[Alert]) -> tuple[Alert, ...]:
    """Return the alert of a pruned network that is no better than guessing on the test samples.

    There is none beside a dense network that is no better itself, by its own alerts.
    """
    if evaluation is None or not job.facts.test_labelled or any(alert.key in BROKEN for alert in dense):
        return ()
    if not is_at_chance(evaluation, job.task):
        return ()
    return (Alert(PRUNED_AT_CHANCE, "the pruned network is no better than guessing on the test samples"),)


def check_quickly(job: Job, progress: Progress) -> tuple[Alert, ...]:
    """Warn of a network at chance by some of the test samples, where it is not measured on all; return the alerts."""
    if job.samples is None or not job.facts.test_labelled:
        return ()
    progress.phase("check the network")
    test = job.samples.test
    indices = draw(test, max(SAMPLE_SIZES), torch.Generator().manual_seed(job.config.seed))
    batch = max(1, job.config.data.batch_size // current_chunks().batch)
    for size in SAMPLE_SIZES:
        evaluation = evaluate(job.network.module, job.batches(test.subset(indices[:size]), batch_size=batch), job.task)
        if is_above_chance(evaluation, job.task):
            return ()
    alerts = dense_alerts(job, evaluation)
    for alert in alerts:
        progress.warn(alert.text)
    return alerts
