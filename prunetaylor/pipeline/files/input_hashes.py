"""Hashes of everything that a run reads, by which a resumed run knows that it is the same."""

from __future__ import annotations

from prunetaylor.pipeline.job import Job
from prunetaylor.runtime.user_code import source_hash


def input_hashes(job: Job) -> dict[str, str]:
    """Return the sha256 of the checkpoint and of each file of code that is named, and the data's fingerprint."""
    hashes = {}
    if job.checkpoint is not None:
        hashes["checkpoint"] = job.checkpoint.sha256
    if job.samples is not None:
        hashes["data"] = job.samples.fingerprint
    code = {
        "code of the network": job.config.model.arch,
        "code of the data": job.config.data.source,
        "code of the collation": job.config.data.collate,
        "code of the loss": job.config.loss,
    }
    return hashes | {name: digest for name, spec in code.items() if (digest := source_hash(spec or "")) is not None}
