"""The control of a one-shot run's stages: sparsities fixed beforehand, or as far as the model can be trusted."""

from __future__ import annotations

from prunetaylor.core.results.outcome import removed_at
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import StepControl
from prunetaylor.pruning.selection.schedule import Fixed
from prunetaylor.pruning.selection.trust_region import TrustRegion


def make_control(setup: StageSetup, calibration: Calibration, removed: int) -> StepControl:
    """Make the control of the stages from ``removed`` weights to the sparsity asked for, as the plan has it."""
    options, largest = setup.job.config.prune, setup.plan.schedule.max_fraction
    if largest is None:
        return Fixed(fixed_sparsities(setup, removed), options.damping)
    return TrustRegion(options.sparsity, calibration.spread(setup.job.task), options.damping, largest)


def fixed_sparsities(setup: StageSetup, removed: int) -> list[float]:
    """Return the sparsity after each stage; those that would not remove more than ``removed`` weights are left out."""
    prunable = setup.job.network.prunable
    return [level for level in setup.plan.schedule.levels if removed_at(level, prunable) > removed]
