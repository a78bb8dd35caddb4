"""The setup that the stages of one run share: samples are drawn, layers checked, and error and repair decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import Alert, removed_at
from prunetaylor.measure.cost import count_flops
from prunetaylor.network.network import Network
from prunetaylor.network.state import check_values, snapshot
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.pipeline.planning.plan import PruningPlan, make_plan
from prunetaylor.pipeline.planning.repair import fits_samples
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pipeline.sampling.sampler import Sampler
from prunetaylor.pruning.intercepts import Intercept, find_intercepts
from prunetaylor.pruning.interfaces import Criterion, Solver, load_criterion, load_structure
from prunetaylor.pruning.selection.selector import Selector
from prunetaylor.taylor.convergence import check_convergence
from prunetaylor.taylor.curvature.cache import Cache, open_cache
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.layer_check import check_layers
from prunetaylor.taylor.layer_scores import LayerScores
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.objective import Objective
from prunetaylor.taylor.passes import first_batch
from prunetaylor.taylor.risk import Risk

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
        plan: every choice of the run.
        choices: the lines that the report lists.
        trained_between_stages: the network is trained between stages, as in a gradual schedule.
        intercepts: the biases or batch-norm means that can take up a shift of a layer's mean output, by layer name.
        alerts: warnings about the samples.
    """

    job: Job
    plan: PruningPlan
    dense: Network
    dense_state: dict[str, Tensor]
    criterion: Criterion
    selector: Selector
    cache: Cache | None
    choices: ChoiceLog
    progress: Progress
    trained_between_stages: bool
    intercepts: Mapping[str, Intercept] = field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()

    @property
    def uses_damping(self) -> bool:
        """Return whether a stage's step depends on the damping."""
        repair = self.plan.removal_repair
        return self.criterion.uses_damping or (repair is not None and repair.uses_damping)

    @property
    def moves_weights(self) -> bool:
        """Return whether a stage's step moves kept weights too."""
        return self.plan.removal_repair is not None or isinstance(self.criterion, Solver)

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
            keep_first=self.plan.keep_first_order,
            trained_between_stages=self.trained_between_stages,
            layer_scores=layer_scores,
        )


def make_setup(
    job: Job,
    plan: PruningPlan,
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
    """
    check_values(dense.module)
    criterion = load_criterion(plan.method)
    structure = load_structure(job.config.prune.structure)
    return StageSetup(
        job=job,
        plan=plan,
        dense=dense,
        dense_state=snapshot(dense.module),
        criterion=criterion,
        selector=Selector(job.network, criterion, structure, generator),
        cache=open_cache(job.config.cache),
        choices=choices,
        progress=progress,
        trained_between_stages=trained_between_stages,
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
    alerts = _warn_of_few_samples(setup, calibration)
    fitted = fits_samples(job.config, setup.plan.method, setup.criterion)
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
    facts = _gather_facts(setup, calibration)
    if nothing_to_prune:
        facts = replace(facts, zeros=zero_count(job))
    plan = make_plan(job.config, facts, job.choices, one_step=single_step)
    progress.step("error chosen")
    for text in plan.lines:
        choices(text)
    return replace(setup, plan=plan, alerts=alerts)


def _gather_facts(setup: StageSetup, calibration: Calibration) -> Facts:
    """Return what the dense network and its samples tell, once it is known which layers can be pruned."""
    job, dense = setup.job, setup.dense
    work = count_flops(dense.module, first_batch(calibration.holdout.batches)[0])[0]
    facts = replace(job.facts, prunable=job.network.prunable, forward_work=work)
    if not job.labelled:
        return facts
    risk = calibration.fit.risk(dense.module, Objective(job.task, "task"))
    model = setup.taylor_model(dense, risk, calibration, damping=job.config.prune.damping, stage=1)
    return replace(facts, convergence=check_convergence(model))


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


def _warn_of_few_samples(setup: StageSetup, calibration: Calibration) -> tuple[Alert, ...]:
    holdout, fitted = calibration.holdout.batches.samples, calibration.fit.batches.samples
    if holdout < MIN_HOLDOUT:
        setup.choices(f"only {holdout} held-out samples: their measurements are rough; raise calibration.samples")
    if holdout + fitted < MIN_CALIBRATION:
        text = (
            f"only {holdout + fitted} calibration samples: expect a larger drop; 1,000 are usual (calibration.samples)"
        )
        setup.progress.warn(text)
        return (Alert("few_samples", text),)
    return ()
