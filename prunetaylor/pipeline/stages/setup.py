"""The setup that the stages of one run share: the networks, the plan, and the methods that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetaylor.core.progress import Progress
from prunetaylor.core.results.outcome import removed_at
from prunetaylor.network.network import Network
from prunetaylor.network.state import snapshot
from prunetaylor.pipeline.choice_log import ChoiceLog
from prunetaylor.pipeline.job import Job
from prunetaylor.pipeline.planning.plan import PruningPlan
from prunetaylor.pipeline.preparation import Preparation
from prunetaylor.pipeline.sampling.calibration import Calibration
from prunetaylor.pruning.intercepts import Intercept
from prunetaylor.pruning.interfaces import Criterion, Solver, load_criterion, load_structure
from prunetaylor.pruning.selection.selector import Selector
from prunetaylor.taylor.curvature.cache import Cache, open_cache
from prunetaylor.taylor.curvature.gram import Positions
from prunetaylor.taylor.layer_scores import LayerScores
from prunetaylor.taylor.model import TaylorModel
from prunetaylor.taylor.risk import Risk


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
    intercepts: Mapping[str, Intercept]

    @property
    def target_count(self) -> int:
        """Return the number of weights that the sparsity asked for removes."""
        return removed_at(self.job.config.prune.sparsity, self.job.network.prunable)

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


def make_setup(prepared: Preparation, choices: ChoiceLog, progress: Progress) -> StageSetup:
    """Load the methods that the plan names, and list its choices in ``choices``."""
    job, plan = prepared.job, prepared.plan
    for line in prepared.lines:
        choices(line)
    criterion, structure = load_criterion(plan.method), load_structure(job.config.prune.structure)
    return StageSetup(
        job=job,
        plan=plan,
        dense=prepared.dense,
        dense_state=snapshot(prepared.dense.module),
        criterion=criterion,
        selector=Selector(job.network, criterion, structure, prepared.generator),
        cache=open_cache(job.config.cache),
        choices=choices,
        progress=progress,
        trained_between_stages=bool(plan.gradual),
        intercepts=prepared.probe.intercepts,
    )
