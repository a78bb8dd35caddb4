"""Refinement of all kept weights at once: whether, when and how, what it will cost, and the run of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from prunetaylor.data import augment
from prunetaylor.measure.cost import count_flops
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.sampling.calibration import Calibration, Part
from prunetaylor.pipeline.sampling.sampler import SAMPLE_HISTORY
from prunetaylor.pruning.repair import feature_matching
from prunetaylor.pruning.repair.gauss_newton import DAMPINGS, PRODUCTS, refine
from prunetaylor.pruning.repair.intercepts import Intercept
from prunetaylor.pruning.selection.trust_region import fresh_stages
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.passes import Risk, first_batch

GAUSS_NEWTON_STEPS = 6
WORTH = {"cpu": 5e13, "mps": 1e15, "cuda": 1e16}
"""FLOPs up to which ``auto`` refines, by device: some minutes of two cores, or of a GPU."""
FEWEST = 50
"""Steps below which it is not worth starting."""
NEGLIGIBLE = 1e-4
"""Of the error of a constant answer: where less than this share is left to gain, ``auto`` gains nothing."""
PASSES = 4
"""What a step costs in forward passes: the dense network's, the pruned one's, and a backward pass of two."""


@dataclass(frozen=True)
class Refined:
    """A step of a refinement is done: what there is to say of it, and what the ones to come depend on."""

    text: str | None
    state: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Refinement:
    """``when`` it happens; ``why`` says what decided."""

    when: Literal["none", "last", "stages"] = "none"
    by: Literal["features", "gauss-newton"] = "features"
    steps: int = 0
    why: str = ""
    asked: bool = False

    def run(
        self,
        job: Job,
        dense: Network,
        masks: Mapping[str, Tensor],
        objective: Objective,
        calibration: Calibration,
        seen: Sequence[Part],
        intercepts: Mapping[str, Intercept],
        generator: torch.Generator,
        seed: int,
        left: Mapping[str, Any],
    ) -> Iterator[Refined]:
        """Refine ``job.network`` in place, yielding after each step.

        Args:
            seen: the samples to learn from.
            left: the last ``state`` of one that goes on here; empty at the beginning.
        """
        held = calibration.holdout.risk(job.network.module, objective)
        alone = [one.name for one in job.network.skipped]
        if self.by == "gauss-newton":
            yield from self._newton(job, dense, masks, objective, held, seen, alone, generator, seed, left)
            return
        scale = calibration.spread(job.task)
        if not left and not self.asked and held.value() < NEGLIGIBLE * scale:
            yield Refined(f"skipped: held-out error is already {held.value():.2g}", dict)
            return
        part = Part.joined(job, seen)
        assert job.samples is not None
        _, change = augment.resolve(job.samples.augment, part.batches.split.fetch([0])[0][0])
        batches = job.batches(
            part.batches.split,
            batch_size=feature_matching.BATCH,
            augment=change,
            # The dense network says what the answer to a collage is, so that a thousand images are never seen twice.
            mix=augment.cut_mix if change is not None else None,
            generator=generator,
            shuffle=True,
            drop_last=True,
        )
        matching = feature_matching.Matching(
            job.network.module,
            dense.module,
            job.network.layers,
            intercepts,
            masks,
            batches,
            held,
            scale=scale,
            steps=self.steps,
            chunk=part.batches.batch_size,
            alone=alone,
        )
        if left:
            matching.load_state_dict(left)
        for look in matching.run():
            text = f"held-out error {look.before:.4g} -> {look.after:.4g} (step {look.step} of {self.steps})"
            yield Refined(text if look.looked else None, matching.state_dict)

    def _newton(
        self,
        job: Job,
        dense: Network,
        masks: Mapping[str, Tensor],
        objective: Objective,
        held: Risk,
        seen: Sequence[Part],
        alone: Sequence[str],
        generator: torch.Generator,
        seed: int,
        left: Mapping[str, Any],
    ) -> Iterator[Refined]:
        module = job.network.module

        def fresh() -> Risk:
            parts = [part.changed_anew(job, dense.module, generator) for part in seen]
            return Part.joined(job, parts).risk(module, objective)

        done = left.get("done", 0)
        if left.get("last", False):
            return
        for step in refine(module, masks, fresh, held, steps=self.steps, seed=seed, alone=alone, done=done):
            damping = "no step helps" if step.damping is None else f"damping {step.damping:.2g}"
            state = {"done": step.step, "last": step.last}
            yield Refined(f"held-out error {step.before:.4g} -> {step.after:.4g} ({damping})", partial(dict, state))


def settle(job: Job, usual_repair: str, far: bool, example: Tensor) -> Refinement:
    """What is asked for, with ``auto`` decided.

    Args:
        usual_repair: the criterion's own: a method that is known without least squares is compared as it is known.
        far: the network is not at a minimum of the error with labels.
        example: some inputs, ready for the network.
    """
    asked = job.config.prune
    told = not far and asked.refine != "last" and _told(job, example)
    by: Literal["features", "gauss-newton"] = "gauss-newton" if far or told else "features"
    if asked.refine_by != "auto":
        by = asked.refine_by
    usual = GAUSS_NEWTON_STEPS if by == "gauss-newton" else feature_matching.STEPS
    steps = usual if asked.refine_steps == "auto" else asked.refine_steps
    if asked.refine != "auto":
        return Refinement(asked.refine, by, steps, "as asked", asked=True)
    if usual_repair != "least-squares":
        return Refinement(why=f"default for {job.method}")
    if far:
        return Refinement("stages", by, steps, "the network is not converged")
    if told:
        return Refinement("stages", by, steps, "labels are used, and each stage draws fresh samples")
    if job.epochs:
        return Refinement(why="fine-tuning follows")
    if by == "gauss-newton":
        return Refinement(why="little to gain near convergence")
    each = PASSES * feature_matching.BATCH * count_flops(job.network.module, example)[0]
    worth = WORTH.get(job.device.type, WORTH["cpu"])
    if each * FEWEST > worth:
        much = f"{each * steps / 1e12:,.0f} TFLOP on the {job.device.type}"
        return Refinement(why=f"{steps} steps would cost {much}; prune.refine=last does it anyway")
    steps = min(steps, int(worth // each))
    work = each * steps / 1e12
    return Refinement("last", by, steps, f"{work:,.1f} TFLOP" if work >= 0.05 else "less than 0.1 TFLOP")


def planned_steps(job: Job, usual_repair: str) -> int:
    """Steps of refinement by features that a run will take, before anybody has looked at the network: an estimate."""
    asked = job.config.prune
    settled = feature_matching.STEPS if asked.refine_steps == "auto" else asked.refine_steps
    if asked.refine in ("last", "stages"):
        return settled
    if asked.refine == "none" or usual_repair != "least-squares" or job.epochs or job.samples is None:
        return 0
    example, _ = first_batch(job.batches(job.samples.test.subset([0]), workers=0))
    each = PASSES * feature_matching.BATCH * count_flops(job.network.module, example)[0]
    worth = WORTH.get(job.device.type, WORTH["cpu"])
    return 0 if each * FEWEST > worth else min(settled, int(worth // each))


def alone(job: Job, labelled: bool) -> Refinement:
    """Where nothing is removed: towards labels, as the dense network that all else goes towards is the network itself.

    ``labelled``: the error is the one with labels.
    """
    asked, nothing = job.config.prune, "nothing is removed"
    if asked.refine == "none":
        return Refinement(why="as asked")
    if asked.refine == "auto":
        return Refinement(why=nothing)
    if asked.schedule != "one-shot":
        return Refinement(why=f"{nothing}, and fine-tuning follows")
    if not labelled:
        remedy = "; calibration.labels=true uses them" if job.labelled else ""
        return Refinement(why=f"{nothing}, and only labels could improve the dense network{remedy}")
    if asked.refine_by == "features":
        return Refinement(why=f"{nothing}, and outputs match already; prune.refine_by=gauss-newton uses labels")
    steps = GAUSS_NEWTON_STEPS if asked.refine_steps == "auto" else asked.refine_steps
    return Refinement(asked.refine, "gauss-newton", steps, "as asked", asked=True)


def _told(job: Job, example: Tensor) -> bool:
    """Whether labels are asked for, every stage draws fresh samples, and learning from them at each is worth its time.

    All stages together then see many times as many labels as one: more than the dense network's outputs can say.
    """
    config = job.config
    if config.calibration.labels is not True or not config.calibration.resample:
        return False
    samples = SAMPLE_HISTORY * config.calibration.samples
    passes = GAUSS_NEWTON_STEPS * PASSES * (PRODUCTS + len(DAMPINGS) / PASSES)
    work = fresh_stages(config.prune.sparsity) * samples * passes * count_flops(job.network.module, example)[0]
    return work <= WORTH.get(job.device.type, WORTH["cpu"])
