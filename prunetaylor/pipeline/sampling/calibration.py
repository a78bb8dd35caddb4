"""The calibration samples of a stage: what the Taylor model is fitted to, and what it is held against."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data import augment
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.samples import Batches, Split, TensorSplit, WithTargets, decode_sharded, draw
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.outliers import Energies, Outliers, find
from prunetaylor.pruning.interfaces import load_criterion
from prunetaylor.taylor.memory import current_chunks
from prunetaylor.taylor.objective import Objective, Task, loss_of
from prunetaylor.taylor.output_check import check_deterministic
from prunetaylor.taylor.passes import Risk, all_outputs

CHUNK_ELEMENTS = 1 << 21
"""Input values in a batch of calibration samples, at most: a backward pass keeps some 50 to 100 times as many."""
SMALL_ELEMENTS = 1 << 18
"""Up to so many a batch may have more samples than data.batch_size: for small inputs the calls cost more than the sums.

13 images of 3 x 224 x 224, 85 of 3 x 32 x 32, 334 of 28 x 28. No result depends on it beyond rounding.
"""

FEWEST_FITTED = 4
"""Samples below which nothing is fitted: least squares of a handful follows each of them wherever it lies."""
_SOLVING = ("least-squares", "obs")
"""Repairs that are fitted to samples."""


def chunk(elements: int, batch_size: int) -> int:
    """Samples of ``elements`` values in a batch, fewer where memory is short."""
    usual = max(min(batch_size, CHUNK_ELEMENTS // max(1, elements)), min(1024, SMALL_ELEMENTS // max(1, elements)))
    return max(1, usual // current_chunks().batch)


@dataclass(frozen=True)
class Part:
    """Some of the samples, with the dense network's outputs (N, K) and the targets (N, ...) for them."""

    batches: Batches
    dense_outputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, job: Job, dense: nn.Module, split: Split, size: int, seen: Energies) -> Part:
        """All samples of a split, in batches of ``size``; what has no labels gets the dense network's answers.

        ``seen`` is told each sample's size.
        """
        batches = job.batches(decode_sharded(split), batch_size=size)
        outputs, targets = all_outputs(dense, batches, seen.watch, lambda batch: seen.add(batch.x, batch.targets))
        if not split.labelled:
            targets = _pseudo_labels(job, outputs)
            inputs, _ = batches.split.fetch(range(batches.samples))
            batches = job.batches(TensorSplit(inputs, targets.cpu()), batch_size=size)
        return cls(batches, outputs, targets)

    def risk(self, module: nn.Module, objective: Objective) -> Risk:
        return Risk(module, self.batches, objective, objective.reference(self.dense_outputs, self.targets))

    def without(self, job: Job, rows: Collection[int]) -> Part:
        """The part without some of its samples."""
        if not rows:
            return self
        kept = [row for row in range(self.batches.samples) if row not in rows]
        if not kept:
            raise DataError(
                f"all {len(rows)} samples that {job.method} would be held against, or fitted to, dwarf the others",
                "look at how the training samples are stored and scaled",
            )
        batches = job.batches(self.batches.split.subset(kept), batch_size=self.batches.batch_size)
        return Part(batches, self.dense_outputs[kept], self.targets[kept])

    def changed_anew(self, job: Job, dense: nn.Module, generator: torch.Generator) -> Part:
        """The same samples after fresh random changes (data.augment), which are free: no new sample is seen."""
        assert job.samples is not None
        x, targets = self.batches.split.fetch(range(self.batches.samples))
        _, change = augment.resolve(job.samples.augment, x[0])
        if change is None:
            return self
        batches = job.batches(
            TensorSplit(change(x, RowRandom(generator, len(x))), targets), batch_size=self.batches.batch_size
        )
        return Part(batches, *all_outputs(dense, batches))

    @classmethod
    def joined(cls, job: Job, parts: Sequence[Part]) -> Part:
        """One part of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        samples = [part.batches.split.fetch(range(part.batches.samples)) for part in parts]
        split = TensorSplit(*(torch.cat(tensors) for tensors in zip(*samples, strict=True)))
        outputs, targets = (torch.cat(x) for x in zip(*((p.dense_outputs, p.targets) for p in parts), strict=True))
        return cls(job.batches(split, batch_size=parts[0].batches.batch_size), outputs, targets)


@dataclass(frozen=True)
class Calibration:
    """``outliers``: samples that were left out because they would outweigh all others; None where there are none."""

    fit: Part
    holdout: Part
    outliers: Outliers | None = None

    @classmethod
    def draw(cls, job: Job, dense: nn.Module, pool: Split, generator: torch.Generator) -> Calibration:
        """Fresh samples from ``pool``, split into those that are fitted and those that are held out.

        Where every stage draws anew, those come from two parts of the pool, the same ones each time: what one stage is
        held against, no stage before it was fitted to.
        """
        cfg = job.config.calibration
        samples = min(cfg.samples, len(pool))
        held = max(1, round(cfg.holdout * samples))
        check_enough(job, samples - held)
        if cfg.resample:
            order = draw(pool, len(pool), torch.Generator().manual_seed(job.config.seed))
            apart = max(held, round(cfg.holdout * len(pool)))
            parts = pool.subset(order[apart:]), pool.subset(order[:apart])
            drawn = [draw(s, n, generator) for s, n in zip(parts, (samples - held, held), strict=True)]
            chosen = [s.subset(some) for s, some in zip(parts, drawn, strict=True)]
        else:
            order = draw(pool, samples, generator)
            chosen = [pool.subset(order[held:]), pool.subset(order[:held])]
        size = chunk(chosen[0].fetch([0])[0].numel(), job.config.data.batch_size)
        seen = [Energies(dense) for _ in chosen]
        fit, holdout = (Part.of(job, dense, split, size, one) for split, one in zip(chosen, seen, strict=True))
        fit, holdout, outliers = _of_a_kind(job, (fit, holdout), chosen, [one.all() for one in seen])
        check_deterministic(dense, fit.batches)
        return cls(fit, holdout, outliers)

    def spread(self, task: Task) -> float:
        """The divergence of one answer for all samples, the mean of the dense network's, from each of its answers.

        What the error of a network of this kind on such samples is large by, whatever the number of outputs.
        """
        objective = Objective(task, "divergence")
        z = torch.cat([self.fit.dense_outputs, self.holdout.dense_outputs])
        answer = loss_of(task).divergence_loss.best_constant(z)
        return float(objective.values(answer.expand_as(z), z).mean())


def check_enough(job: Job, fitted: int) -> None:
    """UsageError where so few samples are left to fit to that nothing can be fitted."""
    criterion, repair = load_criterion(job.method), job.config.prune.repair
    fits = criterion.needs != "nothing" or (criterion.default_repair if repair == "auto" else repair) in _SOLVING
    if fitted < (FEWEST_FITTED if fits else 1):
        raise UsageError(
            f"too few calibration samples: {job.method} fits to {fitted}, and needs at least {FEWEST_FITTED}",
            f"give at least {2 * FEWEST_FITTED} training samples, better a thousand; --method magnitude with "
            "prune.repair=none needs none",
        )


def _of_a_kind(
    job: Job, parts: tuple[Part, Part], chosen: Sequence[Split], energies: Sequence[Tensor]
) -> tuple[Part, Part, Outliers | None]:
    """The parts without samples that dwarf the rest of both, and which those are."""
    fit, holdout = parts
    rows, size = find(torch.cat(list(energies)))
    if not rows:
        return fit, holdout, None
    count = fit.batches.samples
    at_fit, held = [row for row in rows if row < count], [row - count for row in rows if row >= count]
    origins = [split.origin(row) for split, which in zip(chosen, (at_fit, held), strict=True) for row in which]
    return fit.without(job, at_fit), holdout.without(job, held), Outliers(tuple(sorted(origins)), size)


def pseudo_labelled(job: Job, dense: nn.Module, split: Split) -> Split:
    """Return the split with the dense network's answers as labels, if it has none of its own."""
    if split.labelled:
        return split
    outputs, _ = all_outputs(dense, job.batches(split))
    return WithTargets(split, _pseudo_labels(job, outputs).cpu())


def _pseudo_labels(job: Job, outputs: Tensor) -> Tensor:
    """Return the targets that the network's outputs (N, K) amount to."""
    return loss_of(job.task).divergence_loss.predictions(outputs)
