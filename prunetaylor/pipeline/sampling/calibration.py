"""The calibration samples of a stage: those that the Taylor model is fitted to, and those that it is tested on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data import augment
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.samples import Batches, Inputs, Split, TensorSplit, WithTargets, decode_sharded, draw
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.repair import fits_samples
from prunetaylor.pipeline.sampling.outliers import Energies, Outliers, find_outliers
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.memory import current_chunks
from prunetaylor.taylor.objective import Objective, Reference, Task, loss_of
from prunetaylor.taylor.output_check import finite_samples
from prunetaylor.taylor.passes import BatchOutputs
from prunetaylor.taylor.risk import DenseOutputs, Risk

CHUNK_ELEMENTS = 1 << 21
"""Input values in a batch of calibration samples, at most: a backward pass keeps some 50 to 100 times as many."""
SMALL_ELEMENTS = 1 << 18
"""Up to so many a batch may have more samples than data.batch_size: for small inputs the calls cost more than the sums.

13 images of 3 x 224 x 224, 85 of 3 x 32 x 32, 334 of 28 x 28. No result depends on it beyond rounding.
"""

FEWEST_FITTED = 4
"""Nothing is fitted to fewer samples: least squares of a handful follows each of them wherever it lies."""


def chunk(elements: int, batch_size: int) -> int:
    """Return how many samples of ``elements`` values make a batch; fewer where memory is short."""
    usual = max(min(batch_size, CHUNK_ELEMENTS // max(1, elements)), min(1024, SMALL_ELEMENTS // max(1, elements)))
    return max(1, usual // current_chunks().batch)


@dataclass(frozen=True)
class Part:
    """Some of the samples, with the dense network's outputs for them.

    ``finite`` (N,) tells the samples whose outputs are finite.
    """

    batches: Batches
    dense: DenseOutputs
    finite: Tensor

    @classmethod
    def of(cls, job: Job, dense: Network, split: Split, size: int, energies: Energies) -> Part:
        """Run the dense network on all samples of a split, in batches of ``size``.

        Samples without labels get its answers as labels. ``energies`` collects each sample's size.
        """
        batches = job.batches(decode_sharded(split), batch_size=size)
        finite = [torch.empty(0, dtype=torch.bool, device=batches.device)]

        def add(batch: BatchOutputs) -> None:
            assert batch.outputs is not None
            energies.add(batch.x, batch.targets)
            finite.append(finite_samples(batch.outputs))

        outputs = DenseOutputs.compute(dense.module, batches, energies.watch, add)
        targets = None if split.labelled else _pseudo_labels(job, outputs)
        if targets is not None:
            inputs, _ = batches.split.fetch(range(batches.samples))
            batches = job.batches(TensorSplit(inputs, targets.cpu()), batch_size=size)
        return cls(batches, outputs, gather_rows(torch.cat(finite)))

    def risk(self, module: nn.Module, objective: Objective) -> Risk:
        """Return the error of ``module`` on these samples."""
        return Risk(module, self.batches, objective, self.dense)

    def without(self, job: Job, rows: Collection[int]) -> Part:
        """Return the part without some of its samples."""
        if not rows:
            return self
        others = [row for row in range(self.batches.samples) if row not in rows]
        if not others:
            raise DataError(
                f"all {len(rows)} samples that {job.method} would be fitted to, or tested on, are outliers",
                "check how the training samples are stored and scaled",
            )
        batches = job.batches(self.batches.split.subset(others), batch_size=self.batches.batch_size)
        stored = None if self.dense.stored is None else self.dense.stored[others]
        return Part(batches, replace(self.dense, stored=stored), self.finite[others])

    def changed_anew(self, job: Job, dense: nn.Module, generator: torch.Generator) -> Part:
        """Return the same samples after fresh random changes (data.augment); no new sample is used."""
        assert job.samples is not None
        x, targets = self.batches.split.fetch(range(self.batches.samples))
        _, change = augment.load_augmentation(job.samples.augment, x)
        if change is None or x.tensor is None:
            return self
        labels = targets if self.batches.split.labelled else None
        changed = TensorSplit(change(x.tensor, RowRandom(generator, len(x))), labels)
        batches = job.batches(changed, batch_size=self.batches.batch_size)
        return Part(batches, DenseOutputs.compute(dense, batches), self.finite)

    @classmethod
    def joined(cls, job: Job, parts: Sequence[Part]) -> Part:
        """Join several parts in their order."""
        if len(parts) == 1:
            return parts[0]
        inputs, targets = zip(*(part.batches.split.fetch(range(part.batches.samples)) for part in parts), strict=True)
        split = TensorSplit(Inputs.cat(inputs), torch.cat(targets) if parts[0].batches.split.labelled else None)
        stored = [part.dense.stored for part in parts if part.dense.stored is not None]
        outputs = replace(parts[0].dense, stored=torch.cat(stored) if len(stored) == len(parts) else None)
        finite = torch.cat([part.finite for part in parts])
        return cls(job.batches(split, batch_size=parts[0].batches.batch_size), outputs, finite)


@dataclass(frozen=True)
class Calibration:
    """``outliers``: samples that were left out because they would outweigh all others; None where there are none."""

    fit: Part
    holdout: Part
    outliers: Outliers | None = None

    @classmethod
    def draw(cls, job: Job, dense: Network, pool: Split, generator: torch.Generator) -> Calibration:
        """Draw samples from ``pool`` and split them into those that are fitted to and those that are held out.

        If every stage draws anew, the two come from two parts of the pool, the same ones each time: no stage is tested
        on a sample that an earlier one was fitted to.
        """
        cfg = job.config.calibration
        samples = min(cfg.samples, len(pool))
        holdout_count = max(1, round(cfg.holdout * samples))
        fit_count = samples - holdout_count
        check_enough(job, fit_count)
        if cfg.resample:
            order = draw(pool, len(pool), torch.Generator().manual_seed(job.config.seed))
            border = max(holdout_count, round(cfg.holdout * len(pool)))
            pools = pool.subset(order[border:]), pool.subset(order[:border])
            drawn = [draw(s, n, generator) for s, n in zip(pools, (fit_count, holdout_count), strict=True)]
            splits = [s.subset(indices) for s, indices in zip(pools, drawn, strict=True)]
        else:
            order = draw(pool, samples, generator)
            splits = [pool.subset(order[holdout_count:]), pool.subset(order[:holdout_count])]
        size = chunk(splits[0].fetch([0])[0].elements, job.config.data.batch_size)
        energies = [Energies(dense.layers) for _ in splits]
        fit, holdout = (Part.of(job, dense, split, size, e) for split, e in zip(splits, energies, strict=True))
        fit, holdout, outliers = _without_outliers(job, (fit, holdout), splits, [e.all() for e in energies])
        return cls(fit, holdout, outliers)

    def spread(self, task: Task) -> float:
        """Return the mean divergence of the best constant answer from the dense network's answers.

        It is the scale of the error for networks of this kind on such samples, whatever the number of outputs.
        """
        objective = Objective(task, "divergence")
        z = torch.cat([part.dense.some(part.batches) for part in (self.fit, self.holdout)])
        answer = loss_of(task).divergence_loss.best_constant(z)
        return float(objective.values(answer.expand_as(z), Reference(z)).mean())


def check_enough(job: Job, fitted: int) -> None:
    """Raise UsageError if ``fitted`` samples are too few to fit to."""
    if fitted < (FEWEST_FITTED if fits_samples(job.config, job.method) else 1):
        raise UsageError(
            f"too few calibration samples: {job.method} fits to {fitted}, and needs at least {FEWEST_FITTED}",
            f"give at least {2 * FEWEST_FITTED} training samples, better a thousand; --method magnitude with "
            "prune.repair=none needs none",
        )


def _without_outliers(
    job: Job, parts: tuple[Part, Part], splits: Sequence[Split], energies: Sequence[Tensor]
) -> tuple[Part, Part, Outliers | None]:
    """Return the parts without the outliers among the samples of both, and the outliers."""
    fit, holdout = parts
    rows, size = find_outliers(torch.cat(list(energies)))
    if not rows:
        return fit, holdout, None
    count = fit.batches.samples
    in_fit, in_holdout = [row for row in rows if row < count], [row - count for row in rows if row >= count]
    origins = [split.origin(row) for split, some in zip(splits, (in_fit, in_holdout), strict=True) for row in some]
    return fit.without(job, in_fit), holdout.without(job, in_holdout), Outliers(tuple(sorted(origins)), size)


def pseudo_labelled(job: Job, dense: nn.Module, split: Split) -> Split:
    """Return the split with the dense network's answers as labels, if it has none of its own."""
    if split.labelled:
        return split
    targets = _pseudo_labels(job, DenseOutputs.compute(dense, job.batches(split)))
    return split if targets is None else WithTargets(split, targets.cpu())


def _pseudo_labels(job: Job, outputs: DenseOutputs) -> Tensor | None:
    """Return the targets that the network's outputs (N, K) amount to; None where these are features or too many."""
    if job.task == "features" or outputs.stored is None or outputs.stored.dim() > 2:
        return None
    return loss_of(job.task).divergence_loss.predictions(outputs.stored)
