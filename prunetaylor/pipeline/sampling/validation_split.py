"""The split of the training samples into those that are learnt from and those that choose between epochs."""

from __future__ import annotations

import torch

from prunetaylor.data.samples import Split, draw
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.training import choose_validation


def training_split(job: Job, epochs: int) -> tuple[Split | None, Split | None]:
    """Return the samples for calibration and fine-tuning, and those that choose between epochs (None without epochs).

    The probe draws from the former, so that the split comes before the plan, which lists it.
    """
    if job.samples is None:
        return None, None
    train, held_out = job.samples.train, choose_validation(job.config, job.facts, epochs)
    if held_out is None:
        return train, job.samples.validation
    # A generator of its own: the split must not depend on how many numbers anything else draws.
    order = draw(train, len(train), torch.Generator().manual_seed(job.config.seed))
    return train.subset(sorted(order[held_out.value :])), train.subset(sorted(order[: held_out.value]))
