"""The network and the training samples are looked at before any work.

A dense network at chance is no ground to prune, score or judge on, and a sample that dwarfs the others is none to learn
from.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import BROKEN, PRUNED_AT_CHANCE, Alert
from prunetaylor.data.samples import draw
from prunetaylor.measure.chance import at_chance, doubt, plainly_better
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.outliers import Outliers, stored
from prunetaylor.taylor.memory import current_chunks

FIRST, MOST = 256, 2048
"""Test samples that a glance takes: the first are enough for a network that is plainly better than guessing."""


def say_doubts(job: Job, found: Evaluation | None, progress: Progress) -> None:
    """Warn of a network that is at chance on the test samples; ``found`` is its evaluation there."""
    if found is None:
        return
    said = job.checkpoint.metadata if job.checkpoint is not None else None
    alert = doubt(found, job.task, pruned=said is not None and bool(said.masks))
    if alert is not None and alert not in job.warnings:
        job.warn(alert, progress)


def set_aside(job: Job, progress: Progress) -> None:
    """Leave out the training samples that are stored far larger than all others, and name them."""
    if job.samples is None or not len(job.samples.train):
        return
    train = job.samples.train
    rows, size = stored(train)
    if rows:
        apart = set(rows)
        kept = train.subset([row for row in range(len(train)) if row not in apart])
        named = tuple(sorted(train.origin(row) for row in rows))
        job.warn(Outliers(named, size).alert("calibration and fine-tuning"), progress)
        job.samples = replace(job.samples, train=kept)


def pruned_doubts(job: Job, found: Evaluation | None) -> list[Alert]:
    """What is doubtful of the pruned network, for the result; ``found`` is its evaluation on the test samples.

    Beside a dense network that is at chance it goes without saying.
    """
    if found is None or any(alert.key in BROKEN for alert in job.warnings) or not at_chance(found, job.task):
        return []
    return [Alert(PRUNED_AT_CHANCE, "the pruned network is no better than guessing on the test samples")]


def glance(job: Job, progress: Progress) -> None:
    """The same from some of the test samples, for commands that do not measure the network on all of them."""
    if job.samples is None:
        return
    progress.phase("look at the network")
    test = job.samples.test
    drawn = draw(test, MOST, torch.Generator().manual_seed(job.config.seed))
    batch = max(1, job.config.data.batch_size // current_chunks().batch)
    for taken in (FIRST, MOST):
        some = test.subset(drawn[:taken])
        found = evaluate(job.network.module, job.batches(some, batch_size=batch), job.task)
        if plainly_better(found, job.task):
            return
    say_doubts(job, found, progress)
