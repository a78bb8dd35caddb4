"""What the stages of one run share, and its preparation: draw samples, check the layers, decide on error and repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert, removed_at
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, snapshot
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.plan import Aim, look, unseen
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pruning.interfaces import Criterion, load_criterion, load_structure
from prunetaylor.pruning.repair.intercepts import Intercept, find_intercepts
from prunetaylor.pruning.selection.selector import Selector
from prunetaylor.taylor.curvature.cache import Cache, open_cache
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.layer_check import check_layers
from prunetaylor.taylor.layer_scores import LayerScores
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.passes import Risk

MIN_HOLDOUT = 20
"""A run with fewer holdout samples notes that its measurements are rough."""
MIN_CALIBRATION = 50
"""A run with fewer calibration samples warns that the drop will be larger."""


@dataclass(frozen=True)
class StageSetup:
    """Everything that the stages of one run share and that does not change while they run.

    Attributes:
        job: ``job.network`` is pruned in place.
        dense: a copy of the network that stays as it is.
        dense_state: the same network's state.
        choices: the lines that the report lists.
        trained_between_stages: the network is trained between stages, as in a gradual schedule.
        intercepts: the biases or batch-norm means that can take up a shift of a layer's mean output, by layer name.
    """

    job: Job
    dense: Network
    dense_state: dict[str, Tensor]
    criterion: Criterion
    selector: Selector
    cache: Cache | None
    choices: ChoiceLog
    progress: Progress
    trained_between_stages: bool
    aim: Aim
    intercepts: Mapping[str, Intercept] = field(default_factory=dict)

    def taylor_model(
        self,
        network: Network,
        risk: Risk,
        calibration: Calibration,
        *,
        damping: float,
        stage: int,
        holdout_model: TaylorModel | None = None,
        layer_scores: LayerScores | None = None,
    ) -> TaylorModel:
        """Expand the error on the samples of ``risk`` around the present state of ``network``."""
        seed = self.job.config.seed
        return TaylorModel(
            network,
            risk,
            Positions(calibration.fit.batches.samples, seed),
            damping=damping,
            seed=seed,
            note=self.choices,
            intercepts=self.intercepts,
            cache=self.cache,
            stage=stage,
            holdout_model=holdout_model,
            keep_first=self.aim.keep_first,
            trained_between_stages=self.trained_between_stages,
            layer_scores=layer_scores,
        )


def make_setup(
    job: Job,
    dense: Network,
    generator: torch.Generator,
    choices: ChoiceLog,
    progress: Progress,
    *,
    trained_between_stages: bool,
) -> StageSetup:
    """Set up stages that need no samples, or whose samples are not drawn yet.

    Raises:
        NumericsError: a weight is not finite.
        UsageError: the criterion rules out the repair that was asked for.
    """
    check_values(dense.module)
    criterion = load_criterion(job.method)
    structure = load_structure(job.config.prune.structure)
    return StageSetup(
        job=job,
        dense=dense,
        dense_state=snapshot(dense.module),
        criterion=criterion,
        selector=Selector(job.network, criterion, structure, generator),
        cache=open_cache(job.config.cache),
        choices=choices,
        progress=progress,
        trained_between_stages=trained_between_stages,
        aim=unseen(job, criterion),
    )


def prepare(setup: StageSetup, sampler: Sampler, *, single_step: bool = False) -> StageSetup:
    """Draw the first samples, leave out layers that cannot be pruned, and decide on the error and the repair.

    Args:
        single_step: every sparsity is tried in one step that is undone, so that nothing is refined.
    """
    job, progress, choices = setup.job, setup.progress, setup.choices
    progress.phase("calibrate", 3)
    calibration = sampler.draw()
    progress.step("samples drawn")
    _warn_of_few_samples(setup, calibration)
    fitted = setup.criterion.needs != "nothing" or job.config.prune.repair in ("least-squares", "obs")
    checked = check_layers(job.network, calibration.fit.batches, fitted=fitted)
    for network in (job.network, setup.dense):
        network.keep_only(checked.order, checked.why)
    for text in checked.notes:
        choices(text)
    nothing_to_prune = not single_step and has_target_sparsity(job)
    if nothing_to_prune:
        report_nothing_to_prune(setup)
    progress.step("layers checked")
    intercepts = find_intercepts(job.network.module, job.network.layers, calibration.fit.batches)
    setup = replace(setup, intercepts=intercepts)
    aim = look(
        job,
        setup.criterion,
        calibration,
        setup.dense.module,
        lambda risk: setup.taylor_model(setup.dense, risk, calibration, damping=job.config.prune.damping, stage=1),
        nothing_to_prune=nothing_to_prune,
        refines=not single_step,
    )
    progress.step("error chosen")
    for text in aim.said:
        choices(text)
    return replace(setup, aim=aim)


def target_count(job: Job) -> int:
    """Return the number of weights that the sparsity asked for removes."""
    return removed_at(job.config.prune.sparsity, job.network.prunable)


def zero_count(job: Job) -> int:
    """Return the number of prunable weights that are zero."""
    return sum(int((~mask).sum()) for mask in job.network.masks().values())


def has_target_sparsity(job: Job) -> bool:
    """Return whether the network, as it is, has the sparsity asked for or more."""
    return zero_count(job) >= target_count(job)


def report_nothing_to_prune(setup: StageSetup) -> None:
    """Add to the choices that there is nothing to remove."""
    asked, zero = setup.job.config.prune.sparsity, zero_count(setup.job) / setup.job.network.prunable
    setup.choices(f"nothing to remove: {asked:.2%} was asked for, {zero:.2%} is zero already")


def _warn_of_few_samples(setup: StageSetup, calibration: Calibration) -> None:
    holdout, fitted = calibration.holdout.batches.samples, calibration.fit.batches.samples
    if holdout < MIN_HOLDOUT:
        setup.choices(f"only {holdout} held-out samples: their measurements are rough; raise calibration.samples")
    if holdout + fitted < MIN_CALIBRATION:
        text = (
            f"only {holdout + fitted} calibration samples: expect a larger drop; 1,000 are usual (calibration.samples)"
        )
        setup.job.warn(Alert("few_samples", text), setup.progress)
