"""Which samples rank the trials, and which report: never the same ones.

A trial is chosen by its rank, so the samples that rank flatter the winner; what is reported of it comes from others.
Those that rank are, in this order,

1. the source's own validation samples;
2. the share ``data.validation`` of the training samples, kept out of calibration and fine-tuning, where these are
   FEWEST at least and the dense network does not know them better than it knows the test samples;
3. else a half of the test samples, drawn by the sweep's seed: the network was trained on the training samples, and on
   those that it knows by heart pruning shows too late.

"Better" is a mean loss that is lower by more than two standard errors of the difference (Welch). The choice is made
once for a sweep, by whichever trial comes first, and kept in its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunetaylor._version import __version__
from prunetaylor.core.errors import DataError
from prunetaylor.core.files import write_by_path, write_text
from prunetaylor.core.json_file import read_json
from prunetaylor.core.progress import Progress
from prunetaylor.data.samples import Samples, Split, draw
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.job import Job
from prunetaylor.sweep.trial.files import CHOICE

FEWEST = 100
"""Training samples that rank, at least: fewer tell neither the trials apart nor how well the network knows them."""
_SIGNIFICANT = 2.0  # standard errors


@dataclass(frozen=True)
class RankingSplit:
    """``samples`` are those of the run, whose test set reports, and ``ranking`` are those that rank.

    ``dense_reporting`` is the dense network's evaluation on the test set.
    """

    samples: Samples
    ranking: Split
    dense_reporting: Evaluation
    said: str


def judging(job: Job, folder: Path, seed: int, progress: Progress) -> RankingSplit | None:
    """The samples of one trial of the sweep in ``folder``; None where there are no samples at all."""
    samples = job.samples
    if samples is None:
        return None
    dense = _Dense(job, folder, progress)
    if samples.validation is not None:
        said = (
            f"ranked on {len(samples.validation):,} validation samples; winner reported on {len(samples.test):,} test "
            "samples"
        )
        return RankingSplit(samples, samples.validation, dense.found("test", samples.test), said)
    share = job.config.data.validation
    kept, held = _halves(samples.train, 0.1 if share == "auto" else share, seed)
    test = dense.found("test", samples.test)
    held_split = samples.train.subset(held)

    def choose() -> str:
        if len(held) < FEWEST or not kept:
            return "test"
        return "test" if known_better(dense.found("training", held_split, held), test) else "training"

    if _chosen(folder, choose) == "training":
        said = (
            f"ranked on {len(held):,} held-out training samples; winner reported on {len(samples.test):,} test samples"
        )
        split = replace(samples, train=samples.train.subset(kept), validation=held_split)
        return RankingSplit(split, held_split, test, said)
    reporting, ranking = _halves(samples.test, 0.5, seed)
    if not ranking or not reporting:
        raise DataError(f"{len(samples.test)} test samples cannot rank trials and report on them", "give at least two")
    said = (
        f"ranked on one half of the test samples ({len(ranking):,}); winner reported on the other half "
        f"({len(reporting):,}), as the training samples are too few or the network knows them too well to rank by them"
    )
    split = replace(samples, test=samples.test.subset(reporting))
    return RankingSplit(split, samples.test.subset(ranking), test.part(reporting), said)


def known_better(training: Evaluation, test: Evaluation) -> bool:
    """Whether the mean loss on training samples is below that on test samples by more than chance."""
    ours, theirs = training.losses.double().cpu(), test.losses.double().cpu()
    if len(ours) < 2 or len(theirs) < 2:
        return True
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    return bool(theirs.mean() - ours.mean() > _SIGNIFICANT * error)


def _evaluation(tensors: dict[str, Tensor]) -> Evaluation:
    return Evaluation.from_losses(tensors["losses"], tensors.get("correct"), tensors["targets"], tensors.get("answers"))


class _Dense:
    """The dense network's evaluations: each is made once for a sweep, by the first trial that needs it."""

    def __init__(self, job: Job, folder: Path, progress: Progress) -> None:
        self.job, self.folder, self.progress = job, folder, progress

    def found(self, name: str, split: Split, indices: list[int] | None = None) -> Evaluation:
        """Losses and right answers of ``split``; ``indices`` say which samples these are, where not all of a split."""
        path = self.folder / f"dense-{name}-{self._key(indices)[:16]}.safetensors"
        try:
            tensors = load_file(path)
            if {len(one) for one in tensors.values()} != {len(split)}:
                raise ValueError("of other samples")
            return _evaluation(tensors)
        except Exception:  # there is none, or one that is damaged: it is made again
            self.progress.phase(f"measure the dense network ({name})")
            with use_memory_format(self.job, self.job.network.module):
                made = evaluate(self.job.network.module, self.job.batches(split), self.job.task)
            tensors = {"losses": made.losses.cpu(), "targets": made.targets.cpu()}
            more = {"correct": made.correct, "answers": made.answers}
            tensors |= {name: one.cpu().contiguous() for name, one in more.items() if one is not None}
            kept = tensors
            write_by_path(path, lambda temporary: save_file(kept, temporary), failures=(OSError, SafetensorError))
        return _evaluation(tensors)

    def _key(self, indices: list[int] | None) -> str:
        """sha256, hexadecimal, of all that the evaluation depends on."""
        job = self.job
        assert job.samples is not None
        said = {
            "version": [__version__, torch.__version__],
            "checkpoint": job.checkpoint.sha256 if job.checkpoint is not None else None,
            "network": [job.arch, repr(job.args), repr(job.network.module)],
            "data": [job.samples.fingerprint, job.samples.preprocess.to_json(), job.config.data.size],
            "samples": indices,
            "arithmetic": [job.device.type, torch.get_float32_matmul_precision(), job.config.data.batch_size],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _halves(split: Split, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(the rest, ``share`` of the samples), both in order."""
    order = draw(split, len(split), torch.Generator().manual_seed(seed))
    count = round(share * len(order))
    return sorted(order[count:]), sorted(order[:count])


def _chosen(folder: Path, choose: Callable[[], str]) -> str:
    """What the sweep's first trial chose."""
    path = folder / CHOICE
    try:
        return str(read_json(path)["rank"])
    except Exception:  # whatever else it holds: the choice is made again
        chosen = choose()
        write_text(path, json.dumps({"rank": chosen}) + "\n")
        return chosen
