"""The refinement of all kept weights at once, as the plan has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunetaylor.data import augment
from prunetaylor.network.network import Network
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.refinement import Refinement
from prunetaylor.pipeline.sampling.calibration import Calibration, Part
from prunetaylor.pruning.repair import feature_matching
from prunetaylor.pruning.repair.gauss_newton import refine
from prunetaylor.pruning.repair.intercepts import Intercept
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.passes import Risk

NEGLIGIBLE = 1e-4
"""Of the error of a constant answer: where less than this share is left to gain, a refinement nobody asked for ends."""


@dataclass(frozen=True)
class Refined:
    """A step of a refinement is done: what there is to say of it, and what the ones to come depend on."""

    text: str | None
    state: Callable[[], dict[str, Any]]


def refine_network(
    refinement: Refinement,
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
    if refinement.by == "gauss-newton":
        yield from _gauss_newton(refinement, job, dense, masks, objective, held, seen, alone, generator, seed, left)
        return
    scale = calibration.spread(job.task)
    if not left and not refinement.asked and held.value() < NEGLIGIBLE * scale:
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
        steps=refinement.steps,
        chunk=part.batches.batch_size,
        alone=alone,
    )
    if left:
        matching.load_state_dict(left)
    for look in matching.run():
        text = f"held-out error {look.before:.4g} -> {look.after:.4g} (step {look.step} of {refinement.steps})"
        yield Refined(text if look.looked else None, matching.state_dict)


def _gauss_newton(
    refinement: Refinement,
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
    for step in refine(module, masks, fresh, held, steps=refinement.steps, seed=seed, alone=alone, done=done):
        damping = "no step helps" if step.damping is None else f"damping {step.damping:.2g}"
        state = {"done": step.step, "last": step.last}
        yield Refined(f"held-out error {step.before:.4g} -> {step.after:.4g} ({damping})", partial(dict, state))
