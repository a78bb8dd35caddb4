"""The refinement of all kept weights at once, as the plan has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prunetaylor.data import augment
from prunetaylor.data.samples import Batches
from prunetaylor.pipeline.sampling.calibration import Part
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import PruningState
from prunetaylor.pruning.repair import feature_matching
from prunetaylor.pruning.repair.gauss_newton import refine
from prunetaylor.taylor.risk import Risk

NEGLIGIBLE = 1e-4
"""A refinement that nobody asked for ends where the held-out error is a smaller share of that of a constant answer."""


@dataclass(frozen=True)
class RefinementStep:
    """One step of a refinement: a line for the log, if any, and the state that the next steps depend on."""

    text: str | None
    state: Callable[[], dict[str, Any]]


def refine_network(setup: StageSetup, state: PruningState, sampler: Sampler) -> Iterator[RefinementStep]:
    """Refine the network of ``state`` in place, yielding after each step.

    The refinement learns from the samples of the last stages. Of the refinement that ``state`` has begun, the steps
    that are left are run.
    """
    assert state.refinement is not None
    holdout = sampler.calibration.holdout.risk(setup.job.network.module, setup.plan.objective)
    if setup.plan.refinement.by == "gauss-newton":
        yield from _refine_by_gauss_newton(setup, state, sampler, holdout, state.refinement)
    else:
        yield from _refine_by_features(setup, state, sampler, holdout, state.refinement)


def _refine_by_features(
    setup: StageSetup, state: PruningState, sampler: Sampler, holdout: Risk, saved: Mapping[str, Any]
) -> Iterator[RefinementStep]:
    """Match the outputs of the dense network's layers, by mini-batches."""
    network, plan = setup.job.network, setup.plan.refinement
    scale = sampler.calibration.spread(setup.job.task)
    if not saved and not plan.asked and holdout.value() < NEGLIGIBLE * scale:
        yield RefinementStep(f"skipped: held-out error is already {holdout.value():.2g}", dict)
        return
    part = Part.joined(setup.job, sampler.recent)
    matching = feature_matching.Matching(
        network.module,
        setup.dense.module,
        network.layers,
        setup.intercepts,
        state.masks,
        _augmented_batches(setup, state, part),
        holdout,
        scale=scale,
        steps=plan.steps,
        chunk=part.batches.batch_size,
        frozen=[one.name for one in network.skipped],
    )
    if saved:
        matching.load_state_dict(saved)
    for step in matching.run():
        text = f"held-out error {step.before:.4g} -> {step.after:.4g} (step {step.step} of {plan.steps})"
        yield RefinementStep(text if step.measured else None, matching.state_dict)


def _augmented_batches(setup: StageSetup, state: PruningState, part: Part) -> Batches:
    job = setup.job
    assert job.samples is not None
    _, change = augment.load_augmentation(job.samples.augment, part.batches.split.fetch([0])[0][0])
    return job.batches(
        part.batches.split,
        batch_size=feature_matching.BATCH,
        augment=change,
        # The dense network labels each collage, so that even a thousand images never repeat.
        mix=augment.cut_mix if change is not None else None,
        generator=state.generator,
        shuffle=True,
        drop_last=True,
    )


def _refine_by_gauss_newton(
    setup: StageSetup, state: PruningState, sampler: Sampler, holdout: Risk, saved: Mapping[str, Any]
) -> Iterator[RefinementStep]:
    """Take Gauss-Newton steps on the error, each on fresh random changes of the samples."""
    job, module = setup.job, setup.job.network.module
    if saved.get("last", False):
        return

    def fresh_risk() -> Risk:
        parts = [part.changed_anew(job, setup.dense.module, state.generator) for part in sampler.recent]
        return Part.joined(job, parts).risk(module, setup.plan.objective)

    for step in refine(
        module,
        state.masks,
        fresh_risk,
        holdout,
        steps=setup.plan.refinement.steps,
        seed=job.config.seed + 1_000_003 * (len(state.history) - 1),
        frozen=[one.name for one in job.network.skipped],
        steps_done=saved.get("steps", 0),
    ):
        damping = "no step helps" if step.damping is None else f"damping {step.damping:.2g}"
        text = f"held-out error {step.before:.4g} -> {step.after:.4g} ({damping})"
        yield RefinementStep(text, partial(dict, {"steps": step.step, "last": step.last}))
