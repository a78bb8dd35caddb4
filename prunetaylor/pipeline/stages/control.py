"""The control of a one-shot run's stages: sparsities fixed beforehand, or as far as the model can be trusted."""

from __future__ import annotations

from prunetaylor.core.results.outcome import removed_at
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.stages.setup import StageSetup
from prunetaylor.pipeline.stages.state import StepControl
from prunetaylor.pruning.selection.schedule import Fixed, sparsities
from prunetaylor.pruning.selection.trust_region import FRESH_STAGE_FRACTION, TrustRegion


def make_control(setup: StageSetup, calibration: Calibration, removed: int) -> StepControl:
    """Make the control of the stages from ``removed`` weights to the sparsity asked for.

    Where the stages are left to the program it is a trust region, unless the criterion is known for a single stage.
    Stages that each learn from fresh samples are many and short.
    """
    config, largest = setup.job.config, setup.criterion.max_stage_fraction
    if config.prune.stages != "auto" or largest is None:
        return Fixed(fixed_sparsities(setup, removed), config.prune.damping)
    if config.calibration.resample and setup.aim.refinement.when == "stages":
        largest = FRESH_STAGE_FRACTION
    return TrustRegion(config.prune.sparsity, calibration.spread(setup.job.task), config.prune.damping, largest)


def fixed_sparsities(setup: StageSetup, removed: int) -> list[float]:
    """Return the sparsity after each stage; those that would not remove more than ``removed`` weights are left out."""
    config, prunable = setup.job.config.prune, setup.job.network.prunable
    levels = sparsities(config.sparsity, config.stages, setup.criterion.max_stage_fraction is not None)
    return [level for level in levels if removed_at(level, prunable) > removed]
