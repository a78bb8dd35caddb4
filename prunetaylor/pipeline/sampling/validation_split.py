"""The split of the training samples into those that are learnt from and those that choose between epochs."""

from __future__ import annotations

import torch

from prunetaylor.core.errors import DataError
from prunetaylor.data.samples import Split, draw
from prunetaylor.pipeline.job import Job

MAX_VALIDATION = 2000
"""Samples to choose between epochs by, at most: where two epochs differ in a twentieth of the answers, the standard
error of the difference of their accuracies is half a point. The rest is left to train on."""


def training_split(job: Job) -> tuple[Split | None, Split | None]:
    """Return the samples for calibration and fine-tuning, and those that choose between epochs (None without epochs).

    DataError where there are too few samples to hold some out.
    """
    if job.samples is None:
        return None, None
    train = job.samples.train
    if not job.epochs or job.samples.validation is not None:
        return train, job.samples.validation
    share = job.config.data.validation
    count = min(round(len(train) / 10), MAX_VALIDATION) if share == "auto" else round(share * len(train))
    if count < 1 or len(train) - count < 2:
        raise DataError(
            f"{len(train)} training samples are too few to hold some out for validation",
            "use --epochs 0, or more samples",
        )
    # A generator of its own: the split must not depend on how many numbers anything else draws.
    order = draw(train, len(train), torch.Generator().manual_seed(job.config.seed))
    job.choices.append(
        f"validation: {count} of the {len(train)} training samples, held out of calibration and fine-tuning"
    )
    return train.subset(sorted(order[count:])), train.subset(sorted(order[:count]))
