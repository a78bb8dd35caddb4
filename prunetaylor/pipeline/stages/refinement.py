"""The refinement of all kept weights at once, as the plan has it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from prunetaylor.data import augment
from prunetaylor.data.samples import Batches
from prunetaylor.pipeline.sampling.calibration import Part
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import PruningState
from prunetaylor.pruning.interfaces import RefinementContext, RefinementStep
from prunetaylor.taylor.risk import Risk

NEGLIGIBLE = 1e-4
"""A refinement that nobody asked for ends where the held-out error is a smaller share of that of a constant answer."""


def refine_network(setup: StageSetup, state: PruningState, sampler: Sampler) -> Iterator[RefinementStep]:
    """Refine the network of ``state`` in place, yielding after each step.

    The refinement learns from the samples of the last stages. Of the refinement that ``state`` has begun, the steps
    that are left are run.
    """
    assert state.refinement is not None
    plan, network, saved = setup.plan.refinement, setup.job.network, state.refinement
    refiner = plan.refiner
    holdout = sampler.calibration.holdout.risk(network.module, setup.plan.objective)
    scale = sampler.calibration.spread(setup.job.task)
    optional = refiner.towards == "dense layers" and not plan.asked
    if optional and not saved and holdout.value() < NEGLIGIBLE * scale:
        yield RefinementStep(f"skipped: held-out error is already {holdout.value():.2g}", dict)
        return
    yield from refiner.refine(
        RefinementContext(
            network=network,
            dense=setup.dense,
            masks=state.masks,
            intercepts=setup.intercepts,
            samples=RecentSamples(setup, state, sampler),
            holdout=holdout,
            scale=scale,
            steps=plan.steps,
            seed=setup.job.config.seed + 1_000_003 * (len(state.history) - 1),
            state=saved,
        )
    )


class RecentSamples:
    """The fitted samples of the last stages, for a refiner."""

    def __init__(self, setup: StageSetup, state: PruningState, sampler: Sampler) -> None:
        self._setup, self._generator, self._parts = setup, state.generator, sampler.recent

    @cached_property
    def _joined(self) -> Part:
        return Part.joined(self._setup.job, self._parts)

    @property
    def chunk(self) -> int:
        """The number of samples that are passed through the network at once."""
        return self._joined.batches.batch_size

    def augmented(self, batch_size: int) -> Batches:
        """Return shuffled training batches, which are changed anew whenever they are read."""
        job, split = self._setup.job, self._joined.batches.split
        assert job.samples is not None
        _, change = augment.load_augmentation(job.samples.augment, split.fetch([0])[0])
        return job.batches(
            split,
            batch_size=batch_size,
            augment=change,
            # The dense network labels each collage, so that even a thousand images never repeat.
            mix=augment.cut_mix if change is not None else None,
            generator=self._generator,
            shuffle=True,
            drop_last=True,
        )

    def risk(self) -> Risk:
        """Return the error of the refined network on the samples after fresh changes."""
        job, dense = self._setup.job, self._setup.dense.module
        parts = [part.changed_anew(job, dense, self._generator) for part in self._parts]
        return Part.joined(job, parts).risk(job.network.module, self._setup.plan.objective)
