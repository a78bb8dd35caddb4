"""The samples that rank the trials, and the samples that report the winner: never the same ones.

The winner is chosen by its rank, so the samples that rank flatter it; its reported metrics come from other samples.
The samples that rank are

1. the source's own validation samples, if it has any;
2. else the share ``data.validation`` of the training samples, which calibration and fine-tuning then do not see, if
   these are MIN_RANKING at least and the dense network's loss on them is no lower than on the test samples;
3. else one half of the test samples, drawn with the sweep's seed: the damage of pruning shows late on samples that the
   network has memorised.

"Lower" means by more than two standard errors of the difference (Welch). The first trial makes the choice for the whole
sweep, and stores it in the sweep's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunetaylor._version import __version__
from prunetaylor.core.config.asked import asked
from prunetaylor.core.errors import DataError
from prunetaylor.core.files import write_by_path, write_text
from prunetaylor.core.json_file import read_json
from prunetaylor.core.progress import Progress
from prunetaylor.data.samples import Samples, Split, draw
from prunetaylor.measure.evaluate import Evaluation, evaluate
from prunetaylor.measure.metric import Metric
from prunetaylor.pipeline.checks.channels_last import use_memory_format
from prunetaylor.pipeline.job import Job
from prunetaylor.sweep.trial.files import SAMPLES

MIN_RANKING = 100
"""The smallest number of training samples that may rank: fewer separate neither the trials nor the two losses."""
_SIGNIFICANT = 2.0  # standard errors
_RECORD = "record"  # the names of a metric's records in a file: record0, record1, ...


@dataclass(frozen=True)
class RankingSplit:
    """The samples of one trial: ``samples`` for its run, whose test set reports, and ``ranking``, which ranks.

    ``dense_reporting`` is the dense network's evaluation on the test set; ``description`` is for the user.
    """

    samples: Samples
    ranking: Split
    dense_reporting: Evaluation
    description: str


def split_for_ranking(job: Job, folder: Path, seed: int, progress: Progress) -> RankingSplit | None:
    """Return the samples of one trial of the sweep in ``folder``; None where there are no samples at all."""
    samples = job.samples
    if samples is None:
        return None
    dense = _DenseEvaluations(job, folder, progress)
    if samples.validation is not None:
        text = (
            f"ranked on {len(samples.validation):,} validation samples; winner reported on {len(samples.test):,} test "
            "samples"
        )
        return RankingSplit(samples, samples.validation, dense.evaluate("test", samples.test), text)
    share = asked(job.config.data.validation)
    remaining, holdout = _halves(samples.train, 0.1 if share is None else share, seed)
    test = dense.evaluate("test", samples.test)
    holdout_split = samples.train.subset(holdout)

    def choose() -> str:
        if len(holdout) < MIN_RANKING or not remaining:
            return "test"
        return "test" if has_lower_loss(dense.evaluate("training", holdout_split, holdout), test) else "training"

    if _stored_choice(folder, choose) == "training":
        text = (
            f"ranked on {len(holdout):,} held-out training samples; winner reported on {len(samples.test):,} test "
            "samples"
        )
        split = replace(samples, train=samples.train.subset(remaining), validation=holdout_split)
        return RankingSplit(split, holdout_split, test, text)
    return _split_test(samples, test, job.metric, seed)


def _split_test(samples: Samples, test: Evaluation, metric: Metric, seed: int) -> RankingSplit:
    """Return one half of the test samples to rank by, and the other half to report on."""
    reporting, ranking = _halves(samples.test, 0.5, seed)
    if not ranking or not reporting:
        raise DataError(
            f"{len(samples.test)} test samples are too few to rank trials and report the winner", "give at least two"
        )
    text = (
        f"ranked on one half of the test samples ({len(ranking):,}); winner reported on the other half "
        f"({len(reporting):,}), as the training samples are too few or the network knows them too well to rank by them"
    )
    split = replace(samples, test=samples.test.subset(reporting))
    return RankingSplit(split, samples.test.subset(ranking), test.part(reporting, metric), text)


def has_lower_loss(training: Evaluation, test: Evaluation) -> bool:
    """Return whether the mean loss on training samples is significantly below that on test samples."""
    ours, theirs = training.losses.double().cpu(), test.losses.double().cpu()
    if len(ours) < 2 or len(theirs) < 2:
        return True
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    return bool(theirs.mean() - ours.mean() > _SIGNIFICANT * error)


class _DenseEvaluations:
    """The dense network's evaluations: the first trial that needs one makes it for the whole sweep."""

    def __init__(self, job: Job, folder: Path, progress: Progress) -> None:
        self.job, self.folder, self.progress = job, folder, progress

    def evaluate(self, name: str, split: Split, indices: list[int] | None = None) -> Evaluation:
        """Return losses and correctness on ``split``; ``indices`` are its samples, if they are part of a split."""
        path = self.folder / f"dense-{name}-{self._key(indices)[:16]}.safetensors"
        try:
            tensors = load_file(path)
            if {len(one) for one in tensors.values()} != {len(split)}:
                raise ValueError("of other samples")
            return self._evaluation(tensors)
        except Exception:  # the file is missing or damaged: the evaluation is made again
            self.progress.phase(f"measure the dense network ({name})")
            with use_memory_format(self.job.facts, self.job.network.module):
                made = evaluate(self.job.network.module, self.job.batches(split), self.job.task, self.job.metric)
            tensors = {"losses": made.losses.cpu(), "targets": made.targets.cpu()}
            more = {"correct": made.correct, "answers": made.predictions}
            more |= {f"{_RECORD}{i}": record for i, record in enumerate(made.records)}
            # safetensors refuses tensors that share memory, as the loss's records do with the losses
            tensors |= {name: one.cpu().contiguous().clone() for name, one in more.items() if one is not None}
            stored = tensors
            write_by_path(path, lambda temporary: save_file(stored, temporary), failures=(OSError, SafetensorError))
        return self._evaluation(tensors)

    def _evaluation(self, tensors: Mapping[str, Tensor]) -> Evaluation:
        records = [tensors[name] for name in sorted(tensors) if name.startswith(_RECORD)]
        losses, targets = tensors["losses"], tensors["targets"]
        correct, predicted = tensors.get("correct"), tensors.get("answers")
        return Evaluation.from_samples(losses, correct, targets, predicted, self.job.metric, records)

    def _key(self, indices: list[int] | None) -> str:
        """Return the sha256, hexadecimal, of everything that the evaluation depends on."""
        job = self.job
        assert job.samples is not None
        facts = {
            "version": [__version__, torch.__version__],
            "checkpoint": job.checkpoint.sha256 if job.checkpoint is not None else None,
            "network": [job.arch, repr(job.args), repr(job.network.module)],
            "data": [job.samples.fingerprint, job.samples.preprocess.to_json(), job.config.data.size],
            "samples": indices,
            "metric": job.config.metric,
            "arithmetic": [job.device.type, torch.get_float32_matmul_precision(), job.config.data.batch_size],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _halves(split: Split, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the rest and of a random ``share`` of the samples, both sorted."""
    order = draw(split, len(split), torch.Generator().manual_seed(seed))
    count = round(share * len(order))
    return sorted(order[count:]), sorted(order[:count])


def _stored_choice(folder: Path, choose: Callable[[], str]) -> str:
    """Return the choice of the sweep's first trial; make and store it where there is none."""
    path = folder / SAMPLES
    try:
        return str(read_json(path)["rank"])
    except Exception:  # the file is missing or holds something else
        chosen = choose()
        write_text(path, json.dumps({"rank": chosen}) + "\n")
        return chosen
