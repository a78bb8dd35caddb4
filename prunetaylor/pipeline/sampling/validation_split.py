"""The split of the training samples into those that are learnt from and those that choose between epochs."""

from __future__ import annotations

import torch

from prunetaylor.data.samples import Split, draw
from prunetaylor.pipeline.job import Job


def training_split(job: Job, validation: int) -> tuple[Split | None, Split | None]:
    """Return the samples for calibration and fine-tuning, and those that choose between epochs (None without epochs).

    ``validation`` training samples are held out to choose by; 0: the data come with some, or none are needed.
    """
    if job.samples is None:
        return None, None
    train = job.samples.train
    if not validation:
        return train, job.samples.validation
    # A generator of its own: the split must not depend on how many numbers anything else draws.
    order = draw(train, len(train), torch.Generator().manual_seed(job.config.seed))
    return train.subset(sorted(order[validation:])), train.subset(sorted(order[:validation]))
